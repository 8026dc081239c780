//! Caller memory seen as words that may be read without the lock.
//!
//! The node table is written by the one owner of the zone (`&mut`) and read by CPU caches at the
//! same time. Plain memory would make that a data race, so the words are accessed as relaxed
//! atomics, which compile to ordinary loads and stores. Targets with 32-bit words use two
//! 32-bit halves; everything a lock-free reader needs sits in the upper one.

#[cfg(target_pointer_width = "64")]
type Word = core::sync::atomic::AtomicU64;
#[cfg(not(target_pointer_width = "64"))]
type Word = [core::sync::atomic::AtomicU32; 2];

use core::sync::atomic::Ordering::Relaxed;

/// Borrowed words; copies share them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cells<'m> {
    words: &'m [Word],
    /// Touched by every store and every read without the lock, so that models try each order.
    #[cfg(loom)]
    order: &'m crate::sync::AtomicU32,
}

impl<'m> Cells<'m> {
    pub(crate) fn new(memory: &'m mut [u64]) -> Self {
        const {
            assert!(size_of::<Word>() == size_of::<u64>());
            assert!(align_of::<Word>() <= align_of::<u64>());
        }
        let len = memory.len();
        let start: *const Word = memory.as_mut_ptr().cast();
        // SAFETY: `memory` is exclusively borrowed for 'm and given up here. `Word` has the size
        // of u64, at most its alignment (both asserted above), and every bit pattern is valid.
        let words = unsafe { core::slice::from_raw_parts(start, len) };
        Self {
            words,
            #[cfg(loom)]
            order: std::boxed::Box::leak(std::boxed::Box::new(crate::sync::AtomicU32::new(0))),
        }
    }

    /// Asks for the cache line of a word.
    #[inline(always)]
    pub(crate) fn prefetch(&self, index: usize) {
        if let Some(word) = self.words.get(index) {
            prefetch(word);
        }
    }

    /// A word; zero beyond the end.
    #[cfg(target_pointer_width = "64")]
    #[inline]
    pub(crate) fn load(&self, index: usize) -> u64 {
        #[cfg(test)]
        accesses::count();
        match self.words.get(index) {
            Some(word) => word.load(Relaxed),
            None => 0,
        }
    }

    /// Stores a word; beyond the end it is dropped.
    #[cfg(target_pointer_width = "64")]
    #[inline]
    pub(crate) fn store(&self, index: usize, value: u64) {
        #[cfg(loom)]
        self.order.fetch_add(1, Relaxed);
        #[cfg(test)]
        accesses::count();
        if let Some(word) = self.words.get(index) {
            word.store(value, Relaxed);
        }
    }

    /// The upper 32 bits of a word, for readers without the lock; nothing beyond the end.
    #[inline(always)]
    pub(crate) fn upper(&self, index: usize) -> Option<Upper<'m>> {
        Some(Upper {
            word: self.words.get(index)?,
            #[cfg(loom)]
            order: self.order,
        })
    }

    /// A word; zero beyond the end.
    #[cfg(not(target_pointer_width = "64"))]
    #[inline]
    pub(crate) fn load(&self, index: usize) -> u64 {
        self.words.get(index).map_or(0, |[low, high]| {
            u64::from(low.load(Relaxed)) | (u64::from(high.load(Relaxed)) << 32)
        })
    }

    /// Stores a word; beyond the end it is dropped.
    #[cfg(not(target_pointer_width = "64"))]
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "stored as two halves")]
    pub(crate) fn store(&self, index: usize, value: u64) {
        if let Some([low, high]) = self.words.get(index) {
            low.store(value as u32, Relaxed);
            high.store((value >> 32) as u32, Relaxed);
        }
    }
}

/// The upper half of a word that its owner writes to at any time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Upper<'m> {
    word: &'m Word,
    #[cfg(loom)]
    order: &'m crate::sync::AtomicU32,
}

impl Upper<'_> {
    /// The whole word, of which only the upper 32 bits are meaningful.
    #[inline(always)]
    pub(crate) fn load(self) -> u64 {
        #[cfg(loom)]
        self.order.fetch_add(1, Relaxed);
        #[cfg(target_pointer_width = "64")]
        return self.word.load(Relaxed);
        #[cfg(not(target_pointer_width = "64"))]
        return u64::from(self.word[1].load(Relaxed)) << 32;
    }
}

/// Asks for a cache line, where the processor can be asked.
#[inline(always)]
pub(crate) fn prefetch<T>(place: &T) {
    let place: *const T = place;
    // SAFETY: the instruction changes no register and no memory and faults at no address. (The
    // intrinsic would need SSE, which kernels compile without.)
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    unsafe {
        core::arch::asm!("prefetcht0 [{}]", in(reg) place, options(nostack, preserves_flags, readonly));
    }
    // SAFETY: as above.
    #[cfg(all(target_arch = "aarch64", not(miri)))]
    unsafe {
        core::arch::asm!("prfm pldl1keep, [{}]", in(reg) place, options(nostack, preserves_flags, readonly));
    }
    let _ = place;
}

/// Caller memory as 32-bit atomics, two per word.
#[cfg(not(loom))]
pub(crate) const fn atomic_halves(memory: &mut [u64]) -> &[crate::sync::AtomicU32] {
    let len = memory.len() * 2;
    let start: *const crate::sync::AtomicU32 = memory.as_mut_ptr().cast();
    // SAFETY: exclusively borrowed for as long as the result lives; two 4-byte atomics fill one
    // 8-byte word, need no more alignment than it, and every bit pattern is valid.
    unsafe { core::slice::from_raw_parts(start, len) }
}

/// As above for models: loom's atomics do not fit into the words, so they live elsewhere.
#[cfg(loom)]
pub(crate) fn atomic_halves(memory: &mut [u64]) -> &[crate::sync::AtomicU32] {
    let halves: std::vec::Vec<_> = (0..memory.len() * 2)
        .map(|_| crate::sync::AtomicU32::new(0))
        .collect();
    halves.leak()
}

/// How often unit tests on this thread accessed a word of a node table.
#[cfg(test)]
pub(crate) mod accesses {
    use core::cell::Cell;

    std::thread_local! {
        static COUNT: Cell<u64> = const { Cell::new(0) };
    }

    pub(super) fn count() {
        COUNT.set(COUNT.get() + 1);
    }

    pub(crate) fn during<R>(f: impl FnOnce() -> R) -> (R, u64) {
        let before = COUNT.get();
        let result = f();
        (result, COUNT.get() - before)
    }
}
