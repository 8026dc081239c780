//! The virtio-balloon wire protocol, without any I/O.
//!
//! Virtio 1.2 section 5.5 and what real devices make of it: feature bits,
//! configuration space, queue numbering, request encoding. Everything here is
//! a value or a pure function and builds on any target.

mod chunks;
mod config;
mod features;
mod numbering;
mod policy;
mod wire;

pub use chunks::{CHUNK_TRANSFER, CHUNKS_PER_RESPONSE, Command, HOST_REQUESTS, HostRequest};
pub use config::{
    ACTUAL, ConfigIo, HINT_COMMAND, MIN_CONFIG, NUM_PAGES, POISON_VALUE, Unstable, needed_config,
    read_stable,
};
pub use features::{
    Features, OPTIONAL, REQUIRED, bulk_allowed, reporting_allowed, wanted_features,
};
pub use numbering::{MissingQueue, Numbering, QueueId, QueueIndex, QueueMap, discover};
pub use policy::Policy;
pub use wire::{BULK_RUN, StatisticsBuffer, Tag};
