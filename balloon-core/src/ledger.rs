//! A ledger for allocators that cannot remember ballooned frames themselves.
//!
//! Two bits per frame (given frame by frame, given in bulk) plus a summary and the
//! same again for each 2 MiB: 64 MiB of frames cost little more than 4 KiB of words.
//! Never a list: at eight bytes an entry a
//! full list would cost 0.2 % of memory and have to grow under pressure.

mod region;
mod side;

use core::fmt;
use region::{BLOCK, Region};

use crate::backing::Backing;
use crate::run::RangeSink;
use crate::source::{FrameSource, Ledger, Shortage, TakeRequest, Via};
use crate::units::{FrameCount, FrameRange, Order, Pfn};
use side::{Look, Side, Tally};

/// How many disjoint regions of memory one [`BitmapLedger`] covers.
pub const MAX_REGIONS: usize = 8;

/// Frames looked at by one path before the other one is: those of a word of the summary.
const WINDOW: FrameCount = FrameCount::new(1 << 18);

/// Looks of one recall that find no block of the order asked for.
const IN_VAIN: u32 = 512;

/// The longest run that one look shows.
const LOOK: FrameCount = FrameCount::new(1 << 12);

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
    /// Frames there are words for.
    capacity: u64,
    /// Frames held, by path.
    told: Tally,
    bulk: Tally,
}

/// Why a ledger could not be built, or not take a region.
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
        Side::words(frames.get(), most_blocks(frames.get())) * 2
    }

    /// The most frames that so many words are enough for.
    const fn capacity(words: u64) -> u64 {
        let (mut enough, mut too_many) = (0, Pfn::LIMIT.get());
        while too_many - enough > 1 {
            let middle = enough + (too_many - enough) / 2;
            if Self::words(FrameCount::new(middle)) <= words {
                enough = middle;
            } else {
                too_many = middle;
            }
        }
        enough
    }
}

/// Blocks that regions of so many frames in all touch: each may touch one more at either
/// end than fit into it.
const fn most_blocks(frames: u64) -> u64 {
    frames / BLOCK.frames().get() + 2 * MAX_REGIONS as u64
}

impl<M: AsMut<[u64]>> BitmapLedger<M> {
    /// A ledger of the frames in `regions`, none of them ballooned.
    ///
    /// # Errors
    /// See [`LedgerError`].
    pub fn new(mut words: M, regions: &[FrameRange]) -> Result<Self, LedgerError> {
        let storage = words.as_mut();
        storage.fill(0);
        let capacity = BitmapLedger::capacity(storage.len() as u64);
        let mut ledger = Self {
            words,
            regions: [None; MAX_REGIONS],
            frames: 0,
            blocks: 0,
            capacity,
            told: Tally::NOTHING,
            bulk: Tally::NOTHING,
        };
        for &frames in regions {
            ledger.add_region(frames)?;
        }
        Ok(ledger)
    }

    /// Adds memory that came at run time, none of it ballooned.
    ///
    /// It may touch what the ledger knows. Its bits lie in words left over at
    /// [`new`](Self::new): bring as many as [`words`](BitmapLedger::words) says for all
    /// memory there may ever be.
    ///
    /// ```
    /// use balloon_core::{BitmapLedger, FrameCount, FrameRange, LedgerError, Pfn};
    ///
    /// let range = |start, count| FrameRange::new(Pfn::new(start), FrameCount::new(count)).unwrap();
    /// let most = FrameCount::new(2000);
    /// let words = vec![0; BitmapLedger::words(most) as usize];
    /// let mut ledger = BitmapLedger::new(words, &[range(0, 1000)])?;
    /// ledger.add_region(range(1000, 1000))?;
    /// assert_eq!(ledger.add_region(range(1999, 2)), Err(LedgerError::Overlap));
    /// # Ok::<(), LedgerError>(())
    /// ```
    ///
    /// # Errors
    /// See [`LedgerError`]; nothing has changed then.
    pub fn add_region(&mut self, frames: FrameRange) -> Result<(), LedgerError> {
        let mut known = self.regions.iter().flatten();
        if known.any(|region| region.frames.intersection(frames).is_some()) {
            return Err(LedgerError::Overlap);
        }
        let place = self.regions.iter_mut().find(|place| place.is_none());
        let place = place.ok_or(LedgerError::TooManyRegions)?;
        let all = self.frames + frames.count().get();
        if all > self.capacity {
            return Err(LedgerError::TooFewWords);
        }
        let region = Region {
            frames,
            first_bit: self.frames,
            first_block: self.blocks,
        };
        *place = Some(region);
        self.frames = all;
        self.blocks = region.blocks(frames).end;
        Ok(())
    }

