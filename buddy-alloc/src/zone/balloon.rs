//! The balloon's shape: thousands of frames per call, as ranges, populated ones first.
//!
//! Frames go free → in hand ([`Zone::take`]) → ballooned ([`Zone::store`]) and back by
//! [`Zone::recall`] and [`Zone::put`]. Their owner tags are the allocator's own nodes: a
//! ballooned frame and its give path cost no byte.

use super::{Backing, Zone};
use crate::error::{AtError, RangeError};
use crate::frame::{Frame, FrameCount, FrameRange, Order};
use crate::list::NONE;
use crate::node::{Kind, Slot};

/// How frames were given to the host, which decides how they come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum GivePath {
    /// Told one by one, to be told again before use.
    Told,
    /// Given as ranges that the host discards; usable again as soon as they are asked back.
    Bulk,
}

impl GivePath {
    const fn kind(self) -> Kind {
        match self {
            Self::Told => Kind::Told,
            Self::Bulk => Kind::Bulk,
        }
    }
}

/// Where [`Zone::take`] and [`Zone::recall`] lay ranges.
pub trait RangeSink {
    /// Most frames the next push may have; zero to stop.
    fn wanted(&self) -> FrameCount;

    /// Receives a range of at most [`wanted`](Self::wanted) frames, `populated` of which the host
    /// backs with memory. From now on they are the receiver's.
    fn push(&mut self, range: FrameRange, populated: FrameCount);
}

/// A [`RangeSink`] over a slice.
#[derive(Debug)]
pub struct RangeBuf<'a> {
    ranges: &'a mut [FrameRange],
    len: usize,
    wanted: u64,
    populated: u64,
}

impl<'a> RangeBuf<'a> {
    /// A sink for `wanted` frames in at most `ranges.len()` ranges.
    #[must_use]
    pub const fn new(ranges: &'a mut [FrameRange], wanted: FrameCount) -> Self {
        Self {
            ranges,
            len: 0,
            wanted: wanted.get(),
            populated: 0,
        }
    }

    /// The ranges received.
    #[must_use]
    pub fn ranges(&self) -> &[FrameRange] {
        self.ranges.get(..self.len).unwrap_or_default()
    }

    /// How many of the received frames are populated.
    #[must_use]
    pub const fn populated(&self) -> FrameCount {
        FrameCount::new(self.populated)
    }
}

impl RangeSink for RangeBuf<'_> {
    fn wanted(&self) -> FrameCount {
        FrameCount::new(if self.len < self.ranges.len() {
            self.wanted
        } else {
            0
        })
    }

    fn push(&mut self, range: FrameRange, populated: FrameCount) {
        if let Some(place) = self.ranges.get_mut(self.len) {
            *place = range;
            self.len += 1;
            self.wanted = self.wanted.saturating_sub(range.count().get());
            self.populated += populated.get();
        }
    }
}

/// Which free frames [`Zone::take`] may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct TakeAsk {
    /// Only aligned units of this order. Order 0 finds exactly the populated frames; a larger
    /// unit counts as populated if any of its frames is.
    pub unit: Order,
    /// Only frames below this one.
    pub below: Frame,
    /// Whether to go on with untouched frames when the populated ones are used up.
    pub untouched: bool,
}

impl Default for TakeAsk {
    fn default() -> Self {
        Self {
            unit: Order::FRAME,
            below: Frame::new(u64::MAX),
            untouched: true,
        }
    }
}

/// Why a take or recall stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum TakeStop {
    /// The sink is full.
    Enough,
    /// Frames are left, but not in units of the asked order or not in the asked place; or the sink
    /// wants less than a unit.
    Fragmented,
    /// Nothing is left.
    Empty,
}

/// How far below the densest region a run may start.
const BACKTRACK: u64 = 64;

/// Takes pieces of free blocks and merges neighbours before they reach the sink.
struct Taker<'s, S> {
    sink: &'s mut S,
    unit: u32,
    below: u64,
    /// Whether only units with populated frames count.
    hot_only: bool,
    start: u64,
    end: u64,
    populated: u64,
}

