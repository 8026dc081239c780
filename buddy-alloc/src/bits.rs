//! A bitmap in three tiers: any aligned block of up to 2^18 bits is tested with one word.
//!
//! Tier 0 has one bit per item, tier 1 one bit per non-zero word of tier 0, tier 2 one bit per
//! non-zero word of tier 1. Words are aligned to absolute item numbers, so a map may start
//! anywhere.

use crate::storage::prefetch;

/// log2 of the bits in a word.
const WORD: u32 = 6;

#[derive(Debug)]
pub(crate) struct Bits<'m> {
    tier0: &'m mut [u64],
    tier1: &'m mut [u64],
    tier2: &'m mut [u64],
    /// Number of the first word of each tier.
    base: [u64; 3],
}

/// Words in one tier for the items `start..end`; `shift` is log2 of the items per word.
const fn tier_words(start: u64, end: u64, shift: u32) -> u64 {
    if end <= start {
        0
    } else {
        ((end - 1) >> shift) - (start >> shift) + 1
    }
}

/// Words a map for the items `start..end` needs.
pub(crate) const fn words(start: u64, end: u64) -> u64 {
    tier_words(start, end, WORD)
        + tier_words(start, end, 2 * WORD)
        + tier_words(start, end, 3 * WORD)
}

/// The bits of one block inside a word, for a block of at most 64 items.
const fn mask(item: u64, order: u32) -> u64 {
    let ones = if order >= WORD {
        u64::MAX
    } else {
        (1 << (1 << order)) - 1
    };
    ones << (item & 63)
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "an index into a slice that exists"
)]
fn word(tier: &[u64], base: u64, number: u64) -> u64 {
    tier.get(number.wrapping_sub(base) as usize)
        .copied()
        .unwrap_or(0)
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "an index into a slice that exists"
)]
fn word_mut(tier: &mut [u64], base: u64, number: u64) -> Option<&mut u64> {
    tier.get_mut(number.wrapping_sub(base) as usize)
}

impl<'m> Bits<'m> {
    /// A map over zeroed memory of [`words`] words; `None` if it is too short.
    pub(crate) fn new(memory: &'m mut [u64], start: u64, end: u64) -> Option<Self> {
        let len = |shift| usize::try_from(tier_words(start, end, shift)).ok();
        let (tier0, rest) = memory.split_at_mut_checked(len(WORD)?)?;
        let (tier1, rest) = rest.split_at_mut_checked(len(2 * WORD)?)?;
        let (tier2, _) = rest.split_at_mut_checked(len(3 * WORD)?)?;
        let base = [start >> WORD, start >> (2 * WORD), start >> (3 * WORD)];
        Some(Self {
            tier0,
            tier1,
            tier2,
            base,
        })
    }

    #[inline]
    fn word0(&self, number: u64) -> u64 {
        word(self.tier0, self.base[0], number)
    }

    /// Asks for the cache line of an item.
    #[inline(always)]
    pub(crate) fn prefetch(&self, item: u64) {
        let number = (item >> WORD).wrapping_sub(self.base[0]);
        if let Some(word) = usize::try_from(number)
            .ok()
            .and_then(|at| self.tier0.get(at))
        {
            prefetch(word);
        }
    }

    /// Whether any bit of an aligned block is set.
    #[inline]
    pub(crate) fn any(&self, item: u64, order: u32) -> bool {
        let (tier, base, item, order) = match order {
            0..=6 => (&*self.tier0, self.base[0], item, order),
            7..=12 => (&*self.tier1, self.base[1], item >> WORD, order - WORD),
            _ => (
                &*self.tier2,
                self.base[2],
                item >> (2 * WORD),
                order - 2 * WORD,
            ),
        };
        word(tier, base, item >> WORD) & mask(item, order) != 0
    }

    /// Which halves of an aligned block of `2^(order + 1)` items have any bit set.
    #[inline]
    pub(crate) fn halves(&self, item: u64, order: u32) -> (bool, bool) {
        if order < WORD {
            // Both halves in one word.
            let word = self.word0(item >> WORD) >> (item & 63);
            let half = (1 << (1 << order)) - 1;
            (word & half != 0, (word >> (1 << order)) & half != 0)
        } else {
            (self.any(item, order), self.any(item + (1 << order), order))
        }
    }

