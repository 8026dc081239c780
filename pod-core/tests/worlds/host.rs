//! A host and an oracle of their own: nothing here is shared with the simulator.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use pod_core::{
    Backing, Config, Dirty, Entry, Frame, FrameCount, FreezeError, Gfn, Host, Leaf, Mfn, Node,
    Order, Policy, SetError, Stats, Users, Zeroed,
};

/// Callbacks of one call after which it is taken for endless.
const ENDLESS: u64 = 2_000_000;
/// Contents from here on are data; of those, every third looks zero in its first line.
const DATA: u64 = 1_000_000;

pub(crate) struct Rng(Cell<u64>);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        let rng = Self(Cell::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1));
        (0..5).for_each(|_| {
            rng.below(2);
        });
        rng
    }

    pub(crate) fn below(&self, bound: u64) -> u64 {
        let mut x = self.0.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.0.set(x);
        (x >> 11) % bound.max(1)
    }

    pub(crate) fn percent(&self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

/// What differs from one host to the next.
pub(crate) struct Kind {
    /// The table takes leaves of any order.
    pub(crate) any_leaf: bool,
    /// Freezing stops reads, too.
    pub(crate) unmaps: bool,
    pub(crate) copies: bool,
    pub(crate) tracks: bool,
    /// Adverse answers, in thousandths.
    pub(crate) fails: u64,
    pub(crate) own_order_fails: bool,
    pub(crate) lend: u64,
    pub(crate) nodes: u64,
    pub(crate) max_order: u8,
}

/// What the driver is doing, as far as the checks have to know.
#[derive(Default)]
pub(crate) struct Doing {
    /// Pages that are filled in from outside have whatever content they have.
    pub(crate) filling: bool,
    /// Content is dropped on purpose.
    pub(crate) drops: bool,
    /// The destination of a relocation: the guest does not use it before that is over.
    pub(crate) destination: std::ops::Range<u64>,
}

pub(crate) struct World {
    pub(crate) rng: Rng,
    pub(crate) kind: Kind,
    pub(crate) cfg: Config,
    pub(crate) max: u64,
    pub(crate) entries: Vec<Entry>,
    /// By machine frame: one word stands for all of the page.
    pub(crate) content: RefCell<BTreeMap<u64, u64>>,
    /// By guest frame: what the guest reads.
    pub(crate) truth: RefCell<Vec<Option<u64>>>,
    pub(crate) owned: BTreeSet<u64>,
    pub(crate) mapped: BTreeMap<u64, u64>,
    pub(crate) frozen: Vec<bool>,
    /// Translations older than the table.
    stale: RefCell<BTreeMap<u64, u64>>,
    dirty: RefCell<BTreeSet<u64>>,
    pub(crate) pins: BTreeSet<u64>,
    pub(crate) pool: BTreeSet<u64>,
    pub(crate) doing: Doing,
    calls: Cell<u64>,
    stamp: Cell<u64>,
    /// Lookups, peeks, scans and fills.
    pub(crate) work: Cell<u64>,
}

fn run(mfn: Mfn, order: Order) -> std::ops::Range<u64> {
    mfn.get()..mfn.get() + order.frames().get()
}

impl World {
    pub(crate) fn new(rng: Rng, kind: Kind, cfg: Config, pool: BTreeSet<u64>) -> Self {
        let max = cfg.max.get();
        Self {
            rng,
            kind,
            cfg,
            max,
            entries: vec![Entry::Hole; max as usize],
            content: RefCell::default(),
            truth: RefCell::new(vec![None; max as usize]),
            owned: BTreeSet::new(),
            mapped: BTreeMap::new(),
            frozen: vec![false; max as usize],
            stale: RefCell::default(),
            dirty: RefCell::default(),
            pins: BTreeSet::new(),
            pool,
            doing: Doing::default(),
            calls: Cell::new(0),
            stamp: Cell::new(0),
            work: Cell::new(0),
        }
    }

    /// Before each operation.
    pub(crate) fn begin(&self) {
        self.calls.set(0);
        self.work.set(0);
    }

    /// What the guest would read.
    pub(crate) fn seen(&self, gfn: u64) -> Option<u64> {
        match self.entries[gfn as usize] {
            Entry::Ram { mfn, .. } => Some(self.content.borrow()[&mfn.get()]),
            Entry::Promise(p) => Some(self.cfg.patterns[usize::from(p.get())]),
            Entry::Hole | Entry::Special => None,
        }
    }

    fn uniform(&self, gfn: u64, order: u8) -> bool {
        let (start, count) = (gfn >> order << order, 1 << order);
        let Some(run) = self.entries.get(start as usize..(start + count) as usize) else {
            return false;
        };
        let aligned = !matches!(run[0], Entry::Ram { mfn, .. } if mfn.get() % count != 0);
        aligned && (0..).zip(run).all(|(i, e)| *e == run[0].advanced(i))
    }

    fn order_at(&self, gfn: u64) -> u8 {
        let geometry = self.cfg.geometry;
        let (superpage, giga) = (geometry.superpage().get(), geometry.giga().get());
        if self.kind.any_leaf {
            (0..giga)
                .find(|k| !self.uniform(gfn, k + 1))
                .unwrap_or(giga)
        } else {
            let orders = [giga, superpage].into_iter();
            orders
                .into_iter()
                .find(|k| self.uniform(gfn, *k))
                .unwrap_or(0)
        }
    }

    /// A virtual CPU writes some page, at any moment, through what translation it has.
    fn vcpu(&self) {
        if self.rng.percent(60) {
            return;
        }
        let gfn = self.rng.below(self.max);
        let word = if self.rng.percent(40) {
            0
        } else {
            self.stamp.set(self.stamp.get() + 1);
            DATA + self.stamp.get()
        };
        if self.doing.destination.contains(&gfn) {
            return;
        }
        let entry = self.entries[gfn as usize];
        let mapped = match entry {
            Entry::Ram { mfn, .. } => Some(mfn.get()),
            _ => None,
        };
        let stale = self.stale.borrow().get(&gfn).copied();
        let through = match stale {
            Some(_) if self.rng.percent(50) => return,
            Some(mfn) => mfn,
            None if self.frozen[gfn as usize] => return,
            None => match mapped {
                Some(mfn) => mfn,
                None => return,
            },
        };
        self.content.borrow_mut().insert(through, word);
        let superpage = self.cfg.geometry.superpage().get();
        self.dirty.borrow_mut().insert(gfn >> superpage);
        if mapped == Some(through) {
            self.truth.borrow_mut()[gfn as usize] = Some(word);
        } else if let Entry::Promise(_) = entry {
            let lost = "became a promise while a writer reached its frame";
            assert!(self.doing.drops, "{gfn:#x} {lost} {through:#x}");
        }
    }

    fn called(&self) {
        self.calls.set(self.calls.get() + 1);
        assert!(self.calls.get() < ENDLESS, "endless");
    }

    fn fails(&self) -> bool {
        self.called();
        self.vcpu();
        self.rng.below(1000) < self.kind.fails
    }

    fn assert_unreachable(&self, frames: std::ops::Range<u64>, what: &str) {
        let mapped = self.mapped.range(frames.clone()).next();
        assert!(mapped.is_none(), "{what}: mapped: {mapped:x?}");
        for (gfn, mfn) in self.stale.borrow().iter() {
            let stale = frames.contains(mfn);
            assert!(!stale, "{what}: {gfn:#x} still reaches {mfn:#x}");
        }
    }

    fn put(&mut self, gfn: u64, now: Entry) {
        let was = self.entries[gfn as usize];
        if let Entry::Ram { mfn, .. } = was {
            self.mapped.remove(&mfn.get());
            let stays = matches!(now, Entry::Ram { mfn: m, .. } if m == mfn);
            if !stays && !self.frozen[gfn as usize] {
                self.stale.borrow_mut().insert(gfn, mfn.get());
            }
        }
        if let Entry::Ram { mfn, .. } = now {
            let mfn = mfn.get();
            assert!(self.owned.contains(&mfn), "{mfn:#x} is not the guest's");
            let home = self.mapped.insert(mfn, gfn);
            assert_eq!(home, None, "{mfn:#x} is mapped twice");
            let stale = self.stale.borrow();
            let reached = stale.iter().any(|(g, m)| *m == mfn && *g != gfn);
            assert!(
                !reached,
                "{mfn:#x} is populated while a translation reaches it"
            );
            let content = self.content.borrow()[&mfn];
            if let (Entry::Promise(p), false) = (was, self.doing.filling) {
                let promised = self.cfg.patterns[usize::from(p.get())];
                assert_eq!(content, promised, "{gfn:#x} was promised other content");
            }
            if !matches!(was, Entry::Ram { .. }) {
                self.truth.borrow_mut()[gfn as usize] = Some(content);
            }
        }
        self.entries[gfn as usize] = now;
        self.frozen[gfn as usize] = false;
    }

    fn give(&mut self, frames: std::ops::Range<u64>, order: Order) -> Option<Backing> {
        let zeroed = self.rng.percent(50);
        let first = Mfn::new(frames.start);
        for mfn in frames {
            self.pool.remove(&mfn);
            self.owned.insert(mfn);
            let word = if zeroed { 0 } else { 77 * DATA + mfn };
            self.content.borrow_mut().insert(mfn, word);
        }
        if zeroed {
            Frame::<Zeroed>::new(first, order).map(Backing::Zeroed)
        } else {
            Frame::<Dirty>::new(first, order).map(Backing::Dirty)
        }
    }
}

impl Host for World {
    fn lookup(&self, gfn: Gfn) -> Leaf {
        self.called();
        self.work.set(self.work.get() + 1);
        let order = Order::new(self.order_at(gfn.get())).unwrap();
        let start = gfn.align_down(order);
        let entry = self.entries[start.get() as usize];
        Leaf {
            start,
            order,
            entry,
        }
    }

    fn set(&mut self, gfn: Gfn, order: Order, entry: Entry) -> Result<(), SetError> {
        let count = order.frames().get();
        assert!(gfn.is_aligned(order) && gfn.get() + count <= self.max);
        let own = !self.kind.own_order_fails && self.order_at(gfn.get()) == order.get();
        let fails = self.fails() && !own;
        let stop = if fails { self.rng.below(count) } else { count };
        for i in 0..stop {
            self.put(gfn.get() + i, entry.advanced(i));
            if self.rng.percent(10) {
                self.vcpu();
            }
        }
        let applied = FrameCount::new(stop);
        if stop < count {
            Err(SetError { applied })
        } else {
            Ok(())
        }
    }

    fn freeze(&mut self, gfn: Gfn, order: Order) -> Result<(), FreezeError> {
        let own = self.order_at(gfn.get()) == order.get();
        if self.fails() && !own {
            return Err(FreezeError);
        }
        for at in gfn.get()..gfn.get() + order.frames().get() {
            let before = core::mem::replace(&mut self.frozen[at as usize], true);
            assert!(!before, "{at:#x} frozen twice");
            if let Entry::Ram { mfn, .. } = self.entries[at as usize] {
                self.stale.borrow_mut().insert(at, mfn.get());
            }
        }
        self.vcpu();
        Ok(())
    }

    fn thaw(&mut self, gfn: Gfn, order: Order) {
        for at in gfn.get()..gfn.get() + order.frames().get() {
            let before = core::mem::replace(&mut self.frozen[at as usize], false);
            assert!(before, "{at:#x} thawed, not frozen");
        }
        self.vcpu();
    }

    fn flush(&mut self) {
        self.vcpu();
        self.vcpu();
        self.stale.borrow_mut().clear();
        self.vcpu();
    }

    fn users(&mut self, mfn: Mfn, order: Order) -> Users {
        if self.fails() || run(mfn, order).any(|m| self.pins.contains(&m)) {
            Users::Dma
        } else {
            Users::None
        }
    }

    fn peek(&mut self, mfn: Mfn) -> Option<u64> {
        self.work.set(self.work.get() + 1);
        self.vcpu();
        match self.content.borrow()[&mfn.get()] {
            data if data >= DATA => data.is_multiple_of(3).then_some(0),
            word => Some(word),
        }
    }

    fn is_filled(&mut self, mfn: Mfn, word: u64) -> bool {
        self.work.set(self.work.get() + 1);
        self.vcpu();
        self.content.borrow()[&mfn.get()] == word
    }

    fn fill(&mut self, mfn: Mfn, order: Order, word: u64) {
        self.work.set(self.work.get() + order.frames().get());
        self.assert_unreachable(run(mfn, order), "fill");
        for at in run(mfn, order) {
            assert!(self.owned.contains(&at));
            self.content.borrow_mut().insert(at, word);
        }
    }

    fn alloc(&mut self, order: Order, node: Node) -> Option<Backing> {
        if self.fails() {
            return None;
        }
        let skipped = self.rng.below(4) * u64::from(node.get()) % 7;
        let starts = self.pool.iter().copied().skip(skipped as usize);
        let frames = |start: u64| run(Mfn::new(start), order);
        let free = |start: &u64| {
            let aligned = Mfn::new(*start).is_aligned(order);
            aligned && frames(*start).all(|m| self.pool.contains(&m))
        };
        let start = { starts }.find(free)?;
        self.give(frames(start), order)
    }

    fn alloc_at(&mut self, mfn: Mfn, order: Order) -> Option<Backing> {
        let free = run(mfn, order).all(|m| self.pool.contains(&m));
        (!self.fails() && free).then(|| self.give(run(mfn, order), order))?
    }

    fn free(&mut self, frame: Backing) {
        let frames = run(frame.mfn(), frame.order());
        self.assert_unreachable(frames.clone(), "free");
        for mfn in frames {
            assert!(self.owned.remove(&mfn), "{mfn:#x} freed twice");
            assert!(!self.pins.contains(&mfn), "{mfn:#x} is pinned");
            let zero = self.content.borrow()[&mfn] == 0;
            assert!(zero || matches!(frame, Backing::Dirty(_)));
            self.pool.insert(mfn);
        }
    }

    fn dying(&self) -> bool {
        false
    }

    fn should_yield(&self) -> bool {
        self.fails()
    }

    fn freeze_stops_reads(&self) -> bool {
        self.kind.unmaps
    }

    fn written(&mut self, gfn: Gfn) -> bool {
        let region = gfn.get() >> self.cfg.geometry.superpage().get();
        let written = self.dirty.borrow_mut().remove(&region);
        !self.kind.tracks || written
    }

    fn max_order(&self, _: Gfn) -> Order {
        Order::new(self.kind.max_order).unwrap()
    }

    fn home(&self, gfn: Gfn) -> Node {
        Node::new((gfn.get() % self.kind.nodes) as u8)
    }

    fn node_of(&self, mfn: Mfn) -> Node {
        Node::new((mfn.get() / 8 % self.kind.nodes) as u8)
    }

    fn retire(&mut self, mfn: Mfn) {
        self.assert_unreachable(mfn.get()..mfn.get() + 1, "retire");
        assert!(self.owned.remove(&mfn.get()));
    }

    fn moves_frames(&self) -> bool {
        !self.kind.copies
    }

    fn copy(&mut self, from: Gfn, to: Gfn, order: Order, entry: Entry) -> Result<(), SetError> {
        let Entry::Ram { mfn, .. } = entry else {
            panic!("a copy to {entry:?}");
        };
        if self.fails() {
            return Err(SetError::NOTHING);
        }
        self.assert_unreachable(run(mfn, order), "copy");
        for i in 0..order.frames().get() {
            let at = (from.get() + i) as usize;
            assert!(self.frozen[at], "{at:#x} is copied while in use");
            let word = self.seen(from.get() + i).unwrap();
            self.content.borrow_mut().insert(mfn.get() + i, word);
        }
        self.set(to, order, entry)
    }

    fn pin(&mut self, mfn: Mfn, order: Order) {
        self.pins.extend(run(mfn, order));
    }

    fn exhausted(&mut self, _: Gfn, _: &Stats) -> Policy {
        match self.kind.lend {
            0 => Policy::Pause,
            frames => Policy::Lend(FrameCount::new(frames)),
        }
    }
}
