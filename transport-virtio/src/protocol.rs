//! The virtio-balloon wire protocol, without any I/O.
//!
//! Virtio 1.2 section 5.5 and what real devices make of it: feature bits,
//! configuration space, queue numbering, request encoding. Everything here is
//! a value or a pure function and builds on any target.

pub(crate) mod chunks;
pub(crate) mod config;
pub(crate) mod features;
pub(crate) mod negotiation;
pub(crate) mod numbering;
pub(crate) mod options;
pub(crate) mod status;
pub(crate) mod wire;

pub use chunks::{CHUNKS_PER_RESPONSE, Command, HostRequest};
pub use config::{
    ACTUAL, ConfigIo, HINT_COMMAND, MIN_CONFIG, NUM_PAGES, POISON_VALUE, Unstable, needed_config,
    read_stable,
};
pub use features::{CHUNK_TRANSFER, HOST_REQUESTS};
pub use features::{Features, OPTIONAL, REQUIRED};
pub use negotiation::{bulk_allowed, reporting_allowed, wanted_features};
pub use numbering::{MissingQueue, Numbering, QueueId, QueueIndex, QueueMap, discover};
pub use options::DriverOptions;
pub use status::DeviceStatus;
pub use wire::{BULK_RUN, MAX_BYTES, StatisticsBuffer, Tag};
