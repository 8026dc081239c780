//! The balloon's shape: thousands of frames per call, as ranges, populated ones first.
//!
//! Frames go free → in hand ([`Zone::take`]) → ballooned ([`Zone::store`]) and back by
//! [`Zone::recall`] and [`Zone::put`]. Their owner tags are the allocator's own nodes: a
//! ballooned frame and its give path cost no byte.

use super::Zone;
use super::add::Backing;
use super::alloc::Preference;
use super::ballooned::{Ballooned, BalloonedRegions, Search};
use super::sink::RangeSink;
use super::sink::Taker;
use crate::error::{AtError, RangeError};
use crate::frame::{Frame, FrameCount, FrameRange, Order};
use crate::node::{Kind, Slot};

/// How frames were given to the host, which decides how they come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Via {
    /// Told one by one, to be told again before use.
    Inflate,
    /// Given as ranges that the host discards; usable again as soon as they are asked back.
    Bulk,
}

impl Via {
    pub(crate) const fn kind(self) -> Kind {
        match self {
            Self::Inflate => Kind::Inflate,
            Self::Bulk => Kind::Bulk,
        }
    }
}

/// Which free frames [`Zone::take`] may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct TakeRequest {
    /// Only aligned units of this order. Order 0 finds exactly the populated frames, or exactly
    /// the others; a larger unit counts as populated if any of its frames is.
    pub unit: Order,
    /// Only frames below this one.
    pub below: Frame,
    /// Which ones first.
    pub preference: Preference,
    /// Whether to stop when the preferred ones are used up.
    pub only: bool,
}

impl Default for TakeRequest {
    fn default() -> Self {
        Self {
            unit: Order::FRAME,
            below: Frame::new(u64::MAX),
            preference: Preference::Populated,
            only: false,
        }
    }
}

/// Why a take, a batch or a recall stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Shortage {
    /// The sink is full.
    None,
    /// Frames are left, but not in units of the asked order or not in the asked place; or the sink
    /// wants less than a unit.
    Fragmented,
    /// Frames are left, but none below the limit of the request.
    OutOfReach,
    /// The bound of one call was reached: the next call looks on behind it.
    Again,
    /// Nothing is left.
    Empty,
}

/// Why a recall stopped that left so many frames ballooned; `ended` if it looked at all of them.
pub(crate) fn recall_end<S: RangeSink>(left: FrameCount, ended: bool, sink: &S) -> Shortage {
    if sink.wanted() == FrameCount::ZERO {
        Shortage::None
    } else if !ended {
        Shortage::Again
    } else if left == FrameCount::ZERO {
        Shortage::Empty
    } else {
        Shortage::Fragmented
    }
}

