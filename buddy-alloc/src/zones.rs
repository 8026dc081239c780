//! Several zones as one: memory above 2 TiB, or spans far apart.

use crate::error::{AddError, AllocError, AtError, FreeError, RangeError};
use crate::frame::{Frame, FrameCount, FrameRange, Order};
use crate::node::Kind;
use crate::zone::Zone;
use crate::zone::add::Backing;
use crate::zone::alloc::Preference;
use crate::zone::balloon::{Shortage, TakeRequest, Via, recall_end};
use crate::zone::batch::FreeBatchError;
use crate::zone::sink::RangeSink;
use crate::zone::stats::BlockState;

/// Up to `N` zones with disjoint spans. Calls go to the zone of the frame, demands to the first
/// zone that has what is preferred.
///
/// Spans may touch: what names a range takes one over several zones, all of it or nothing. A block
/// and a range that is allocated lie in one zone.
///
/// Memory that comes at run time comes as a zone of its own, whose metadata it may hold itself.
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
///     zones.add_range(span, Backing::Unpopulated)?;
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

    /// Does `act` to the part of a range in each zone, or to none if `check` refuses any.
    fn in_parts<E: Copy>(
        &mut self,
        range: FrameRange,
        foreign: E,
        check: impl Fn(&Zone<'m>, FrameRange) -> Result<(), E>,
        mut act: impl FnMut(&mut Zone<'m>, FrameRange) -> Result<(), E>,
    ) -> Result<(), E> {
        let zone = self.at(range.start(), foreign)?;
        if zone.span().covers(range) {
            return act(zone, range);
        }
        let mut at = range.start();
        while at < range.end() {
            let zone = self.at(at, foreign)?;
            let part = FrameRange::between(at, range.end().min(zone.span().end()));
            check(zone, part)?;
            at = part.end();
        }
        at = range.start();
        while at < range.end() {
            let zone = self.at(at, foreign)?;
            let part = FrameRange::between(at, range.end().min(zone.span().end()));
            act(zone, part)?;
            at = part.end();
        }
        Ok(())
    }

    /// [`in_parts`](Self::in_parts) for frames that are all to be held as `kind`.
    fn in_parts_held(
        &mut self,
        range: FrameRange,
        kind: Kind,
        act: impl FnMut(&mut Zone<'m>, FrameRange) -> Result<(), RangeError>,
    ) -> Result<(), RangeError> {
        let check = |zone: &Zone<'m>, part| zone.check_range(part, kind);
        self.in_parts(range, RangeError::Foreign, check, act)
    }

    /// As [`Zone::add_range`].
    ///
    /// # Errors
    /// See [`AddError`].
    pub fn add_range(&mut self, range: FrameRange, backing: Backing) -> Result<(), AddError> {
        self.in_parts(range, AddError::Foreign, Zone::check_add, |zone, part| {
            zone.add_range(part, backing)
        })
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
        let check = |zone: &Zone<'m>, part| zone.check_free(part);
        self.in_parts(range, FreeError::Foreign, check, |zone, part| {
            zone.free_range(part)
        })
    }

    /// As [`Zone::allocate_batch`]: the preferred class of all zones first.
    pub fn allocate_batch<S: RangeSink>(
        &mut self,
        unit: Order,
        preference: Preference,
        sink: &mut S,
    ) -> Shortage {
        for preferred in [true, false] {
            for zone in self.iter_mut() {
                let more = |zone: &Zone<'_>| !preferred || zone.has_preferred(unit, preference);
                if zone.batch(unit, preference, sink, more) == Shortage::None {
                    return Shortage::None;
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
    fn rest(&self) -> Shortage {
        if self.free_frames() == FrameCount::ZERO {
            Shortage::Empty
        } else {
            Shortage::Fragmented
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

    /// As [`Zone::take`]: the preferred frames of all zones before any other.
    pub fn take<S: RangeSink>(&mut self, ask: TakeRequest, sink: &mut S) -> Shortage {
        let mut rest = Shortage::Empty;
        let preferred = TakeRequest { only: true, ..ask };
        let any = TakeRequest {
            preference: Preference::Any,
            ..ask
        };
        for pass in [preferred, any] {
            rest = Shortage::Empty;
            for zone in self.iter_mut() {
                match (zone.take(pass, sink), rest) {
                    (Shortage::None, _) => return Shortage::None,
                    (Shortage::Empty, _) | (Shortage::OutOfReach, Shortage::Fragmented) => {}
                    (stop, _) => rest = stop,
                }
            }
            if ask.only || ask.preference == Preference::Any {
                break;
            }
        }
        rest
    }

    /// As [`Zone::put`].
    ///
    /// # Errors
    /// See [`RangeError`].
    pub fn put(&mut self, range: FrameRange, backing: Backing) -> Result<(), RangeError> {
        self.in_parts_held(range, Kind::Taken, |zone, part| zone.put(part, backing))
    }

    /// As [`Zone::allocate_taken`].
    ///
    /// # Errors
    /// See [`RangeError`].
    pub fn allocate_taken(&mut self, range: FrameRange) -> Result<(), RangeError> {
        self.in_parts_held(range, Kind::Taken, |zone, part| zone.allocate_taken(part))
    }

    /// As [`Zone::put_unchanged`].
    ///
    /// # Errors
    /// See [`RangeError`].
    pub fn put_unchanged(&mut self, range: FrameRange) -> Result<(), RangeError> {
        self.in_parts_held(range, Kind::Taken, |zone, part| zone.put_unchanged(part))
    }

    /// As [`Zone::store`].
    ///
    /// # Errors
    /// See [`RangeError`].
    pub fn store(&mut self, range: FrameRange, via: Via) -> Result<(), RangeError> {
        self.in_parts_held(range, Kind::Taken, |zone, part| zone.store(part, via))
    }

    /// As [`Zone::recall`]: from all zones before any zone's whole regions are broken.
    pub fn recall<S: RangeSink>(&mut self, via: Via, unit: Order, sink: &mut S) -> Shortage {
        let mut ended = true;
        for whole in [false, true] {
            for zone in self.iter_mut() {
                ended = ended && zone.recall_pass(via, unit, whole, sink);
            }
        }
        recall_end(self.ballooned(via), ended, sink)
    }

    /// As [`Zone::take_at`].
    ///
    /// # Errors
    /// See [`AtError`].
    pub fn take_at(&mut self, range: FrameRange) -> Result<(), AtError> {
        let check = |zone: &Zone<'m>, part| zone.check_all_free(part);
        self.in_parts(range, AtError::Foreign, check, |zone, part| {
            zone.take_at(part)
        })
    }

    /// As [`Zone::recall_at`].
    ///
    /// # Errors
    /// See [`RangeError`].
    pub fn recall_at(&mut self, range: FrameRange, via: Via) -> Result<(), RangeError> {
        self.in_parts_held(range, via.kind(), |zone, part| zone.recall_at(part, via))
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
    pub fn next_ballooned(&self, within: FrameRange) -> Option<(FrameRange, Via)> {
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
    pub fn ballooned(&self, via: Via) -> FrameCount {
        FrameCount::new(self.iter().map(|zone| zone.ballooned(via).get()).sum())
    }
}
