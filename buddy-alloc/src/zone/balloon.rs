//! The balloon's shape: thousands of frames per call, as ranges, populated ones first.
//!
//! Frames go free → in hand ([`Zone::take`]) → ballooned ([`Zone::store`]) and back by
//! [`Zone::recall`] and [`Zone::put`]. Their owner tags are the allocator's own nodes: a
//! ballooned frame and its give path cost no byte.

use super::given::Given;
use super::sink::Taker;
use super::{Backing, RangeSink, Zone};
use crate::error::{AtError, RangeError};
use crate::frame::{Frame, FrameCount, FrameRange, Order};
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

/// Why a take, a batch or a recall stopped.
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

/// Why a recall stopped that left so many frames ballooned.
pub(crate) fn recall_end<S: RangeSink>(left: FrameCount, sink: &S) -> TakeStop {
    if sink.wanted() == FrameCount::ZERO {
        TakeStop::Enough
    } else if left == FrameCount::ZERO {
        TakeStop::Empty
    } else {
        TakeStop::Fragmented
    }
}

impl Zone<'_> {
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
        self.note_given(path, start, end, true);
        Ok(())
    }

    /// Ballooned → in hand: frames given by `path`, in aligned blocks of `unit` that were given
    /// from end to end; neighbours merged.
    ///
    /// Regions of which all was given come last, as far as the unit lets others come at all: single
    /// frames break no block that could go back to the host's page tables in one piece. Otherwise the
    /// lowest come first.
    ///
    /// Regions without ballooned frames are skipped 64 words at a time; within a region every
    /// block is passed a few times per call. A region is visited in vain at most once per
    /// [`store`](Self::store) into it, if the unit is a frame or the granule; with any other unit, at
    /// most once per call.
    pub fn recall<S: RangeSink>(&mut self, path: GivePath, unit: Order, sink: &mut S) -> TakeStop {
        for whole in [false, true] {
            self.recall_pass(path, unit, whole, sink);
        }
        recall_end(self.ballooned(path), sink)
    }

    /// Recalls from the regions of which all was given by `path`, or from the others.
    pub(crate) fn recall_pass<S: RangeSink>(
        &mut self,
        path: GivePath,
        unit: Order,
        whole: bool,
        sink: &mut S,
    ) {
        let unit = u32::from(unit.get());
        let mut taker = Taker::new(sink, unit, self.span.end().get(), false);
        if taker.room(0) == 0 {
            return;
        }
        if whole {
            self.recall_whole(&mut taker, path);
        } else if unit < self.regions.order() {
            self.recall_scattered(&mut taker, path);
        }
        taker.flush();
    }

    /// Recalls from the regions of which not all was given; `None` when the sink is full.
    fn recall_scattered<S: RangeSink>(
        &mut self,
        taker: &mut Taker<'_, S>,
        path: GivePath,
    ) -> Option<()> {
        let granule = self.regions.order();
        let mut from = self.regions.numbers().start;
        while let Some(region) = self.given(path).next_some(from) {
            from = region + 1;
            let (start, end) = (region << granule, (region + 1) << granule);
            if self.given(path).may_be_all(region) {
                let all = self.check_held(start, end, path.kind()).is_ok();
                let seen = if all { Given::All } else { Given::Some };
                self.given_mut(path).set(region, seen);
                if all {
                    continue;
                }
            }
            if taker.unit == 0 {
                self.recall_between(taker, path, start, end)?;
                self.given_mut(path).set(region, Given::Nothing);
            } else {
                self.recall_units(taker, path, start, end)?;
            }
        }
        Some(())
    }

    /// Recalls from the regions of which all was given, in pieces of no less than a region as long
    /// as so much is wanted; `None` when the sink is full.
    fn recall_whole<S: RangeSink>(
        &mut self,
        taker: &mut Taker<'_, S>,
        path: GivePath,
    ) -> Option<()> {
        let granule = self.regions.order();
        let step = 1 << granule.max(taker.unit);
        let mut from = self.regions.numbers().start;
        while let Some(region) = self.given(path).next_all(from) {
            let start = (region << granule).next_multiple_of(step);
            if start != region << granule {
                from = self.regions.of(start);
                continue;
            }
            let room = Some(taker.room(start)).filter(|&room| room != 0)?;
            let tail = match self.block_at(start) {
                Some((head, order, _)) => head + (1 << order),
                None => start,
            };
            let end = tail.max(start + step).min(start.saturating_add(room));
            from = self.regions.of(start + step);
            if self
                .retag(FrameRange::raw(start, end), path.kind(), Kind::Taken)
                .is_ok()
            {
                taker.add(start, end, 0);
                self.note_given(path, start, end, false);
                from = from.max(self.regions.of(end));
            } else if step == 1 << granule {
                self.given_mut(path).set(region, Given::Some);
            }
        }
        Some(())
    }

    /// Recalls the whole units of a region; `None` when the sink is full.
    fn recall_units<S: RangeSink>(
        &mut self,
        taker: &mut Taker<'_, S>,
        path: GivePath,
        start: u64,
        end: u64,
    ) -> Option<()> {
        let unit = 1 << taker.unit;
        let mut at = start;
        while at < end {
            if taker.room(at) == 0 {
                return None;
            }
            let range = FrameRange::raw(at, at + unit);
            if self.retag(range, path.kind(), Kind::Taken).is_ok() {
                taker.add(at, at + unit, 0);
            }
            at += unit;
        }
        Some(())
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
            let Some((head, order, slot)) = self.next_block(start, at) else {
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
        self.retag(range, path.kind(), Kind::Taken)?;
        self.note_given(path, range.start().get(), range.end().get(), false);
        Ok(())
    }

    /// Frames ballooned by a path.
    #[must_use]
    pub fn ballooned(&self, path: GivePath) -> FrameCount {
        FrameCount::new(self.held.get(path.kind() as usize).copied().unwrap_or(0))
    }
}
