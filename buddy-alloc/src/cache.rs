//! One CPU's caches: a short stack of block numbers per cached order.
//!
//! Only the owning CPU pushes and pops; others read. Slots are hints, see `cached_bits`.

use crate::sync::{AtomicU32, Ordering::Relaxed};

/// The cached orders and how deep their stacks are: 512 KiB each, but for the eight of 2 MiB. Models
/// make do with less.
const CLASSES: [(u32, u32); 5] = if cfg!(loom) {
    [(0, 2), (1, 1), (2, 1), (3, 1), (9, 1)]
} else {
    [(0, 128), (1, 64), (2, 32), (3, 16), (9, 8)]
};

/// Where each stack starts among the slots, and behind the last one.
#[expect(clippy::indexing_slicing, reason = "at compile time")]
const STARTS: [u32; CLASSES.len() + 1] = {
    let mut starts = [0; CLASSES.len() + 1];
    let mut class = 0;
    while class < CLASSES.len() {
        starts[class + 1] = starts[class] + CLASSES[class].1;
        class += 1;
    }
    starts
};

#[expect(clippy::indexing_slicing, reason = "at compile time")]
const SLOTS: usize = STARTS[CLASSES.len()] as usize;

/// The stack of an order.
#[inline(always)]
pub(crate) const fn class_of(order: u32) -> Option<usize> {
    match order {
        0..=3 => Some(order as usize),
        9 => Some(4),
        _ => None,
    }
}

/// Order of a stack.
pub(crate) fn orders() -> impl Iterator<Item = u32> {
    CLASSES.iter().map(|&(order, _)| order)
}

/// The caches of one CPU, 1 KiB. Two lines apart from the next CPU's.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct CpuCache {
    lens: [AtomicU32; CLASSES.len()],
    /// One stack behind the other.
    slots: [AtomicU32; SLOTS],
}

impl CpuCache {
    pub(crate) fn new() -> Self {
        Self {
            lens: core::array::from_fn(|_| AtomicU32::new(0)),
            slots: core::array::from_fn(|_| AtomicU32::new(0)),
        }
    }

    /// Order of the blocks in a stack.
    pub(crate) fn order(class: usize) -> u32 {
        CLASSES.get(class).map_or(0, |&(order, _)| order)
    }

    /// Most blocks a stack holds.
    #[inline(always)]
    pub(crate) fn limit(class: usize) -> u32 {
        CLASSES.get(class).map_or(0, |&(_, limit)| limit)
    }

    #[inline]
    pub(crate) fn len(&self, class: usize) -> u32 {
        self.lens.get(class).map_or(0, |len| len.load(Relaxed))
    }

    /// The slot of an entry counted from the oldest; `None` beyond the limit of the stack.
    #[inline(always)]
    fn slot(&self, class: usize, index: u32) -> Option<&AtomicU32> {
        let start = STARTS.get(class).filter(|_| index < Self::limit(class))?;
        self.slots.get((start + index) as usize)
    }

    /// Entry `index` counted from the oldest.
    #[inline]
    pub(crate) fn get(&self, class: usize, index: u32) -> Option<usize> {
        Some(self.slot(class, index)?.load(Relaxed) as usize)
    }

    /// Takes the newest entry off. Owner only.
    #[inline(always)]
    pub(crate) fn pop(&self, class: usize) -> Option<usize> {
        let len = self.lens.get(class)?;
        let top = len.load(Relaxed).wrapping_sub(1);
        // Also how an empty stack is told.
        let slot = self.slot(class, top)?;
        len.store(top, Relaxed);
        Some(slot.load(Relaxed) as usize)
    }

    /// Adds an entry; false if the stack is full. Owner only.
    #[inline(always)]
    pub(crate) fn push(&self, class: usize, entry: usize) -> bool {
        let Some(len) = self.lens.get(class) else {
            return false;
        };
        let top = len.load(Relaxed);
        let Some(slot) = self.slot(class, top) else {
            return false;
        };
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a span has at most 2^29 frames"
        )]
        slot.store(entry as u32, Relaxed);
        len.store(top + 1, Relaxed);
        true
    }

    /// Forgets the oldest `count` entries. Owner only.
    pub(crate) fn drop_oldest(&self, class: usize, count: u32) {
        let Some(len) = self.lens.get(class) else {
            return;
        };
        let left = len.load(Relaxed).saturating_sub(count);
        for index in 0..left {
            if let (Some(to), Some(from)) =
                (self.slot(class, index), self.slot(class, index + count))
            {
                to.store(from.load(Relaxed), Relaxed);
            }
        }
        len.store(left, Relaxed);
    }
}