/// Units that one recall looks at in vain.
const IN_VAIN: u32 = 512;

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

    /// In hand → used, populated by whoever uses it: freed like any other.
    ///
    /// # Errors
    /// See [`RangeError`].
    pub fn allocate_taken(&mut self, range: FrameRange) -> Result<(), RangeError> {
        self.retag(range, Kind::Taken, Kind::Used)?;
        for (frame, order) in self.blocks_of(range.start().get(), range.end().get()) {
            self.populated.fill(frame, order, true);
        }
        Ok(())
    }

    /// In hand → ballooned. The host discards the frames: they are populated no more.
    ///
    /// # Errors
    /// See [`RangeError`].
    pub fn store(&mut self, range: FrameRange, via: Via) -> Result<(), RangeError> {
        self.retag(range, Kind::Taken, via.kind())?;
        let (start, end) = (range.start().get(), range.end().get());
        for (frame, order) in self.blocks_of(start, end) {
            self.populated.fill(frame, order, false);
        }
        self.note_ballooned(via, start, end, true);
        self.search_mut(via).given(start);
        Ok(())
    }

    /// Ballooned → in hand: frames given by `via`, in aligned blocks of `unit` that were given
    /// from end to end; neighbours merged.
    ///
    /// Regions of which all was given come last, as far as the unit lets others come at all: single
    /// frames break no block that could go back to the host's page tables in one piece. Otherwise the
    /// lowest come first.
    ///
    /// Regions without ballooned frames are skipped 64 words at a time, and no other is visited in
    /// vain if the unit is a frame or the granule; within a region every block is passed a few times
    /// per call. A call looks at no more than 512 other units in vain, and the next one goes on behind
    /// them: [`Shortage::Again`] says so. Only when all ballooned frames were looked at, it says
    /// [`Shortage::Fragmented`].
    pub fn recall<S: RangeSink>(&mut self, via: Via, unit: Order, sink: &mut S) -> Shortage {
        let mut ended = true;
        for whole in [false, true] {
            // No block is broken before all others were looked at.
            ended = ended && self.recall_pass(via, unit, whole, sink);
        }
        recall_end(self.ballooned(via), ended, sink)
    }

    /// Recalls from the regions of which all was given by `via`, or from the others. Whether it
    /// looked at all that it had to.
    pub(crate) fn recall_pass<S: RangeSink>(
        &mut self,
        via: Via,
        unit: Order,
        whole: bool,
        sink: &mut S,
    ) -> bool {
        let (unit, granule) = (u32::from(unit.get()), self.regions.order());
        let mut taker = Taker::new(sink, unit, self.span.end().get(), Preference::Any);
        if taker.room(0) == 0 {
            return true;
        }
        let ended = match (whole, unit) {
            (true, unit) if unit <= granule => self.recall_regions(&mut taker, via),
            (true, _) => self.recall_joined(&mut taker, via),
            (false, 0) => self.recall_frames(&mut taker, via),
            (false, unit) if unit < granule => self.recall_scattered(&mut taker, via),
            (false, _) => Some(()),
        };
        taker.flush();
        ended.is_some()
    }

    pub(super) const fn search_mut(&mut self, via: Via) -> &mut Search {
        let [told, bulk] = &mut self.searches;
        match via {
            Via::Inflate => told,
            Via::Bulk => bulk,
        }
    }

    /// Recalls frames of regions of which not all was given.
    fn recall_frames<S: RangeSink>(&mut self, taker: &mut Taker<'_, S>, via: Via) -> Option<()> {
        let granule = self.regions.order();
        let mut from = self.regions.numbers().start;
        while let Some(region) = self.given(via).next_some(from) {
            from = region + 1;
            let (start, end) = (region << granule, from << granule);
            let at = self.recall_between(taker, via, start, end);
            self.note_ballooned(via, start, at, false);
            if at < end {
                break;
            }
        }
        Some(())
    }

    /// Recalls units smaller than a region from regions of which not all was given; `None` if it
    /// looked as often as it may.
    fn recall_scattered<S: RangeSink>(&mut self, taker: &mut Taker<'_, S>, via: Via) -> Option<()> {
        let granule = self.regions.order();
        let unit = 1 << taker.unit;
        let first = self.regions.numbers().start << granule;
        let Some(from) = self.search_mut(via).resume(taker.unit) else {
            return Some(());
        };
        let (mut at, mut looks) = (from.max(first), IN_VAIN);
        while let Some(region) = self.given(via).next_some(self.regions.of(at)) {
            at = at.max(region << granule);
            let end = (region + 1) << granule;
            while at < end {
                if taker.room(at) == 0 {
                    return Some(());
                }
                if looks == 0 {
                    self.search_mut(via).from = at;
                    return None;
                }
                let range = FrameRange::raw(at, at + unit);
                if self.retag(range, via.kind(), Kind::Taken).is_ok() {
                    taker.add(at, at + unit, 0);
                    self.note_ballooned(via, at, at + unit, false);
                } else {
                    looks -= 1;
                }
                at += unit;
            }
        }
        self.search_mut(via).end().then_some(())
    }

    /// Recalls from the regions of which all was given, in pieces of no less than a region as long
    /// as so much is wanted.
    fn recall_regions<S: RangeSink>(&mut self, taker: &mut Taker<'_, S>, via: Via) -> Option<()> {
        let granule = self.regions.order();
        let mut from = self.regions.numbers().start;
        while let Some(region) = self.given(via).next_all(from) {
            let start = region << granule;
            let room = taker.room(start);
            if room == 0 {
                break;
            }
            let tail = match self.block_at(start) {
                Some((head, order, _)) => head + (1 << order),
                None => start,
            };
            let end = tail.max(start + (1 << granule));
            let end = end.min(start.saturating_add(room));
            self.recall_noted(taker, via, start, end);
            from = (region + 1).max(self.regions.of(end));
        }
        Some(())
    }

    /// Recalls units of several regions, of each of which all was given; `None` if it looked as often
    /// as it may.
    fn recall_joined<S: RangeSink>(&mut self, taker: &mut Taker<'_, S>, via: Via) -> Option<()> {
        let granule = self.regions.order();
        let regions = taker.unit - granule;
        let first = self.regions.numbers().start;
        let Some(from) = self.search_mut(via).resume(taker.unit) else {
            return Some(());
        };
        let (mut from, mut looks) = (first.max(self.regions.of(from)), IN_VAIN);
        while let Some(region) = self.given(via).next_all(from) {
            let start = region << granule;
            if taker.room(start) == 0 {
                return Some(());
            }
            if looks == 0 {
                self.search_mut(via).from = start;
                return None;
            }
            let head = region & !((1 << regions) - 1);
            from = head + (1 << regions);
            if region == head && self.given(via).are_all(region, regions) {
                let end = start + (1 << taker.unit);
                self.recall_noted(taker, via, start, end);
            } else {
                looks -= 1;
            }
        }
        self.search_mut(via).end().then_some(())
    }

    /// Recalls a range that was given by `via` from end to end.
    fn recall_noted<S: RangeSink>(
        &mut self,
        taker: &mut Taker<'_, S>,
        via: Via,
        start: u64,
        end: u64,
    ) {
        let range = FrameRange::raw(start, end);
        let held = self.retag(range, via.kind(), Kind::Taken);
        debug_assert!(held.is_ok(), "the region is noted as given");
        if held.is_ok() {
            taker.add(start, end, 0);
            self.note_ballooned(via, start, end, false);
        }
    }

    /// Recalls all between two frames of a region; returns where it got to before the sink was full.
    fn recall_between<S: RangeSink>(
        &mut self,
        taker: &mut Taker<'_, S>,
        via: Via,
        start: u64,
        end: u64,
    ) -> u64 {
        let mut at = start;
        while at < end {
            let Some((head, order, slot)) = self.next_block(start, at) else {
                at += 1;
                continue;
            };
            let tail = (head + (1 << order)).min(end);
            if slot == Slot::Held(via.kind(), order) {
                let to = tail.min(at.saturating_add(taker.room(at)));
                if at >= to {
                    return at;
                }
                let held = self.retag(FrameRange::raw(at, to), via.kind(), Kind::Taken);
                debug_assert!(held.is_ok(), "part of a block that was just seen");
                taker.add(at, to, 0);
                at = to;
            } else {
                at = tail;
            }
        }
        at
    }

    /// Ballooned → in hand for exactly this range, as a migration needs it.
    ///
    /// # Errors
    /// See [`RangeError`].
    pub fn recall_at(&mut self, range: FrameRange, via: Via) -> Result<(), RangeError> {
        self.retag(range, via.kind(), Kind::Taken)?;
        self.note_ballooned(via, range.start().get(), range.end().get(), false);
        Ok(())
    }

    /// Frames ballooned by a path.
    #[must_use]
    pub fn ballooned(&self, via: Via) -> FrameCount {
        FrameCount::new(self.held.get(via.kind() as usize).copied().unwrap_or(0))
    }
}

