//! One region of memory and where its bits are.

use crate::units::{FrameCount, FrameRange, Order, Pfn};
use core::ops::Range;

/// What a ledger does not break while it holds other frames: what hosts map in one
/// piece.
pub(super) const BLOCK: Order = Order::SUPERPAGE;

#[derive(Clone, Copy, Debug)]
pub(super) struct Region {
    pub(super) frames: FrameRange,
    pub(super) first_bit: u64,
    pub(super) first_block: u64,
}

impl Region {
    /// The bits of a range inside.
    pub(super) const fn bits(self, range: FrameRange) -> (u64, u64) {
        let first = range.start().get() - self.frames.start().get();
        let start = self.first_bit + first;
        (start, start + range.count().get())
    }

    /// The frames from a bit on.
    pub(super) fn from(self, bit: u64) -> Option<FrameRange> {
        let start = bit.checked_sub(self.first_bit)?;
        self.frames.split_at(FrameCount::new(start)).1
    }

    /// The frame of a bit.
    pub(super) const fn frame(self, bit: u64) -> Pfn {
        Pfn::new(self.frames.start().get() + (bit - self.first_bit))
    }

    /// The blocks that a range inside touches.
    pub(super) const fn blocks(self, range: FrameRange) -> Range<u64> {
        let size = BLOCK.frames().get();
        let before = self.frames.start().get() / size;
        let start = range.start().get() / size - before;
        let end = range.end().get().div_ceil(size) - before;
        self.first_block + start..self.first_block + end
    }

    /// The frames of a block that lie in this region.
    pub(super) fn block(self, block: u64) -> Option<FrameRange> {
        let size = BLOCK.frames();
        let before = self.frames.start().get() / size.get();
        let start = (before + (block - self.first_block)) * size.get();
        FrameRange::new(Pfn::new(start), size)?.intersection(self.frames)
    }
}
