//! For compaction and density: what regions are made of, and which are worth emptying.

use super::Zone;
use crate::frame::{Frame, FrameCount, FrameRange};
use crate::node::{Kind, Slot};

/// The frames of one region (host granule) by state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct RegionUse {
    /// The region, clipped to the zone.
    pub range: FrameRange,
    /// Frames the zone manages in it.
    pub managed: FrameCount,
    /// Free frames.
    pub free: FrameCount,
    /// Free frames that are populated.
    pub free_populated: FrameCount,
}

impl RegionUse {
    /// A value to fill a buffer with.
    pub const EMPTY: Self = Self {
        range: FrameRange::new(Frame::new(0), FrameCount::ZERO),
        managed: FrameCount::ZERO,
        free: FrameCount::ZERO,
        free_populated: FrameCount::ZERO,
    };

    /// Frames that are not free. For a region found by [`Zone::compaction_candidates`] all of them
    /// are used, and the region is one free block once they have moved away; elsewhere reserved,
    /// isolated and ballooned ones count too.
    #[must_use]
    pub const fn to_move(&self) -> FrameCount {
        FrameCount::new(self.managed.get() - self.free.get())
    }
}

/// Regions visited per call of [`Zone::compaction_candidates`].
const VISITS: u64 = 4096;

impl Zone<'_> {
    fn region_use_of(&self, region: u64) -> RegionUse {
        let granule = self.regions.order();
        let counts = self.regions.counts(region);
        let start = (region << granule).max(self.span.start().get());
        let end = ((region + 1) << granule).min(self.span.end().get());
        RegionUse {
            range: FrameRange::raw(start, end),
            managed: FrameCount::new(counts.managed),
            free: FrameCount::new(counts.free),
            free_populated: FrameCount::new(counts.free_populated),
        }
    }

    /// What the region around a frame is made of.
    #[must_use]
    pub fn region_use(&self, frame: Frame) -> Option<RegionUse> {
        self.contains(frame.get())
            .then(|| self.region_use_of(self.regions.of(frame.get())))
    }

    /// The region densest in free and populated frames.
    ///
    /// Found in constant time; no region has more than an eighth of a granule more of them.
    #[must_use]
    pub fn densest_region(&self) -> Option<RegionUse> {
        self.regions
            .densest()
            .map(|region| self.region_use_of(region))
    }

    /// Finds whole regions that become one free block at the least cost: partly free ones, fewest
    /// frames to move first. Regions with reserved, isolated or ballooned frames are left out:
    /// those do not move.
    ///
    /// Looks at 4096 regions from `from` on, and at the blocks of each that is good enough for
    /// `best`. Merges the best into `best` (kept sorted; fill it with [`RegionUse::EMPTY`] first) and
    /// returns where to go on, `None` at the end of the zone. To empty a region the kernel moves its
    /// frames away; [`take_at`](Self::take_at), [`allocate_at`](Self::allocate_at) and
    /// [`region_use`](Self::region_use) do the rest.
    pub fn compaction_candidates(&self, from: Frame, best: &mut [RegionUse]) -> Option<Frame> {
        let granule = self.regions.order();
        let numbers = self.regions.numbers();
        let first = self.regions.of(from.get()).max(numbers.start);
        let end = (first + VISITS).min(numbers.end);
        for region in first..end {
            let found = self.region_use_of(region);
            let partly = found.free != FrameCount::ZERO && found.to_move() != FrameCount::ZERO;
            if !partly || found.managed.get() != 1 << granule {
                continue;
            }
            let better = |kept: &RegionUse| kept.range.is_empty() || found.free > kept.free;
            if let Some(place) = best.iter().position(better)
                && self.can_be_emptied(found.range)
                && let Some(moved) = best.get_mut(place..)
            {
                moved.rotate_right(1);
                if let Some(first) = moved.first_mut() {
                    *first = found;
                }
            }
        }
        (end < numbers.end).then(|| Frame::new(end << granule))
    }

    /// Whether all frames of a region are free or used.
    fn can_be_emptied(&self, region: FrameRange) -> bool {
        let (start, end) = (region.start().get(), region.end().get());
        let mut at = start;
        while at < end {
            match self.next_block(start, at) {
                Some((head, order, Slot::Free(_) | Slot::Held(Kind::Used, _))) => {
                    at = head + (1 << order);
                }
                _ => return false,
            }
        }
        true
    }
}