impl<'m> Zone<'m> {
    pub(super) const fn given(&self, via: Via) -> &BalloonedRegions<'m> {
        let [told, bulk] = &self.given;
        match via {
            Via::Inflate => told,
            Via::Bulk => bulk,
        }
    }

    pub(super) const fn given_mut(&mut self, via: Via) -> &mut BalloonedRegions<'m> {
        let [told, bulk] = &mut self.given;
        match via {
            Via::Inflate => told,
            Via::Bulk => bulk,
        }
    }

    /// Notes that a range was given by `via`, or came back.
    ///
    /// What is noted is exact, so no search meets a region in vain. Of a region that the range fills
    /// only in part, the other blocks are passed up to the first that decides.
    pub(super) fn note_ballooned(&mut self, via: Via, start: u64, end: u64, stored: bool) {
        let granule = self.regions.order();
        let mut at = start;
        while at < end {
            let region = self.regions.of(at);
            let (first, past) = (region << granule, (region + 1) << granule);
            let next = end.min(past);
            let (noted, otherwise) = if stored {
                (Ballooned::All, Ballooned::Some)
            } else {
                (Ballooned::Nothing, Ballooned::Some)
            };
            let rest_alike = self.are_alike(via, [(first, at), (next, past)], stored);
            let given = if rest_alike { noted } else { otherwise };
            let was_all = self.given(via).are_all(region, 0);
            self.given_mut(via).set(region, given);
            if given == Ballooned::Some && was_all {
                // A search passed over it: it was whole.
                self.search_mut(via).given(first);
            }
            at = next;
        }
    }

    /// Whether all frames of two parts of a region were given by `via`, or none was.
    ///
    /// Both are walked at once: whoever gives or takes back in order of address, up or down, finds
    /// the other kind next to one of their starts.
    fn are_alike(&self, via: Via, parts: [(u64, u64); 2], given: bool) -> bool {
        let mut at = parts.map(|(start, _)| start);
        let mut walking = true;
        while walking {
            walking = false;
            for (at, (start, end)) in at.iter_mut().zip(parts) {
                if *at >= end {
                    continue;
                }
                let (tail, held) = match self.next_block(start, *at) {
                    Some((head, order, slot)) => {
                        (head + (1 << order), slot == Slot::Held(via.kind(), order))
                    }
                    None => (*at + 1, false),
                };
                if held != given {
                    return false;
                }
                *at = tail;
                walking = true;
            }
        }
        true
    }
}
