//! Which queue index is which queue.
//!
//! The specification gives every optional queue a fixed index. QEMU,
//! Firecracker, cloud-hypervisor and crosvm number theirs in a row instead,
//! skipping those whose feature they do not offer; Linux expects the row of
//! those it negotiated. A driver that trusts a number reports free memory to
//! the statistics queue, so each scheme is tried *as a whole* against the
//! queues that exist.

use core::fmt;

use super::features::Features;

/// A virtqueue by purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum QueueId {
    /// Page numbers the guest gives.
    Inflate,
    /// Page numbers the guest takes back.
    Deflate,
    /// Memory statistics.
    Statistics,
    /// Unused ranges for a live migration.
    Hint,
    /// Free ranges the host may discard.
    Reporting,
}

impl QueueId {
    /// Number of queues a device can have.
    pub const COUNT: usize = 5;

    /// Every queue in the specification's order.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Inflate,
        Self::Deflate,
        Self::Statistics,
        Self::Hint,
        Self::Reporting,
    ];

    /// The index to address a table.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The feature behind the queue; empty for the two that always exist.
    #[must_use]
    pub const fn feature(self) -> Features {
        match self {
            Self::Inflate | Self::Deflate => Features::empty(),
            Self::Statistics => Features::STATS_VQ,
            Self::Hint => Features::FREE_PAGE_HINT,
            Self::Reporting => Features::PAGE_REPORTING,
        }
    }
}

/// A virtqueue by number, as the device counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(transparent)]
pub struct QueueIndex(u16);

impl QueueIndex {
    /// The queue with this number.
    #[must_use]
    pub const fn new(index: u16) -> Self {
        Self(index)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }
}

/// How a device numbers its queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Numbering {
    /// At the specification's fixed indices.
    Specification,
    /// In a row of those whose feature the device offers.
    PackedByOffered,
    /// In a row of those whose feature was negotiated.
    PackedByNegotiated,
}

/// Which index each queue has, and by which numbering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueMap {
    /// The numbering that fits the queues that exist.
    pub numbering: Numbering,
    indices: [Option<QueueIndex>; QueueId::COUNT],
}

impl QueueMap {
    /// The queue's index; `None` if its feature was not negotiated or the
    /// device has no such queue.
    #[must_use]
    pub fn index(&self, queue: QueueId) -> Option<QueueIndex> {
        self.indices.get(queue.index()).copied().flatten()
    }

    fn scheme(numbering: Numbering, exists: Features, wanted: Features) -> Self {
        let mut indices = [None; QueueId::COUNT];
        let mut row = 0;
        for (fixed, (queue, index)) in (0u16..).zip(QueueId::ALL.into_iter().zip(&mut indices)) {
            let packed = row;
            if exists.contains(queue.feature()) {
                row += 1;
            }
            if wanted.contains(queue.feature()) {
                let specified = numbering == Numbering::Specification;
                *index = Some(QueueIndex(if specified { fixed } else { packed }));
            }
        }
        Self { numbering, indices }
    }

    /// Bit `i` is set for each index in use.
    fn mask(&self) -> u32 {
        self.indices
            .iter()
            .flatten()
            .fold(0, |mask, index| mask | 1 << index.0)
    }
}

/// The device lacks the inflate or the deflate queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MissingQueue(pub QueueId);

impl fmt::Display for MissingQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the device has no {:?} queue", self.0)
    }
}

impl core::error::Error for MissingQueue {}

