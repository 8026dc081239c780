//! What a bitmap ledger knows of the frames given by one path.

use super::region::{BLOCK, Region};
use crate::backing::Backing;
use crate::bitmap::{self, Bitmap};
use crate::run::RangeSink;
use crate::units::{FrameCount, FrameRange, Order, Pfn};

/// A bit per frame, and two per block of [`BLOCK`].
#[derive(Debug)]
pub(super) struct Side<'a> {
    frames: Bitmap<'a>,
    /// Some frames of the block are held, and not all.
    some: Bitmap<'a>,
    /// The whole block is held.
    all: Bitmap<'a>,
    tally: &'a mut Tally,
}

/// How many frames a side holds, and how far a search for blocks of one order got.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tally {
    pub(super) held: u64,
    unit: Order,
    /// The bit of the frame from which the next call looks.
    from: u64,
    /// Something was stored behind it, or a call looked for another order.
    renewed: bool,
    /// Every block was looked at since anything was stored.
    done: bool,
}

impl Tally {
    pub(super) const NOTHING: Self = Self {
        held: 0,
        unit: Order::FRAME,
        from: 0,
        renewed: false,
        done: false,
    };
}

#[cfg(test)]
impl Tally {
    pub(super) const fn is_done(self) -> bool {
        self.done
    }
}

