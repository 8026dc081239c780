//! One bit per frame: "a block that starts here waits in some CPU cache".
//!
//! The bit *is* the ownership. Who sets it (from clear) has put the block into a cache, who clears
//! it (from set) has taken it out, whatever the cache's slots say: they are only hints where to
//! look. So a remote CPU may drain a cache while its owner pops from it, and every block still
//! goes to exactly one of them; and the second free of a block fails on any CPU.

use crate::frame::FrameRange;
use crate::storage::atomic_halves;
use crate::sync::{AtomicU32, Ordering};

#[derive(Clone, Copy, Debug)]
pub(crate) struct CachedBits<'m> {
    words: &'m [AtomicU32],
    /// Number of the first word.
    base: u64,
}

/// Frames per word.
const SHIFT: u32 = 5;

/// 64-bit words the bits of a span need.
pub(crate) const fn words(span: FrameRange) -> u64 {
    let (start, end) = (span.start().get(), span.end().get());
    if span.is_empty() {
        0
    } else {
        (((end - 1) >> SHIFT) - (start >> SHIFT) + 1).div_ceil(2)
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
            base: span.start().get() >> SHIFT,
        })
    }

    #[inline]
    fn word(&self, frame: u64) -> Option<&AtomicU32> {
        self.words
            .get((frame >> SHIFT).wrapping_sub(self.base) as usize)
    }

    const fn mask(frame: u64) -> u32 {
        1 << (frame & 31)
    }

    /// Puts a block into a cache. False if it is in one already.
    #[inline]
    pub(crate) fn put(&self, frame: u64) -> bool {
        // Release: what the last user wrote happens before the next one's claim.
        self.word(frame).is_some_and(|word| {
            word.fetch_or(Self::mask(frame), Ordering::AcqRel) & Self::mask(frame) == 0
        })
    }

    /// Takes a block out of whatever cache it is in. False if it is in none (any more).
    #[inline]
    pub(crate) fn claim(&self, frame: u64) -> bool {
        self.word(frame).is_some_and(|word| {
            word.fetch_and(!Self::mask(frame), Ordering::AcqRel) & Self::mask(frame) != 0
        })
    }

    /// Whether a block waits in a cache.
    #[inline]
    pub(crate) fn is_set(&self, frame: u64) -> bool {
        self.word(frame)
            .is_some_and(|word| word.load(Ordering::Relaxed) & Self::mask(frame) != 0)
    }
}
