//! Ranges whose backing lost its contiguity.
//!
//! A restored guest may find memory it mapped with large pages backed by
//! scattered 4 KiB frames (Xen PV, where the guest's tables name machine
//! frames). Whoever rebuilds the frame map names such ranges here; the kernel
//! walks them at its own pace, remaps each, and acknowledges.

use crate::units::{FrameCount, FrameRange};

/// Ranges to be remapped, at most `K` at a time.
///
/// Never loses a range: when the list is full, the two nearest become one that
/// covers both. Remapping what did not need it costs time, nothing else.
///
/// ```
/// use balloon_core::{FrameCount, FrameRange, Pfn, RemapList};
///
/// let range = |start, count| FrameRange::new(Pfn::new(start), FrameCount::new(count)).unwrap();
/// let mut list = RemapList::<4>::new();
/// list.push(range(512, 512));
/// // The kernel remaps 200 frames of the first range, then comes back.
/// assert_eq!(list.front(), Some(range(512, 512)));
/// list.acknowledge(range(512, 200));
/// assert_eq!(list.front(), Some(range(712, 312)));
/// assert_eq!(list.remaining(), FrameCount::new(312));
/// ```
#[derive(Clone, Debug)]
pub struct RemapList<const K: usize> {
    /// Sorted, disjoint, not touching; the unused ones last.
    ranges: [Option<FrameRange>; K],
    done: FrameCount,
}

impl<const K: usize> RemapList<K> {
    /// Nothing to remap.
    #[must_use]
    pub const fn new() -> Self {
        const { assert!(K > 0, "a list needs room for one range") };
        Self {
            ranges: [None; K],
            done: FrameCount::ZERO,
        }
    }

    /// Names a range whose mappings are to be renewed.
    pub fn push(&mut self, range: FrameRange) {
        let mut range = range;
        for place in &mut self.ranges {
            if let Some(near) = place.filter(|near| touches(*near, range)) {
                range = cover(near, range);
                *place = None;
            }
        }
        if self.ranges.iter().all(Option::is_some) {
            range = self.make_room(range);
        }
        if let Some(place) = self.ranges.iter_mut().find(|place| place.is_none()) {
            *place = Some(range);
        }
        self.sort();
    }

    /// The next frames to remap: first frame and count.
    #[must_use]
    pub fn front(&self) -> Option<FrameRange> {
        self.ranges.first().copied().flatten()
    }

    /// The frames of `done` are remapped: [`front`](Self::front) or its beginning,
    /// as it was when they were read.
    ///
    /// If other ranges were named meanwhile and joined with it, the frames stay
    /// to be remapped once more.
    pub fn acknowledge(&mut self, done: FrameRange) {
        let named = |place: &&mut Option<FrameRange>| {
            place.is_some_and(|range| range.start() == done.start())
        };
        let Some(place) = self.ranges.iter_mut().find(named) else {
            return;
        };
        let Some(range) = *place else { return };
        let (head, tail) = range.split_at(done.count());
        *place = tail;
        self.done = self
            .done
            .saturating_add(head.map_or(FrameCount::ZERO, FrameRange::count));
        self.sort();
    }

    /// Frames acknowledged since the list was made.
    #[must_use]
    pub const fn done(&self) -> FrameCount {
        self.done
    }

    /// Frames not yet acknowledged.
    #[must_use]
    pub fn remaining(&self) -> FrameCount {
        let counts = self.ranges.iter().flatten().map(|range| range.count());
        counts.fold(FrameCount::ZERO, FrameCount::saturating_add)
    }

    fn sort(&mut self) {
        self.ranges
            .sort_unstable_by_key(|r| r.map_or(u64::MAX, |r| r.start().get()));
    }

    /// Joins the two nearest of the full list and `range`; what is left over.
    fn make_room(&mut self, range: FrameRange) -> FrameRange {
        let gap = |a: FrameRange, b: FrameRange| {
            b.start().get().saturating_sub(a.end().get())
                + a.start().get().saturating_sub(b.end().get())
        };
        let near = |place: &Option<FrameRange>| place.map_or(u64::MAX, |near| gap(near, range));
        let nearest = self.ranges.iter_mut().min_by_key(|place| near(place));
        // Joining with the newcomer keeps the others as they are; the cover may
        // swallow none of them, since it only fills the gap to its neighbour.
        nearest
            .and_then(Option::take)
            .map_or(range, |near| cover(near, range))
    }
}

impl<const K: usize> Default for RemapList<K> {
    fn default() -> Self {
        Self::new()
    }
}

fn touches(a: FrameRange, b: FrameRange) -> bool {
    a.start() <= b.end() && b.start() <= a.end()
}

fn cover(a: FrameRange, b: FrameRange) -> FrameRange {
    let start = a.start().min(b.start());
    let count = FrameCount::new(a.end().max(b.end()).get() - start.get());
    FrameRange::new(start, count).unwrap_or(a)
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeSet;
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::units::Pfn;

    proptest! {
        /// Every frame pushed is handed out, whatever the order and the room.
        #[test]
        fn loses_no_frame(
            ranges in prop::collection::vec((0u64..2000, 1u64..40), 1..30),
            steps in prop::collection::vec(1u64..50, 1..10),
        ) {
            let mut list = RemapList::<4>::new();
            let mut due = BTreeSet::new();
            let mut ranges = ranges.into_iter().map(|(start, count)| {
                FrameRange::new(Pfn::new(start), FrameCount::new(count)).unwrap()
            });
            let mut push = |list: &mut RemapList<4>, due: &mut BTreeSet<u64>, but: FrameRange| {
                let Some(range) = ranges.next() else { return };
                if range.start() < but.end() && but.start() < range.end() {
                    return;
                }
                due.extend(range.frames().map(Pfn::get));
                list.push(range);
                let starts: Vec<_> = list.ranges.iter().flatten().collect();
                assert!(starts.windows(2).all(|w| w[0].end() < w[1].start()), "{starts:?}");
            };
            let nowhere = FrameRange::single(Pfn::new(1 << 30)).unwrap();
            for _ in 0..5 {
                push(&mut list, &mut due, nowhere);
            }
            let mut step = steps.iter().cycle();
            while let Some(range) = list.front() {
                let (head, _) = range.split_at(FrameCount::new(*step.next().unwrap()));
                let head = head.unwrap();
                due.retain(|pfn| !head.frames().any(|frame| frame.get() == *pfn));
                // Something else is named before these are acknowledged.
                push(&mut list, &mut due, head);
                list.acknowledge(head);
            }
            prop_assert!(due.is_empty(), "{due:?}");
            prop_assert_eq!(list.remaining(), FrameCount::ZERO);
        }
    }
}
