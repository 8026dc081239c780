//! What is known per host granule: how many frames are managed, free, and free *and* populated.
//!
//! Regions with free populated frames hang in one list per density level (sixteenths of a region),
//! so that the densest is found at once. A region changes its level only when its count has left
//! the level by half a step: alternating frees and allocations do not move it to and fro.

use crate::bits::Bits;

/// Words per region.
pub(crate) const WORDS: u64 = 2;
const LEVELS: u32 = 16;
/// First word: three counters of up to 2^18, the level, a flag.
const FIELD: u64 = (1 << 19) - 1;
const POPULATED: u32 = 19;
const MANAGED: u32 = 38;
const LEVEL: u32 = 57;
const LEVEL_MASK: u64 = 31 << LEVEL;
const FRAGMENTABLE: u64 = 1 << 62;
/// Second word: links in the list of the level.
const LINK: u64 = (1 << 24) - 1;
const NONE: u64 = LINK;
const NEXT: u32 = 24;

#[derive(Debug)]
pub(crate) struct Regions<'m> {
    words: &'m mut [u64],
    /// Number of the first region.
    base: u64,
    /// log2 of the frames in a region.
    order: u32,
    /// First region of each level, index relative to `base`.
    heads: [u64; LEVELS as usize + 1],
    /// Bit per level that has regions.
    mask: u32,
    /// Regions that are on a level: those with free populated frames.
    dense: Bits<'m>,
}

/// Highest set bit.
const fn last_set(mask: u32) -> Option<u32> {
    mask.checked_ilog2()
}

/// Frames of one region by state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) free: u64,
    pub(crate) free_populated: u64,
    pub(crate) managed: u64,
}

/// Number of regions that the frames `start..end` touch.
pub(crate) const fn number(start: u64, end: u64, order: u32) -> u64 {
    if end <= start {
        0
    } else {
        ((end - 1) >> order) - (start >> order) + 1
    }
}

impl<'m> Regions<'m> {
    pub(crate) const fn new(words: &'m mut [u64], dense: Bits<'m>, start: u64, order: u32) -> Self {
        let heads = [NONE; LEVELS as usize + 1];
        Self {
            words,
            base: start >> order,
            order,
            heads,
            mask: 0,
            dense,
        }
    }

    pub(crate) const fn order(&self) -> u32 {
        self.order
    }

    /// The region of a frame.
    pub(crate) const fn of(&self, frame: u64) -> u64 {
        frame >> self.order
    }

