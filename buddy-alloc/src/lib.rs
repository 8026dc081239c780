#![doc = include_str!("../README.md")]
#![no_std]
#![cfg_attr(docsrs, feature(doc_cfg))]
// Unsafe code lives in `storage`, which reinterprets the caller's metadata memory, and nowhere
// else.
#![deny(unsafe_code)]

#[cfg(any(test, feature = "test-utils"))]
extern crate alloc;
#[cfg(any(test, loom))]
extern crate std;

#[cfg(feature = "balloon")]
mod balloon;
mod bits;
mod cache;
mod cached_bits;
mod cached_zone;
mod config;
mod error;
mod frame;
mod list;
mod lock;
mod node;
mod region;
mod reserve;
#[expect(unsafe_code, reason = "caller memory as atomics, see the module")]
mod storage;
mod sync;
#[cfg(feature = "test-utils")]
#[path = "../testkit/mod.rs"]
pub mod testing;
mod zone;
mod zones;

pub use cached_zone::{CachedZone, Cpu};
pub use config::Config;
pub use error::{AddError, AllocError, AtError, ConfigError, FreeError, RangeError};
pub use frame::{Frame, FrameCount, FrameRange, Order};
pub use lock::Lock;
pub use reserve::{Reserve, ReserveShortage, Reserved};
pub use zone::Zone;
pub use zone::add::Backing;
pub use zone::alloc::Preference;
pub use zone::balloon::{Shortage, TakeRequest, Via};
pub use zone::batch::FreeBatchError;
pub use zone::compact::RegionUse;
pub use zone::report::{IsolateRequest, Isolated, ReportCursor};
pub use zone::sink::{RangeBuf, RangeSink};
pub use zone::stats::{BlockState, FreeBlock, State, Stats};
pub use zones::Zones;
