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

/// Deepest stack.
const SLOTS: usize = CLASSES[0].1 as usize;

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

#[derive(Debug)]
struct Stack {
    len: AtomicU32,
    slots: [AtomicU32; SLOTS],
}

/// The caches of one CPU. Two lines apart from the next CPU's.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct CpuCache {
    stacks: [Stack; CLASSES.len()],
}

impl CpuCache {
    pub(crate) fn new() -> Self {
        let stack = || Stack {
            len: AtomicU32::new(0),
            slots: core::array::from_fn(|_| AtomicU32::new(0)),
        };
        Self {
            stacks: core::array::from_fn(|_| stack()),
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
        self.stacks
            .get(class)
            .map_or(0, |stack| stack.len.load(Relaxed))
    }

    /// Entry `index` counted from the oldest.
    #[inline]
    pub(crate) fn get(&self, class: usize, index: u32) -> Option<usize> {
        let slot = self.stacks.get(class)?.slots.get(index as usize)?;
        Some(slot.load(Relaxed) as usize)
    }

    /// Takes the newest entry off. Owner only.
    #[inline(always)]
    pub(crate) fn pop(&self, class: usize) -> Option<usize> {
        let stack = self.stacks.get(class)?;
        let top = stack.len.load(Relaxed).wrapping_sub(1);
        // Also how an empty stack is told.
        let slot = stack.slots.get(top as usize)?;
        stack.len.store(top, Relaxed);
        Some(slot.load(Relaxed) as usize)
    }

    /// Adds an entry; false if the stack is full. Owner only.
    #[inline(always)]
    pub(crate) fn push(&self, class: usize, entry: usize) -> bool {
        let Some(stack) = self.stacks.get(class) else {
            return false;
        };
        let len = stack.len.load(Relaxed);
        if len >= Self::limit(class) {
            return false;
        }
        let Some(slot) = stack.slots.get(len as usize) else {
            return false;
        };
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a span has at most 2^29 frames"
        )]
        slot.store(entry as u32, Relaxed);
        stack.len.store(len + 1, Relaxed);
        true
    }

    /// Forgets the oldest `count` entries. Owner only.
    pub(crate) fn drop_oldest(&self, class: usize, count: u32) {
        let Some(stack) = self.stacks.get(class) else {
            return;
        };
        let left = stack.len.load(Relaxed).saturating_sub(count);
        for (to, from) in stack
            .slots
            .iter()
            .zip(stack.slots.iter().skip(count as usize))
        {
            to.store(from.load(Relaxed), Relaxed);
        }
        stack.len.store(left, Relaxed);
    }
}
