//! How known device models number and size their queues.

use crate::protocol::features::Features;
use crate::protocol::features::{CHUNK_TRANSFER, HOST_REQUESTS};
use crate::protocol::numbering::{QueueId, QueueIndex};

/// Queues, features and configuration space of a device model.
///
/// Facts from the models' sources; each constructor takes the balloon features
/// the device is switched on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    offered: Features,
    indices: [Option<u16>; QueueId::COUNT],
    sizes: [u16; 8],
    config_len: usize,
    chunks: bool,
    forgets_rounds: bool,
    has_generation: bool,
    remembers_size: bool,
}

const GENERIC: Features = Features::VERSION_1
    .union(Features::EVENT_IDX)
    .union(Features::INDIRECT_DESC);

impl Profile {
    /// Queues at the specification's indices, absent ones left out.
    #[must_use]
    pub fn specification(offered: Features) -> Self {
        let fixed = |queue: QueueId| {
            let index = u16::try_from(queue.index()).ok();
            index.filter(|_| offered.contains(queue.feature()))
        };
        Self::numbered(offered, QueueId::ALL.map(fixed), [64; QueueId::COUNT], 16)
    }

    /// In a row, statistics always among them, reporting with 32 entries.
    #[must_use]
    pub fn qemu(offered: Features) -> Self {
        let offered = offered | Features::STATS_VQ;
        Self {
            forgets_rounds: true,
            ..Self::row(offered, [128, 128, 128, 1024, 32], 16)
        }
    }

    /// Whether the command of a hinting round is gone from the configuration,
    /// as if it was to stop, once the driver has opened the round. Nothing tells
    /// the driver of that.
    #[must_use]
    pub const fn forgets_rounds(&self) -> bool {
        self.forgets_rounds
    }

    /// In a row, 256 entries each, no poison value in the configuration, whose
    /// generation is zero for ever.
    #[must_use]
    pub fn firecracker(offered: Features) -> Self {
        Self {
            has_generation: false,
            ..Self::row(offered, [256; QueueId::COUNT], 12)
        }
    }

    /// Whether the generation of the configuration changes with it.
    #[must_use]
    pub const fn has_generation(&self) -> bool {
        self.has_generation
    }

    /// In a row without hinting; only the two sizes in the configuration.
    #[must_use]
    pub fn cloud_hypervisor(offered: Features) -> Self {
        let offered = offered - Features::FREE_PAGE_HINT;
        Self::row(offered, [128, 128, 128, 0, 32], 8)
    }

    /// In a row, two private queues for working sets at its end.
    #[must_use]
    pub fn crosvm(offered: Features) -> Self {
        let private = Features::from_bits_retain(1 << 8);
        let row = Self::row(
            offered - Features::FREE_PAGE_HINT,
            [128; QueueId::COUNT],
            16,
        );
        let mut profile = Self {
            offered: row.offered | private,
            ..row
        };
        profile
            .sizes
            .iter_mut()
            .filter(|size| **size == 0)
            .take(2)
            .for_each(|size| *size = 128);
        profile
    }

    /// All five queues whatever is offered; the size that the driver writes is never
    /// shown.
    #[must_use]
    pub fn libkrun(offered: Features) -> Self {
        let all = Features::STATS_VQ | Features::FREE_PAGE_HINT | Features::PAGE_REPORTING;
        Self {
            remembers_size: false,
            ..Self::specification(offered | all)
        }
    }

    /// Whether the size reads back as the driver wrote it.
    #[must_use]
    pub const fn remembers_size(&self) -> bool {
        self.remembers_size
    }

    /// A device of the `CHUNK_TRANSFER` dialect: what it offers beside is the
    /// standard's, except for hints and poison.
    #[must_use]
    pub fn chunk_transfer(offered: Features) -> Self {
        let dialect = CHUNK_TRANSFER | HOST_REQUESTS;
        // Host requests come where hints would.
        let row = (offered - dialect) | Features::STATS_VQ | Features::FREE_PAGE_HINT;
        let profile = Self::specification(row);
        Self {
            offered: profile.offered | dialect,
            config_len: 8,
            chunks: true,
            ..profile
        }
    }

    /// Whether it speaks `CHUNK_TRANSFER`.
    #[must_use]
    pub const fn chunks(&self) -> bool {
        self.chunks
    }

    /// The same device with another greatest size of a queue.
    #[must_use]
    pub fn with_size(mut self, queue: QueueId, size: u16) -> Self {
        let index = self.index(queue).map(usize::from);
        if let Some(place) = index.and_then(|index| self.sizes.get_mut(index)) {
            *place = size;
        }
        self
    }

    /// The same device with so many bytes of configuration.
    #[must_use]
    pub const fn with_config(mut self, bytes: usize) -> Self {
        self.config_len = bytes;
        self
    }

    /// The same device without some features; the queues stay.
    #[must_use]
    pub const fn without(mut self, features: Features) -> Self {
        self.offered = self.offered.difference(features);
        self
    }

    /// The same device with some features more; the queues stay.
    #[must_use]
    pub const fn with(mut self, features: Features) -> Self {
        self.offered = self.offered.union(features);
        self
    }

    /// All the feature bits the device offers.
    #[must_use]
    pub const fn offered(&self) -> Features {
        self.offered
    }

    /// The number of a queue on this device.
    #[must_use]
    pub fn index(&self, queue: QueueId) -> Option<u16> {
        self.indices.get(queue.index()).copied().flatten()
    }

    /// What this device has a queue for; `None` for a private one.
    pub(super) fn purpose(&self, index: QueueIndex) -> Option<QueueId> {
        QueueId::ALL
            .into_iter()
            .find(|&queue| self.index(queue) == Some(index.get()))
    }

    pub(super) fn max_size(&self, queue: QueueIndex) -> u16 {
        self.sizes
            .get(usize::from(queue.get()))
            .copied()
            .unwrap_or(0)
    }

    pub(super) const fn config_len(&self) -> usize {
        self.config_len
    }

    fn row(offered: Features, sizes: [u16; QueueId::COUNT], config_len: usize) -> Self {
        let mut next = 0u16;
        let indices = QueueId::ALL.map(|queue| {
            offered.contains(queue.feature()).then(|| {
                next += 1;
                next - 1
            })
        });
        Self::numbered(offered, indices, sizes, config_len)
    }

    fn numbered(
        offered: Features,
        indices: [Option<u16>; QueueId::COUNT],
        by_queue: [u16; QueueId::COUNT],
        config_len: usize,
    ) -> Self {
        let mut sizes = [0; 8];
        for (index, size) in indices.into_iter().zip(by_queue) {
            if let Some(place) = index.and_then(|index| sizes.get_mut(usize::from(index))) {
                *place = size;
            }
        }
        Self {
            offered: offered | GENERIC,
            indices,
            sizes,
            config_len,
            chunks: false,
            forgets_rounds: false,
            has_generation: true,
            remembers_size: true,
        }
    }
}