/// Finds the queues of the negotiated features.
///
/// `size` reads the greatest size of a queue, 0 if there is none. Looks at the
/// first eight indices. In order of preference: a numbering that predicts
/// exactly the queues that exist, one whose queues all exist, and at last the
/// inflate and deflate queues alone.
///
/// # Errors
/// [`MissingQueue`] if queue 0 or 1 does not exist.
pub fn discover(
    offered: Features,
    negotiated: Features,
    mut size: impl FnMut(QueueIndex) -> u16,
) -> Result<QueueMap, MissingQueue> {
    let existing = (0..8)
        .filter(|&i| size(QueueIndex(i)) != 0)
        .fold(0u32, |mask, index| mask | 1 << index);
    for (bit, queue) in [QueueId::Inflate, QueueId::Deflate].into_iter().enumerate() {
        if existing & 1 << bit == 0 {
            return Err(MissingQueue(queue));
        }
    }
    let schemes = [
        (Numbering::Specification, offered),
        (Numbering::PackedByOffered, offered),
        (Numbering::PackedByNegotiated, negotiated),
    ];
    let exact = |&(numbering, row): &(Numbering, Features)| {
        QueueMap::scheme(numbering, row, row).mask() == existing
    };
    let wanted = |(numbering, row)| QueueMap::scheme(numbering, row, negotiated);
    if let Some(scheme) = schemes.into_iter().find(exact) {
        return Ok(wanted(scheme));
    }
    // Queues behind the known ones belong to features we cannot name: nobody
    // who adds such numbers by the specification.
    let [specified, packed, linux] = schemes;
    let order = if offered.has_private_bits() {
        [packed, specified, linux]
    } else {
        [specified, packed, linux]
    };
    let present = |map: &QueueMap| map.mask() & !existing == 0;
    let bare = QueueMap::scheme(Numbering::Specification, offered, Features::empty());
    Ok(order.into_iter().map(wanted).find(present).unwrap_or(bare))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATS: Features = Features::STATS_VQ;
    const HINT: Features = Features::FREE_PAGE_HINT;
    const REPORT: Features = Features::PAGE_REPORTING;

    /// The map for a device whose queues 0..`count` exist.
    fn row(count: u16, offered: Features, negotiated: Features) -> QueueMap {
        discover(
            offered,
            negotiated,
            |i| if i.get() < count { 128 } else { 0 },
        )
        .unwrap()
    }

    fn index(map: &QueueMap, queue: QueueId) -> Option<u16> {
        map.index(queue).map(QueueIndex::get)
    }

    #[test]
    fn qemu_packs_and_always_has_statistics() {
        let map = row(4, STATS | REPORT, REPORT);
        assert_eq!(map.numbering, Numbering::PackedByOffered);
        assert_eq!(index(&map, QueueId::Reporting), Some(3));
        assert_eq!(index(&map, QueueId::Statistics), None);
        let map = row(5, STATS | HINT | REPORT, REPORT);
        assert_eq!(map.numbering, Numbering::Specification);
        assert_eq!(index(&map, QueueId::Reporting), Some(4));
    }

    #[test]
    fn the_specification_leaves_holes() {
        let exists = |i: QueueIndex| if [0, 1, 4].contains(&i.get()) { 64 } else { 0 };
        let map = discover(REPORT, REPORT, exists).unwrap();
        assert_eq!(map.numbering, Numbering::Specification);
        assert_eq!(index(&map, QueueId::Reporting), Some(4));
    }

    #[test]
    fn no_two_queues_share_an_index() {
        // Firecracker without statistics: hint at 2, reporting at 3, which is
        // where the specification has the hint queue.
        let map = row(4, HINT | REPORT, HINT | REPORT);
        assert_eq!(index(&map, QueueId::Hint), Some(2));
        assert_eq!(index(&map, QueueId::Reporting), Some(3));
    }

    #[test]
    fn private_queues_are_not_taken_for_ours() {
        // crosvm with working sets: statistics 2, reporting 3, theirs 4 and 5.
        let private = Features::from_bits_retain(1 << 8);
        let map = row(6, STATS | REPORT | private, STATS | REPORT);
        assert_eq!(map.numbering, Numbering::PackedByOffered);
        assert_eq!(index(&map, QueueId::Reporting), Some(3));
    }

    #[test]
    fn a_device_that_packs_by_negotiated() {
        let exists = |i: QueueIndex| if i.get() < 3 { 64 } else { 0 };
        let map = discover(STATS | REPORT, REPORT, exists).unwrap();
        assert_eq!(map.numbering, Numbering::PackedByNegotiated);
        assert_eq!(index(&map, QueueId::Reporting), Some(2));
    }

    #[test]
    fn a_promised_queue_that_is_absent_is_done_without() {
        let map = row(2, REPORT, REPORT);
        assert_eq!(index(&map, QueueId::Reporting), None);
        assert_eq!(index(&map, QueueId::Deflate), Some(1));
    }

    #[test]
    fn no_balloon_without_its_two_queues() {
        let none = discover(REPORT, REPORT, |_| 0);
        assert_eq!(none, Err(MissingQueue(QueueId::Inflate)));
        let one = discover(REPORT, REPORT, |i| u16::from(i.get() == 0));
        assert_eq!(one, Err(MissingQueue(QueueId::Deflate)));
    }
}
