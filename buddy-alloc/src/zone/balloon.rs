//! The balloon's shape: thousands of frames per call, as ranges, populated ones first.
//!
//! Frames go free → in hand ([`Zone::take`]) → ballooned ([`Zone::store`]) and back by
//! [`Zone::recall`] and [`Zone::put`]. Their owner tags are the allocator's own nodes: a
//! ballooned frame and its give path cost no byte.

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
        let mut taker = Taker::new(sink, 0, self.span.end().get(), false);
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
        self.retag(range, path.kind(), Kind::Taken)
    }

    /// Frames ballooned by a path.
    #[must_use]
    pub fn ballooned(&self, path: GivePath) -> FrameCount {
        FrameCount::new(self.held.get(path.kind() as usize).copied().unwrap_or(0))
    }
}
