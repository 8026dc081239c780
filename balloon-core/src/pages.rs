//! A frame source over an allocator of frames in a row.
//!
//! Many kernels have no more than that. [`Paged`] asks such an allocator for long
//! runs first, halves as they run out, and keeps to what a [`TakeRequest`] says.

use crate::backing::Backing;
use crate::run::RangeSink;
use crate::source::{FrameSource, Shortage, TakeRequest};
use crate::units::{FrameCount, FrameRange, Order, Pfn};

/// An allocator of frames in a row.
pub trait PageAllocator {
    /// Free → allocated: `count` frames in a row, the first one at a multiple of
    /// `align`. Triggers no relief. What lies at and above [`Pfn::LIMIT`] has no number
    /// here: an allocator that has such frames keeps them to itself.
    fn allocate(&mut self, count: FrameCount, align: Order) -> Option<Pfn>;

    /// Allocated → free: any part of what was allocated, or neighbours together.
    fn free(&mut self, range: FrameRange);

    /// Free frames.
    fn available(&mut self) -> FrameCount;
}

/// The allocator `A` as a [`FrameSource`].
///
/// It does not know which frames the host has populated, so none of them come first,
/// and refuses nothing:
/// what the engine puts back is freed. So a transport that clears what it gives clears
/// all of it. Under Xen's populate-on-demand that one is told to clear nothing until
/// what is owed is given.
///
/// ```
/// use balloon_core::{FrameCount, FrameRange, Order, PageAllocator, Paged, Pfn};
///
/// /// Memory up to a mark; nothing above it is ever used.
/// struct Mark(u64);
///
/// impl PageAllocator for Mark {
///     fn allocate(&mut self, count: FrameCount, align: Order) -> Option<Pfn> {
///         let end = FrameCount::new(self.0).saturating_sub(count);
///         let start = Pfn::new(end.round_down(align).get());
///         self.0 = self.0.checked_sub(count.get()).map(|_| start.get())?;
///         Some(start)
///     }
///     fn free(&mut self, range: FrameRange) {
///         self.0 = self.0.max(range.end().get());
///     }
///     fn available(&mut self) -> FrameCount {
///         FrameCount::new(self.0)
///     }
/// }
///
/// let source = Paged(Mark(1000));
/// # let _ = source;
/// ```
#[derive(Clone, Debug)]
pub struct Paged<A>(pub A);

impl<A: PageAllocator> FrameSource for Paged<A> {
    fn take(&mut self, request: TakeRequest, out: &mut RangeSink<'_>) -> Shortage {
        let block = request.order.frames();
        // No longer run than this was found.
        let mut longest = FrameCount::MAX;
        while !out.is_full() && out.wanted() >= block {
            let free = self.0.available();
            let spare = free.saturating_sub(request.min_free);
            if free.is_zero() {
                return Shortage::Empty;
            }
            if spare < block {
                let kept = spare < free;
                return if kept {
                    Shortage::Floor
                } else {
                    Shortage::Fragmented
                };
            }
            let count = longest
                .min(out.wanted())
                .min(spare)
                .round_down(request.order);
            let start = self.0.allocate(count, request.order);
            if let Some(start) = start
                && FrameRange::new(start, count).is_none()
            {
                // As much of it as has a number.
                let below = Pfn::LIMIT.get().saturating_sub(start.get());
                if let Some(low) = FrameRange::new(start, FrameCount::new(below)) {
                    self.0.free(low);
                }
                return Shortage::OutOfReach;
            }
            let range = start.and_then(|start| FrameRange::new(start, count));
            match range {
                Some(range) if range.end() <= request.below => {
                    if let Err(range) = out.push(range, Backing::Unknown) {
                        self.0.free(range);
                        return Shortage::None;
                    }
                }
                Some(high) => {
                    self.0.free(high);
                    return Shortage::OutOfReach;
                }
                None if count == block => return Shortage::Fragmented,
                None => {
                    let half = FrameCount::new(count.get() / 2);
                    longest = half.round_down(request.order).max(block);
                }
            }
        }
        Shortage::None
    }