    /// Region numbers: all of them.
    pub(crate) const fn numbers(&self) -> core::ops::Range<u64> {
        self.base..self.base + self.words.len() as u64 / WORDS
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "an index into a slice that exists"
    )]
    fn word(&self, index: u64, which: u64) -> u64 {
        self.words
            .get((index * WORDS + which) as usize)
            .copied()
            .unwrap_or(0)
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "an index into a slice that exists"
    )]
    fn word_mut(&mut self, index: u64, which: u64) -> Option<&mut u64> {
        self.words.get_mut((index * WORDS + which) as usize)
    }

    pub(crate) fn counts(&self, region: u64) -> Counts {
        let word = self.word(region.wrapping_sub(self.base), 0);
        Counts {
            free: word & FIELD,
            free_populated: (word >> POPULATED) & FIELD,
            managed: (word >> MANAGED) & FIELD,
        }
    }

    pub(crate) fn add_managed(&mut self, region: u64, frames: u64) {
        if let Some(word) = self.word_mut(region.wrapping_sub(self.base), 0) {
            *word += frames << MANAGED;
        }
    }

    /// Whether the region is set aside to serve small demands.
    #[inline]
    pub(crate) fn is_fragmentable(&self, region: u64) -> bool {
        self.word(region.wrapping_sub(self.base), 0) & FRAGMENTABLE != 0
    }

    pub(crate) fn set_fragmentable(&mut self, region: u64, value: bool) {
        if let Some(word) = self.word_mut(region.wrapping_sub(self.base), 0) {
            *word = if value {
                *word | FRAGMENTABLE
            } else {
                *word & !FRAGMENTABLE
            };
        }
    }

    /// Frames of a region became free.
    #[inline]
    pub(crate) fn freed(&mut self, region: u64, frames: u64, populated: u64) {
        self.change(region, (frames + (populated << POPULATED)) as i64);
    }

    /// Frames of a region are free no more.
    #[inline]
    pub(crate) fn taken(&mut self, region: u64, frames: u64, populated: u64) {
        self.change(region, -((frames + (populated << POPULATED)) as i64));
    }

    #[inline]
    fn change(&mut self, region: u64, by: i64) {
        let order = self.order;
        let index = region.wrapping_sub(self.base);
        let Some(word) = self.word_mut(index, 0) else {
            return;
        };
        *word = word.wrapping_add_signed(by);
        let word = *word;
        let populated = (word >> POPULATED) & FIELD;
        let level = (word & LEVEL_MASK) >> LEVEL;
        // The level spans one step, and half a step to either side of it.
        let step = order - LEVELS.trailing_zeros();
        let halves = (populated + (1 << (step - 1)) - 1) >> (step - 1);
        let fits = if populated == 0 {
            level == 0
        } else {
            level != 0 && halves + 2 > 2 * level && halves <= 2 * level + 1
        };
        if !fits {
            #[expect(clippy::cast_possible_truncation, reason = "at most 16")]
            self.relevel(index, ((populated + (1 << step) - 1) >> step) as u32);
        }
    }

    /// Density level of a region: 0 without free populated frames, else 1 to 16.
    pub(crate) fn level(&self, region: u64) -> u32 {
        Self::level_of(self.word(region.wrapping_sub(self.base), 0))
    }

    const fn level_of(word: u64) -> u32 {
        ((word & LEVEL_MASK) >> LEVEL) as u32
    }

    fn relevel(&mut self, index: u64, level: u32) {
        let old = Self::level_of(self.word(index, 0));
        self.unlink(index, old);
        if level != 0 {
            let head = self.heads.get(level as usize).copied().unwrap_or(NONE);
            if let Some(word) = self.word_mut(head, 1) {
                *word = (*word & !LINK) | index;
            }
            if let Some(word) = self.word_mut(index, 1) {
                *word = NONE | (head << NEXT);
            }
            self.set_head(level, index);
        }
        if let Some(word) = self.word_mut(index, 0) {
            *word = (*word & !LEVEL_MASK) | (u64::from(level) << LEVEL);
        }
        if (level == 0) != (old == 0) {
            self.dense.fill(index + self.base, 0, level != 0);
        }
    }

    fn unlink(&mut self, index: u64, level: u32) {
        if level == 0 {
            return;
        }
        let word = self.word(index, 1);
        let (prev, next) = (word & LINK, (word >> NEXT) & LINK);
        if prev == NONE {
            self.set_head(level, next);
        } else if let Some(word) = self.word_mut(prev, 1) {
            *word = (*word & !(LINK << NEXT)) | (next << NEXT);
        }
        if next != NONE
            && let Some(word) = self.word_mut(next, 1)
        {
            *word = (*word & !LINK) | prev;
        }
    }

    fn set_head(&mut self, level: u32, index: u64) {
        if let Some(head) = self.heads.get_mut(level as usize) {
            *head = index;
        }
        self.mask = if index == NONE {
            self.mask & !(1 << level)
        } else {
            self.mask | 1 << level
        };
    }

    /// A region of the densest level there is.
    pub(crate) fn densest(&self) -> Option<u64> {
        let level = last_set(self.mask)?;
        self.heads
            .get(level as usize)
            .map(|index| index + self.base)
    }

    /// The next region at or after `region` that has free frames; one word per region.
    pub(crate) fn next_free(&self, region: u64) -> Option<u64> {
        let all = self.numbers();
        (region.max(all.start)..all.end).find(|&region| self.counts(region).free != 0)
    }

    /// The next region at or after `region` with `least` free frames that are not populated.
    pub(crate) fn next_untouched(&self, region: u64, least: u64) -> Option<u64> {
        let all = self.numbers();
        (region.max(all.start)..all.end).find(|&region| {
            let counts = self.counts(region);
            counts.free - counts.free_populated >= least
        })
    }

    /// The next region at or after `region` that has free populated frames.
    pub(crate) fn next_dense(&self, region: u64) -> Option<u64> {
        self.dense.next_set(region.max(self.base))
    }
}

#[cfg(test)]
mod tests;
