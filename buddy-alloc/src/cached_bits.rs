//! One bit per frame: "a block that starts here waits in some CPU cache".
//!
//! The bit *is* the ownership. Who sets it (from clear) has put the block into a cache, who clears
//! it (from set) has taken it out, whatever the cache's slots say: they are only hints where to
//! look. So a remote CPU may drain a cache while its owner pops from it, and every block still
//! goes to exactly one of them; and the second free of a block fails on any CPU. How that holds
//! beside frees that go to the zone under its lock is told in `zone::front`.
//!
//! Neighbouring words lie in different cache lines: CPUs that were handed neighbouring batches of
//! frames would otherwise write to one line all the time. The price is that the bits of a span take
//! 1 KiB at least.

use crate::frame::FrameRange;
use crate::storage::{atomic_halves, prefetch};
use crate::sync::{AtomicU32, Ordering};

#[derive(Clone, Copy, Debug)]
pub(crate) struct CachedBits<'m> {
    words: &'m [AtomicU32],
    /// Frame of entry 0; even, so that an entry names its pair too.
    base: u64,
}

/// log2 of the frames per word.
const SHIFT: u32 = 5;
/// Words in a square of cache lines: 16 lines of 16 words.
const SQUARE: u64 = 256;

/// 64-bit words the bits of a span need.
pub(crate) const fn words(span: FrameRange) -> u64 {
    let (start, end) = (span.start().get(), span.end().get());
    if span.is_empty() {
        0
    } else {
        let words = (end - (start & !1)).div_ceil(1 << SHIFT);
        words.next_multiple_of(SQUARE) / 2
    }
}

impl<'m> CachedBits<'m> {
    /// No caches: no bit is ever set.
    pub(crate) const NONE: Self = Self {
        words: &[],
        base: 0,
    };

    /// Bits for a span in zeroed memory; `None` if there is too little.
    pub(crate) fn new(memory: &'m mut [u64], span: FrameRange) -> Option<Self> {
        let memory = memory.get_mut(..usize::try_from(words(span)).ok()?)?;
        Some(Self {
            words: atomic_halves(memory),
            base: span.start().get() & !1,
        })
    }

    /// The bit of an entry.
    #[inline(always)]
    pub(crate) fn bit(&self, entry: usize) -> Option<Bit<'m>> {
        // Line and place in the line change roles.
        let word = entry >> SHIFT;
        let place = word.to_le_bytes()[0].rotate_left(4);
        Some(Bit {
            word: self.words.get((word & !0xff) | usize::from(place))?,
            entry,
        })
    }

    /// The bit of a frame.
    #[inline]
    fn bit_of(&self, frame: u64) -> Option<Bit<'m>> {
        self.bit(usize::try_from(frame.wrapping_sub(self.base)).ok()?)
    }

    /// Whether there are no caches.
    #[inline]
    pub(crate) const fn is_none(&self) -> bool {
        self.words.is_empty()
    }

    /// Takes the block that starts at a frame out of whatever cache it is in. False if it is in none
    /// (any more).
    #[inline]
    pub(crate) fn claim(&self, frame: u64) -> bool {
        self.bit_of(frame).is_some_and(Bit::claim)
    }

    /// Whether the block that starts at a frame waits in a cache.
    #[inline]
    pub(crate) fn is_set(&self, frame: u64) -> bool {
        self.bit_of(frame)
            .is_some_and(|bit| bit.word.load(Ordering::Relaxed) & bit.mask() != 0)
    }

    /// As [`is_set`](Self::is_set); who sets the bit later sees what the caller wrote before.
    pub(crate) fn is_set_after_all(&self, frame: u64) -> bool {
        self.bit_of(frame)
            .is_some_and(|bit| bit.word.fetch_or(0, Ordering::AcqRel) & bit.mask() != 0)
    }

    /// Puts all pieces of `2^order` frames of a block into a cache.
    pub(crate) fn put_pieces(&self, frame: u64, block: u32, order: u32) {
        let pieces = (frame..frame + (1 << block)).step_by(1 << order);
        let mut bits = pieces.filter_map(|frame| self.bit_of(frame)).peekable();
        while let Some(bit) = bits.next() {
            // Those in one word at once.
            let mut mask = bit.mask();
            while let Some(more) = bits.next_if(|more| core::ptr::eq(more.word, bit.word)) {
                mask |= more.mask();
            }
            bit.word.fetch_or(mask, Ordering::AcqRel);
        }
    }
}

/// Says whether a block waits in a cache.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bit<'m> {
    word: &'m AtomicU32,
    entry: usize,
}

impl Bit<'_> {
    const fn mask(self) -> u32 {
        1 << (self.entry & 31)
    }

    /// Asks for the cache line.
    #[inline(always)]
    pub(crate) fn prefetch(self) {
        prefetch(self.word);
    }

    /// Puts the block into a cache. False if it is in one already.
    #[inline(always)]
    pub(crate) fn put(self) -> bool {
        // Release: what the last user wrote happens before the next one's claim.
        self.word.fetch_or(self.mask(), Ordering::AcqRel) & self.mask() == 0
    }

    /// Takes the block out of whatever cache it is in. False if it is in none (any more).
    #[inline(always)]
    pub(crate) fn claim(self) -> bool {
        self.word.fetch_and(!self.mask(), Ordering::AcqRel) & self.mask() != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Frame, FrameCount};
    use alloc::vec;

    fn with_bits(start: u64, frames: u64, test: impl FnOnce(CachedBits<'_>)) {
        let span = FrameRange::new(Frame::new(start), FrameCount::new(frames));
        let mut memory = vec![0; usize::try_from(words(span)).unwrap()];
        test(CachedBits::new(&mut memory, span).unwrap());
    }

    #[test]
    fn every_frame_has_a_bit_of_its_own() {
        let many = if cfg!(miri) { 300 } else { 8193 };
        for (start, frames) in [(0, 1), (3, 255), (77_777, many)] {
            with_bits(start, frames, |bits| {
                for frame in start..start + frames {
                    assert!(bits.bit_of(frame).unwrap().put(), "{frame}");
                }
                for frame in start..start + frames {
                    assert!(bits.is_set(frame), "{frame}");
                    assert!(!bits.bit_of(frame).unwrap().put(), "{frame} again");
                    assert!(bits.bit_of(frame).unwrap().claim(), "{frame}");
                    assert!(!bits.bit_of(frame).unwrap().claim(), "{frame} again");
                }
                assert!(!bits.is_set(u64::MAX));
            });
        }
    }

    #[test]
    fn neighbouring_words_lie_in_different_cache_lines() {
        with_bits(0, 512 * 32, |bits| {
            // Counted from the start of the table.
            let line = |word: usize| {
                let bit = bits.bit(word * 32).unwrap();
                let start = core::ptr::from_ref(bits.words.first().unwrap()).addr();
                (core::ptr::from_ref(bit.word).addr() - start) / 64
            };
            for word in 1..512 {
                assert_ne!(line(word), line(word - 1), "{word}");
            }
        });
    }
}
