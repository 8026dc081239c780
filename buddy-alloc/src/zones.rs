//! Several zones as one: memory above 2 TiB, or spans far apart.

use crate::error::{AddError, AllocError, AtError, FreeError, RangeError};
use crate::frame::{Frame, FrameCount, FrameRange, Order};
use crate::zone::{
    Backing, BlockState, FreeBatchError, GivePath, Preference, RangeSink, TakeAsk, TakeStop, Zone,
    recall_end,
};

/// Up to `N` zones with disjoint spans. Calls go to the zone of the frame, demands to the first
/// zone that has what is preferred.
///
/// ```
/// use buddy_alloc::*;
///
/// let config = Config::new();
/// let mut zones = Zones::<2>::new();
/// for start in [0, 1 << 39] {
///     let span = FrameRange::new(Frame::new(start), FrameCount::new(1 << 12));
///     let memory: &'static mut [u64] = vec![0; config.metadata_words(span)].leak();
///     let zone = Zone::new(span, config, memory)?;
///     assert!(zones.add_zone(zone).is_ok());
///     zones.add_range(span, Backing::Untouched)?;
/// }
/// assert_eq!(zones.free_frames(), FrameCount::new(1 << 13));
/// zones.allocate_at(Frame::new((1 << 39) + 7), Order::FRAME)?;
/// # Ok::<(), Box<dyn core::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Zones<'m, const N: usize> {
    zones: [Option<Zone<'m>>; N],
}

