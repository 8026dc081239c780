#![doc = include_str!("../README.md")]
#![no_std]
#![cfg_attr(docsrs, feature(doc_cfg))]
// Only the models' cells, which loom checks, are unsafe.
#![cfg_attr(not(loom), forbid(unsafe_code))]

#[cfg(any(test, feature = "test-utils"))]
extern crate alloc;
#[cfg(any(test, loom))]
extern crate std;

mod backing;
mod backoff;
mod balloon;
mod bitmap;
mod compact;
mod engine;
mod events;
mod ledger;
#[cfg(all(test, loom))]
mod loom_models;
mod migrate;
mod pages;
mod policy;
mod remap;
mod run;
mod shared;
mod signal;
mod slots;
mod source;
mod status;
mod sync;
#[cfg(any(test, feature = "test-utils"))]
#[path = "../testkit/mod.rs"]
pub mod testing;
mod transport;
mod units;
pub mod wire;

pub use backing::Backing;
pub use backoff::{Delays, is_to_come};
pub use balloon::{AlreadyStarted, Balloon, Parts};
pub use compact::kernel::{Isolated, MigrateError, Migrated, NotBallooned, Ticket};
pub use compact::report::{Fragmentation, MeanWalk, Report, WalkCost, WalkLevels};
pub use compact::{Compactor, Migrations, TooFewWords, compactor_words};
pub use engine::Engine;
pub use engine::lifecycle::Resume;
pub use engine::relief::{Need, Relief, Relieved};
pub use engine::table::MAX_RUNS;
pub use events::{Event, Events};
pub use ledger::{BitmapLedger, LedgerError, Ledgered, MAX_REGIONS};
pub use migrate::{Migrate, MigrateRequest, Migration};
pub use pages::{PageAllocator, Paged};
pub use policy::{Budget, Granularity, Policy, floor, low_watermark, page_table_reserve};
pub use remap::RemapList;
pub use run::{RangeSink, Run};
pub use shared::{EMERGENCY_FRAMES, Entered, Shared};
pub use signal::Signal;
pub use slots::Request;
pub use slots::{
    Claimed, Completer, Exhausted, InFlight, Kind, NotInFlight, Outcome, SlotId, Slots, SlotsId,
};
pub use source::{FrameSource, Ledger, Shortage, TakeRequest, Via};
pub use status::{Blocked, Counters, Pace, Progress, Status, Step};
pub use transport::{Capabilities, Limits, Transport, TransportError, TransportErrorKind};
pub use units::{Bytes, FRAME_SHIFT, FrameCount, FrameRange, Nanos, Order, Pfn};
