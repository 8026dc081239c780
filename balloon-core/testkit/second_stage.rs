//! The host's end of memory: second-stage leaves and the heap behind them.

use alloc::collections::BTreeSet;

use crate::units::{Order, Pfn};

/// Which 2 MiB of a guest are mapped by one entry, and what it costs to lose
/// that.
///
/// All of the guest starts mapped in superpages; nothing puts one back together.
#[derive(Clone, Debug, Default)]
pub struct SecondStage {
    split: BTreeSet<u64>,
    /// Superpages of the guest that were split.
    pub guest_splits: u64,
    /// Superpages of the host's heap that were broken to supply 4 KiB.
    pub heap_splits: u64,
    /// Other guests take each 4 KiB the heap gets back at once.
    pub greedy_neighbours: bool,
    /// Free 4 KiB pages of the host's heap; its superpages never run out.
    pub heap_pages: u64,
}

impl SecondStage {
    /// Whether the superpage around a frame is gone.
    #[must_use]
    pub fn is_split(&self, pfn: Pfn) -> bool {
        self.split.contains(&block(pfn))
    }

    /// The guest gives a frame: its memory goes to the heap.
    pub(super) fn release(&mut self, pfn: Pfn) {
        self.punch(pfn);
        self.heap_pages += 1;
        if self.greedy_neighbours {
            self.heap_pages = 0;
        }
    }

    /// The guest gets memory for a frame from the heap.
    pub(super) fn populate(&mut self, pfn: Pfn) {
        debug_assert!(self.is_split(pfn), "a hole is in no superpage");
        if self.heap_pages == 0 {
            self.heap_splits += 1;
            self.heap_pages = Order::SUPERPAGE.frames().get();
        }
        self.heap_pages -= 1;
        if self.greedy_neighbours {
            self.heap_pages = 0;
        }
    }

    /// The memory of one frame goes to another; the heap has no part in it.
    pub(super) fn relocate(&mut self, from: Pfn, to: Pfn) {
        debug_assert!(self.is_split(to), "a hole is in no superpage");
        self.punch(from);
    }

    fn punch(&mut self, pfn: Pfn) {
        self.guest_splits += u64::from(self.split.insert(block(pfn)));
    }
}

fn block(pfn: Pfn) -> u64 {
    pfn.get() / Order::SUPERPAGE.frames().get()
}
