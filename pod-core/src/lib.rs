#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]

#[cfg(any(test, feature = "test-utils"))]
extern crate alloc;
#[cfg(test)]
extern crate std;

mod alarm;
mod audit;
mod batch;
mod bits;
mod cache;
mod config;
mod demand;
mod entry;
mod frame;
mod host;
mod level;
mod pod;
mod promises;
mod promote;
mod range;
mod reclaim;
mod region;
mod release;
mod relocate;
mod ring;
pub mod scan;
#[cfg(any(test, feature = "test-utils"))]
pub mod sim;
mod stats;
mod sweep;
mod target;
mod teardown;
mod units;

pub use alarm::{Alarm, Level};
pub use audit::{AuditError, Census};
pub use config::{Config, Geometry, NewError, Rules, Sizes, Storage};
pub use demand::{Demand, DemandError, Toucher, Wait};
pub use entry::{Attr, Entry, Leaf, Pattern};
pub use frame::{Backing, Dirty, Frame, FrameState, NeedsFlush, Zeroed};
pub use host::{Event, FreezeError, Host, Policy, SetError, Users};
pub use level::Block;
pub use pod::{Pod, ResumeError, Suspended};
pub use promises::{PromiseRange, Promises};
pub use promote::CoalesceStep;
pub use range::{Progress, RangeError};
pub use region::Region;
pub use release::{Leave, ReleaseError, Released};
pub use relocate::{Content, RelocateError};
pub use ring::Lane;
pub use stats::{Stats, Totals};
pub use sweep::ReclaimStep;
pub use target::{Target, TargetError};
pub use teardown::{Drain, FrameFailed, PinError};
pub use units::{Budget, FrameCount, Gfn, Mfn, Node, Order, Vcpu};
