//! Glue to `balloon-core`: zones are frame sources and their own ledgers.
//!
//! The only place where frames of this crate meet the numbers that are told to a host.

use balloon_core as core_;
use core_::{Ask, FrameSource, Ledger, RangeSink, Stop};

use crate::frame::{Frame, FrameCount, FrameRange, Order};
use crate::reserve::{Reserved, TakeEnd};
use crate::zone::{Backing, GivePath, RangeSink as Sink, TakeAsk, TakeStop, Zone};
use crate::zones::Zones;

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

/// The zone's ask; `None` if its order is above any block's.
fn ask_of(ask: Ask) -> Option<TakeAsk> {
    let unit = Order::new(ask.order.get())?;
    Some(TakeAsk {
        unit,
        below: Frame::new(ask.below.get()),
        untouched: true,
    })
}

/// What a put is told; `None` keeps what is known about each frame.
const fn backing_of(backing: core_::Backing) -> Option<Backing> {
    match backing {
        core_::Backing::Populated => Some(Backing::Populated),
        core_::Backing::Unpopulated => Some(Backing::Untouched),
        core_::Backing::Unknown => Some(Backing::Unknown),
        core_::Backing::Partly(_) => None,
    }
}

macro_rules! glue {
    ([$($generics:tt)*] $name:ty) => {
        /// Populated frames first, densest regions first. An order above the largest block finds
        /// nothing. `Partly` keeps what is known about each frame.
        impl<$($generics)*> FrameSource for $name {
            fn take(&mut self, ask: Ask, out: &mut RangeSink<'_>) -> Stop {
                let Some(ask) = ask_of(ask) else { return Stop::Fragmented };
                stop_of(Self::take(self, ask, &mut Bridge(out)))
            }

            fn put(
                &mut self,
                range: core_::FrameRange,
                backing: core_::Backing,
            ) -> Result<(), core_::FrameRange> {
                let frames = range_of(range);
                match backing_of(backing) {
                    Some(backing) => Self::put(self, frames, backing),
                    None => self.put_unchanged(frames),
                }
                .map_err(|_| range)
            }
        }

        impl<$($generics)*> Ledger for $name {
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
    };
}

glue!([] Zone<'_>);
glue!([const N: usize] Zones<'_, N>);

/// As the zone's, but `take` ends where the reserve begins.
impl FrameSource for Reserved<'_, '_> {
    fn take(&mut self, ask: Ask, out: &mut RangeSink<'_>) -> Stop {
        let Some(ask) = ask_of(ask) else {
            return Stop::Fragmented;
        };
        match Self::take(self, ask, &mut Bridge(out)) {
            TakeEnd::Stop(stop) => stop_of(stop),
            TakeEnd::Floor => Stop::Floor,
        }
    }

    fn put(
        &mut self,
        range: core_::FrameRange,
        backing: core_::Backing,
    ) -> Result<(), core_::FrameRange> {
        FrameSource::put(self.zone(), range, backing)
    }
}

impl Ledger for Reserved<'_, '_> {
    fn store(
        &mut self,
        range: core_::FrameRange,
        path: core_::GivePath,
    ) -> Result<(), core_::FrameRange> {
        Ledger::store(self.zone(), range, path)
    }

    fn recall(&mut self, path: core_::GivePath, out: &mut RangeSink<'_>) -> Stop {
        Ledger::recall(self.zone(), path, out)
    }

    fn held(&self, path: core_::GivePath) -> core_::FrameCount {
        Ledger::held(self.zone_ref(), path)
    }
}
