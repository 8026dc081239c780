//! Glue to `balloon-core`: a zone is a frame source and its own ledger.
//!
//! The only place where frames of this crate meet the numbers that are told to a host.

use balloon_core as core_;
use core_::{Ask, FrameSource, Ledger, RangeSink, Stop};

use crate::frame::{Frame, FrameCount, FrameRange, Order};
use crate::zone::{Backing, GivePath, RangeSink as Sink, TakeAsk, TakeStop, Zone};

/// A sink of the engine as a sink of the zone.
struct Bridge<'a, 'b>(&'a mut RangeSink<'b>);

impl Sink for Bridge<'_, '_> {
    fn wanted(&self) -> FrameCount {
        FrameCount::new(self.0.wanted().get())
    }

    fn push(&mut self, range: FrameRange, populated: FrameCount) {
        let backing = match populated.get() {
            0 => core_::Backing::Unpopulated,
            all if all == range.count().get() => core_::Backing::Populated,
            some => core_::Backing::Partly(core_::FrameCount::new(some)),
        };
        let start = core_::Pfn::new(range.start().get());
        let count = core_::FrameCount::new(range.count().get());
        // A zone ends below the engine's limit and pushes no empty range and none above `wanted`.
        let pushed = core_::FrameRange::new(start, count)
            .is_some_and(|range| self.0.push(range, backing).is_ok());
        debug_assert!(pushed, "the sink takes what it wants");
    }
}

const fn range_of(range: core_::FrameRange) -> FrameRange {
    let count = FrameCount::new(range.count().get());
    FrameRange::new(Frame::new(range.start().get()), count)
}

const fn path_of(path: core_::GivePath) -> GivePath {
    match path {
        core_::GivePath::Told => GivePath::Told,
        core_::GivePath::Bulk => GivePath::Bulk,
    }
}

const fn stop_of(stop: TakeStop) -> Stop {
    match stop {
        TakeStop::Enough => Stop::Enough,
        TakeStop::Fragmented => Stop::Fragmented,
        TakeStop::Empty => Stop::Empty,
    }
}

impl FrameSource for Zone<'_> {
    /// Populated frames first, densest regions first. An order above the zone's largest finds
    /// nothing.
    fn take(&mut self, ask: Ask, out: &mut RangeSink<'_>) -> Stop {
        let Some(unit) = Order::new(ask.order.get()) else {
            return Stop::Fragmented;
        };
        let ask = TakeAsk {
            unit,
            below: Frame::new(ask.below.get()),
            untouched: true,
        };
        stop_of(Self::take(self, ask, &mut Bridge(out)))
    }

    /// `Partly` keeps what the zone knows about each frame.
    fn put(
        &mut self,
        range: core_::FrameRange,
        backing: core_::Backing,
    ) -> Result<(), core_::FrameRange> {
        let frames = range_of(range);
        let backing = match backing {
            core_::Backing::Populated => Backing::Populated,
            core_::Backing::Unpopulated => Backing::Untouched,
            core_::Backing::Unknown => Backing::Unknown,
            core_::Backing::Partly(_) => {
                return self.put_unchanged(frames).map_err(|_| range);
            }
        };
        Self::put(self, frames, backing).map_err(|_| range)
    }
}

impl Ledger for Zone<'_> {
    fn store(
        &mut self,
        range: core_::FrameRange,
        path: core_::GivePath,
    ) -> Result<(), core_::FrameRange> {
        Self::store(self, range_of(range), path_of(path)).map_err(|_| range)
    }

    fn recall(&mut self, path: core_::GivePath, out: &mut RangeSink<'_>) -> Stop {
        stop_of(Self::recall(self, path_of(path), &mut Bridge(out)))
    }

    fn held(&self, path: core_::GivePath) -> core_::FrameCount {
        core_::FrameCount::new(self.ballooned(path_of(path)).get())
    }
}
