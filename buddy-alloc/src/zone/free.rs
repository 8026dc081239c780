//! Giving frames back, and the moves between states of held frames.

use super::Zone;
use crate::error::{FreeError, RangeError};
use crate::frame::{Frame, FrameRange, Order};
use crate::node::{Kind, Slot};

impl Zone<'_> {
    /// Frees a block that was allocated with this order.
    ///
    /// Its frames count as populated: they were in use.
    ///
    /// # Errors
    /// Every misuse is told apart, see [`FreeError`]; nothing is changed then.
    #[inline]
    pub fn free(&mut self, frame: Frame, order: Order) -> Result<(), FreeError> {
        let (start, order) = (frame.get(), u32::from(order.get()));
        let used = self.node(start).is_used_head(start % 2 == 1, order);
        if !used || !self.leave(start, order) {
            return Err(self.free_error(start));
        }
        if order != 0 {
            self.mark(start, order, Kind::None);
        }
        self.drop_held(Kind::Used, 1 << order);
        self.release(start, order, 1 << order);
        Ok(())
    }

    /// Frees frames in use: a whole block, several in a row, or any part of them.
    ///
    /// ```
    /// # use buddy_alloc::*;
    /// # let span = FrameRange::new(Frame::new(0), FrameCount::new(64));
    /// # let mut memory = vec![0; Config::new().metadata_words(span)];
    /// # let mut zone = Zone::new(span, Config::new(), &mut memory)?;
    /// # zone.add_range(span, Backing::Unpopulated)?;
    /// let eight = Order::new(3).unwrap();
    /// let start = zone.allocate(eight, Preference::Any)?.get();
    /// let middle = FrameRange::new(Frame::new(start + 2), FrameCount::new(3));
    /// zone.free_range(middle)?;
    /// assert_eq!(zone.stats().used, FrameCount::new(5));
    /// # Ok::<(), Box<dyn core::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// See [`FreeError`]; nothing is changed then.
    pub fn free_range(&mut self, range: FrameRange) -> Result<(), FreeError> {
        self.release_held(range, Kind::Used, None)
            .map_err(|at| self.free_error(at))
    }

    /// As [`free_range`](Self::free_range) for frames that the host backs no more.
    ///
    /// # Errors
    /// See [`FreeError`]; nothing is changed then.
    pub fn free_unpopulated(&mut self, range: FrameRange) -> Result<(), FreeError> {
        self.release_held(range, Kind::Used, Some(false))
            .map_err(|at| self.free_error(at))
    }

    /// Splits a used block so that its parts of order `into` can be freed one by one.
    ///
    /// # Errors
    /// See [`FreeError`]; `WrongOrder` if the parts would be larger than the block.
    pub fn split_block(
        &mut self,
        frame: Frame,
        order: Order,
        into: Order,
    ) -> Result<(), FreeError> {
        let (start, order, into) = (frame.get(), u32::from(order.get()), u32::from(into.get()));
        if self.slot(start) != Slot::Held(Kind::Used, order) || self.cached.is_set(start) {
            return Err(self.free_error(start));
        }
        if into > order {
            return Err(FreeError::WrongOrder);
        }
        if into == order {
            return Ok(());
        }
        if !self.leave(start, order) {
            return Err(FreeError::DoubleFree);
        }
        self.mark(start, order, Kind::None);
        for part in 0..1 << (order - into) {
            self.mark(start + (part << into), into, Kind::Used);
        }
        Ok(())
    }

    /// Why `frame` cannot be freed as the start of a block of some order.
    #[cold]
    pub(super) fn free_error(&self, frame: u64) -> FreeError {
        match self.block_at(frame) {
            None => FreeError::Foreign,
            Some((_, _, Slot::Free(_) | Slot::Nothing)) => FreeError::DoubleFree,
            Some((head, ..)) if self.cached.is_set(head) => FreeError::DoubleFree,
            Some((head, _, Slot::Held(kind, _))) => match kind {
                Kind::Reserved => FreeError::Reserved,
                Kind::Isolated => FreeError::Isolated,
                Kind::Taken | Kind::Inflate | Kind::Bulk => FreeError::Ballooned,
                Kind::Used | Kind::Claimed | Kind::None if head != frame => FreeError::Interior,
                Kind::Used | Kind::Claimed | Kind::None => FreeError::WrongOrder,
            },
        }
    }

    /// Checks that every frame of a range is held as `kind`, and says where the first block starts
    /// and the last one ends; else the first frame that is not.
    pub(super) fn check_held(&self, start: u64, end: u64, kind: Kind) -> Result<(u64, u64), u64> {
        let Some((head, order, slot)) = self.block_at(start) else {
            return Err(start);
        };
        if slot != Slot::Held(kind, order) || self.cached.is_set(head) {
            return Err(start);
        }
        let mut at = head + (1 << order);
        while at < end {
            match self.slot(at) {
                Slot::Held(found, order) if found == kind && !self.cached.is_set(at) => {
                    at += 1 << order;
                }
                _ => return Err(at),
            }
        }
        Ok((head, at))
    }

    /// Whether every frame of a range is held as `kind`.
    pub(crate) fn check_range(&self, range: FrameRange, kind: Kind) -> Result<(), RangeError> {
        let held = self.check_held(range.start().get(), range.end().get(), kind);
        held.map(drop).map_err(|at| self.range_error(at))
    }

    /// Whether [`free_range`](Self::free_range) would free a range.
    pub(crate) fn check_free(&self, range: FrameRange) -> Result<(), FreeError> {
        let held = self.check_held(range.start().get(), range.end().get(), Kind::Used);
        held.map(drop).map_err(|at| self.free_error(at))
    }

    /// Takes a range out of the hands of `kind`, leaving it in nobody's. What is left of the blocks
    /// at its ends stays held.
    ///
    /// On refusal nothing is changed and the offending frame comes back.
    fn unhold_range(&mut self, range: FrameRange, kind: Kind) -> Result<(u64, u64), u64> {
        let (start, end) = (range.start().get(), range.end().get());
        if start == end {
            return Ok((start, start));
        }
        let (head, tail) = self.check_held(start, end, kind)?;
        if kind == Kind::Used {
            self.leave_all(head, tail)?;
        }
        let mut at = head;
        while let Slot::Held(_, order) = self.slot(at)
            && at < tail
        {
            self.mark(at, order, Kind::None);
            at += 1 << order;
        }
        for (frame, order) in self.blocks_of(head, start).chain(self.blocks_of(end, tail)) {
            self.mark(frame, order, kind);
        }
        self.drop_held(kind, end - start);
        Ok((start, end))
    }

    /// Frees a range held as `kind`, first setting what is known about its population.
    pub(super) fn release_held(
        &mut self,
        range: FrameRange,
        kind: Kind,
        populated: Option<bool>,
    ) -> Result<(), u64> {
        let (start, end) = (range.start().get(), range.end().get());
        if let Some(order) = self.held_block(range, kind) {
            self.unhold(start, order, kind);
        } else {
            self.unhold_range(range, kind)?;
        }
        for (frame, order) in self.blocks_of(start, end) {
            if let Some(populated) = populated {
                self.populated.fill(frame, order, populated);
            }
            let count = match populated {
                Some(true) => 1 << order,
                Some(false) => 0,
                None => self.populated.count(frame, order),
            };
            self.release(frame, order, count);
        }
        Ok(())
    }

    /// The order of a range that is one block, held as `kind` and unknown to any cache.
    #[inline]
    fn held_block(&self, range: FrameRange, kind: Kind) -> Option<u32> {
        let count = range.count().get();
        let order = count.checked_ilog2().filter(|_| kind != Kind::Used)?;
        let whole = count == 1 << order;
        let held = whole && self.slot(range.start().get()) == Slot::Held(kind, order);
        held.then_some(order)
    }

    /// Moves a range from one kind to another.
    pub(super) fn retag(
        &mut self,
        range: FrameRange,
        from: Kind,
        to: Kind,
    ) -> Result<(), RangeError> {
        if let Some(order) = self.held_block(range, from) {
            self.drop_held(from, 1 << order);
            self.add_held(to, 1 << order);
            self.mark(range.start().get(), order, to);
            if to == Kind::Used {
                self.cached.claim(range.start().get());
            }
            return Ok(());
        }
        let (start, end) = self
            .unhold_range(range, from)
            .map_err(|at| self.range_error(at))?;
        self.mark_range(start, end, to);
        Ok(())
    }

    #[cold]
    pub(super) fn range_error(&self, frame: u64) -> RangeError {
        if self.block_at(frame).is_some() {
            RangeError::WrongState
        } else {
            RangeError::Foreign
        }
    }
}
