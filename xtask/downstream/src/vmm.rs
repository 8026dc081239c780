//! The other side: a monitor that boots a guest of 64 pages with 32 frames, populated on demand.

use pod_core::{
    Backing, Budget, Config, Demand, Dirty, Entry, Frame, FrameCount, FreezeError, Gfn, Host, Leaf,
    Mfn, Node, Order, Pattern, Pod, SetError, Storage, Target, Toucher, Users, Vcpu,
};

const PAGES: usize = 64;
const CONFIG: Config = {
    let mut config = Config::new(FrameCount::new(PAGES as u64));
    config.slack = FrameCount::ZERO;
    config
};
const SIZES: pod_core::Sizes = pod_core::Sizes::for_guest(&CONFIG, CONFIG.max, 1);

/// A table of single pages, and machine frames that are handed out in order.
struct Monitor {
    table: [Entry; PAGES],
    next: u64,
}

impl Monitor {
    fn slice(&mut self, gfn: Gfn, order: Order) -> Option<&mut [Entry]> {
        let start = usize::try_from(gfn.get()).ok()?;
        let count = usize::try_from(order.frames().get()).ok()?;
        self.table.get_mut(start..start.checked_add(count)?)
    }
}

impl Host for Monitor {
    fn lookup(&self, gfn: Gfn) -> Leaf {
        let at = usize::try_from(gfn.get()).unwrap_or(usize::MAX);
        Leaf {
            start: gfn,
            order: Order::FRAME,
            entry: self.table.get(at).copied().unwrap_or(Entry::Hole),
        }
    }

    fn set(&mut self, gfn: Gfn, order: Order, entry: Entry) -> Result<(), SetError> {
        let run = self.slice(gfn, order).ok_or(SetError::NOTHING)?;
        for (slot, page) in run.iter_mut().zip(0..) {
            *slot = entry.advanced(page);
        }
        Ok(())
    }

    fn freeze(&mut self, _: Gfn, _: Order) -> Result<(), FreezeError> {
        Err(FreezeError)
    }

    fn thaw(&mut self, _: Gfn, _: Order) {}

    fn flush(&mut self) {}

    fn users(&mut self, _: Mfn, _: Order) -> Users {
        Users::None
    }

    fn peek(&mut self, _: Mfn) -> Option<u64> {
        None
    }

    fn is_filled(&mut self, _: Mfn, _: u64) -> bool {
        false
    }

    fn fill(&mut self, _: Mfn, _: Order, _: u64) {}

    fn alloc(&mut self, order: Order, _: Node) -> Option<Backing> {
        let frame = Frame::<Dirty>::new(Mfn::new(self.next), order)?;
        self.next = self.next.checked_add(order.frames().get())?;
        Some(Backing::Dirty(frame))
    }

    fn free(&mut self, _: Backing) {}

    fn dying(&self) -> bool {
        false
    }

    fn max_order(&self, _: Gfn) -> Order {
        Order::FRAME
    }
}

/// Builds the guest and touches its first page; whether a frame came.
pub(crate) fn boot() -> Option<bool> {
    let mut monitor = Monitor {
        table: [Entry::Hole; PAGES],
        next: 0,
    };
    let storage = Storage {
        regions: &mut [pod_core::Region::EMPTY; SIZES.regions],
        blocks: &mut [pod_core::Block::EMPTY; SIZES.blocks],
        gigas: &mut [pod_core::Block::EMPTY; SIZES.gigas],
        loose: &mut [0; SIZES.loose],
        lanes: &mut [pod_core::Lane::EMPTY; SIZES.lanes],
    };
    let mut pod = Pod::new(CONFIG, storage).ok()?;
    let half = FrameCount::new(CONFIG.max.get() / 2);
    while pod
        .set_target(&mut monitor, half, &mut Budget::default())
        .ok()?
        == Target::More
    {}
    pod.mark(
        &mut monitor,
        Gfn::new(0),
        CONFIG.max,
        Pattern::ZERO,
        &mut Budget::default(),
    )
    .ok()?;
    pod.start();
    let vcpu = Toucher::Vcpu(Vcpu::new(0));
    let touched = pod.demand(
        &mut monitor,
        Gfn::new(0),
        vcpu,
        Order::FRAME,
        &mut Budget::default(),
    );
    Some(matches!(touched, Ok(Demand::Populated(_))))
}
