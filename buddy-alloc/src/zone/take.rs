//! Taking specific frames: at an address, as a block, as a range, or out of use for good.

use super::Zone;
use crate::error::{AtError, RangeError};
use crate::frame::{Frame, FrameRange, Order};
use crate::node::{Kind, Slot};

impl Zone<'_> {
    /// Allocates the block of `2^order` frames that starts at `frame`.
    ///
    /// # Errors
    /// See [`AtError`].
    pub fn allocate_at(&mut self, frame: Frame, order: Order) -> Result<(), AtError> {
        let aligned = frame.get() & (order.frames() - 1) == 0;
        if !aligned || u32::from(order.get()) > self.max_order {
            return Err(AtError::Misaligned);
        }
        self.allocate_range_at(FrameRange::block(frame, order))
    }

    /// Allocates exactly this range.
    ///
    /// # Errors
    /// See [`AtError`].
    pub fn allocate_range_at(&mut self, range: FrameRange) -> Result<(), AtError> {
        self.hold_free(range, Kind::Used)?;
        for (frame, order) in self.blocks_of(range.start().get(), range.end().get()) {
            self.populated.fill(frame, order, true);
        }
        Ok(())
    }

    /// Takes free frames out of use until [`unreserve`](Self::unreserve): the kernel image, boot
    /// tables, a device's window.
    ///
    /// # Errors
    /// See [`AtError`].
    pub fn reserve(&mut self, range: FrameRange) -> Result<(), AtError> {
        self.hold_free(range, Kind::Reserved)
    }

    /// Makes reserved frames free.
    ///
    /// # Errors
    /// See [`RangeError`].
    pub fn unreserve(
        &mut self,
        range: FrameRange,
        backing: super::add::Backing,
    ) -> Result<(), RangeError> {
        self.release_held(range, Kind::Reserved, Some(backing.is_populated()))
            .map_err(|at| self.range_error(at))
    }

    /// Whether every frame of a range is free.
    pub(crate) fn check_all_free(&self, range: FrameRange) -> Result<(), AtError> {
        let mut at = range.start().get();
        while at < range.end().get() {
            match self.block_at(at) {
                Some((head, order, Slot::Free(_))) => at = head + (1 << order),
                Some(_) => return Err(AtError::NotFree),
                None => return Err(AtError::Foreign),
            }
        }
        Ok(())
    }

    /// Moves a range from free to `kind`; all of it or nothing.
    ///
    /// Visits every free block in the range twice.
    pub(super) fn hold_free(&mut self, range: FrameRange, kind: Kind) -> Result<(), AtError> {
        self.check_all_free(range)?;
        let (start, end) = (range.start().get(), range.end().get());
        let mut at = start;
        while at < end
            && let Some((head, order, Slot::Free(_))) = self.block_at(at)
        {
            let stop = end.min(head + (1 << order));
            self.split_off(head, order, at, stop);
            at = stop;
        }
        self.mark_range(start, end, kind);
        Ok(())
    }
}
