//! What a bitmap ledger knows of the frames given by one path.

use super::{BLOCK, Region};
use crate::bitmap::{self, Bitmap};
use crate::run::RangeSink;
use crate::source::Backing;
use crate::units::{FrameCount, FrameRange, Order, Pfn};

/// What is known of the frames of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    /// None is held.
    Nothing,
    /// Not the whole block is; maybe nothing.
    Some,
    /// The whole block is.
    All,
    /// Frames were stored since the last look.
    Unseen,
}

/// A bit per frame, and two per block of [`BLOCK`].
#[derive(Debug)]
pub(super) struct Side<'a> {
    frames: Bitmap<'a>,
    /// Some, or unseen.
    some: Bitmap<'a>,
    /// All, or unseen.
    all: Bitmap<'a>,
    held: &'a mut u64,
}

impl<'a> Side<'a> {
    /// Words for so many frames in so many blocks.
    pub(super) const fn words(frames: u64, blocks: u64) -> u64 {
        bitmap::words(frames) + 2 * bitmap::words(blocks)
    }

    /// `None` if there are fewer words.
    pub(super) fn new(
        words: &'a mut [u64],
        frames: u64,
        blocks: u64,
        held: &'a mut u64,
    ) -> Option<Self> {
        let len = |bits| usize::try_from(bitmap::words(bits)).ok();
        let (first, rest) = words.split_at_mut_checked(len(frames)?)?;
        let (some, all) = rest.split_at_mut_checked(len(blocks)?)?;
        Some(Self {
            frames: Bitmap::new(first, frames)?,
            some: Bitmap::new(some, blocks)?,
            all: Bitmap::new(all, blocks)?,
            held,
        })
    }

    pub(super) fn holds_any(&self, region: Region, range: FrameRange) -> bool {
        let (start, end) = region.bits(range);
        self.frames.any(start, end)
    }

    pub(super) fn holds_all(&self, region: Region, range: FrameRange) -> bool {
        let (start, end) = region.bits(range);
        self.frames.all(start, end)
    }

    /// The first frames inside `within` that are held.
    pub(super) fn first(&self, region: Region, within: FrameRange) -> Option<FrameRange> {
        let (start, end) = region.bits(within);
        let (from, to) = self.frames.next_run_before(start, end)?;
        FrameRange::new(region.frame(from), FrameCount::new(to - from))
    }

    pub(super) fn store(&mut self, region: Region, range: FrameRange) {
        let (start, end) = region.bits(range);
        self.frames.set(start, end);
        *self.held += range.count().get();
        self.note(region, range, true);
    }

    pub(super) fn remove(&mut self, region: Region, range: FrameRange) {
        let (start, end) = region.bits(range);
        self.frames.clear(start, end);
        *self.held -= range.count().get();
        self.note(region, range, false);
    }

    fn note(&mut self, region: Region, range: FrameRange, stored: bool) {
        for block in region.blocks(range) {
            let inside = region.block(block).and_then(|b| b.intersection(range));
            let all = inside.is_some_and(|inside| inside.count() == BLOCK.frames());
            self.set(
                block,
                match (stored, all) {
                    (true, true) => Held::All,
                    (true, false) => Held::Unseen,
                    (false, true) => Held::Nothing,
                    (false, false) => Held::Some,
                },
            );
        }
    }

    fn set(&mut self, block: u64, held: Held) {
        let some = matches!(held, Held::Some | Held::Unseen);
        let all = matches!(held, Held::All | Held::Unseen);
        for (map, value) in [(&mut self.some, some), (&mut self.all, all)] {
            if value {
                map.set(block, block + 1);
            } else if map.any(block, block + 1) {
                map.clear(block, block + 1);
            }
        }
    }

    /// Pushes what the sink wants of blocks that are not held as a whole.
    pub(super) fn recall_scattered(
        &mut self,
        region: Region,
        unit: Order,
        out: &mut RangeSink<'_>,
    ) {
        let blocks = region.blocks(region.frames);
        let mut from = blocks.start;
        while let Some(block) = self.some.next(from, blocks.end)
            && let Some(part) = region.block(block)
        {
            from = block + 1;
            if self.all.any(block, block + 1) {
                let whole = part.count() == BLOCK.frames() && self.holds_all(region, part);
                self.set(block, if whole { Held::All } else { Held::Some });
                if whole {
                    continue;
                }
            }
            let mut rest = Some(part);
            while let Some(held) = rest.and_then(|rest| self.first(region, rest)) {
                let wanted = out.wanted().round_down(unit);
                if wanted.is_zero() {
                    return;
                }
                let mut end = held.end();
                if let Some(range) = aligned(held, unit).and_then(|r| r.split_at(wanted).0)
                    && out.push(range, Backing::Unpopulated).is_ok()
                {
                    self.remove(region, range);
                    end = range.end();
                }
                let left = FrameCount::new(part.end().get() - end.get());
                rest = FrameRange::new(end, left);
            }
            if !self.holds_any(region, part) {
                self.set(block, Held::Nothing);
            }
        }
    }

    /// Pushes whole blocks, the last of which may be cut to what the sink wants.
    pub(super) fn recall_whole(&mut self, region: Region, unit: Order, out: &mut RangeSink<'_>) {
        let step = unit.max(BLOCK);
        let blocks = region.blocks(region.frames);
        let mut from = blocks.start;
        while let Some(block) = self.all.next(from, blocks.end)
            && let Some(part) = region.block(block)
        {
            from = block + 1;
            let wanted = out.wanted().round_down(unit);
            if wanted.is_zero() {
                return;
            }
            let whole = FrameRange::new(part.start(), step.frames())
                .filter(|whole| whole.start().is_aligned(step) && region.contains(*whole))
                .filter(|&whole| self.holds_all(region, whole));
            if let Some(range) = whole.and_then(|whole| whole.split_at(wanted).0)
                && out.push(range, Backing::Unpopulated).is_ok()
            {
                self.remove(region, range);
            } else if step == BLOCK {
                self.set(block, Held::Some);
            }
        }
    }
}

/// The whole blocks of a range.
fn aligned(range: FrameRange, unit: Order) -> Option<FrameRange> {
    let size = unit.frames().get();
    let start = range.start().get().next_multiple_of(size);
    let count = FrameCount::new(range.end().get().checked_sub(start)?);
    FrameRange::new(Pfn::new(start), count.round_down(unit))
}
