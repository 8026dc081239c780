//! A frame source over an allocator of frames in a row.
//!
//! Many kernels have no more than that. [`Paged`] asks such an allocator for long
//! runs first, halves as they run out, and keeps to what an [`Ask`] says.

use crate::run::RangeSink;
use crate::source::{Ask, Backing, FrameSource, Stop};
use crate::units::{FrameCount, FrameRange, Order, Pfn};

/// An allocator of frames in a row.
pub trait PageAllocator {
    /// Free → allocated: `count` frames in a row, the first one at a multiple of
    /// `align`. Triggers no relief.
    fn allocate(&mut self, count: FrameCount, align: Order) -> Option<Pfn>;

    /// Allocated → free: any part of what was allocated, or neighbours together.
    fn free(&mut self, range: FrameRange);

    /// Free frames.
    fn available(&mut self) -> FrameCount;
}

/// The allocator `A` as a [`FrameSource`].
///
/// It does not know which frames the host has populated, and refuses nothing:
/// what the engine puts back is freed.
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
    fn take(&mut self, ask: Ask, out: &mut RangeSink<'_>) -> Stop {
        let block = ask.order.frames();
        // No longer run than this was found.
        let mut longest = FrameCount::MAX;
        while !out.is_full() && out.wanted() >= block {
            let free = self.0.available();
            let spare = free.saturating_sub(ask.keep);
            if free.is_zero() {
                return Stop::Empty;
            }
            if spare < block {
                let kept = spare < free;
                return if kept { Stop::Floor } else { Stop::Fragmented };
            }
            let count = longest.min(out.wanted()).min(spare).round_down(ask.order);
            let start = self.0.allocate(count, ask.order);
            let range = start.and_then(|start| FrameRange::new(start, count));
            match range {
                Some(range) if range.end() <= ask.below => {
                    if let Err(range) = out.push(range, Backing::Unknown) {
                        self.0.free(range);
                        return Stop::Enough;
                    }
                }
                Some(high) => {
                    self.0.free(high);
                    return Stop::Fragmented;
                }
                None if count == block => return Stop::Fragmented,
                None => {
                    let half = FrameCount::new(count.get() / 2);
                    longest = half.round_down(ask.order).max(block);
                }
            }
        }
        Stop::Enough
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

    fn take(source: &mut Paged<Set>, ask: Ask, wanted: u64) -> (Stop, u64, usize) {
        let mut runs = [Run::ZERO; 64];
        let mut sink = RangeSink::new(&mut runs, FrameCount::new(wanted));
        let stop = source.take(ask, &mut sink);
        (stop, sink.frames().get(), sink.runs().len())
    }

    #[test]
    fn keeps_the_laws() {
        check_frame_source_laws(&mut Paged(Set((100..200).collect())));
        let odd = (0..200).filter(|pfn| pfn % 2 == 1);
        check_frame_source_laws(&mut Paged(Set(odd.collect())));
    }

    #[test]
    fn asks_for_long_runs_first_and_says_why_it_stops() {
        let any = Ask::any(Pfn::LIMIT);
        let frames = || Paged(Set((0..64).chain(100..120).collect()));
        assert_eq!(take(&mut frames(), any, 60), (Stop::Enough, 60, 1));
        let (stop, taken, runs) = take(&mut frames(), any, 100);
        assert_eq!((stop, taken), (Stop::Empty, 84));
        assert!(runs <= 4, "{runs} runs out of two");
        let keep = FrameCount::new(50);
        let kept = Ask { keep, ..any };
        assert_eq!(take(&mut frames(), kept, 100).0, Stop::Floor);
        assert_eq!(take(&mut frames(), kept, 100).1, 34);
        let order = Order::new(4).unwrap();
        let blocks = Ask { order, ..any };
        assert_eq!(take(&mut frames(), blocks, 96), (Stop::Fragmented, 64, 1));
        let below = Pfn::new(110);
        let low = Ask { below, ..any };
        let mut source = frames();
        let (stop, taken, _) = take(&mut source, low, 84);
        assert_eq!(stop, Stop::Fragmented);
        assert!((64..=74).contains(&taken), "{taken} frames");
        let left = source.0.available().get();
        assert_eq!(left, 84 - taken, "what is too high goes back");
    }
}