impl<S: RangeSink> Taker<'_, S> {
    fn flush(&mut self) {
        if self.start < self.end {
            let populated = FrameCount::new(self.populated);
            self.sink
                .push(FrameRange::raw(self.start, self.end), populated);
        }
        (self.start, self.end, self.populated) = (0, 0, 0);
    }

    /// How many frames may follow at `at`, in whole units.
    fn room(&mut self, at: u64) -> u64 {
        let mask = !((1 << self.unit) - 1);
        if self.start < self.end {
            let left = self
                .sink
                .wanted()
                .get()
                .saturating_sub(self.end - self.start)
                & mask;
            if at == self.end && left != 0 {
                return left;
            }
            self.flush();
        }
        self.sink.wanted().get() & mask
    }

    fn add(&mut self, start: u64, end: u64, populated: u64) {
        if self.start == self.end {
            self.start = start;
        }
        self.end = end;
        self.populated += populated;
    }
}

impl Zone<'_> {
    /// Takes free frames for the balloon: the densest populated regions first, neighbours merged.
    ///
    /// The frames keep what is known about their population and are in hand until
    /// [`put`](Self::put) or [`store`](Self::store).
    ///
    /// Costs a few nodes per block taken, plus the free blocks passed over in the regions visited;
    /// a region is left with nothing more to take or with the sink full.
    ///
    /// ```
    /// # use buddy_alloc::*;
    /// # let span = FrameRange::new(Frame::new(0), FrameCount::new(4096));
    /// # let mut memory = vec![0; Config::new().metadata_words(span)];
    /// # let mut zone = Zone::new(span, Config::new(), &mut memory)?;
    /// zone.add_range(span, Backing::Populated)?;
    /// let mut ranges = [FrameRange::block(Frame::new(0), Order::FRAME); 8];
    /// let mut sink = RangeBuf::new(&mut ranges, FrameCount::new(3000));
    /// assert_eq!(zone.take(TakeAsk::default(), &mut sink), TakeStop::Enough);
    /// assert_eq!(sink.ranges(), [FrameRange::new(Frame::new(0), FrameCount::new(3000))]);
    /// # Ok::<(), Box<dyn core::error::Error>>(())
    /// ```
    pub fn take<S: RangeSink>(&mut self, ask: TakeAsk, sink: &mut S) -> TakeStop {
        let mut taker = Taker {
            sink,
            unit: u32::from(ask.unit.get()),
            below: ask.below.get().min(self.span.end().get()),
            hot_only: true,
            start: 0,
            end: 0,
            populated: 0,
        };
        if self.take_class(&mut taker) != TakeStop::Enough && ask.untouched {
            taker.hot_only = false;
            self.take_class(&mut taker);
        }
        taker.flush();
        if sink.wanted() == FrameCount::ZERO {
            TakeStop::Enough
        } else if self.free == 0 {
            TakeStop::Empty
        } else {
            TakeStop::Fragmented
        }
    }

    fn take_class<S: RangeSink>(&mut self, taker: &mut Taker<'_, S>) -> TakeStop {
        if taker.below < self.span.end().get() {
            return self.take_below(taker);
        }
        while let Some(region) = self.next_seed(taker) {
            match self.take_upwards(taker, region) {
                (TakeStop::Enough, _) => return TakeStop::Enough,
                (_, false) => break,
                (_, true) => {}
            }
        }
        TakeStop::Empty
    }

    /// A region that has something to take.
    fn next_seed<S>(&self, taker: &Taker<'_, S>) -> Option<u64> {
        if taker.unit == 0 && taker.hot_only {
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
            .find_map(|(set, &[cold, hot])| {
                let mask = if taker.hot_only { hot } else { cold | hot };
                let order = mask.checked_ilog2().filter(|&order| order >= taker.unit)?;
                Some((set, order))
            })?;
        let list = &self.bin(set, order)?.list;
        let pair = if taker.hot_only {
            list.first_of(&self.nodes, true)
        } else {
            list.first()
        };
        (pair != NONE).then(|| self.regions.of(self.frame_of(pair, order, false)))
    }

    /// Takes from a region and those above it while they are about as good. Says whether anything
    /// was found.
    fn take_upwards<S: RangeSink>(
        &mut self,
        taker: &mut Taker<'_, S>,
        mut region: u64,
    ) -> (TakeStop, bool) {
        let granule = self.regions.order();
        let level = self.regions.level(region).saturating_sub(1).max(1);
        let mut any = false;
        loop {
            let before = self.free;
            let (start, end) = (region << granule, (region + 1) << granule);
            let mut next = region + 1;
            match self.take_between(taker, start, end) {
                Some(at) => next = next.max(self.regions.of(at)),
                None => return (TakeStop::Enough, true),
            }
            let found = self.free != before;
            any |= found;
            region = next;
            let worth = if taker.hot_only {
                self.regions.level(region) >= level
            } else {
                self.regions.counts(region).free == 1 << granule
            };
            if !found || !worth {
                return (TakeStop::Empty, any);
            }
        }
    }

    /// Takes from every region below a limit, in order of address. One visit per region.
    fn take_below<S: RangeSink>(&mut self, taker: &mut Taker<'_, S>) -> TakeStop {
        let granule = self.regions.order();
        let mut region = self.regions.numbers().start;
        while region << granule < taker.below {
            if taker.hot_only {
                match self.regions.next_dense(region) {
                    Some(dense) if dense << granule < taker.below => region = dense,
                    _ => break,
                }
            }
            let end = ((region + 1) << granule).min(taker.below);
            match self.take_between(taker, region << granule, end) {
                Some(at) => region = (region + 1).max(self.regions.of(at)),
                None => return TakeStop::Enough,
            }
        }
        TakeStop::Empty
    }

    /// Takes what suits between two frames (and to the end of a unit that starts there). Returns
    /// where it got to, or `None` when the sink is full.
    fn take_between<S: RangeSink>(
        &mut self,
        taker: &mut Taker<'_, S>,
        start: u64,
        end: u64,
    ) -> Option<u64> {
        let mut at = start;
        while at < end {
            let slot = if at == start {
                self.block_at(at)
            } else {
                self.head(at)
            };
            let Some((head, order, slot)) = slot else {
                at += 1;
                continue;
            };
            let tail = head + (1 << order);
            if matches!(slot, Slot::Free(_)) && order >= taker.unit {
                let (from, to) = if taker.unit > self.regions.order() {
                    (head, tail.min(taker.below & !((1 << taker.unit) - 1)))
                } else {
                    (at.max(head), tail.min(end & !((1 << taker.unit) - 1)))
                };
                at = self.take_from_block(taker, (head, order), from, to)?;
                if at < tail && at < end && at < to {
                    continue;
                }
            }
            at = at.max(tail.min(end));
        }
        Some(at)
    }

    fn head(&self, at: u64) -> Option<(u64, u32, Slot)> {
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
    ) -> Option<u64> {
        if from >= to {
            return Some(to);
        }
        let mask = (1 << taker.unit) - 1;
        let hot = self.nodes.get(self.pair(block.0)).is_hot();
        let (start, end) = if !taker.hot_only {
            (from, to)
        } else if !hot {
            return Some(to);
        } else {
            let Some((start, end)) = self.populated.next_run(from, to) else {
                return Some(to);
            };
            (start & !mask, (end + mask) & !mask)
        };
        let end = end.min(start.saturating_add(taker.room(start)));
        if start >= end {
            return None;
        }
        let populated = match (hot, taker.unit) {
            (false, _) => 0,
            (true, 0) if taker.hot_only => end - start,
            _ => self
                .blocks_of(start, end)
                .map(|(f, k)| self.populated.count(f, k))
                .sum(),
        };
        if end - start == 1 << block.1 {
            // The whole block: nothing to cut, nothing to count again.
            self.unlist(block.0, block.1);
            self.account(block.0, block.1, populated, false);
            self.mark(block.0, block.1, Kind::Taken);
            self.add_held(Kind::Taken, end - start);
        } else {
            self.carve(block.0, block.1, start, end);
            self.mark_range(start, end, Kind::Taken);
        }
        taker.add(start, end, populated);
        Some(end)
    }

    /// Takes exactly this range for the balloon, as a migration needs it.
    ///
    /// # Errors
    /// See [`AtError`].
    pub fn take_at(&mut self, range: FrameRange) -> Result<(), AtError> {
        self.hold_free(range, Kind::Taken)
    }

    /// In hand → free.
    ///
    /// # Errors
    /// See [`RangeError`].
    pub fn put(&mut self, range: FrameRange, backing: Backing) -> Result<(), RangeError> {
        self.release_held(range, Kind::Taken, Some(backing.is_populated()))
            .map_err(|at| self.range_error(at))
    }

    /// In hand → free, for frames the host was never told about: what was known about their
    /// population still holds.
    ///
    /// # Errors
    /// See [`RangeError`].
    pub fn put_unchanged(&mut self, range: FrameRange) -> Result<(), RangeError> {
        self.release_held(range, Kind::Taken, None)
            .map_err(|at| self.range_error(at))
    }

    /// In hand → ballooned. The host discards the frames: they are populated no more.
    ///
    /// # Errors
    /// See [`RangeError`].
    pub fn store(&mut self, range: FrameRange, path: GivePath) -> Result<(), RangeError> {
        self.retag(range, Kind::Taken, path.kind())?;
        let (start, end) = (range.start().get(), range.end().get());
        for (frame, order) in self.blocks_of(start, end) {
            self.populated.fill(frame, order, false);
        }
        for (region, ..) in self.by_region(start, end) {
            if let Some(bits) = self.ballooned.get_mut(path as usize) {
                bits.fill(region, 0, true);
            }
        }
        Ok(())
    }

    /// Ballooned → in hand: frames given by `path`, lowest first, neighbours merged.
    ///
    /// Regions without ballooned frames are skipped 64 words at a time; within a region every
    /// block is passed once per call. A region is visited in vain at most once per
    /// [`store`](Self::store) into it.
    pub fn recall<S: RangeSink>(&mut self, path: GivePath, sink: &mut S) -> TakeStop {
        let below = self.span.end().get();
        let mut taker = Taker {
            sink,
            unit: 0,
            below,
            hot_only: false,
            start: 0,
            end: 0,
            populated: 0,
        };
        let granule = self.regions.order();
        let mut from = self.regions.numbers().start;
        let stop = loop {
            let found = self
                .ballooned
                .get(path as usize)
                .and_then(|bits| bits.next_set(from));
            let Some(region) = found else {
                break TakeStop::Empty;
            };
            let (start, end) = (region << granule, (region + 1) << granule);
            if self.recall_between(&mut taker, path, start, end).is_none() {
                break TakeStop::Enough;
            }
            if let Some(bits) = self.ballooned.get_mut(path as usize) {
                bits.fill(region, 0, false);
            }
            from = region;
        };
        taker.flush();
        if sink.wanted() == FrameCount::ZERO {
            TakeStop::Enough
        } else {
            stop
        }
    }

    /// Recalls all of a region; `None` when the sink is full.
    fn recall_between<S: RangeSink>(
        &mut self,
        taker: &mut Taker<'_, S>,
        path: GivePath,
        start: u64,
        end: u64,
    ) -> Option<()> {
        let mut at = start;
        while at < end {
            let slot = if at == start {
                self.block_at(at)
            } else {
                self.head(at)
            };
            let Some((head, order, slot)) = slot else {
                at += 1;
                continue;
            };
            let tail = head + (1 << order);
            if slot == Slot::Held(path.kind(), order) {
                let from = at.max(head);
                let to = tail.min(from.saturating_add(taker.room(from)));
                if from >= to {
                    return None;
                }
                self.retag(FrameRange::raw(from, to), path.kind(), Kind::Taken)
                    .ok()?;
                taker.add(from, to, 0);
                at = to;
            } else {
                at = tail;
            }
        }
        Some(())
    }

    /// Ballooned → in hand for exactly this range, as a migration needs it.
    ///
    /// # Errors
    /// See [`RangeError`].
    pub fn recall_at(&mut self, range: FrameRange, path: GivePath) -> Result<(), RangeError> {
        self.retag(range, path.kind(), Kind::Taken)
    }

    /// Frames ballooned by a path.
    #[must_use]
    pub fn ballooned(&self, path: GivePath) -> FrameCount {
        FrameCount::new(self.held.get(path.kind() as usize).copied().unwrap_or(0))
    }
}
