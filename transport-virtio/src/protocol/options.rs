//! What the embedding kernel wants, beside what the device offers.

use super::features::Features;
use super::features::{CHUNK_TRANSFER, HOST_REQUESTS};

/// What the embedding kernel wants from the device.
///
/// ```
/// use transport_virtio::DriverOptions;
///
/// // Everything a device offers, interrupts connected:
/// const FULL: DriverOptions = DriverOptions::new();
/// // A kernel that connects no interrupt:
/// const POLLED: DriverOptions = DriverOptions::new().polled();
/// assert!(FULL.interrupts() && !POLLED.interrupts());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DriverOptions {
    bulk: bool,
    interrupts: bool,
    event_idx: bool,
    indirect: bool,
    statistics: bool,
    hints: bool,
    reporting: bool,
    superpages: bool,
    chunks: bool,
    poison: Option<u32>,
}

impl DriverOptions {
    /// Every give path, interrupts connected, notifications by ring position.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            bulk: true,
            interrupts: true,
            event_idx: true,
            indirect: true,
            statistics: false,
            hints: false,
            reporting: false,
            superpages: false,
            chunks: false,
            poison: None,
        }
    }

    /// No interrupt reaches the kernel: the device is asked for none.
    #[must_use]
    pub const fn polled(mut self) -> Self {
        self.interrupts = false;
        self
    }

    /// Never gives ranges through the reporting queue.
    ///
    /// The frames then take the inflate queue, as 4 KiB page numbers. For hosts
    /// that account for the two differently.
    #[must_use]
    pub const fn without_bulk(mut self) -> Self {
        self.bulk = false;
        self
    }

    /// The host backs the guest with pages of 2 MiB that it cannot split
    /// (hugetlbfs).
    ///
    /// QEMU frees such a page only if one request names all of it, which takes
    /// 512 page numbers: two descriptors of 256, since others lose longer ones.
    /// The engine then gives whole pages first. Only for hosts known to be so:
    /// Firecracker reads the first descriptor alone.
    #[must_use]
    pub const fn with_host_superpages(mut self) -> Self {
        self.superpages = true;
        self
    }

    /// Whether the host's pages are of 2 MiB.
    #[must_use]
    pub const fn host_superpages(&self) -> bool {
        self.superpages
    }

    /// The device is known to speak the `CHUNK_TRANSFER` dialect of 2017.
    ///
    /// Never inferred from the device: its feature bits mean free page hinting
    /// and poison today. Excludes both, and the bulk path. For
    /// [`Rings`](crate::Rings) it takes more memory:
    /// [`dma_bytes`](crate::Rings::dma_bytes).
    #[must_use]
    pub const fn with_chunk_transfer(mut self) -> Self {
        self.chunks = true;
        self
    }

    /// Whether the device is known to speak `CHUNK_TRANSFER`.
    #[must_use]
    pub const fn chunk_transfer(&self) -> bool {
        self.chunks
    }

    /// Those of `features` that mean what the specification says.
    pub(crate) const fn standard(&self, features: Features) -> Features {
        if self.chunks {
            features.difference(CHUNK_TRANSFER.union(HOST_REQUESTS))
        } else {
            features
        }
    }

    /// The features by which `features` number queues: the dialect's queue for
    /// host requests is where that for hints is.
    pub(crate) const fn queues(&self, features: Features) -> Features {
        let standard = self.standard(features);
        if self.chunks && features.contains(HOST_REQUESTS) {
            standard.union(Features::FREE_PAGE_HINT)
        } else {
            standard
        }
    }

    /// Declines notification suppression by ring position.
    #[must_use]
    pub const fn without_event_idx(mut self) -> Self {
        self.event_idx = false;
        self
    }

    /// Declines tables of descriptors: each range costs a descriptor then.
    #[must_use]
    pub const fn without_indirect(mut self) -> Self {
        self.indirect = false;
        self
    }

    /// The kernel steps [`Statistics`](crate::Statistics).
    #[must_use]
    pub const fn with_statistics(mut self) -> Self {
        self.statistics = true;
        self
    }

    /// The kernel steps [`Hinting`](crate::Hinting).
    ///
    /// QEMU offers hints only with an `iothread`, opens a round when a migration
    /// starts, and answers from that thread, which cannot raise an interrupt under
    /// software emulation (TCG). So the hint queue never asks for one, on any host and
    /// whether or not interrupts are connected: the driver looks for answers, and
    /// [`HintStep::wake_at`](crate::HintStep::wake_at) says when to look again.
    /// QEMU raises one all the same, for the first answer, where event indices are
    /// negotiated: under TCG give the device `event_idx=off`, or ask for
    /// [`without_event_idx`](Self::without_event_idx).
    #[must_use]
    pub const fn with_hints(mut self) -> Self {
        self.hints = true;
        self
    }

    /// The kernel steps [`Reporting`](crate::Reporting).
    ///
    /// It shares the reporting queue with the bulk path, half each.
    #[must_use]
    pub const fn with_reporting(mut self) -> Self {
        self.reporting = true;
        self
    }

    /// Every free frame of the kernel holds this value, repeated, and the
    /// kernel relies on it.
    ///
    /// Its frame source must fill what is put back, since ballooned frames come
    /// back with any content. Those that were only reported hold the value: a source
    /// that looks before it writes leaves those without memory at the host. Ranges
    /// are never given in bulk, and reported only to a device that knows the value:
    /// [`Rings`](crate::Rings) tell it; a kernel with virtqueues of its own writes
    /// [`poison`](Self::poison) at [`POISON_VALUE`](super::POISON_VALUE) before
    /// `DRIVER_OK`, if `PAGE_POISON` is negotiated.
    #[must_use]
    pub const fn with_poison(mut self, value: u32) -> Self {
        self.poison = Some(value);
        self
    }

    /// What free frames hold, if the kernel relies on it.
    #[must_use]
    pub const fn poison(&self) -> Option<u32> {
        self.poison
    }

    /// Whether interrupts are connected.
    #[must_use]
    pub const fn interrupts(&self) -> bool {
        self.interrupts
    }

    pub(crate) const fn bulk(&self) -> bool {
        self.bulk
    }

    pub(crate) const fn event_idx(&self) -> bool {
        self.event_idx
    }

    pub(crate) const fn indirect(&self) -> bool {
        self.indirect
    }

    pub(crate) const fn statistics(&self) -> bool {
        self.statistics
    }

    pub(crate) const fn hints(&self) -> bool {
        self.hints
    }

    pub(crate) const fn reporting(&self) -> bool {
        self.reporting
    }
}

impl Default for DriverOptions {
    fn default() -> Self {
        Self::new()
    }
}
