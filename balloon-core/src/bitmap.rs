//! A bitmap with one summary level, over words somebody else owns.
//!
//! Finding the next set bit looks at one summary bit for every 4096 bits, so a
//! sparse map of 1 TiB of frames (2^28 bits) is crossed in about 1,000 words.

const WORD: u64 = u64::BITS as u64;
/// Bits that one summary bit stands for.
const GROUP: u64 = WORD * WORD;

/// View of a bitmap: `words` for the bits, then the summary.
#[derive(Debug)]
pub(crate) struct Bitmap<'a> {
    bits: &'a mut [u64],
    summary: &'a mut [u64],
}

/// Words a bitmap of `bits` bits takes, summary included.
pub(crate) const fn words(bits: u64) -> u64 {
    bits.div_ceil(WORD) + bits.div_ceil(GROUP).div_ceil(WORD)
}

impl<'a> Bitmap<'a> {
    /// Splits `words(bits)` words; `None` if there are fewer.
    pub(crate) fn new(storage: &'a mut [u64], bits: u64) -> Option<Self> {
        let (bits, summary) = storage.split_at_mut_checked(index(bits.div_ceil(WORD)))?;
        Some(Self { bits, summary })
    }

    /// Whether any bit of `start..end` is set.
    pub(crate) fn any(&self, start: u64, end: u64) -> bool {
        spans(start, end).any(|(word, mask)| self.bits.get(word).is_some_and(|w| w & mask != 0))
    }

    /// Whether all bits of `start..end` are set.
    pub(crate) fn all(&self, start: u64, end: u64) -> bool {
        spans(start, end).all(|(word, mask)| self.bits.get(word).is_some_and(|w| w & mask == mask))
    }

    pub(crate) fn set(&mut self, start: u64, end: u64) {
        for (word, mask) in spans(start, end) {
            if let Some(w) = self.bits.get_mut(word) {
                *w |= mask;
            }
        }
        for (word, mask) in spans(start / GROUP, end.div_ceil(GROUP)) {
            if let Some(w) = self.summary.get_mut(word) {
                *w |= mask;
            }
        }
    }

    pub(crate) fn clear(&mut self, start: u64, end: u64) {
        for (word, mask) in spans(start, end) {
            if let Some(w) = self.bits.get_mut(word) {
                *w &= !mask;
            }
        }
        for group in start / GROUP..end.div_ceil(GROUP) {
            let first = index(group * WORD);
            let last = self.bits.len().min(first + index(WORD));
            let empty = self
                .bits
                .get(first..last)
                .is_none_or(|g| g.iter().all(|&w| w == 0));
            if let Some(w) = self.summary.get_mut(index(group / WORD)).filter(|_| empty) {
                *w &= !(1 << (group % WORD));
            }
        }
    }

    /// The first set bit in `from..before`.
    pub(crate) fn next(&self, from: u64, before: u64) -> Option<u64> {
        self.next_set(from, before).filter(|&bit| bit < before)
    }

    /// The first run of set bits in `from..before`, cut off there; looks at
    /// nothing beyond.
    pub(crate) fn next_run_before(&self, from: u64, before: u64) -> Option<(u64, u64)> {
        let start = self.next(from, before)?;
        Some(self.run_at(start, before - start))
    }

    fn run_at(&self, start: u64, longest: u64) -> (u64, u64) {
        let mut end = start;
        while end - start < longest {
            let word = self.bits.get(index(end / WORD)).copied().unwrap_or(0);
            let ones = u64::from((word >> (end % WORD)).trailing_ones());
            end += ones;
            if ones == 0 || !end.is_multiple_of(WORD) {
                break;
            }
        }
        (start, end.min(start + longest))
    }

    /// The first set bit at or after `from`; gives up at `before`.
    fn next_set(&self, from: u64, before: u64) -> Option<u64> {
        let mut bit = from;
        while bit < before {
            let word = *self.bits.get(index(bit / WORD))? >> (bit % WORD);
            if word != 0 {
                return Some(bit + u64::from(word.trailing_zeros()));
            }
            bit = (bit / WORD + 1) * WORD;
            if bit.is_multiple_of(GROUP) {
                bit = self.next_group(bit / GROUP, before.div_ceil(GROUP))? * GROUP;
            }
        }
        None
    }

    fn next_group(&self, from: u64, before: u64) -> Option<u64> {
        let mut group = from;
        while group < before {
            let word = *self.summary.get(index(group / WORD))? >> (group % WORD);
            if word != 0 {
                return Some(group + u64::from(word.trailing_zeros()));
            }
            group = (group / WORD + 1) * WORD;
        }
        None
    }
}

/// (word, mask) of every word that `start..end` touches.
fn spans(start: u64, end: u64) -> impl Iterator<Item = (usize, u64)> {
    (start / WORD..end.div_ceil(WORD)).map(move |word| {
        let low = start.saturating_sub(word * WORD);
        let high = (end - word * WORD).min(WORD);
        let mask = if high - low == WORD {
            u64::MAX
        } else {
            ((1 << (high - low)) - 1) << low
        };
        (index(word), mask)
    })
}

/// Word numbers fit: the storage is a slice. On 32 bits an absurd one saturates
/// and finds nothing.
fn index(word: u64) -> usize {
    usize::try_from(word).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
