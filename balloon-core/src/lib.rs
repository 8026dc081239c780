#![doc = include_str!("../README.md")]
#![no_std]
#![cfg_attr(docsrs, feature(doc_cfg))]
// Only the models' cells, which loom checks, are unsafe.
#![cfg_attr(not(loom), forbid(unsafe_code))]

#[cfg(any(test, feature = "test-utils"))]
extern crate alloc;
#[cfg(any(test, loom))]
extern crate std;

mod backoff;
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
pub mod testing;
mod transport;
mod units;
pub mod wire;

pub use backoff::Delays;
pub use compact::{
    Compactor, Fragmentation, Isolated, MeanWalk, MigrateError, Migrated, Migrations, NotBallooned,
    Report, Ticket, TooFewWords, WalkCost, WalkLevels, compactor_words,
};
pub use engine::{Engine, MAX_RUNS, Need, Relieved, Resume};
pub use events::Event;
pub use ledger::{BitmapLedger, LedgerError, Ledgered, MAX_REGIONS};
pub use migrate::{Migrate, Migration, Trade};
pub use pages::{PageAllocator, Paged};
pub use policy::{Budget, OomRule, Policy, Unit, floor, page_table_reserve};
pub use remap::RemapList;
pub use run::{RangeSink, Run};
pub use shared::{RESERVE_FRAMES, Shared};
pub use signal::Signal;
pub use slots::{
    Claimed, Completer, Exhausted, InFlight, Kind, NotInFlight, Outcome, SlotId, Slots,
};
pub use source::{Ask, Backing, FrameSource, GivePath, Ledger, Stop};
pub use status::{Blocked, Counters, Pace, Progress, Status, Step};
pub use transport::{Capabilities, Limits, Request, Transport, TransportError, TransportErrorKind};
pub use units::{Bytes, FRAME_SHIFT, FrameCount, FrameRange, Nanos, Order, Pfn};
