//! The balloon's search: free frames as ranges, populated ones first.

use super::Zone;
use super::alloc::Preference;
use super::balloon::{Shortage, TakeRequest};
use super::sink::RangeSink;
use super::sink::Taker;
use crate::frame::{FrameCount, Order};
use crate::list::NONE;
use crate::node::{Kind, Slot};

/// Frames of one region that left the lists, to be counted at once.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    frames: u64,
    populated: u64,
}

/// How far below the densest region a run may start.
const BACKTRACK: u64 = 64;

impl Zone<'_> {
    /// Takes free frames for the balloon: the preferred ones first, neighbours of a kind merged.
    ///
    /// Of populated frames, at order 0 the regions densest in free ones come first, with a larger
    /// unit the largest free blocks that hold some: a dense region need not hold a whole unit.
    /// Untouched ones come in order of address.
    ///
    /// The frames keep what is known about their population and are in hand until
    /// [`put`](Self::put) or [`store`](Self::store).
    ///
    /// Costs a few nodes per block taken, plus the blocks passed over in the regions visited; a region
    /// is left with nothing more to take or with the sink full. With a limit (`below`), and for
    /// untouched frames, regions are visited in order of address: those without a free frame, or too
    /// few untouched ones for a unit, cost one word each, and a call that takes populated frames
    /// only skips those without one 64 at a time.
    ///
    /// ```
    /// # use buddy_alloc::*;
    /// # let span = FrameRange::new(Frame::new(0), FrameCount::new(4096));
    /// # let mut memory = vec![0; Config::new().metadata_words(span)];
    /// # let mut zone = Zone::new(span, Config::new(), &mut memory)?;
    /// zone.add_range(span, Backing::Populated)?;
    /// let mut ranges = [FrameRange::block(Frame::new(0), Order::FRAME); 8];
    /// let mut sink = RangeBuf::new(&mut ranges, FrameCount::new(3000));
    /// assert_eq!(zone.take(TakeRequest::default(), &mut sink), Shortage::None);
    /// assert_eq!(sink.ranges(), [FrameRange::new(Frame::new(0), FrameCount::new(3000))]);
    /// # Ok::<(), Box<dyn core::error::Error>>(())
    /// ```
    pub fn take<S: RangeSink>(&mut self, ask: TakeRequest, sink: &mut S) -> Shortage {
        let below = ask.below.get().min(self.span.end().get());
        let mut taker = Taker::new(sink, u32::from(ask.unit.get()), below, ask.preference);
        let all = !ask.only || ask.preference == Preference::Any;
        if self.take_class(&mut taker) != Shortage::None && taker.class != Preference::Any && all {
            // What is preferred stays apart from the rest.
            taker.flush();
            taker.class = Preference::Any;
            self.take_class(&mut taker);
        }
        taker.flush();
        if sink.wanted() == FrameCount::ZERO {
            Shortage::None
        } else if self.free == 0 {
            Shortage::Empty
        } else if below <= self.span.start().get()
            || (below < self.span.end().get() && ask.unit == Order::FRAME && all)
        {
            // Every free frame below was taken.
            Shortage::OutOfReach
        } else {
            Shortage::Fragmented
        }
    }

    fn take_class<S: RangeSink>(&mut self, taker: &mut Taker<'_, S>) -> Shortage {
        if taker.below < self.span.end().get() || taker.class == Preference::Unpopulated {
            return self.take_below(taker);
        }
        while let Some(region) = self.next_seed(taker) {
            match self.take_upwards(taker, region) {
                (Shortage::None, _) => return Shortage::None,
                (_, false) => break,
                (_, true) => {}
            }
        }
        Shortage::Empty
    }

    /// A region that has something to take.
    fn next_seed<S>(&self, taker: &Taker<'_, S>) -> Option<u64> {
        let populated_only = taker.class == Preference::Populated;
        if taker.unit == 0 && populated_only {
            let densest = self.regions.densest()?;
            // A run starts at its low end: step down while the regions below are as good.
            let level = self.regions.level(densest).saturating_sub(1).max(1);
            let floor = densest
                .saturating_sub(BACKTRACK)
                .max(self.regions.numbers().start);
            let above = (floor..densest)
                .rev()
                .find(|&r| self.regions.level(r) < level);
            return Some(above.map_or(floor, |r| r + 1));
        }
        let (set, order) = self
            .masks
            .iter()
            .enumerate()
            .find_map(|(set, &[none, some])| {
                let mask = if populated_only { some } else { none | some };
                let order = mask.checked_ilog2().filter(|&order| order >= taker.unit)?;
                Some((set, order))
            })?;
        let list = &self.bin(set, order)?.list;
        let pair = if populated_only {
            list.first_of(&self.nodes, true)
        } else {
            list.first()
        };
        let first = (pair != NONE).then(|| self.regions.of(self.frame_of(pair, order, false)))?;
        // What is populated in a large block may lie regions behind its start.
        if populated_only {
            self.regions.next_dense(first)
        } else {
            Some(first)
        }
    }

    /// Takes from a region and those above it while they are about as good. Says whether anything
    /// was found.
    fn take_upwards<S: RangeSink>(
        &mut self,
        taker: &mut Taker<'_, S>,
        mut region: u64,
    ) -> (Shortage, bool) {
        let granule = self.regions.order();
        let level = self.regions.level(region).saturating_sub(1).max(1);
        let mut any = false;
        loop {
            let before = self.free;
            let (start, end) = (region << granule, (region + 1) << granule);
            let mut next = region + 1;
            match self.take_between(taker, start, end) {
                Some(at) => next = next.max(self.regions.of(at)),
                None => return (Shortage::None, true),
            }
            let found = self.free != before;
            any |= found;
            region = next;
            let worth = if taker.class == Preference::Populated {
                self.regions.level(region) >= level
            } else {
                self.regions.counts(region).free == 1 << granule
            };
            if !found || !worth {
                return (Shortage::Empty, any);
            }
        }
    }

    /// Takes from every region below a limit, in order of address.
    fn take_below<S: RangeSink>(&mut self, taker: &mut Taker<'_, S>) -> Shortage {
        let granule = self.regions.order();
        let mut region = self.regions.numbers().start;
        while region << granule < taker.below {
            let next = match taker.class {
                Preference::Populated => self.regions.next_dense(region),
                Preference::Unpopulated => self
                    .regions
                    .next_untouched(region, 1 << taker.unit.min(granule)),
                Preference::Any => self.regions.next_free(region),
            };
            match next {
                Some(next) if next << granule < taker.below => region = next,
                _ => break,
            }
            let end = ((region + 1) << granule).min(taker.below);
            match self.take_between(taker, region << granule, end) {
                Some(at) => region = (region + 1).max(self.regions.of(at)),
                None => return Shortage::None,
            }
        }
        Shortage::Empty
    }

    /// Takes what suits between two frames (and to the end of a unit that starts there). Returns
    /// where it got to, or `None` when the sink is full.
    fn take_between<S: RangeSink>(
        &mut self,
        taker: &mut Taker<'_, S>,
        start: u64,
        end: u64,
    ) -> Option<u64> {
        let mut whole = Counted::default();
        let at = self.take_blocks(taker, start, end, &mut whole);
        self.free -= whole.frames;
        self.free_populated -= whole.populated;
        self.account_region(self.regions.of(start), whole.frames, whole.populated, false);
        at
    }

    /// As above; `whole` blocks of the region are counted, but not yet as taken.
    fn take_blocks<S: RangeSink>(
        &mut self,
        taker: &mut Taker<'_, S>,
        start: u64,
        end: u64,
        whole: &mut Counted,
    ) -> Option<u64> {
        let mut at = start;
        while at < end {
            let Some((head, order, slot)) = self.next_block(start, at) else {
                at += 1;
                continue;
            };
            let tail = head + (1 << order);
            // The next block's neighbours in their list are asked for while this one is dealt with.
            let next = self.node(tail);
            if next.is_free() {
                self.nodes.prefetch_neighbours(next);
            }
            if matches!(slot, Slot::Free(_)) && order >= taker.unit {
                let unit = 1 << taker.unit;
                let below = tail.min(taker.below & !(unit - 1));
                let (from, to) = if taker.unit <= self.regions.order() {
                    (at.max(head), tail.min(end & !(unit - 1)))
                } else if taker.class == Preference::Unpopulated {
                    // The regions before were looked at, and those after come by themselves.
                    let from = at.max(head).next_multiple_of(unit);
                    (from, below.min(from + unit).min(end.next_multiple_of(unit)))
                } else {
                    (head, below)
                };
                at = self.take_from_block(taker, (head, order), from, to, whole)?;
                if at < tail && at < end && at < to {
                    continue;
                }
            }
            at = at.max(tail.min(end));
        }
        Some(at)
    }

    /// The next block of a walk from `start`: it may reach over the start, later ones begin where
    /// the one before ends.
    #[inline]
    pub(super) fn next_block(&self, start: u64, at: u64) -> Option<(u64, u32, Slot)> {
        if at == start {
            return self.block_at(at);
        }
        match self.slot(at) {
            slot @ (Slot::Free(order) | Slot::Held(_, order)) => Some((at, order, slot)),
            Slot::Nothing => None,
        }
    }

    /// Takes the first suiting piece of `from..to` out of a free block. Returns the frame after
    /// it, or `None` when the sink is full.
    fn take_from_block<S: RangeSink>(
        &mut self,
        taker: &mut Taker<'_, S>,
        block: (u64, u32),
        from: u64,
        to: u64,
        whole: &mut Counted,
    ) -> Option<u64> {
        if from >= to {
            return Some(to);
        }
        // The commonest case: a block within one word of the bitmap that goes as it is.
        if taker.class == Preference::Populated && block.1 <= 6 && to - from == 1 << block.1 {
            let populated = self.populated.count(from, block.1);
            if populated == 0 {
                return Some(to);
            }
            if populated == to - from && taker.room(from) >= populated {
                self.take_whole(block, populated, whole);
                taker.add(from, to, populated);
                return Some(to);
            }
        }
        let mask = (1 << taker.unit) - 1;
        let any_populated = self.nodes.get(self.pair(block.0)).is_populated();
        let found = match taker.class {
            Preference::Any => Some((from, to)),
            Preference::Populated if any_populated => self
                .populated
                .next_run(from, to)
                .map(|(start, end)| (start & !mask, (end + mask) & !mask)),
            Preference::Populated => None,
            Preference::Unpopulated if any_populated => self.populated.next_clear(from, to, mask),
            Preference::Unpopulated => Some((from, to)),
        };
        let Some((start, end)) = found else {
            return Some(to);
        };
        let end = end.min(start.saturating_add(taker.room(start)));
        if start >= end {
            return None;
        }
        let populated = match (any_populated, taker.class) {
            (false, _) | (_, Preference::Unpopulated) => 0,
            (true, Preference::Populated) if taker.unit == 0 => end - start,
            _ => self
                .blocks_of(start, end)
                .map(|(f, k)| self.populated.count(f, k))
                .sum(),
        };
        if end - start == 1 << block.1 {
            self.take_whole(block, populated, whole);
        } else {
            self.split_off(block.0, block.1, start, end);
            self.mark_range(start, end, Kind::Taken);
        }
        taker.add(start, end, populated);
        Some(end)
    }

    /// Takes a free block that needs no cutting.
    #[inline]
    fn take_whole(&mut self, (head, order): (u64, u32), populated: u64, whole: &mut Counted) {
        self.unlist(head, order);
        if order <= self.regions.order() {
            whole.frames += 1 << order;
            whole.populated += populated;
        } else {
            self.account(head, order, populated, false);
        }
        self.mark(head, order, Kind::Taken);
        self.add_held(Kind::Taken, 1 << order);
    }
}