/// Where a look ends, for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// There is nothing more.
    Over,
    /// The sink has enough.
    Full,
    /// It looked as often as it may.
    Again,
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
        tally: &'a mut Tally,
    ) -> Option<Self> {
        let len = |bits| usize::try_from(bitmap::words(bits)).ok();
        let (first, rest) = words.split_at_mut_checked(len(frames)?)?;
        let (some, all) = rest.split_at_mut_checked(len(blocks)?)?;
        Some(Self {
            frames: Bitmap::new(first, frames)?,
            some: Bitmap::new(some, blocks)?,
            all: Bitmap::new(all, blocks)?,
            tally,
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

    /// The first frames inside `within` that are held, at most `longest` of them.
    pub(super) fn first(
        &self,
        region: Region,
        within: FrameRange,
        longest: FrameCount,
    ) -> Option<FrameRange> {
        let (start, end) = region.bits(within);
        let from = self.frames.next(start, end)?;
        let (from, to) = self
            .frames
            .next_run_before(from, end.min(from.saturating_add(longest.get())))?;
        FrameRange::new(region.frame(from), FrameCount::new(to - from))
    }

    pub(super) fn store(&mut self, region: Region, range: FrameRange) {
        let (start, end) = region.bits(range);
        self.frames.set(start, end);
        self.tally.held += range.count().get();
        self.renew(start);
        self.note(region, range);
    }

    pub(super) fn remove(&mut self, region: Region, range: FrameRange) {
        let (start, end) = region.bits(range);
        self.frames.clear(start, end);
        self.tally.held -= range.count().get();
        self.note(region, range);
    }

    /// There may be blocks to find from this bit on.
    const fn renew(&mut self, start: u64) {
        self.tally.renewed |= start < self.tally.from;
        self.tally.done = false;
    }

    /// Notes exactly what is held of the blocks that a range touches.
    fn note(&mut self, region: Region, range: FrameRange) {
        for block in region.blocks(range) {
            let Some(part) = region.block(block) else {
                continue;
            };
            let all = part.count() == BLOCK.frames() && self.holds_all(region, part);
            let some = !all && self.holds_any(region, part);
            if some && self.all.any(block, block + 1) {
                // A search passed over it: it was whole.
                self.renew(region.bits(part).0);
            }
            for (map, value) in [(&mut self.some, some), (&mut self.all, all)] {
                if value {
                    map.set(block, block + 1);
                } else if map.any(block, block + 1) {
                    map.clear(block, block + 1);
                }
            }
        }
    }

    /// Pushes frames of blocks that are not held as a whole.
    pub(super) fn recall_frames(&mut self, region: Region, out: &mut RangeSink<'_>) {
        let blocks = region.blocks(region.frames);
        let mut from = blocks.start;
        while let Some(block) = self.some.next(from, blocks.end)
            && let Some(part) = region.block(block)
            && let Some(held) = self.first(region, part, out.wanted())
        {
            if out.push(held, Backing::Unpopulated).is_err() {
                return;
            }
            self.remove(region, held);
            from = block;
        }
    }

    /// Pushes whole blocks, the last of which may be cut to what the sink wants.
    pub(super) fn recall_blocks(&mut self, region: Region, unit: Order, out: &mut RangeSink<'_>) {
        let blocks = region.blocks(region.frames);
        while let Some(block) = self.all.next(blocks.start, blocks.end)
            && let Some(part) = region.block(block)
            && let Some(range) = part.split_at(out.wanted().round_down(unit)).0
            && out.push(range, Backing::Unpopulated).is_ok()
        {
            self.remove(region, range);
        }
    }

    /// Begins to look for blocks of `unit` where the last call ended; false if each was
    /// looked at already.
    pub(super) const fn resume(&mut self, unit: Order) -> bool {
        let tally = &mut *self.tally;
        if tally.unit.get() != unit.get() {
            tally.renewed = tally.from != 0;
            tally.done = false;
        }
        tally.unit = unit;
        !tally.done
    }

    /// Nothing is left ahead: starts over. Whether every block was looked at.
    pub(super) const fn end(&mut self) -> bool {
        let tally = &mut *self.tally;
        tally.done = !tally.renewed;
        (tally.from, tally.renewed) = (0, false);
        tally.done
    }

    /// Pushes blocks of `unit`, with at most `looks` that find none: those below [`BLOCK`]
    /// from blocks that are not held as a whole.
    pub(super) fn search(
        &mut self,
        region: Region,
        unit: Order,
        looks: &mut u32,
        out: &mut RangeSink<'_>,
    ) -> Look {
        let (first, _) = region.bits(region.frames);
        let mut from = Some(self.tally.from.max(first));
        while let Some(left) = from.and_then(|from| region.from(from)) {
            if out.wanted() < unit.frames() {
                return Look::Full;
            }
            let (at, _) = region.bits(left);
            if *looks == 0 {
                self.tally.from = at;
                return Look::Again;
            }
            let found = if unit < BLOCK {
                self.next_scattered(region, unit, left)
            } else {
                self.next_joined(region, unit, left)
            };
            let Some((found, next)) = found else {
                return Look::Over;
            };
            from = Some(next);
            let wanted = out.wanted().round_down(unit);
            match found.and_then(|range| range.split_at(wanted).0) {
                Some(range) if out.push(range, Backing::Unpopulated).is_ok() => {
                    self.remove(region, range);
                    from = Some(region.bits(range).1);
                }
                _ => *looks -= 1,
            }
        }
        Look::Over
    }

    /// The next held run of a block that is not held as a whole: the blocks of `unit` in
    /// it, if any, and the bit behind it.
    fn next_scattered(
        &self,
        region: Region,
        unit: Order,
        left: FrameRange,
    ) -> Option<(Option<FrameRange>, u64)> {
        let blocks = region.blocks(left);
        let block = self.some.next(blocks.start, blocks.end)?;
        let part = region.block(block)?.intersection(left)?;
        let held = self.first(region, part, FrameCount::MAX);
        let (_, end) = region.bits(held.unwrap_or(part));
        Some((held.and_then(|held| aligned(held, unit)), end))
    }

    /// The next block of `unit` of which any 2 MiB are held: it, if all of them are, and
    /// the bit behind it.
    fn next_joined(
        &self,
        region: Region,
        unit: Order,
        left: FrameRange,
    ) -> Option<(Option<FrameRange>, u64)> {
        let blocks = region.blocks(left);
        let block = self.all.next(blocks.start, blocks.end)?;
        let head = region.block(block)?.start().get() & !(unit.frames().get() - 1);
        let whole = FrameRange::new(Pfn::new(head), unit.frames())?;
        let part = whole.intersection(region.frames)?;
        let inside = region.blocks(part);
        let all = part == whole && self.all.all(inside.start, inside.end);
        Some((all.then_some(whole), region.bits(part).1))
    }
}

/// The whole blocks of a range.
fn aligned(range: FrameRange, unit: Order) -> Option<FrameRange> {
    let size = unit.frames().get();
    let start = range.start().get().next_multiple_of(size);
    let count = FrameCount::new(range.end().get().checked_sub(start)?);
    FrameRange::new(Pfn::new(start), count.round_down(unit))
}
