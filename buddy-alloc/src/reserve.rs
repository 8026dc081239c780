//! Keeping some memory back: a view of a zone for callers that must not exhaust it.

use crate::error::AllocError;
use crate::frame::{Frame, FrameCount, FrameRange, Order};
use crate::zone::Zone;
use crate::zone::alloc::Preference;
use crate::zone::balloon::{Shortage, TakeRequest};
use crate::zone::sink::RangeSink;

/// How much memory stays free, and how large blocks may be when there is little.
///
/// The page cache, user mappings and the balloon go through a reserve; the few callers that must
/// not fail use the zone itself.
///
/// ```
/// use buddy_alloc::*;
/// # let span = FrameRange::new(Frame::new(0), FrameCount::new(64));
/// # let mut memory = vec![0; Config::new().metadata_words(span)];
/// # let mut zone = Zone::new(span, Config::new(), &mut memory)?;
/// # zone.add_range(span, Backing::Unpopulated)?;
/// const KEEP: Reserve = Reserve::new(FrameCount::new(60));
///
/// let mut kept = KEEP.of(&mut zone);
/// kept.allocate(Order::new(2).unwrap(), Preference::Any)?;
/// assert_eq!(kept.allocate(Order::FRAME, Preference::Any), Err(AllocError::Floor));
/// zone.allocate(Order::FRAME, Preference::Any)?;
/// # Ok::<(), Box<dyn core::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Reserve {
    min_free: FrameCount,
    low_memory: FrameCount,
    cap: Order,
}

impl Reserve {
    /// Keeps `min_free` frames free.
    #[must_use]
    pub const fn new(min_free: FrameCount) -> Self {
        Self {
            min_free,
            low_memory: FrameCount::ZERO,
            cap: Order::MAX,
        }
    }

    /// Caps blocks at `cap` while the guest has at most `memory` (what is managed less what is
    /// ballooned): on a small guest one large demand must not take most of it.
    #[must_use]
    pub const fn with_low_memory_cap(mut self, memory: FrameCount, cap: Order) -> Self {
        self.low_memory = memory;
        self.cap = cap;
        self
    }

    /// A view of a zone that keeps this reserve.
    #[must_use]
    pub const fn of<'z, 'm>(self, zone: &'z mut Zone<'m>) -> Reserved<'z, 'm> {
        Reserved {
            reserve: self,
            zone,
        }
    }

    /// Frames that may be taken before the floor is reached.
    fn room(&self, zone: &Zone<'_>) -> u64 {
        zone.free_frames().get().saturating_sub(self.min_free.get())
    }

    fn check(&self, zone: &Zone<'_>, frames: u64) -> Result<(), AllocError> {
        if zone.owned_frames() <= self.low_memory && frames > self.cap.frames() {
            return Err(AllocError::TooLarge);
        }
        if frames > self.room(zone) {
            Err(AllocError::Floor)
        } else {
            Ok(())
        }
    }
}

/// A zone seen through a [`Reserve`].
#[derive(Debug)]
pub struct Reserved<'z, 'm> {
    reserve: Reserve,
    zone: &'z mut Zone<'m>,
}

impl<'m> Reserved<'_, 'm> {
    /// As [`Zone::allocate`].
    ///
    /// # Errors
    /// See [`AllocError`].
    pub fn allocate(&mut self, order: Order, preference: Preference) -> Result<Frame, AllocError> {
        self.reserve.check(self.zone, order.frames())?;
        self.zone.allocate(order, preference)
    }

    /// As [`Zone::allocate_range`].
    ///
    /// # Errors
    /// See [`AllocError`].
    pub fn allocate_range(
        &mut self,
        count: FrameCount,
        align: Order,
        preference: Preference,
    ) -> Result<FrameRange, AllocError> {
        self.reserve.check(self.zone, count.get())?;
        self.zone.allocate_range(count, align, preference)
    }

    /// As [`Zone::take`]; breaks off with [`ReserveShortage::Floor`] where the reserve begins.
    pub fn take<S: RangeSink>(&mut self, ask: TakeRequest, sink: &mut S) -> ReserveShortage {
        let mut limited = Limited::new(sink, self.reserve.room(self.zone));
        let stop = self.zone.take(ask, &mut limited);
        limited.end(stop, ask.unit)
    }

    /// As [`Zone::allocate_batch`]; breaks off with [`ReserveShortage::Floor`] where the reserve begins.
    pub fn allocate_batch<S: RangeSink>(
        &mut self,
        unit: Order,
        preference: Preference,
        sink: &mut S,
    ) -> ReserveShortage {
        let mut limited = Limited::new(sink, self.reserve.room(self.zone));
        let stop = self.zone.allocate_batch(unit, preference, &mut limited);
        limited.end(stop, unit)
    }

    /// Frames that [`take`](Self::take) may take before the floor is reached.
    #[cfg(feature = "balloon")]
    pub(crate) fn room(&self) -> u64 {
        self.reserve.room(self.zone)
    }

    #[cfg(feature = "balloon")]
    pub(crate) const fn zone_ref(&self) -> &Zone<'m> {
        self.zone
    }

    /// The zone, for everything that needs no reserve.
    pub const fn zone(&mut self) -> &mut Zone<'m> {
        self.zone
    }
}

/// Why a take or a batch through a [`Reserve`] stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum ReserveShortage {
    /// As the zone says.
    Zone(Shortage),
    /// What is left is kept in reserve.
    Floor,
}

struct Limited<'s, S> {
    sink: &'s mut S,
    room: u64,
}

impl<'s, S: RangeSink> Limited<'s, S> {
    const fn new(sink: &'s mut S, room: u64) -> Self {
        Self { sink, room }
    }

    fn end(self, stop: Shortage, unit: Order) -> ReserveShortage {
        match stop {
            Shortage::None if self.sink.wanted() != FrameCount::ZERO => ReserveShortage::Floor,
            Shortage::Fragmented if self.room < unit.frames() => ReserveShortage::Floor,
            stop => ReserveShortage::Zone(stop),
        }
    }
}

impl<S: RangeSink> RangeSink for Limited<'_, S> {
    fn wanted(&self) -> FrameCount {
        self.sink.wanted().min(FrameCount::new(self.room))
    }

    fn push(&mut self, range: FrameRange, populated: FrameCount) {
        self.room = self.room.saturating_sub(range.count().get());
        self.sink.push(range, populated);
    }
}
