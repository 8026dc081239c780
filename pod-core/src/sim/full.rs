//! A guest of any size in which nothing can be reclaimed: the sweep's worst case.

use alloc::vec;
use alloc::vec::Vec;
use core::cell::Cell;

use crate::{
    Backing, Budget, Entry, FrameCount, FreezeError, Gfn, Host, Leaf, Mfn, Node, Order, Pattern,
    Pod, SetError, Users,
};

const SUPER: u64 = 512;

/// All memory but the last superpage, a promise, lies in 2 MiB leaves, and every page is data.
#[derive(Debug)]
pub struct Full {
    max: u64,
    building: bool,
    peeks: u64,
    lookups: Cell<u64>,
    tracks: bool,
    written: Vec<bool>,
}

impl Full {
    /// The host of a fresh engine, which is told that its memory is there.
    pub fn adopted(pod: &mut Pod<'_>, tracks: bool) -> Self {
        let max = pod.config().max.get();
        let written = vec![true; (max / SUPER) as usize];
        let mut host = Self {
            max,
            building: true,
            peeks: 0,
            lookups: Cell::new(0),
            tracks,
            written,
        };
        let mut done = 0;
        while done < max - SUPER {
            let left = FrameCount::new(max - SUPER - done);
            let entry = Entry::ram(Mfn::new(done));
            let step = pod.fill(
                &mut host,
                Gfn::new(done),
                left,
                entry,
                &mut Budget::default(),
            );
            done += step.unwrap_or_else(|e| panic!("{e}")).done.get();
        }
        let (last, count) = (Gfn::new(max - SUPER), FrameCount::new(SUPER));
        let marked = pod.mark(
            &mut host,
            last,
            count,
            Pattern::ZERO,
            &mut Budget::default(),
        );
        assert!(marked.is_ok_and(|m| m.complete));
        let target = pod.set_target(&mut host, FrameCount::ZERO, &mut Budget::default());
        assert!(target.is_ok());
        host.building = false;
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
}

impl Host for Full {
    fn lookup(&self, gfn: Gfn) -> Leaf {
        self.lookups.set(self.lookups.get() + 1);
        let start = gfn.align_down(Order::SUPERPAGE);
        let entry = if self.building {
            Entry::Hole
        } else if gfn.get() >= self.max - SUPER {
            Entry::Promise(Pattern::ZERO)
        } else {
            Entry::ram(Mfn::new(start.get()))
        };
        Leaf {
            start,
            order: Order::SUPERPAGE,
            entry,
        }
    }

    fn set(&mut self, _: Gfn, _: Order, _: Entry) -> Result<(), SetError> {
        Ok(())
    }

    fn freeze(&mut self, _: Gfn, _: Order) -> Result<(), FreezeError> {
        Ok(())
    }

    fn thaw(&mut self, _: Gfn, _: Order) {}

    fn flush(&mut self) {}

    fn users(&mut self, _: Mfn, _: Order) -> Users {
        Users::None
    }

    fn peek(&mut self, _: Mfn) -> Option<u64> {
        self.peeks += 1;
        None
    }

    fn is_filled(&mut self, _: Mfn, _: u64) -> bool {
        false
    }

    fn fill(&mut self, _: Mfn, _: Order, _: u64) {}

    fn alloc(&mut self, _: Order, _: Node) -> Option<Backing> {
        None
    }

    fn free(&mut self, _: Backing) {}

    fn dying(&self) -> bool {
        false
    }

    fn written(&mut self, gfn: Gfn) -> bool {
        let region = (gfn.get() / SUPER) as usize;
        core::mem::replace(&mut self.written[region], !self.tracks)
    }
}
