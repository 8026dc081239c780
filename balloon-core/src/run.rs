//! Chunks: physically contiguous frames, merged as they come.
//!
//! A request to the host covers up to a few hundred runs. [`Run`] packs one in
//! eight bytes so that a slot of 256 runs costs 2 KiB of plain state, and
//! [`RangeSink`] is where a frame source lays what it takes, with no heap and
//! bounded memory: neighbours merge on the way in with the run that grew last,
//! and when all runs are in use, with any other, so that the order of arrival
//! costs no room.

use crate::backing::Backing;
use crate::units::{FrameCount, FrameRange, Order, Pfn};

/// A [`FrameRange`] of at most 2^23 frames in one word, and whether the guest has
/// [touched](Self::is_untouched) any of them.
#[doc(alias = "chunk")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Run(u64);

impl Run {
    /// The longest run: 32 GiB.
    pub const MAX: FrameCount = FrameCount::new(1 << COUNT_BITS);

    pub(crate) const ZERO: Self = Self(0);

    /// Packs a range that may have been written; `None` above [`Run::MAX`] frames.
    #[must_use]
    pub const fn new(range: FrameRange) -> Option<Self> {
        let count = range.count().get();
        if count > Self::MAX.get() {
            return None;
        }
        // The all-zero word is frame 0 alone: a zeroed table is a valid one.
        Some(Self(range.start().get() << START_SHIFT | (count - 1)))
    }

    /// The same frames, of which the guest has written none.
    #[must_use]
    pub const fn untouched(self) -> Self {
        Self(self.0 | UNTOUCHED)
    }

    /// Whether the source says that the guest has written none of the frames since the
    /// host put memory behind them, or promised to: they hold nothing of the guest's.
    #[must_use]
    pub const fn is_untouched(self) -> bool {
        self.0 & UNTOUCHED != 0
    }

    /// Its first `count` frames.
    pub(crate) fn head(self, count: FrameCount) -> Option<Self> {
        let head = Self::new(FrameRange::new(self.range().start(), count)?)?;
        Some(Self(head.0 | (self.0 & UNTOUCHED)))
    }

    /// The frames.
    #[must_use]
    pub const fn range(self) -> FrameRange {
        let start = Pfn::new(self.0 >> START_SHIFT);
        let count = FrameCount::new((self.0 & ((1 << COUNT_BITS) - 1)) + 1);
        match FrameRange::new(start, count) {
            Some(range) => range,
            None => unreachable!(),
        }
    }

    /// Number of frames.
    #[must_use]
    pub const fn count(self) -> FrameCount {
        self.range().count()
    }

    /// The union with a neighbour of at most `limit` frames. What was written stays
    /// apart from what was not.
    const fn merged(self, other: Self, limit: FrameCount) -> Option<Self> {
        let untouched = self.0 & UNTOUCHED;
        if untouched != other.0 & UNTOUCHED {
            return None;
        }
        let (own, other) = (self.range(), other.range());
        if own.count().get() + other.count().get() > limit.get() {
            return None;
        }
        let start = if own.end().get() == other.start().get() {
            own.start()
        } else if other.end().get() == own.start().get() {
            other.start()
        } else {
            return None;
        };
        let count = FrameCount::new(own.count().get() + other.count().get());
        let Some(range) = FrameRange::new(start, count) else {
            return None;
        };
        match Self::new(range) {
            Some(run) => Some(Self(run.0 | untouched)),
            None => None,
        }
    }
}

impl From<Run> for FrameRange {
    fn from(run: Run) -> Self {
        run.range()
    }
}

const COUNT_BITS: u32 = 23;
const UNTOUCHED: u64 = 1 << COUNT_BITS;
const START_SHIFT: u32 = COUNT_BITS + 1;

/// Where taken ranges are laid: knows how much is still wanted, merges runs.
#[derive(Debug)]
pub struct RangeSink<'a> {
    runs: &'a mut [Run],
    len: usize,
    longest: FrameCount,
    /// The block in which frames are wanted.
    unit: Order,
    /// What further pushes may cost.
    effort: u32,
    wanted: FrameCount,
    frames: FrameCount,
    populated: FrameCount,
}

/// What a run costs an allocator, in blocks it touches: few of its blocks are large.
#[expect(clippy::cast_possible_truncation, reason = "at most 2^24")]
const fn cost(frames: FrameCount) -> u32 {
    let frames = frames.get();
    let large = frames >> Order::SUPERPAGE.get();
    let large = if large > 1 << 24 {
        1 << 24
    } else {
        large as u32
    };
    match frames.checked_ilog2() {
        Some(orders) => 1 + orders + large,
        None => 0,
    }
}

