//! A ledger for allocators that cannot remember ballooned frames themselves.
//!
//! Two bits per frame (given frame by frame, given in bulk) plus a summary and the
//! same again for each 2 MiB: 64 MiB of frames cost little more than 4 KiB of words.
//! Never a list: at eight bytes an entry a
//! full list would cost 0.2 % of memory and have to grow under pressure.

mod side;

use core::fmt;
use core::ops::Range;

use crate::run::RangeSink;
use crate::source::{Ask, Backing, FrameSource, GivePath, Ledger, Stop};
use crate::units::{FrameCount, FrameRange, Order, Pfn};
use side::Side;

/// How many disjoint regions of memory one [`BitmapLedger`] covers.
pub const MAX_REGIONS: usize = 8;

/// What a ledger does not break while it holds other frames: what hosts map in one
/// piece.
const BLOCK: Order = Order::SUPERPAGE;

/// One bit per frame and give path, in words of the caller.
///
/// `M` is anything that yields the words: `&'static mut [u64]`, an array, a
/// `Vec`. The bits are cleared on construction.
#[derive(Debug)]
pub struct BitmapLedger<M> {
    words: M,
    regions: [Option<Region>; MAX_REGIONS],
    /// Frames and blocks of all regions.
    frames: u64,
    blocks: u64,
    /// Frames held, by path.
    told: u64,
    bulk: u64,
}

#[derive(Clone, Copy, Debug)]
struct Region {
    frames: FrameRange,
    first_bit: u64,
    first_block: u64,
}

impl Region {
    const fn contains(self, range: FrameRange) -> bool {
        self.frames.start().get() <= range.start().get()
            && range.end().get() <= self.frames.end().get()
    }

    /// The bits of a range inside.
    const fn bits(self, range: FrameRange) -> (u64, u64) {
        let first = range.start().get() - self.frames.start().get();
        let start = self.first_bit + first;
        (start, start + range.count().get())
    }

    /// The frame of a bit.
    const fn frame(self, bit: u64) -> Pfn {
        Pfn::new(self.frames.start().get() + (bit - self.first_bit))
    }

    /// The blocks that a range inside touches.
    const fn blocks(self, range: FrameRange) -> Range<u64> {
        let size = BLOCK.frames().get();
        let before = self.frames.start().get() / size;
        let start = range.start().get() / size - before;
        let end = range.end().get().div_ceil(size) - before;
        self.first_block + start..self.first_block + end
    }

    /// The frames of a block that lie in this region.
    fn block(self, block: u64) -> Option<FrameRange> {
        let size = BLOCK.frames();
        let before = self.frames.start().get() / size.get();
        let start = (before + (block - self.first_block)) * size.get();
        FrameRange::new(Pfn::new(start), size)?.intersection(self.frames)
    }
}

/// Why a ledger could not be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LedgerError {
    /// The storage holds fewer words than [`BitmapLedger::words`] asks for.
    TooFewWords,
    /// More than [`MAX_REGIONS`] regions.
    TooManyRegions,
    /// Two regions share a frame.
    Overlap,
}

impl fmt::Display for LedgerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooFewWords => "the storage is smaller than `BitmapLedger::words` asks for",
            Self::TooManyRegions => "more regions than `MAX_REGIONS`",
            Self::Overlap => "two regions share a frame",
        })
    }
}

impl core::error::Error for LedgerError {}

impl BitmapLedger<()> {
    /// Words of storage for memory of this many frames in all.
    #[must_use]
    pub const fn words(frames: FrameCount) -> u64 {
        // A region may touch a block more at either end than fit into it.
        let blocks = frames.get() / BLOCK.frames().get() + 2 * MAX_REGIONS as u64;
        Side::words(frames.get(), blocks) * 2
    }
}

impl<M: AsMut<[u64]>> BitmapLedger<M> {
    /// A ledger of the frames in `regions`, none of them ballooned.
    ///
    /// # Errors
    /// See [`LedgerError`].
    pub fn new(mut words: M, regions: &[FrameRange]) -> Result<Self, LedgerError> {
        let mut table = [None; MAX_REGIONS];
        let (mut bits, mut blocks) = (0, 0);
        for (index, &frames) in regions.iter().enumerate() {
            let earlier = regions.get(..index).unwrap_or_default();
            if earlier
                .iter()
                .any(|e| e.start() < frames.end() && frames.start() < e.end())
            {
                return Err(LedgerError::Overlap);
            }
            let region = Region {
                frames,
                first_bit: bits,
                first_block: blocks,
            };
            *table.get_mut(index).ok_or(LedgerError::TooManyRegions)? = Some(region);
            bits += frames.count().get();
            blocks = region.blocks(frames).end;
        }
        let storage = words.as_mut();
        if (storage.len() as u64) < BitmapLedger::words(FrameCount::new(bits)) {
            return Err(LedgerError::TooFewWords);
        }
        storage.fill(0);
        Ok(Self {
            words,
            regions: table,
            frames: bits,
            blocks,
            told: 0,
            bulk: 0,
        })
    }

