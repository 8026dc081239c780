#![doc = include_str!("../README.md")]
#![no_std]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]

#[cfg(any(test, feature = "test-utils"))]
extern crate alloc;
#[cfg(test)]
extern crate std;

mod backoff;
mod bitmap;
mod engine;
mod ledger;
mod migrate;
mod policy;
mod run;
mod shared;
mod signal;
mod slots;
mod source;
mod status;
mod sync;
#[cfg(any(test, feature = "test-utils"))]
pub mod testing;
mod transport;
mod units;

pub use backoff::Delays;
pub use engine::{Engine, MAX_RUNS};
pub use ledger::{BitmapLedger, LedgerError, Ledgered, MAX_REGIONS};
pub use migrate::{Migrate, Migration, Trade};
pub use policy::{Budget, Policy};
pub use run::{RangeSink, Run};
pub use shared::Shared;
pub use signal::Signal;
pub use slots::{Completer, Exhausted, Kind, Outcome, SlotId, Slots, WrongState};
pub use source::{Ask, Backing, FrameSource, GivePath, Ledger, Stop};
pub use status::{Blocked, Counters, Progress, Status, Step};
pub use transport::{Capabilities, Limits, Request, Transport, TransportError, TransportErrorKind};
pub use units::{Bytes, FRAME_SHIFT, FrameCount, FrameRange, Nanos, Order, Pfn};
