//! A guest of any size in which nothing can be reclaimed: the sweep's worst case.

use alloc::vec;
use alloc::vec::Vec;
use core::cell::Cell;

use super::table::Table;
use crate::{
    Backing, Budget, Config, Dirty, Entry, Frame, FrameCount, FreezeError, Gfn, Host, Leaf, Mfn,
    Node, Order, Pattern, Pod, SetError, Users,
};

const SUPER: u64 = 512;

/// All memory but the last superpage, a promise, lies in 2 MiB leaves, and every page is data.
#[derive(Debug)]
pub struct Full {
    table: Table,
    peeks: u64,
    lookups: Cell<u64>,
    pages: u64,
    /// Table writes, freezes, thaws, flushes and questions about users and writes.
    others: Cell<u64>,
    /// This page of each superpage looks zero, and is not.
    late: Option<u64>,
    tracks: bool,
    written: Vec<bool>,
    next: u64,
}

impl Full {
    /// The host of a fresh engine, which is told that its memory is there.
    pub fn adopted(pod: &mut Pod<'_>, tracks: bool) -> Self {
        let Config { max, geometry, .. } = *pod.config();
        let max = max.get();
        let mut host = Self {
            table: Table::new(geometry, max),
            peeks: 0,
            lookups: Cell::new(0),
            pages: 0,
            others: Cell::new(0),
            late: None,
            tracks,
            written: vec![true; (max / SUPER) as usize],
            next: max,
        };
        let (memory, last) = (max - SUPER, FrameCount::new(SUPER));
        let mut done = 0;
        while done < memory {
            let (gfn, left) = (Gfn::new(done), FrameCount::new(memory - done));
            let entry = Entry::ram(Mfn::new(done));
            let step = pod.fill(&mut host, gfn, left, entry, &mut Budget::default());
            done += step.unwrap_or_else(|e| panic!("{e}")).done.get();
        }
        let (last, count) = (Gfn::new(memory), last);
        let budget = &mut Budget::default();
        let marked = pod.mark(&mut host, last, count, Pattern::ZERO, budget);
        assert!(marked.is_ok_and(|m| m.complete));
        let target = pod.set_target(&mut host, FrameCount::ZERO, &mut Budget::default());
        assert!(target.is_ok());
        (host.peeks, host.pages) = (0, 0);
        host.lookups.set(0);
        host
    }

    /// First words looked at.
    #[must_use]
    pub const fn peeks(&self) -> u64 {
        self.peeks
    }

    /// Table lookups.
    #[must_use]
    pub const fn lookups(&self) -> u64 {
        self.lookups.get()
    }

    /// From now on this page of each superpage looks zero until it is read as a whole.
    pub const fn set_late(&mut self, page: u64) {
        self.late = Some(page);
    }

    /// All callbacks that read or change something.
    #[must_use]
    pub const fn callbacks(&self) -> u64 {
        self.work() + self.others.get()
    }

    fn called(&self) {
        self.others.set(self.others.get() + 1);
    }

    /// All work: lookups, and pages peeked at, scanned, filled or copied.
    #[must_use]
    pub const fn work(&self) -> u64 {
        self.lookups.get() + self.peeks + self.pages
    }
}

impl Host for Full {
    fn lookup(&self, gfn: Gfn) -> Leaf {
        self.lookups.set(self.lookups.get() + 1);
        self.table.lookup(gfn)
    }

    fn set(&mut self, gfn: Gfn, order: Order, entry: Entry) -> Result<(), SetError> {
        self.called();
        // No leaf of 1 GiB, which would make everything cheaper; and it does not say so.
        let piece = if order >= Order::SUPERPAGE {
            Order::SUPERPAGE
        } else {
            Order::FRAME
        };
        for done in (0..order.frames().get()).step_by(1 << piece.get()) {
            self.table.split_to(gfn.plus(done), piece);
            self.table
                .write(gfn.plus(done), piece, entry.advanced(done));
        }
        Ok(())
    }

    fn freeze(&mut self, gfn: Gfn, order: Order) -> Result<(), FreezeError> {
        self.called();
        self.table.split_to(gfn, order);
        Ok(())
    }

    fn thaw(&mut self, _: Gfn, _: Order) {
        self.called();
    }

    fn flush(&mut self) {
        self.called();
    }

    fn users(&mut self, _: Mfn, _: Order) -> Users {
        self.called();
        Users::None
    }

    fn peek(&mut self, mfn: Mfn) -> Option<u64> {
        self.peeks += 1;
        (self.late == Some(mfn.get() % SUPER)).then_some(0)
    }

    fn is_filled(&mut self, _: Mfn, _: u64) -> bool {
        self.pages += 1;
        false
    }

    fn fill(&mut self, _: Mfn, order: Order, _: u64) {
        self.pages += order.frames().get();
    }

    fn copy(&mut self, _: Gfn, to: Gfn, order: Order, entry: Entry) -> Result<(), SetError> {
        self.pages += order.frames().get();
        self.set(to, order, entry)
    }

    fn alloc(&mut self, order: Order, _: Node) -> Option<Backing> {
        let mfn = self.next.next_multiple_of(order.frames().get());
        self.next = mfn + order.frames().get();
        Frame::<Dirty>::new(Mfn::new(mfn), order).map(Backing::Dirty)
    }

    fn free(&mut self, _: Backing) {}

    fn dying(&self) -> bool {
        false
    }

    fn written(&mut self, gfn: Gfn) -> bool {
        self.called();
        let region = (gfn.get() / SUPER) as usize;
        core::mem::replace(&mut self.written[region], !self.tracks)
    }
}