impl<const N: usize> Default for Zones<'_, N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'m, const N: usize> Zones<'m, N> {
    /// No zones yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            zones: [const { None }; N],
        }
    }

    /// Adds a zone; earlier ones are asked first.
    ///
    /// # Errors
    /// Hands the zone back if it overlaps another or there are `N` already.
    #[expect(clippy::result_large_err, reason = "the zone itself, nothing is lost")]
    pub fn add_zone(&mut self, zone: Zone<'m>) -> Result<(), Zone<'m>> {
        let span = zone.span();
        let apart = |other: &Zone<'_>| {
            other.span().end() <= span.start() || span.end() <= other.span().start()
        };
        match self.zones.iter().position(Option::is_none) {
            Some(place) if self.iter().all(apart) => {
                if let Some(place) = self.zones.get_mut(place) {
                    *place = Some(zone);
                }
                Ok(())
            }
            _ => Err(zone),
        }
    }

    /// The zones, in the order in which they are asked.
    pub fn iter(&self) -> impl Iterator<Item = &Zone<'m>> {
        self.zones.iter().flatten()
    }

    /// The zones, to be changed one by one.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Zone<'m>> {
        self.zones.iter_mut().flatten()
    }

    /// The zone whose span contains a frame.
    pub fn zone_of(&mut self, frame: Frame) -> Option<&mut Zone<'m>> {
        self.iter_mut().find(|zone| zone.span().contains(frame))
    }

    /// The zone of a frame, or why there is none.
    fn at<E>(&mut self, frame: Frame, foreign: E) -> Result<&mut Zone<'m>, E> {
        self.zone_of(frame).ok_or(foreign)
    }

    /// As [`Zone::add_range`].
    ///
    /// # Errors
    /// See [`AddError`].
    pub fn add_range(&mut self, range: FrameRange, backing: Backing) -> Result<(), AddError> {
        self.at(range.start(), AddError::Foreign)?
            .add_range(range, backing)
    }

    /// As [`Zone::allocate`]: the first zone that has a block of the preferred class, else the
    /// first that has any.
    ///
    /// # Errors
    /// See [`AllocError`].
    pub fn allocate(&mut self, order: Order, preference: Preference) -> Result<Frame, AllocError> {
        self.try_each(order, preference, |zone| zone.allocate(order, preference))
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
        let order = Order::holding(count)
            .ok_or(AllocError::TooLarge)?
            .max(align);
        self.try_each(order, preference, |zone| {
            zone.allocate_range(count, align, preference)
        })
    }

    fn try_each<R>(
        &mut self,
        order: Order,
        preference: Preference,
        mut f: impl FnMut(&mut Zone<'m>) -> Result<R, AllocError>,
    ) -> Result<R, AllocError> {
        if let Some(zone) = self
            .iter_mut()
            .find(|zone| zone.has_preferred(order, preference))
        {
            return f(zone);
        }
        let mut error = AllocError::TooLarge;
        for zone in self.iter_mut() {
            match f(zone) {
                Ok(found) => return Ok(found),
                Err(AllocError::TooLarge) => {}
                Err(other) => error = other,
            }
        }
        Err(error)
    }

    /// As [`Zone::allocate_at`].
    ///
    /// # Errors
    /// See [`AtError`].
    pub fn allocate_at(&mut self, frame: Frame, order: Order) -> Result<(), AtError> {
        self.at(frame, AtError::Foreign)?.allocate_at(frame, order)
    }

    /// As [`Zone::free`].
    ///
    /// # Errors
    /// See [`FreeError`].
    pub fn free(&mut self, frame: Frame, order: Order) -> Result<(), FreeError> {
        self.at(frame, FreeError::Foreign)?.free(frame, order)
    }

    /// As [`Zone::free_range`].
    ///
    /// # Errors
    /// See [`FreeError`].
    pub fn free_range(&mut self, range: FrameRange) -> Result<(), FreeError> {
        self.at(range.start(), FreeError::Foreign)?
            .free_range(range)
    }

    /// As [`Zone::allocate_batch`]: the preferred class of all zones first.
    pub fn allocate_batch<S: RangeSink>(
        &mut self,
        unit: Order,
        preference: Preference,
        sink: &mut S,
    ) -> TakeStop {
        for preferred in [true, false] {
            for zone in self.iter_mut() {
                let more = |zone: &Zone<'_>| !preferred || zone.has_preferred(unit, preference);
                if zone.batch(unit, preference, sink, more) == TakeStop::Enough {
                    return TakeStop::Enough;
                }
            }
        }
        self.rest()
    }

    /// As [`Zone::free_batch`].
    ///
    /// # Errors
    /// See [`Zone::free_batch`].
    pub fn free_batch(&mut self, ranges: &[FrameRange]) -> Result<(), FreeBatchError> {
        for (freed, &range) in ranges.iter().enumerate() {
            self.free_range(range)
                .map_err(|reason| FreeBatchError { freed, reason })?;
        }
        Ok(())
    }

    /// Why there was not enough.
    fn rest(&self) -> TakeStop {
        if self.free_frames() == FrameCount::ZERO {
            TakeStop::Empty
        } else {
            TakeStop::Fragmented
        }
    }

    /// As [`Zone::state`].
    #[must_use]
    pub fn state(&self, frame: Frame) -> Option<BlockState> {
        self.iter().find_map(|zone| zone.state(frame))
    }

    /// Free frames of all zones.
    #[must_use]
    pub fn free_frames(&self) -> FrameCount {
        FrameCount::new(self.iter().map(|zone| zone.free_frames().get()).sum())
    }

    /// As [`Zone::take`]: the populated frames of all zones before any untouched one.
    pub fn take<S: RangeSink>(&mut self, ask: TakeAsk, sink: &mut S) -> TakeStop {
        for untouched in [false, true] {
            if untouched && !ask.untouched {
                break;
            }
            for zone in self.iter_mut() {
                if zone.take(TakeAsk { untouched, ..ask }, sink) == TakeStop::Enough {
                    return TakeStop::Enough;
                }
            }
        }
        self.rest()
    }

    /// As [`Zone::put`].
    ///
    /// # Errors
    /// See [`RangeError`].
    pub fn put(&mut self, range: FrameRange, backing: Backing) -> Result<(), RangeError> {
        self.at(range.start(), RangeError::Foreign)?
            .put(range, backing)
    }

    /// As [`Zone::put_unchanged`].
    ///
    /// # Errors
    /// See [`RangeError`].
    pub fn put_unchanged(&mut self, range: FrameRange) -> Result<(), RangeError> {
        self.at(range.start(), RangeError::Foreign)?
            .put_unchanged(range)
    }

    /// As [`Zone::store`].
    ///
    /// # Errors
    /// See [`RangeError`].
    pub fn store(&mut self, range: FrameRange, path: GivePath) -> Result<(), RangeError> {
        self.at(range.start(), RangeError::Foreign)?
            .store(range, path)
    }

    /// As [`Zone::recall`]: from all zones before any zone's whole regions are broken.
    pub fn recall<S: RangeSink>(&mut self, path: GivePath, unit: Order, sink: &mut S) -> TakeStop {
        for whole in [false, true] {
            for zone in self.iter_mut() {
                zone.recall_pass(path, unit, whole, sink);
            }
        }
        recall_end(self.ballooned(path), sink)
    }

    /// As [`Zone::take_at`].
    ///
    /// # Errors
    /// See [`AtError`].
    pub fn take_at(&mut self, range: FrameRange) -> Result<(), AtError> {
        self.at(range.start(), AtError::Foreign)?.take_at(range)
    }

    /// As [`Zone::recall_at`].
    ///
    /// # Errors
    /// See [`RangeError`].
    pub fn recall_at(&mut self, range: FrameRange, path: GivePath) -> Result<(), RangeError> {
        self.at(range.start(), RangeError::Foreign)?
            .recall_at(range, path)
    }

    /// As [`Zone::next_free`]; zones need not be in order.
    #[must_use]
    pub fn next_free(&self, within: FrameRange) -> Option<FrameRange> {
        self.iter()
            .filter_map(|zone| zone.next_free(within))
            .min_by_key(|range| range.start())
    }

    /// As [`Zone::next_ballooned`]; zones need not be in order.
    #[must_use]
    pub fn next_ballooned(&self, within: FrameRange) -> Option<(FrameRange, GivePath)> {
        self.iter()
            .filter_map(|zone| zone.next_ballooned(within))
            .min_by_key(|(range, _)| range.start())
    }

    /// How many frames of a range are populated.
    #[must_use]
    pub fn populated(&self, range: FrameRange) -> FrameCount {
        FrameCount::new(self.iter().map(|zone| zone.populated(range).get()).sum())
    }

    /// Frames of all zones ballooned by a path.
    #[must_use]
    pub fn ballooned(&self, path: GivePath) -> FrameCount {
        FrameCount::new(self.iter().map(|zone| zone.ballooned(path).get()).sum())
    }
}
