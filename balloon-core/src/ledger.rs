//! A ledger for allocators that cannot remember ballooned frames themselves.
//!
//! Two bits per frame (given frame by frame, given in bulk) plus a summary: 64
//! MiB of frames cost 4 KiB of words. Never a list: at eight bytes an entry a
//! full list would cost 0.2 % of memory and have to grow under pressure.

use core::fmt;

use crate::bitmap::{self, Bitmap};
use crate::run::RangeSink;
use crate::source::{Ask, Backing, FrameSource, GivePath, Ledger, Stop};
use crate::units::{FrameCount, FrameRange, Pfn};

/// How many disjoint regions of memory one [`BitmapLedger`] covers.
pub const MAX_REGIONS: usize = 8;

/// One bit per frame and give path, in words of the caller.
///
/// `M` is anything that yields the words: `&'static mut [u64]`, an array, a
/// `Vec`. The bits are cleared on construction.
#[derive(Debug)]
pub struct BitmapLedger<M> {
    words: M,
    regions: [Option<Region>; MAX_REGIONS],
    bits: u64,
    told: Side,
    bulk: Side,
}

#[derive(Clone, Copy, Debug)]
struct Region {
    frames: FrameRange,
    first_bit: u64,
}

/// What is known about one path's bitmap without looking at it.
#[derive(Clone, Copy, Debug, Default)]
struct Side {
    held: u64,
    /// No bit below this one is set.
    cursor: u64,
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
        bitmap::words(frames.get()) * 2
    }
}

impl<M: AsMut<[u64]>> BitmapLedger<M> {
    /// A ledger of the frames in `regions`, none of them ballooned.
    ///
    /// # Errors
    /// See [`LedgerError`].
    pub fn new(mut words: M, regions: &[FrameRange]) -> Result<Self, LedgerError> {
        let mut table = [None; MAX_REGIONS];
        let mut bits = 0;
        for (index, &frames) in regions.iter().enumerate() {
            let earlier = regions.get(..index).unwrap_or_default();
            if earlier
                .iter()
                .any(|e| e.start() < frames.end() && frames.start() < e.end())
            {
                return Err(LedgerError::Overlap);
            }
            *table.get_mut(index).ok_or(LedgerError::TooManyRegions)? = Some(Region {
                frames,
                first_bit: bits,
            });
            bits += frames.count().get();
        }
        let storage = words.as_mut();
        if (storage.len() as u64) < BitmapLedger::words(FrameCount::new(bits)) {
            return Err(LedgerError::TooFewWords);
        }
        storage.fill(0);
        Ok(Self {
            words,
            regions: table,
            bits,
            told: Side::default(),
            bulk: Side::default(),
        })
    }

    fn side(&mut self, path: GivePath) -> Option<(Bitmap<'_>, &mut Side)> {
        let each = usize::try_from(bitmap::words(self.bits)).ok()?;
        let (told, bulk) = self.words.as_mut().split_at_mut_checked(each)?;
        let (storage, side) = match path {
            GivePath::Told => (told, &mut self.told),
            GivePath::Bulk => (bulk, &mut self.bulk),
        };
        Some((Bitmap::new(storage, self.bits)?, side))
    }

    /// The bits of a range that lies in one region.
    fn bits_of(&self, range: FrameRange) -> Option<(u64, u64)> {
        self.regions.iter().flatten().find_map(|region| {
            let inside =
                region.frames.start() <= range.start() && range.end() <= region.frames.end();
            let first = range
                .start()
                .get()
                .wrapping_sub(region.frames.start().get());
            inside.then(|| {
                let start = region.first_bit + first;
                (start, start + range.count().get())
            })
        })
    }

    /// The frame of a bit, and how many bits of its region follow.
    fn frame_of(&self, bit: u64) -> Option<(Pfn, u64)> {
        self.regions.iter().flatten().find_map(|region| {
            let offset = bit.checked_sub(region.first_bit)?;
            let left = region
                .frames
                .count()
                .get()
                .checked_sub(offset)
                .filter(|&left| left > 0)?;
            Some((Pfn::new(region.frames.start().get() + offset), left))
        })
    }
}

impl<M: AsMut<[u64]>> Ledger for BitmapLedger<M> {
    fn store(&mut self, range: FrameRange, path: GivePath) -> Result<(), FrameRange> {
        let (start, end) = self.bits_of(range).ok_or(range)?;
        for path in GivePath::ALL {
            let (map, _) = self.side(path).ok_or(range)?;
            if map.any(start, end) {
                return Err(range);
            }
        }
        let (mut map, side) = self.side(path).ok_or(range)?;
        map.set(start, end);
        side.held += range.count().get();
        side.cursor = side.cursor.min(start);
        Ok(())
    }

    fn recall(&mut self, path: GivePath, out: &mut RangeSink<'_>) -> Stop {
        while !out.is_full() {
            let Some((map, side)) = self.side(path) else {
                return Stop::Empty;
            };
            let Some((start, end)) = map.next_run(side.cursor, out.wanted().get()) else {
                side.cursor = u64::MAX;
                return Stop::Empty;
            };
            let Some((pfn, left)) = self.frame_of(start) else {
                return Stop::Empty;
            };
            let count = (end - start).min(left);
            let Some(range) = FrameRange::new(pfn, FrameCount::new(count)) else {
                return Stop::Empty;
            };
            if out.push(range, Backing::Unpopulated).is_err() {
                return Stop::Enough;
            }
            if let Some((mut map, side)) = self.side(path) {
                map.clear(start, start + count);
                side.held -= count;
                side.cursor = start + count;
            }
        }
        Stop::Enough
    }

    fn held(&self, path: GivePath) -> FrameCount {
        FrameCount::new(match path {
            GivePath::Told => self.told.held,
            GivePath::Bulk => self.bulk.held,
        })
    }

    fn recall_at(&mut self, range: FrameRange, path: GivePath) -> Result<(), FrameRange> {
        let (start, end) = self.bits_of(range).ok_or(range)?;
        let (mut map, side) = self.side(path).ok_or(range)?;
        if !map.all(start, end) {
            return Err(range);
        }
        map.clear(start, end);
        side.held -= range.count().get();
        Ok(())
    }

    fn next_held(&mut self, within: FrameRange) -> Option<(FrameRange, GivePath)> {
        let mut first: Option<(FrameRange, GivePath)> = None;
        for region in self.regions.into_iter().flatten() {
            let Some(part) = region.frames.intersection(within) else {
                continue;
            };
            let (start, end) = self.bits_of(part)?;
            for path in GivePath::ALL {
                let (map, _) = self.side(path)?;
                let Some((from, to)) = map.next_run_before(start, end) else {
                    continue;
                };
                let pfn = Pfn::new(part.start().get() + (from - start));
                let found = FrameRange::new(pfn, FrameCount::new(to - from))?;
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

    fn recall(&mut self, path: GivePath, out: &mut RangeSink<'_>) -> Stop {
        self.ledger.recall(path, out)
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