/// The longest run to be had for so much.
const fn affordable(effort: u32) -> FrameCount {
    let small = Order::SUPERPAGE.get() as u32 + 1;
    FrameCount::new(match effort {
        0 => 0,
        u32::MAX => u64::MAX,
        few if few <= small => 1 << (few - 1),
        many => ((many - small) as u64) << Order::SUPERPAGE.get(),
    })
}

impl<'a> RangeSink<'a> {
    /// A sink for at most `wanted` frames in at most `runs.len()` runs.
    #[must_use]
    pub const fn new(runs: &'a mut [Run], wanted: FrameCount) -> Self {
        Self {
            runs,
            len: 0,
            longest: Run::MAX,
            unit: Order::FRAME,
            effort: u32::MAX,
            wanted,
            frames: FrameCount::ZERO,
            populated: FrameCount::ZERO,
        }
    }

    /// The same sink with no run longer than `longest` frames.
    #[must_use]
    pub const fn with_longest_run(mut self, longest: FrameCount) -> Self {
        if longest.get() < self.longest.get() {
            self.longest = longest;
        }
        self
    }

    /// The same sink for runs that cost no more than `effort` in all, in whole blocks of
    /// `unit` and at least one of them.
    #[must_use]
    pub(crate) const fn with_effort(mut self, effort: u32, unit: Order) -> Self {
        let one = cost(unit.frames());
        self.effort = if effort < one { one } else { effort };
        self.unit = unit;
        self
    }

    /// Frames the next push may have; zero when the sink is full.
    #[must_use]
    pub const fn wanted(&self) -> FrameCount {
        if self.len == self.runs.len() {
            return FrameCount::ZERO;
        }
        let left = self.wanted.saturating_sub(self.frames);
        let most = if left.get() < self.longest.get() {
            left
        } else {
            self.longest
        };
        let affordable = affordable(self.effort);
        if most.get() <= affordable.get() {
            most
        } else {
            affordable.round_down(self.unit)
        }
    }

    /// Whether to stop taking.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.wanted().is_zero()
    }

    /// Adds a range.
    ///
    /// # Errors
    /// Hands the range back untouched if it is longer than [`wanted`](Self::wanted).
    pub fn push(&mut self, range: FrameRange, backing: Backing) -> Result<(), FrameRange> {
        if range.count() > self.wanted() {
            return Err(range);
        }
        let populated = backing.populated(range.count());
        let run = match (Run::new(range).ok_or(range)?, populated) {
            (run, FrameCount::ZERO) => run.untouched(),
            (run, _) => run,
        };
        let longest = self.longest;
        let last = self
            .len
            .checked_sub(1)
            .and_then(|last| self.runs.get_mut(last));
        let merged = last.and_then(|last| {
            let merged = last.merged(run, longest)?;
            Some(core::mem::replace(last, merged).count())
        });
        // A neighbour costs what the run grows by: a source may name frames one by one.
        let before = merged.unwrap_or(FrameCount::ZERO);
        let cost = cost(before.saturating_add(range.count())) - cost(before);
        match merged {
            Some(_) => {}
            None => {
                *self.runs.get_mut(self.len).ok_or(range)? = run;
                self.len += 1;
                if self.len == self.runs.len() {
                    // Frames of a few neighbourhoods in turn: make room.
                    self.len = sort_and_merge(self.runs, longest);
                }
            }
        }
        if self.effort != u32::MAX {
            self.effort = self.effort.saturating_sub(cost);
        }
        self.frames = self.frames.saturating_add(range.count());
        self.populated = self.populated.saturating_add(populated);
        Ok(())
    }

    /// The runs laid down so far, in no particular order.
    #[must_use]
    pub fn runs(&self) -> &[Run] {
        self.runs.get(..self.len).unwrap_or_default()
    }

    /// Frames laid down so far.
    #[must_use]
    pub const fn frames(&self) -> FrameCount {
        self.frames
    }

    /// How many of them the host is believed to back with memory.
    #[must_use]
    pub const fn populated(&self) -> FrameCount {
        self.populated
    }
}

/// Sorts runs by address and merges neighbours of at most `longest` frames.
///
/// Returns how many runs are left; hosts merge only what arrives in order.
pub(crate) fn sort_and_merge(runs: &mut [Run], longest: FrameCount) -> usize {
    // A run's word orders by its first frame.
    runs.sort_unstable_by_key(|run| run.0);
    let mut kept = 0usize;
    for next in 0..runs.len() {
        let Some(&run) = runs.get(next) else { break };
        let last = kept.checked_sub(1).and_then(|last| runs.get_mut(last));
        match last.and_then(|last| last.merged(run, longest).map(|m| *last = m)) {
            Some(()) => {}
            None => {
                if let Some(place) = runs.get_mut(kept) {
                    *place = run;
                    kept += 1;
                }
            }
        }
    }
    kept
}

#[cfg(test)]
mod tests;
