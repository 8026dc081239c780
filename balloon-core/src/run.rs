//! Chunks: physically contiguous frames, merged as they come.
//!
//! A request to the host covers up to a few hundred runs. [`Run`] packs one in
//! eight bytes so that a slot of 256 runs costs 2 KiB of plain state, and
//! [`RangeSink`] is where a frame source lays what it takes, with no heap and
//! bounded memory: neighbours merge on the way in with the run that grew last,
//! and when all runs are in use, with any other, so that the order of arrival
//! costs no room.

use crate::source::Backing;
use crate::units::{FrameCount, FrameRange, Pfn};

/// A [`FrameRange`] of at most 2^24 frames in one word.
#[doc(alias = "chunk")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Run(u64);

impl Run {
    /// The longest run: 64 GiB.
    pub const MAX: FrameCount = FrameCount::new(1 << COUNT_BITS);

    pub(crate) const ZERO: Self = Self(0);

    /// Packs a range; `None` above [`Run::MAX`] frames.
    #[must_use]
    pub const fn new(range: FrameRange) -> Option<Self> {
        let count = range.count().get();
        if count > Self::MAX.get() {
            return None;
        }
        // The all-zero word is frame 0 alone: a zeroed table is a valid one.
        Some(Self(range.start().get() << COUNT_BITS | (count - 1)))
    }

    /// The frames.
    #[must_use]
    pub const fn range(self) -> FrameRange {
        let start = Pfn::new(self.0 >> COUNT_BITS);
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

    /// The union with a neighbour of at most `limit` frames.
    const fn merged(self, other: FrameRange, limit: FrameCount) -> Option<Self> {
        let own = self.range();
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
        match FrameRange::new(start, count) {
            Some(range) => Self::new(range),
            None => None,
        }
    }
}

impl From<Run> for FrameRange {
    fn from(run: Run) -> Self {
        run.range()
    }
}

const COUNT_BITS: u32 = 24;

/// Where taken ranges are laid: knows how much is still wanted, merges runs.
#[derive(Debug)]
pub struct RangeSink<'a> {
    runs: &'a mut [Run],
    len: usize,
    longest: FrameCount,
    wanted: FrameCount,
    frames: FrameCount,
    populated: FrameCount,
}

impl<'a> RangeSink<'a> {
    /// A sink for at most `wanted` frames in at most `runs.len()` runs.
    #[must_use]
    pub const fn new(runs: &'a mut [Run], wanted: FrameCount) -> Self {
        Self {
            runs,
            len: 0,
            longest: Run::MAX,
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

    /// Frames the next push may have; zero when the sink is full.
    #[must_use]
    pub const fn wanted(&self) -> FrameCount {
        if self.len == self.runs.len() {
            return FrameCount::ZERO;
        }
        let left = self.wanted.saturating_sub(self.frames);
        if left.get() < self.longest.get() {
            left
        } else {
            self.longest
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
        let run = Run::new(range).ok_or(range)?;
        let longest = self.longest;
        let last = self
            .len
            .checked_sub(1)
            .and_then(|last| self.runs.get_mut(last));
        match last.and_then(|last| last.merged(range, longest).map(|merged| *last = merged)) {
            Some(()) => {}
            None => {
                *self.runs.get_mut(self.len).ok_or(range)? = run;
                self.len += 1;
                if self.len == self.runs.len() {
                    // Frames of a few neighbourhoods in turn: make room.
                    self.len = sort_and_merge(self.runs, longest);
                }
            }
        }
        self.frames = self.frames.saturating_add(range.count());
        self.populated = self
            .populated
            .saturating_add(backing.populated(range.count()));
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
        match last.and_then(|last| last.merged(run.range(), longest).map(|m| *last = m)) {
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
