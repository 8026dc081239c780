//! The simulated second-stage table: 4 KiB, superpage and giga leaves, a budget of table pages.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use crate::{Entry, Geometry, Gfn, Leaf, Order};

#[derive(Clone, Debug)]
enum Slot {
    /// Part of a giga leaf.
    Giga,
    Leaf(Entry),
    Small(Box<[Entry]>),
}

/// Work of the table so far: the cost model, [`TableWork::cost`], weighs these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct TableWork {
    /// Entries written.
    pub writes: u64,
    /// Leaves split into the next smaller size.
    pub splits: u64,
    /// Tables replaced by one leaf.
    pub joins: u64,
}

impl TableWork {
    /// One entry written: the unit.
    pub const WRITE: u64 = 1;
    /// A leaf split, beside the entries written: a table page is taken and cleared, 64 lines.
    pub const SPLIT: u64 = 64;
    /// A table replaced by a leaf, beside the entry: its page is unlinked and given back.
    pub const JOIN: u64 = 16;
    /// A flush: every CPU is interrupted and answers.
    pub const FLUSH: u64 = 1024;

    /// Cost of the work and of so many flushes, in writes of one entry.
    ///
    /// A model to compare rules and orders of steps with, not a measurement: the weights are
    /// assumptions. A host that knows its own weighs the counts itself.
    #[must_use]
    pub const fn cost(&self, flushes: u64) -> u64 {
        self.writes * Self::WRITE
            + self.splits * Self::SPLIT
            + self.joins * Self::JOIN
            + flushes * Self::FLUSH
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Table {
    gigas: Vec<Option<Entry>>,
    slots: Vec<Slot>,
    geometry: Geometry,
    /// Table pages that are left; `None` for as many as wanted.
    pub(crate) pages: Option<u32>,
    /// Table pages that must not be used before the next flush.
    pub(crate) quarantined: u32,
    pub(crate) work: TableWork,
}

impl Table {
    pub(crate) fn new(geometry: Geometry, max: u64) -> Self {
        let size = geometry.superpage().frames().get();
        let slots = max.div_ceil(size);
        let gigas = max.div_ceil(geometry.giga().frames().get());
        let mut table = Self {
            gigas: vec![Some(Entry::Hole); gigas as usize],
            slots: vec![Slot::Giga; slots as usize],
            geometry,
            pages: None,
            quarantined: 0,
            work: TableWork::default(),
        };
        if max & (geometry.giga().frames().get() - 1) != 0 {
            // The last giga page is not all on the map.
            if let Some(last) = table.gigas.last_mut() {
                *last = None;
            }
            let first = (gigas - 1) << (geometry.giga().get() - geometry.superpage().get());
            for slot in table.slots.iter_mut().skip(first as usize) {
                *slot = Slot::Leaf(Entry::Hole);
            }
        }
        table
    }

    fn fan(&self) -> u64 {
        1 << (self.geometry.giga().get() - self.geometry.superpage().get())
    }

    pub(crate) fn lookup(&self, gfn: Gfn) -> Leaf {
        let (s, g) = (self.geometry.superpage(), self.geometry.giga());
        if let Some(Some(entry)) = self.gigas.get((gfn.get() >> g.get()) as usize) {
            return Leaf {
                start: gfn.align_down(g),
                order: g,
                entry: *entry,
            };
        }
        match &self.slots[(gfn.get() >> s.get()) as usize] {
            Slot::Leaf(entry) => Leaf {
                start: gfn.align_down(s),
                order: s,
                entry: *entry,
            },
            Slot::Small(list) => {
                let page = gfn.get() & (s.frames().get() - 1);
                Leaf {
                    start: gfn,
                    order: Order::FRAME,
                    entry: list[page as usize],
                }
            }
            Slot::Giga => unreachable!("a giga slot without its leaf"),
        }
    }

    /// Takes one table page; `false` if there is none.
    fn take_page(&mut self) -> bool {
        match &mut self.pages {
            None => true,
            Some(0) => false,
            Some(n) => {
                *n -= 1;
                true
            }
        }
    }

    /// Makes sure that a leaf of this order can be written at `gfn`.
    pub(crate) fn split_to(&mut self, gfn: Gfn, order: Order) -> bool {
        let (s, g) = (self.geometry.superpage(), self.geometry.giga());
        let giga = (gfn.get() >> g.get()) as usize;
        let small = order < s;
        if order >= g {
            return true;
        }
        let needs_giga = self.gigas[giga].is_some();
        let slot = (gfn.get() >> s.get()) as usize;
        let needs_small = small && !matches!(self.slots[slot], Slot::Small(_));
        let needed = u32::from(needs_giga) + u32::from(needs_small);
        if self.pages.is_some_and(|left| left < needed) {
            return false;
        }
        if let Some(entry) = self.gigas[giga].filter(|_| needs_giga) {
            self.take_page();
            self.gigas[giga] = None;
            self.work.splits += 1;
            let fan = self.fan();
            for i in 0..fan {
                let index = (giga as u64 * fan + i) as usize;
                if let Some(slot) = self.slots.get_mut(index) {
                    *slot = Slot::Leaf(entry.advanced(i << s.get()));
                    self.work.writes += 1;
                }
            }
        }
        if needs_small {
            self.take_page();
            if let Slot::Leaf(entry) = self.slots[slot] {
                self.work.splits += 1;
                let size = s.frames().get();
                self.work.writes += size;
                let list = (0..size).map(|i| entry.advanced(i)).collect();
                self.slots[slot] = Slot::Small(list);
            }
        }
        true
    }

    fn drop_small(&mut self, slot: usize) {
        if matches!(self.slots.get(slot), Some(Slot::Small(_))) {
            self.work.joins += 1;
            self.quarantined += 1;
        }
    }

    /// Writes one leaf, or one piece of a smaller run; the caller has split before.
    pub(crate) fn write(&mut self, gfn: Gfn, order: Order, entry: Entry) {
        let (s, g) = (self.geometry.superpage(), self.geometry.giga());
        let slot = (gfn.get() >> s.get()) as usize;
        if order >= g {
            let giga = (gfn.get() >> g.get()) as usize;
            let fan = self.fan();
            if self.gigas[giga].is_none() {
                self.work.joins += 1;
                self.quarantined += 1;
            }
            for i in 0..fan {
                let index = (giga as u64 * fan + i) as usize;
                self.drop_small(index);
                if let Some(slot) = self.slots.get_mut(index) {
                    *slot = Slot::Giga;
                }
            }
            self.gigas[giga] = Some(entry);
            self.work.writes += 1;
        } else if order >= s {
            self.drop_small(slot);
            self.slots[slot] = Slot::Leaf(entry);
            self.work.writes += 1;
        } else if let Slot::Small(list) = &mut self.slots[slot] {
            let page = (gfn.get() & (s.frames().get() - 1)) as usize;
            for (i, e) in list
                .iter_mut()
                .skip(page)
                .take(1 << order.get())
                .enumerate()
            {
                *e = entry.advanced(i as u64);
                self.work.writes += 1;
            }
        }
    }

    /// After a flush the freed table pages can be used again.
    pub(crate) fn flushed(&mut self) {
        if let Some(pages) = &mut self.pages {
            *pages += self.quarantined;
        }
        self.quarantined = 0;
    }
}
