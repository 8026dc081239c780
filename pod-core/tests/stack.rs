//! Stack between a caller and the deepest callback of the host.
//!
//! `cargo test --release -p pod-core --test stack -- --nocapture` prints it for each operation.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test"
)]

use core::cell::Cell;

use pod_core::sim::Memory;
use pod_core::{
    Backing, Budget, Config, Content, Dirty, Entry, Frame, FrameCount, FreezeError, Gfn, Host,
    Leaf, Leave, Mfn, Node, Order, Pattern, Pod, SetError, Sizes, Toucher, Users, Vcpu,
};

const SUPER: u64 = 512;
const PAGES: u64 = 16 * SUPER;

/// Where the stack is. Not inlined, so as deep as a callback that does nothing.
#[inline(never)]
fn here() -> usize {
    let local = 0_u8;
    core::hint::black_box(&raw const local).addr()
}

/// A table of single frames that notes how deep its methods are called.
struct Flat {
    entries: Vec<Entry>,
    next: u64,
    zero: bool,
    moves: bool,
    deepest: Cell<usize>,
}

impl Flat {
    fn called(&self) {
        self.deepest.set(self.deepest.get().min(here()));
    }

    /// Runs an operation; the bytes between it and its deepest callback.
    fn depth(&mut self, what: &str, operation: impl FnOnce(&mut Self)) -> usize {
        self.deepest.set(usize::MAX);
        let top = here();
        operation(self);
        let bytes = top - self.deepest.get();
        println!("{what}: {bytes} bytes");
        bytes
    }
}

impl Host for Flat {
    fn lookup(&self, gfn: Gfn) -> Leaf {
        self.called();
        let entry = self.entries[usize::try_from(gfn.get()).unwrap()];
        let order = Order::FRAME;
        Leaf {
            start: gfn,
            order,
            entry,
        }
    }

    fn set(&mut self, gfn: Gfn, order: Order, entry: Entry) -> Result<(), SetError> {
        self.called();
        let start = usize::try_from(gfn.get()).unwrap();
        for (i, place) in (0..order.frames().get()).zip(&mut self.entries[start..]) {
            *place = entry.advanced(i);
        }
        Ok(())
    }

    fn freeze(&mut self, _: Gfn, _: Order) -> Result<(), FreezeError> {
        self.called();
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

    fn peek(&mut self, _: Mfn) -> Option<u64> {
        self.called();
        self.zero.then_some(0)
    }

    fn is_filled(&mut self, _: Mfn, _: u64) -> bool {
        self.called();
        self.zero
    }

    fn fill(&mut self, _: Mfn, _: Order, _: u64) {
        self.called();
    }

    fn alloc(&mut self, order: Order, _: Node) -> Option<Backing> {
        self.called();
        let mfn = self.next.next_multiple_of(order.frames().get());
        self.next = mfn + order.frames().get();
        Frame::<Dirty>::new(Mfn::new(mfn), order).map(Backing::Dirty)
    }

    fn free(&mut self, _: Backing) {
        self.called();
    }

    fn dying(&self) -> bool {
        self.called();
        false
    }

    fn moves_frames(&self) -> bool {
        self.moves
    }

    fn copy(&mut self, _: Gfn, to: Gfn, order: Order, entry: Entry) -> Result<(), SetError> {
        self.set(to, order, entry)
    }
}

#[test]
fn no_operation_needs_much_stack() {
    let mut config = Config::new(FrameCount::new(PAGES));
    config.slack = FrameCount::ZERO;
    let mut memory = Memory::new(&Sizes::for_guest(&config, config.limit, 1));
    let mut pod = Pod::new(config, memory.storage()).unwrap();
    let mut host = Flat {
        entries: vec![Entry::Hole; usize::try_from(PAGES).unwrap()],
        next: 0,
        zero: true,
        moves: true,
        deepest: Cell::new(0),
    };
    let b = || Budget::new(1 << 20);
    let by = Toucher::Vcpu(Vcpu::new(0));
    let mut most = 0;
    let mut run = |host: &mut Flat, what: &str, operation: &mut dyn FnMut(&mut Flat)| {
        most = most.max(host.depth(what, operation));
    };
    run(&mut host, "set_target", &mut |h| {
        let target = FrameCount::new(8 * SUPER);
        assert!(pod.set_target(h, target, &mut b()).is_ok());
    });
    run(&mut host, "mark", &mut |h| {
        let all = FrameCount::new(PAGES);
        let marked = pod.mark(h, Gfn::new(0), all, Pattern::ZERO, &mut b());
        assert!(marked.unwrap().complete);
    });
    run(&mut host, "demand that reclaims", &mut |h| {
        for gfn in (0..12 * SUPER).map(Gfn::new) {
            assert!(pod.demand(h, gfn, by, Order::FRAME, &mut b()).is_ok());
        }
    });
    run(&mut host, "reclaim_step", &mut |h| {
        for _ in 0..8 {
            assert!(pod.reclaim_step(h, &mut Budget::default()).is_ok());
        }
    });
    host.zero = false;
    run(&mut host, "demand", &mut |h| {
        for gfn in (0..6 * SUPER).map(Gfn::new) {
            assert!(pod.demand(h, gfn, by, Order::MAX, &mut b()).is_ok());
        }
    });
    run(&mut host, "release", &mut |h| {
        for from in [8 * SUPER, 100] {
            let count = FrameCount::new(700);
            let given = pod.release(h, Gfn::new(from), count, Leave::Hole, &mut b());
            assert!(given.is_ok());
        }
    });
    for (i, (moves, content)) in (0..).zip([
        (true, Content::Keep),
        (false, Content::Keep),
        (true, Content::Discard),
    ]) {
        host.moves = moves;
        let (from, to) = (Gfn::new(2 * SUPER + i), Gfn::new(130 + i));
        run(&mut host, "relocate", &mut |h| {
            let moved = pod.relocate(h, from, to, Order::FRAME, content, &mut b());
            assert_eq!(moved, Ok(()));
        });
    }
    run(&mut host, "coalesce_step", &mut |h| {
        assert!(pod.coalesce_step(h, &mut b()).is_ok());
    });
    // Without optimisation nothing shares a place on the stack.
    let bound = if cfg!(debug_assertions) { 16 } else { 3 } * 1024;
    assert!(most <= bound, "{most} bytes");
}