    fn put(&mut self, range: FrameRange, _: Backing) -> Result<(), FrameRange> {
        self.0.free(range);
        Ok(())
    }

    fn available(&mut self) -> Option<FrameCount> {
        Some(self.0.available())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use alloc::collections::BTreeSet;

    use super::*;
    use crate::run::Run;
    use crate::testing::check_frame_source_laws;

    /// First fit over a set of free frames.
    struct Set(BTreeSet<u64>);

    impl PageAllocator for Set {
        fn allocate(&mut self, count: FrameCount, align: Order) -> Option<Pfn> {
            let fits = |&start: &u64| {
                Pfn::new(start).is_aligned(align)
                    && (start..start + count.get()).all(|pfn| self.0.contains(&pfn))
            };
            let start = self.0.iter().copied().find(fits)?;
            self.0
                .retain(|&pfn| pfn < start || pfn >= start + count.get());
            Some(Pfn::new(start))
        }

        fn free(&mut self, range: FrameRange) {
            for pfn in range.frames() {
                assert!(self.0.insert(pfn.get()), "{pfn:?} was free");
            }
        }

        fn available(&mut self) -> FrameCount {
            FrameCount::new(self.0.len() as u64)
        }
    }

    fn take(source: &mut Paged<Set>, request: TakeRequest, wanted: u64) -> (Shortage, u64, usize) {
        let mut runs = [Run::ZERO; 64];
        let mut sink = RangeSink::new(&mut runs, FrameCount::new(wanted));
        let stop = source.take(request, &mut sink);
        (stop, sink.frames().get(), sink.runs().len())
    }

    #[test]
    fn keeps_the_laws() {
        check_frame_source_laws(&mut Paged(Set((100..200).collect())));
        let odd = (0..200).filter(|pfn| pfn % 2 == 1);
        check_frame_source_laws(&mut Paged(Set(odd.collect())));
    }

    #[test]
    fn frames_around_the_last_number_are_not_forgotten() {
        let limit = Pfn::LIMIT.get();
        let mut source = Paged(Set((limit - 6..limit + 2).collect()));
        let (stop, taken, _) = take(&mut source, TakeRequest::any(Pfn::LIMIT), 8);
        assert_eq!((stop, taken), (Shortage::OutOfReach, 0));
        let left = (limit - 6..limit).filter(|pfn| source.0.0.contains(pfn));
        assert_eq!(left.count(), 6, "what has a number is free again");
    }

    #[test]
    fn asks_for_long_runs_first_and_says_why_it_stops() {
        let any = TakeRequest::any(Pfn::LIMIT);
        let frames = || Paged(Set((0..64).chain(100..120).collect()));
        assert_eq!(take(&mut frames(), any, 60), (Shortage::None, 60, 1));
        let (stop, taken, runs) = take(&mut frames(), any, 100);
        assert_eq!((stop, taken), (Shortage::Empty, 84));
        assert!(runs <= 4, "{runs} runs out of two");
        let min_free = FrameCount::new(50);
        let kept = TakeRequest { min_free, ..any };
        assert_eq!(take(&mut frames(), kept, 100).0, Shortage::Floor);
        assert_eq!(take(&mut frames(), kept, 100).1, 34);
        let order = Order::new(4).unwrap();
        let blocks = TakeRequest { order, ..any };
        assert_eq!(
            take(&mut frames(), blocks, 96),
            (Shortage::Fragmented, 64, 1)
        );
        let below = Pfn::new(110);
        let low = TakeRequest { below, ..any };
        let mut source = frames();
        let (stop, taken, _) = take(&mut source, low, 84);
        assert_eq!(stop, Shortage::OutOfReach);
        assert!((64..=74).contains(&taken), "{taken} frames");
        let left = source.0.available().get();
        assert_eq!(left, 84 - taken, "what is too high goes back");
    }
}
