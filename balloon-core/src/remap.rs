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
/// list.push(range(4096, 512));
/// for range in list.iter() {
///     println!("remap {} frames from {:#x}", range.count().get(), range.start().get());
///     list.acknowledge(range);
/// }
/// assert_eq!((list.done().get(), list.remaining().get()), (1024, 0));
///
/// // A part at a time: 200 frames now, the others when there is time again.
/// list.push(range(512, 512));
/// list.acknowledge(range(512, 200));
/// assert_eq!(list.front(), Some(range(712, 312)));
/// ```
#[derive(Clone, Debug)]
pub struct RemapList<const K: usize> {
    /// Sorted, disjoint, not touching; the unused ones last.
    ranges: [Option<Named>; K],
    done: FrameCount,
}

#[derive(Clone, Copy, Debug)]
struct Named {
    range: FrameRange,
    /// Some of it was named while it was named already: whoever is at work on it
    /// may have begun before.
    again: bool,
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
        let mut named = Named {
            range,
            again: false,
        };
        for place in &mut self.ranges {
            if let Some(near) = place.filter(|near| touches(near.range, named.range)) {
                let overlap = near.range.intersection(range).is_some();
                named.range = cover(near.range, named.range);
                named.again |= near.again || overlap;
                *place = None;
            }
        }
        if self.ranges.iter().all(Option::is_some) {
            self.make_room(&mut named);
        }
        if let Some(place) = self.ranges.iter_mut().find(|place| place.is_none()) {
            *place = Some(named);
        }
        self.sort();
    }

    /// The frames to remap as of now, by rising address: first frame and count.
    ///
    /// It holds a copy: what it yields can be acknowledged, and more be named,
    /// while it goes on.
    pub fn iter(&self) -> impl Iterator<Item = FrameRange> + use<K> {
        self.ranges.into_iter().flatten().map(|named| named.range)
    }

    /// The first of them.
    #[must_use]
    pub fn front(&self) -> Option<FrameRange> {
        self.iter().next()
    }

    /// The frames of `done` are remapped: a range of [`iter`](Self::iter) or its
    /// beginning, as it was then.
    ///
    /// If they, or neighbours before them, were named meanwhile, they stay to be
    /// remapped once more.
    pub fn acknowledge(&mut self, done: FrameRange) {
        let is_done = |named: &Named| named.range.start() == done.start();
        let mut places = self.ranges.iter_mut();
        let Some(place) = places.find(|place| place.as_ref().is_some_and(is_done)) else {
            return;
        };
        match place {
            Some(named) if named.again => named.again = false,
            Some(Named { range, .. }) => {
                let (head, tail) = range.split_at(done.count());
                let head = head.map_or(FrameCount::ZERO, FrameRange::count);
                self.done = self.done.saturating_add(head);
                *place = tail.map(|range| Named {
                    range,
                    again: false,
                });
                self.sort();
            }
            None => {}
        }
    }

    /// Frames acknowledged since the list was made.
    #[must_use]
    pub const fn done(&self) -> FrameCount {
        self.done
    }

    /// Frames not yet acknowledged.
    #[must_use]
    pub fn remaining(&self) -> FrameCount {
        let counts = self.iter().map(FrameRange::count);
        counts.fold(FrameCount::ZERO, FrameCount::saturating_add)
    }

    fn sort(&mut self) {
        let start = |named: Named| named.range.start().get();
        self.ranges
            .sort_unstable_by_key(|place| place.map_or(u64::MAX, start));
    }

    /// Joins the newcomer with the nearest of the full list.
    fn make_room(&mut self, newcomer: &mut Named) {
        let gap = |a: FrameRange, b: FrameRange| {
            b.start().get().saturating_sub(a.end().get())
                + a.start().get().saturating_sub(b.end().get())
        };
        let distance = |place: &Option<Named>| {
            place.map_or(u64::MAX, |named| gap(named.range, newcomer.range))
        };
        let nearest = self.ranges.iter_mut().min_by_key(|place| distance(place));
        // The others stay as they are: the cover only fills the gap to its neighbour.
        if let Some(near) = nearest.and_then(Option::take) {
            newcomer.range = cover(near.range, newcomer.range);
            newcomer.again |= near.again;
        }
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
            let mut push = |list: &mut RemapList<4>, due: &mut BTreeSet<u64>| {
                let Some(range) = ranges.next() else { return };
                due.extend(range.frames().map(Pfn::get));
                list.push(range);
                let starts: Vec<_> = list.iter().collect();
                assert!(starts.windows(2).all(|w| w[0].end() < w[1].start()), "{starts:?}");
            };
            for _ in 0..5 {
                push(&mut list, &mut due);
            }
            let mut step = steps.iter().cycle();
            while let Some(range) = list.front() {
                let (head, _) = range.split_at(FrameCount::new(*step.next().unwrap()));
                let head = head.unwrap();
                due.retain(|pfn| !head.frames().any(|frame| frame.get() == *pfn));
                // Something else is named before these are acknowledged.
                push(&mut list, &mut due);
                list.acknowledge(head);
            }
            prop_assert!(due.is_empty(), "{due:?}");
            prop_assert_eq!(list.remaining(), FrameCount::ZERO);
        }

        /// So it is by the iterator, and what is named while it goes on stays named.
        #[test]
        fn yields_every_frame(
            ranges in prop::collection::vec((0u64..2000, 1u64..40), 1..20),
            named_late in 0usize..4,
        ) {
            let range = |&(start, count): &(u64, u64)| {
                FrameRange::new(Pfn::new(start), FrameCount::new(count)).unwrap()
            };
            let mut list = RemapList::<4>::new();
            let (late, soon) = ranges.split_at(named_late.min(ranges.len() - 1));
            soon.iter().for_each(|soon| list.push(range(soon)));
            let mut due: BTreeSet<Pfn> = soon.iter().flat_map(|soon| range(soon).frames()).collect();
            let mut late = late.iter();
            for next in list.iter() {
                due.retain(|&pfn| pfn < next.start() || pfn >= next.end());
                if let Some(late) = late.next() {
                    list.push(range(late));
                    due.extend(range(late).frames());
                }
                list.acknowledge(next);
            }
            let left: BTreeSet<Pfn> = list.iter().flat_map(FrameRange::frames).collect();
            prop_assert!(due.is_subset(&left), "{due:?} are forgotten");
            for _ in 0..2 {
                list.iter().for_each(|range| list.acknowledge(range));
            }
            prop_assert_eq!(list.remaining(), FrameCount::ZERO);
        }
    }
}
