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
pub mod testing;
mod zone;
mod zones;

pub use cached_zone::{CachedZone, Cpu};
pub use config::Config;
pub use error::{AddError, AllocError, AtError, ConfigError, FreeError, RangeError};
pub use frame::{Frame, FrameCount, FrameRange, Order};
pub use lock::Lock;
pub use reserve::{Reserve, Reserved, TakeEnd};
pub use zone::{
    Backing, BlockState, FreeBatchError, FreeBlock, GivePath, Isolated, Preference, RangeBuf,
    RangeSink, RegionUse, ReportAsk, ReportCursor, State, Stats, TakeAsk, TakeStop, Zone,
};
pub use zones::Zones;
