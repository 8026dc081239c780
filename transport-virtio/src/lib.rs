#![doc = include_str!("../README.md")]
#![no_std]
#![cfg_attr(docsrs, feature(doc_cfg))]
// Unsafe code: raw addresses in `dma` and `mmio`, nothing else.

#[cfg(any(test, feature = "test-utils"))]
extern crate alloc;
#[cfg(any(test, loom))]
extern crate std;

mod balloon;
mod bring_up;
mod device;
mod dma;
mod hint;
mod interrupt;
mod lent;
mod mmio;
pub mod pci;
pub mod protocol;
mod queues;
mod report;
mod ring;
mod rings;
mod shape;
mod statistics;
mod sync;
#[cfg(any(test, feature = "test-utils"))]
#[path = "../testkit/mod.rs"]
pub mod testing;
mod unused;
#[cfg(feature = "virtio-drivers-0-13")]
pub mod virtio_drivers_0_13;
mod virtio_mmio;

pub use balloon::{Counters, VirtioBalloon, VirtioError};
pub use bring_up::BringUpError;
pub use device::{Device, Handshake, QueueRefused, RingAddresses};
pub use dma::{Dma, DmaRegion};
pub use hint::{HintStep, Hinting};
pub use mmio::MmioWindow;
pub use pci::MappedPci;
pub use protocol::DeviceStatus;
pub use protocol::MAX_BYTES;
pub use protocol::{
    ConfigIo, DriverOptions, Features, MissingQueue, Numbering, OPTIONAL, QueueId, QueueIndex,
    QueueMap, REQUIRED, Tag, discover, wanted_features,
};
pub use queues::{Body, Capacity, HostRequestQueue, QueueCounters, QueueError, Queues, RequestId};
pub use report::{ReportPace, ReportStep, Reporting};
pub use rings::{AttachError, Refused, Rings};
pub use statistics::{Statistics, StatisticsStep};
pub use unused::{UnusedPages, UnusedStep};
pub use virtio_mmio::{MappedMmio, MmioError};

/// A balloon on a modern PCI device, with up to `S` requests in flight a queue.
pub type PciBalloon<const S: usize = 64> = VirtioBalloon<Rings<MappedPci, DmaRegion, S>>;

/// A balloon on a virtio-mmio device, with up to `S` requests in flight a queue.
pub type MmioBalloon<const S: usize = 64> = VirtioBalloon<Rings<MappedMmio, DmaRegion, S>>;
