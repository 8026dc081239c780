#![doc = include_str!("../README.md")]
#![no_std]
#![cfg_attr(docsrs, feature(doc_cfg))]
// Unsafe code lives in `storage`, which reinterprets the caller's metadata memory, and nowhere
// else.
#![deny(unsafe_code)]

#[cfg(any(test, feature = "test-utils"))]
extern crate alloc;
#[cfg(test)]
extern crate std;

#[cfg(feature = "balloon")]
mod balloon;
mod bits;
mod config;
mod error;
mod frame;
mod list;
mod node;
mod region;
#[expect(unsafe_code, reason = "caller memory as atomics, see the module")]
mod storage;
#[cfg(feature = "test-utils")]
pub mod testing;
mod zone;

pub use config::Config;
pub use error::{AddError, AllocError, AtError, ConfigError, FreeError, RangeError};
pub use frame::{Frame, FrameCount, FrameRange, Order};
pub use zone::{
    Backing, BlockState, FreeBlock, GivePath, Isolated, Preference, RangeBuf, RangeSink, RegionUse,
    ReportAsk, ReportCursor, State, Stats, TakeAsk, TakeStop, Zone,
};
