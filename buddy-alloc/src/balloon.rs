//! Glue to `balloon-core`: zones are frame sources and their own ledgers.
//!
//! The only place where frames of this crate meet the numbers that are told to a host.

use balloon_core as core_;
use core_::{FrameSource, Ledger, RangeSink};

use crate::frame::{Frame, FrameCount, FrameRange, Order};
use crate::reserve::{ReserveShortage, Reserved};
use crate::zone::Zone;
use crate::zone::add::Backing;
use crate::zone::alloc::Preference;
use crate::zone::balloon::{Shortage, TakeRequest, Via};
use crate::zone::sink::RangeSink as Sink;
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

    /// A sink that leaves `min_free` of `free` frames where they are.
    const fn keeping(
        sink: &'a mut RangeSink<'b>,
        free: FrameCount,
        min_free: core_::FrameCount,
    ) -> Self {
        if min_free.is_zero() {
            return Self::new(sink);
        }
        Self {
            sink,
            left: free.get().saturating_sub(min_free.get()),
        }
    }

    /// Why taking stopped: the zone's reason, or because the rest is to be kept.
    fn stop(self, stop: Shortage) -> core_::Shortage {
        match stop {
            Shortage::None if !self.sink.is_full() => core_::Shortage::Floor,
            stop => shortage_of(stop),
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

const fn via_of(via: core_::Via) -> Via {
    match via {
        core_::Via::Inflate => Via::Inflate,
        core_::Via::Bulk => Via::Bulk,
    }
}

const fn shortage_of(stop: Shortage) -> core_::Shortage {
    match stop {
        Shortage::None => core_::Shortage::None,
        Shortage::Fragmented => core_::Shortage::Fragmented,
        Shortage::OutOfReach => core_::Shortage::OutOfReach,
        Shortage::Again => core_::Shortage::Again,
        Shortage::Empty => core_::Shortage::Empty,
    }
}

/// The zone's ask; `None` if its order is above any block's.
fn request_of(request: core_::TakeRequest) -> Option<TakeRequest> {
    let unit = Order::new(request.order.get())?;
    Some(TakeRequest {
        unit,
        below: Frame::new(request.below.get()),
        preference: match request.unpopulated_first {
            true => Preference::Unpopulated,
            false => Preference::Populated,
        },
        only: false,
    })
}

/// What a put is told; `None` keeps what is known about each frame.
const fn backing_of(backing: core_::Backing) -> Option<Backing> {
    match backing {
        core_::Backing::Populated => Some(Backing::Populated),
        core_::Backing::Unpopulated => Some(Backing::Unpopulated),
        core_::Backing::Unknown => Some(Backing::Unknown),
        core_::Backing::Partly(_) => None,
    }
}

macro_rules! glue {
    ([$($generics:tt)*] $name:ty) => {
        /// Populated frames first, or those that are not, as [`Zone::take`] says. An order above the largest block finds
        /// nothing. `Partly` keeps what is known about each frame.
        impl<$($generics)*> FrameSource for $name {
            fn take(&mut self, request: core_::TakeRequest, out: &mut RangeSink<'_>) -> core_::Shortage {
                let min_free = request.min_free;
                let Some(request) = request_of(request) else { return core_::Shortage::Fragmented };
                let mut sink = Bridge::keeping(out, self.free_frames(), min_free);
                let stop = Self::take(self, request, &mut sink);
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

            fn allocate_taken(
                &mut self,
                range: core_::FrameRange,
            ) -> Result<(), core_::FrameRange> {
                Self::allocate_taken(self, range_of(range)).map_err(|_| range)
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
                via: core_::Via,
            ) -> Result<(), core_::FrameRange> {
                Self::store(self, range_of(range), via_of(via)).map_err(|_| range)
            }

            fn recall(
                &mut self,
                via: core_::Via,
                unit: core_::Order,
                out: &mut RangeSink<'_>,
            ) -> core_::Shortage {
                let via = via_of(via);
                match Order::new(unit.get()) {
                    Some(unit) => shortage_of(Self::recall(self, via, unit, &mut Bridge::new(out))),
                    None if self.ballooned(via) == FrameCount::ZERO => core_::Shortage::Empty,
                    None => core_::Shortage::Fragmented,
                }
            }

            fn held(&self, via: core_::Via) -> core_::FrameCount {
                core_::FrameCount::new(self.ballooned(via_of(via)).get())
            }

            fn recall_at(
                &mut self,
                range: core_::FrameRange,
                via: core_::Via,
            ) -> Result<(), core_::FrameRange> {
                Self::recall_at(self, range_of(range), via_of(via)).map_err(|_| range)
            }

            fn next_held(
                &mut self,
                within: core_::FrameRange,
            ) -> Option<(core_::FrameRange, core_::Via)> {
                let (range, via) = self.next_ballooned(range_of(within))?;
                let via = match via {
                    Via::Inflate => core_::Via::Inflate,
                    Via::Bulk => core_::Via::Bulk,
                };
                Some((range_for(range)?, via))
            }
        }
    };
}

glue!([] Zone<'_>);
glue!([const N: usize] Zones<'_, N>);

/// As the zone's, but `take` ends where the reserve begins.
impl FrameSource for Reserved<'_, '_> {
    fn take(&mut self, request: core_::TakeRequest, out: &mut RangeSink<'_>) -> core_::Shortage {
        let min_free = request.min_free;
        let Some(request) = request_of(request) else {
            return core_::Shortage::Fragmented;
        };
        let mut sink = Bridge::keeping(out, self.zone_ref().free_frames(), min_free);
        match Self::take(self, request, &mut sink) {
            ReserveShortage::Zone(stop) => sink.stop(stop),
            ReserveShortage::Floor => core_::Shortage::Floor,
        }
    }

    fn put(
        &mut self,
        range: core_::FrameRange,
        backing: core_::Backing,
    ) -> Result<(), core_::FrameRange> {
        FrameSource::put(self.zone(), range, backing)
    }

    fn allocate_taken(&mut self, range: core_::FrameRange) -> Result<(), core_::FrameRange> {
        FrameSource::allocate_taken(self.zone(), range)
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
        via: core_::Via,
    ) -> Result<(), core_::FrameRange> {
        Ledger::store(self.zone(), range, via)
    }

    fn recall(
        &mut self,
        via: core_::Via,
        unit: core_::Order,
        out: &mut RangeSink<'_>,
    ) -> core_::Shortage {
        Ledger::recall(self.zone(), via, unit, out)
    }

    fn held(&self, via: core_::Via) -> core_::FrameCount {
        Ledger::held(self.zone_ref(), via)
    }

    fn recall_at(
        &mut self,
        range: core_::FrameRange,
        via: core_::Via,
    ) -> Result<(), core_::FrameRange> {
        Ledger::recall_at(self.zone(), range, via)
    }

    fn next_held(&mut self, within: core_::FrameRange) -> Option<(core_::FrameRange, core_::Via)> {
        Ledger::next_held(self.zone(), within)
    }
}