    fn side(&mut self, via: Via) -> Option<Side<'_>> {
        let blocks = most_blocks(self.capacity);
        let each = usize::try_from(Side::words(self.capacity, blocks)).ok()?;
        let (told, bulk) = self.words.as_mut().split_at_mut_checked(each)?;
        let (storage, tally) = match via {
            Via::Inflate => (told, &mut self.told),
            Via::Bulk => (bulk, &mut self.bulk),
        };
        Side::new(storage, self.capacity, blocks, tally)
    }

    /// The parts of a range by region, in order of address; they end where a frame belongs
    /// to none.
    fn parts(&self, range: FrameRange) -> impl Iterator<Item = (Region, FrameRange)> + use<M> {
        let regions = self.regions;
        let mut rest = Some(range);
        core::iter::from_fn(move || {
            let left = rest?;
            let inside = |region: &&Region| {
                let frames = region.frames;
                frames.start() <= left.start() && left.start() < frames.end()
            };
            let region = *regions.iter().flatten().find(inside)?;
            let part = region.frames.intersection(left)?;
            rest = left.split_at(part.count()).1;
            Some((region, part))
        })
    }

    /// Whether `holds` says so of every part of a range, and every frame of it is known.
    fn all_parts(
        &mut self,
        range: FrameRange,
        via: Via,
        holds: impl Fn(&Side<'_>, Region, FrameRange) -> bool,
    ) -> bool {
        let parts = self.parts(range);
        let Some(side) = self.side(via) else {
            return false;
        };
        let mut end = range.start();
        for (region, part) in parts {
            if !holds(&side, region, part) {
                return false;
            }
            end = part.end();
        }
        end == range.end()
    }
}

/// Regions may touch: a range over several is held and recalled like any other. A block
/// of 2 MiB that lies in two of them is not known to be one.
impl<M: AsMut<[u64]>> Ledger for BitmapLedger<M> {
    fn store(&mut self, range: FrameRange, via: Via) -> Result<(), FrameRange> {
        for via in Via::ALL {
            if !self.all_parts(range, via, |side, region, part| {
                !side.holds_any(region, part)
            }) {
                return Err(range);
            }
        }
        let parts = self.parts(range);
        let mut side = self.side(via).ok_or(range)?;
        for (region, part) in parts {
            side.store(region, part);
        }
        Ok(())
    }

    fn recall(&mut self, via: Via, unit: Order, out: &mut RangeSink<'_>) -> Shortage {
        let regions = self.regions;
        let regions = || regions.into_iter().flatten();
        let mut ended = true;
        if let Some(mut side) = self.side(via) {
            if unit == Order::FRAME {
                regions().for_each(|region| side.recall_frames(region, out));
            } else if unit != BLOCK && side.resume(unit) {
                let mut looks = IN_VAIN;
                let looked = regions()
                    .map(|region| side.search(region, unit, &mut looks, out))
                    .find(|&look| look != Look::Over);
                ended = match looked {
                    None => side.end(),
                    Some(look) => look == Look::Full,
                };
            }
            if unit <= BLOCK && ended {
                regions().for_each(|region| side.recall_blocks(region, unit, out));
            }
        }
        if out.is_full() {
            Shortage::None
        } else if !ended {
            Shortage::Again
        } else if self.held(via).is_zero() {
            Shortage::Empty
        } else {
            Shortage::Fragmented
        }
    }

    fn held(&self, via: Via) -> FrameCount {
        FrameCount::new(match via {
            Via::Inflate => self.told.held,
            Via::Bulk => self.bulk.held,
        })
    }

    fn recall_at(&mut self, range: FrameRange, via: Via) -> Result<(), FrameRange> {
        if !self.all_parts(range, via, |side, region, part| {
            side.holds_all(region, part)
        }) {
            return Err(range);
        }
        let parts = self.parts(range);
        let mut side = self.side(via).ok_or(range)?;
        for (region, part) in parts {
            side.remove(region, part);
        }
        Ok(())
    }

    fn next_held(&mut self, within: FrameRange) -> Option<(FrameRange, Via)> {
        let mut first: Option<(FrameRange, Via)> = None;
        for region in self.regions.into_iter().flatten() {
            let Some(part) = region.frames.intersection(within) else {
                continue;
            };
            let mut rest = Some(part);
            while let (Some(window), left) = rest.map_or((None, None), |r| r.split_at(WINDOW)) {
                rest = left;
                let (mut within, before) = (Some(window), first);
                for via in Via::ALL {
                    // What lies behind an earlier find is not looked at.
                    let end = first.map_or(window.end(), |(range, _)| range.start());
                    let count = end.get().saturating_sub(window.start().get());
                    within = window.split_at(FrameCount::new(count)).0;
                    let side = self.side(via)?;
                    let found = within.and_then(|within| side.first(region, within, LOOK));
                    first = found.map(|range| (range, via)).or(first);
                }
                if within.is_none() || first != before {
                    break;
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
    fn take(&mut self, request: TakeRequest, out: &mut RangeSink<'_>) -> Shortage {
        self.source.take(request, out)
    }

    fn put(&mut self, range: FrameRange, backing: Backing) -> Result<(), FrameRange> {
        self.source.put(range, backing)
    }

    fn allocate_taken(&mut self, range: FrameRange) -> Result<(), FrameRange> {
        self.source.allocate_taken(range)
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
    fn store(&mut self, range: FrameRange, via: Via) -> Result<(), FrameRange> {
        self.ledger.store(range, via)
    }

    fn recall(&mut self, via: Via, unit: Order, out: &mut RangeSink<'_>) -> Shortage {
        self.ledger.recall(via, unit, out)
    }

    fn held(&self, via: Via) -> FrameCount {
        self.ledger.held(via)
    }

    fn recall_at(&mut self, range: FrameRange, via: Via) -> Result<(), FrameRange> {
        self.ledger.recall_at(range, via)
    }

    fn next_held(&mut self, within: FrameRange) -> Option<(FrameRange, Via)> {
        self.ledger.next_held(within)
    }
}

#[cfg(test)]
mod tests;