    /// Number of set bits in an aligned block; one word per 64 items.
    #[inline]
    pub(crate) fn count(&self, item: u64, order: u32) -> u64 {
        if order == 0 {
            return (self.word0(item >> WORD) >> (item & 63)) & 1;
        }
        if order <= WORD {
            let mask = mask(item, order);
            let bits = self.word0(item >> WORD) & mask;
            return if bits == mask {
                1 << order
            } else {
                u64::from(bits.count_ones())
            };
        }
        let first = item >> WORD;
        let ones = |number| match self.word0(number) {
            // Mostly all or nothing, and counting is a dozen instructions on many targets.
            0 => 0,
            u64::MAX => 64,
            word => u64::from(word.count_ones()),
        };
        (first..first + (1 << (order - WORD))).map(ones).sum()
    }

    /// Sets or clears an aligned block; one word per 64 items.
    #[inline]
    pub(crate) fn fill(&mut self, item: u64, order: u32, value: bool) {
        if order <= WORD {
            self.fill_word(item >> WORD, mask(item, order), value);
        } else {
            let first = item >> WORD;
            for number in first..first + (1 << (order - WORD)) {
                self.fill_word(number, u64::MAX, value);
            }
        }
    }

    #[inline]
    fn fill_word(&mut self, number: u64, mask: u64, value: bool) {
        let Some(word) = word_mut(self.tier0, self.base[0], number) else {
            return;
        };
        let old = *word;
        *word = if value { old | mask } else { old & !mask };
        if (old != 0) != (*word != 0) {
            self.fill_upper(number, value);
        }
    }

    fn fill_upper(&mut self, number: u64, value: bool) {
        let toggle = |word: &mut u64, bit: u64| {
            let old = *word;
            *word = if value {
                old | 1 << (bit & 63)
            } else {
                old & !(1 << (bit & 63))
            };
            (old != 0) != (*word != 0)
        };
        let Some(word) = word_mut(self.tier1, self.base[1], number >> WORD) else {
            return;
        };
        if toggle(word, number) {
            let number = number >> WORD;
            if let Some(word) = word_mut(self.tier2, self.base[2], number >> WORD) {
                toggle(word, number);
            }
        }
    }

    /// The first maximal run of set bits at or after `from` and before `end`, looking no further
    /// than `end`.
    pub(crate) fn next_run(&self, from: u64, end: u64) -> Option<(u64, u64)> {
        let first = self.scan(from, end, 0)?;
        let last = self.scan(first, end, u64::MAX).unwrap_or(end);
        Some((first, last))
    }

    /// The first maximal run of units without a set bit at or after `from` and before `end`, both at
    /// units' starts; `mask` has the bits within a unit. Looks no further than `end`.
    pub(crate) fn next_clear(&self, mut from: u64, end: u64, mask: u64) -> Option<(u64, u64)> {
        loop {
            let first = self.scan(from, end, u64::MAX)?;
            let last = self.scan(first, end, 0).unwrap_or(end);
            let (start, stop) = ((first + mask) & !mask, last & !mask);
            if start < stop {
                return Some((start, stop));
            }
            from = last;
        }
    }

    /// First item in `from..end` whose bit, exclusive-or `flip`, is set. Goes word by word.
    fn scan(&self, from: u64, end: u64, flip: u64) -> Option<u64> {
        if from >= end {
            return None;
        }
        let mut number = from >> WORD;
        let mut bits = (self.word0(number) ^ flip) & (u64::MAX << (from & 63));
        loop {
            if bits != 0 {
                let found = (number << WORD) + u64::from(bits.trailing_zeros());
                return (found < end).then_some(found);
            }
            number += 1;
            if number << WORD >= end {
                return None;
            }
            bits = self.word0(number) ^ flip;
        }
    }

    /// First set bit at or after `from`, skipping empty stretches by the upper tiers: two words a
    /// tier, and one word per 2^18 items that hold none.
    pub(crate) fn next_set(&self, from: u64) -> Option<u64> {
        let in_word = |word: u64, from: u64| {
            let bits = word & (u64::MAX << (from & 63));
            (bits != 0).then(|| (from & !63) + u64::from(bits.trailing_zeros()))
        };
        if let Some(found) = in_word(self.word0(from >> WORD), from) {
            return Some(found);
        }
        let from1 = (from >> WORD) + 1;
        if let Some(found) = in_word(word(self.tier1, self.base[1], from1 >> WORD), from1) {
            return in_word(self.word0(found), found << WORD);
        }
        let from2 = (from1 >> WORD) + 1;
        let mut at = from2;
        let end = (self.base[2] + self.tier2.len() as u64) << WORD;
        while at < end {
            if let Some(found) = in_word(word(self.tier2, self.base[2], at >> WORD), at) {
                let found = in_word(word(self.tier1, self.base[1], found), found << WORD)?;
                return in_word(self.word0(found), found << WORD);
            }
            at = ((at >> WORD) + 1) << WORD;
        }
        None
    }
}

#[cfg(test)]
mod tests;
