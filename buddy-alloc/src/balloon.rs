//! Glue to `balloon-core`: zones are frame sources and their own ledgers.
//!
//! The only place where frames of this crate meet the numbers that are told to a host.

use balloon_core as core_;
use core_::{Ask, FrameSource, Ledger, RangeSink, Stop};

use crate::frame::{Frame, FrameCount, FrameRange, Order};
use crate::reserve::{Reserved, TakeEnd};
use crate::zone::{Backing, GivePath, RangeSink as Sink, TakeAsk, TakeStop, Zone};
use crate::zones::Zones;

/// A sink of the engine as a sink of the zone, that wants no more than `left` frames.
struct Bridge<'a, 'b> {
    sink: &'a mut RangeSink<'b>,
    left: u64,
}

impl<'a, 'b> Bridge<'a, 'b> {
    const fn new(sink: &'a mut RangeSink<'b>) -> Self {
        Self {
            sink,
            left: u64::MAX,
        }
    }

    /// A sink that leaves `keep` of `free` frames where they are.
    const fn keeping(
        sink: &'a mut RangeSink<'b>,
        free: FrameCount,
        keep: core_::FrameCount,
    ) -> Self {
        Self {
            sink,
            left: free.get().saturating_sub(keep.get()),
        }
    }

    /// Why taking stopped: the zone's reason, or because the rest is to be kept.
    fn stop(self, stop: TakeStop) -> Stop {
        match stop {
            TakeStop::Enough if !self.sink.is_full() => Stop::Floor,
            stop => stop_of(stop),
        }
    }
}

impl Sink for Bridge<'_, '_> {
    fn wanted(&self) -> FrameCount {
        FrameCount::new(self.sink.wanted().get().min(self.left))
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
        self.left = self.left.saturating_sub(count.get());
        let pushed = core_::FrameRange::new(start, count)
            .is_some_and(|range| self.sink.push(range, backing).is_ok());
        debug_assert!(pushed, "the sink takes what it wants");
    }
}

const fn range_of(range: core_::FrameRange) -> FrameRange {
    let count = FrameCount::new(range.count().get());
    FrameRange::new(Frame::new(range.start().get()), count)
}

const fn range_for(range: FrameRange) -> Option<core_::FrameRange> {
    let count = core_::FrameCount::new(range.count().get());
    core_::FrameRange::new(core_::Pfn::new(range.start().get()), count)
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
        /// Populated frames first, as [`Zone::take`] says. An order above the largest block finds
        /// nothing. `Partly` keeps what is known about each frame.
        impl<$($generics)*> FrameSource for $name {
            fn take(&mut self, ask: Ask, out: &mut RangeSink<'_>) -> Stop {
                let keep = ask.keep;
                let Some(ask) = ask_of(ask) else { return Stop::Fragmented };
                let mut sink = Bridge::keeping(out, self.free_frames(), keep);
                let stop = Self::take(self, ask, &mut sink);
                sink.stop(stop)
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

            fn take_at(
                &mut self,
                range: core_::FrameRange,
            ) -> Result<core_::Backing, core_::FrameRange> {
                let frames = range_of(range);
                let populated = self.populated(frames).get();
                Self::take_at(self, frames).map_err(|_| range)?;
                Ok(core_::Backing::Partly(core_::FrameCount::new(populated)))
            }

            fn next_free(&mut self, within: core_::FrameRange) -> Option<core_::FrameRange> {
                range_for(Self::next_free(self, range_of(within))?)
            }

            fn available(&mut self) -> Option<core_::FrameCount> {
                Some(core_::FrameCount::new(self.free_frames().get()))
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

            fn recall(
                &mut self,
                path: core_::GivePath,
                unit: core_::Order,
                out: &mut RangeSink<'_>,
            ) -> Stop {
                let path = path_of(path);
                match Order::new(unit.get()) {
                    Some(unit) => stop_of(Self::recall(self, path, unit, &mut Bridge::new(out))),
                    None if self.ballooned(path) == FrameCount::ZERO => Stop::Empty,
                    None => Stop::Fragmented,
                }
            }

            fn held(&self, path: core_::GivePath) -> core_::FrameCount {
                core_::FrameCount::new(self.ballooned(path_of(path)).get())
            }

            fn recall_at(
                &mut self,
                range: core_::FrameRange,
                path: core_::GivePath,
            ) -> Result<(), core_::FrameRange> {
                Self::recall_at(self, range_of(range), path_of(path)).map_err(|_| range)
            }

            fn next_held(
                &mut self,
                within: core_::FrameRange,
            ) -> Option<(core_::FrameRange, core_::GivePath)> {
                let (range, path) = self.next_ballooned(range_of(within))?;
                let path = match path {
                    GivePath::Told => core_::GivePath::Told,
                    GivePath::Bulk => core_::GivePath::Bulk,
                };
                Some((range_for(range)?, path))
            }
        }
    };
}

glue!([] Zone<'_>);
glue!([const N: usize] Zones<'_, N>);

/// As the zone's, but `take` ends where the reserve begins.
impl FrameSource for Reserved<'_, '_> {
    fn take(&mut self, ask: Ask, out: &mut RangeSink<'_>) -> Stop {
        let keep = ask.keep;
        let Some(ask) = ask_of(ask) else {
            return Stop::Fragmented;
        };
        let mut sink = Bridge::keeping(out, self.zone_ref().free_frames(), keep);
        match Self::take(self, ask, &mut sink) {
            TakeEnd::Stop(stop) => sink.stop(stop),
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

    fn take_at(&mut self, range: core_::FrameRange) -> Result<core_::Backing, core_::FrameRange> {
        FrameSource::take_at(self.zone(), range)
    }

    fn next_free(&mut self, within: core_::FrameRange) -> Option<core_::FrameRange> {
        FrameSource::next_free(self.zone(), within)
    }

    fn available(&mut self) -> Option<core_::FrameCount> {
        Some(core_::FrameCount::new(self.room()))
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

    fn recall(
        &mut self,
        path: core_::GivePath,
        unit: core_::Order,
        out: &mut RangeSink<'_>,
    ) -> Stop {
        Ledger::recall(self.zone(), path, unit, out)
    }

    fn held(&self, path: core_::GivePath) -> core_::FrameCount {
        Ledger::held(self.zone_ref(), path)
    }

    fn recall_at(
        &mut self,
        range: core_::FrameRange,
        path: core_::GivePath,
    ) -> Result<(), core_::FrameRange> {
        Ledger::recall_at(self.zone(), range, path)
    }

    fn next_held(
        &mut self,
        within: core_::FrameRange,
    ) -> Option<(core_::FrameRange, core_::GivePath)> {
        Ledger::next_held(self.zone(), within)
    }
}