    fn side(&mut self, path: GivePath) -> Option<Side<'_>> {
        let each = usize::try_from(Side::words(self.frames, self.blocks)).ok()?;
        let (told, bulk) = self.words.as_mut().split_at_mut_checked(each)?;
        let (storage, held) = match path {
            GivePath::Told => (told, &mut self.told),
            GivePath::Bulk => (bulk, &mut self.bulk),
        };
        Side::new(storage, self.frames, self.blocks, held)
    }

    /// The region around a range.
    fn region_of(&self, range: FrameRange) -> Option<Region> {
        let mut regions = self.regions.iter().flatten();
        regions.find(|region| region.contains(range)).copied()
    }
}

/// A block of 2 MiB that lies in two regions is not known to be one.
impl<M: AsMut<[u64]>> Ledger for BitmapLedger<M> {
    fn store(&mut self, range: FrameRange, path: GivePath) -> Result<(), FrameRange> {
        let region = self.region_of(range).ok_or(range)?;
        for path in GivePath::ALL {
            let side = self.side(path).ok_or(range)?;
            if side.holds_any(region, range) {
                return Err(range);
            }
        }
        self.side(path).ok_or(range)?.store(region, range);
        Ok(())
    }

    fn recall(&mut self, path: GivePath, unit: Order, out: &mut RangeSink<'_>) -> Stop {
        for whole in [false, true] {
            for region in self.regions.into_iter().flatten() {
                match self.side(path) {
                    Some(mut side) if whole => side.recall_whole(region, unit, out),
                    Some(mut side) if unit < BLOCK => side.recall_scattered(region, unit, out),
                    _ => {}
                }
            }
        }
        if out.is_full() {
            Stop::Enough
        } else if self.held(path).is_zero() {
            Stop::Empty
        } else {
            Stop::Fragmented
        }
    }

    fn held(&self, path: GivePath) -> FrameCount {
        FrameCount::new(match path {
            GivePath::Told => self.told,
            GivePath::Bulk => self.bulk,
        })
    }

    fn recall_at(&mut self, range: FrameRange, path: GivePath) -> Result<(), FrameRange> {
        let region = self.region_of(range).ok_or(range)?;
        let mut side = self.side(path).ok_or(range)?;
        if !side.holds_all(region, range) {
            return Err(range);
        }
        side.remove(region, range);
        Ok(())
    }

    fn next_held(&mut self, within: FrameRange) -> Option<(FrameRange, GivePath)> {
        let mut first: Option<(FrameRange, GivePath)> = None;
        for region in self.regions.into_iter().flatten() {
            let Some(part) = region.frames.intersection(within) else {
                continue;
            };
            for path in GivePath::ALL {
                let Some(found) = self.side(path)?.first(region, part) else {
                    continue;
                };
                if first.is_none_or(|(earlier, _)| found.start() < earlier.start()) {
                    first = Some((found, path));
                }
            }
        }
        first
    }
}

/// A frame source paired with the ledger that remembers for it.
///
/// Build it on the spot where the source is only borrowed (an out-of-memory
/// hook that holds the locked heap): `Ledgered { source: heap, ledger: &mut l }`.
#[derive(Debug)]
pub struct Ledgered<S, L> {
    /// The allocator.
    pub source: S,
    /// The memory of ballooned frames.
    pub ledger: L,
}

impl<S: FrameSource, L> FrameSource for Ledgered<S, L> {
    fn take(&mut self, ask: Ask, out: &mut RangeSink<'_>) -> Stop {
        self.source.take(ask, out)
    }

    fn put(&mut self, range: FrameRange, backing: Backing) -> Result<(), FrameRange> {
        self.source.put(range, backing)
    }

    fn take_at(&mut self, range: FrameRange) -> Result<Backing, FrameRange> {
        self.source.take_at(range)
    }

    fn next_free(&mut self, within: FrameRange) -> Option<FrameRange> {
        self.source.next_free(within)
    }

    fn available(&mut self) -> Option<FrameCount> {
        self.source.available()
    }
}

impl<S, L: Ledger> Ledger for Ledgered<S, L> {
    fn store(&mut self, range: FrameRange, path: GivePath) -> Result<(), FrameRange> {
        self.ledger.store(range, path)
    }

    fn recall(&mut self, path: GivePath, unit: Order, out: &mut RangeSink<'_>) -> Stop {
        self.ledger.recall(path, unit, out)
    }

    fn held(&self, path: GivePath) -> FrameCount {
        self.ledger.held(path)
    }

    fn recall_at(&mut self, range: FrameRange, path: GivePath) -> Result<(), FrameRange> {
        self.ledger.recall_at(range, path)
    }

    fn next_held(&mut self, within: FrameRange) -> Option<(FrameRange, GivePath)> {
        self.ledger.next_held(within)
    }
}

#[cfg(test)]
mod tests;
