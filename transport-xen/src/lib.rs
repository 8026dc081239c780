#![doc = include_str!("../README.md")]
#![no_std]
#![cfg_attr(docsrs, feature(doc_cfg))]
// Unsafe code only in the modules that say why.
#![deny(unsafe_code)]

#[cfg(any(test, feature = "test-utils"))]
extern crate alloc;
#[cfg(test)]
extern crate std;

mod clear;
mod errno;
pub mod events;
mod frame_map;
pub mod holes;
pub mod hypercall;
mod migrate;
#[expect(unsafe_code, reason = "reads and writes memory other domains share")]
mod page;
pub mod platform;
pub mod pod;
pub mod remap;
mod reservation;
pub mod store;
pub mod suspend;
mod target;
#[cfg(any(test, feature = "test-utils"))]
#[path = "../testkit/mod.rs"]
pub mod testing;
mod transport;
mod units;

pub use clear::{Clear, Uncleared};
pub use errno::Errno;
pub use frame_map::{FrameMap, Translated};
pub use page::{MappedPage, SharedPage};
pub use reservation::{BATCH, Counters, ExtentCounts, Moved, Reservation, Stopped};
pub use target::Target;
pub use transport::{XenBalloon, XenError};
pub use units::{Gmfn, InfoSlot, MachineAddress, Port, Vcpu, Vector};
