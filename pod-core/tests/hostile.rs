//! Hosts that answer anything, and callers that ask for anything: no panic, no endless call.
//!
//! Nothing sensible can come of it. But a table that another party filled, an allocator with a
//! fault, or a wrong argument must not take the hypervisor down with the guest.

use core::cell::Cell;

use pod_core::sim::Memory;
use pod_core::{
    Attr, Backing, Budget, Config, Content, Dirty, Entry, Event, Frame, FrameCount, FreezeError,
    Geometry, Gfn, Host, Leaf, Leave, Mfn, Node, Order, Pattern, Pod, Policy, SetError, Sizes,
    Stats, Toucher, Users, Vcpu,
};

/// Callbacks one operation may make at the budgets below; the longest legal one stays under it.
const PATIENCE: u32 = 100_000;

/// A host whose every answer is drawn by lot.
struct Liar {
    seed: Cell<u64>,
    calls: Cell<u32>,
    /// Out of 256: how often it tells what a simple honest host would.
    honest: u64,
    max: u64,
    /// Says the same of a guest frame each time.
    steady: bool,
}

impl Liar {
    fn draw(&self, below: u64) -> u64 {
        self.calls.set(self.calls.get() + 1);
        assert!(self.calls.get() < PATIENCE, "an operation does not end");
        let x = self.seed.get();
        let x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        self.seed.set(x);
        (x >> 33) % below
    }

    fn lies(&self) -> bool {
        self.draw(256) >= self.honest
    }

    fn number(&self) -> u64 {
        match self.draw(8) {
            0 => u64::MAX - self.draw(16),
            1 => (u64::from(u32::MAX) << 2) + self.draw(8),
            _ => self.draw(2 * self.max),
        }
    }

    fn order(&self) -> Order {
        let any = u8::try_from(self.draw(19)).unwrap_or(0);
        let order = if self.draw(8) == 0 { any } else { any % 5 };
        Order::new(order).unwrap_or(Order::FRAME)
    }

    fn entry(&self) -> Entry {
        match self.draw(6) {
            0 => Entry::Hole,
            1 => Entry::Special,
            2 => Entry::Promise(Pattern::new(1).unwrap_or_default()),
            3 => Entry::Promise(Pattern::ZERO),
            _ => Entry::Ram {
                mfn: Mfn::new(self.number()),
                attr: Attr::new(u8::try_from(self.draw(2)).unwrap_or(0)),
            },
        }
    }

    fn backing(&self, mfn: u64, order: Order) -> Option<Backing> {
        Frame::<Dirty>::new(Mfn::new(mfn).align_down(order), order).map(Backing::Dirty)
    }
}

impl Host for Liar {
    fn lookup(&self, gfn: Gfn) -> Leaf {
        let seed = self.seed.get();
        if self.steady {
            self.seed
                .set((gfn.get() + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        }
        let order = self.order();
        let start = if self.lies() {
            Gfn::new(self.number())
        } else {
            gfn.align_down(order)
        };
        let entry = self.entry();
        if self.steady {
            self.seed.set(seed);
        }
        Leaf {
            start,
            order,
            entry,
        }
    }

    fn set(&mut self, _: Gfn, _: Order, _: Entry) -> Result<(), SetError> {
        if self.lies() {
            return Err(SetError {
                applied: FrameCount::new(self.number()),
            });
        }
        Ok(())
    }

    fn freeze(&mut self, _: Gfn, _: Order) -> Result<(), FreezeError> {
        if self.lies() {
            Err(FreezeError)
        } else {
            Ok(())
        }
    }

    fn thaw(&mut self, _: Gfn, _: Order) {}

    fn flush(&mut self) {}

    fn users(&mut self, _: Mfn, _: Order) -> Users {
        if self.lies() { Users::Dma } else { Users::None }
    }

    fn peek(&mut self, _: Mfn) -> Option<u64> {
        self.lies().then_some(0)
    }

    fn is_filled(&mut self, _: Mfn, _: u64) -> bool {
        self.lies()
    }

    fn fill(&mut self, _: Mfn, _: Order, _: u64) {}

    fn alloc(&mut self, order: Order, _: Node) -> Option<Backing> {
        let order = if self.lies() { self.order() } else { order };
        if self.draw(4) == 0 {
            return None;
        }
        self.backing(self.number(), order)
    }

    fn alloc_at(&mut self, mfn: Mfn, order: Order) -> Option<Backing> {
        let mfn = if self.lies() {
            self.number()
        } else {
            mfn.get()
        };
        let order = if self.lies() { self.order() } else { order };
        self.backing(mfn, order)
    }

    fn free(&mut self, _: Backing) {}

    fn dying(&self) -> bool {
        self.draw(50_000) == 0
    }

    fn should_yield(&self) -> bool {
        self.lies()
    }

    fn freeze_stops_reads(&self) -> bool {
        self.lies()
    }

    fn written(&mut self, _: Gfn) -> bool {
        self.lies()
    }

    fn max_order(&self, _: Gfn) -> Order {
        self.order()
    }

    fn home(&self, _: Gfn) -> Node {
        Node::new(u8::try_from(self.draw(256)).unwrap_or(0))
    }

    fn node_of(&self, _: Mfn) -> Node {
        Node::new(u8::try_from(self.draw(256)).unwrap_or(0))
    }

    fn moves_frames(&self) -> bool {
        self.lies()
    }

    fn copy(&mut self, _: Gfn, to: Gfn, order: Order, entry: Entry) -> Result<(), SetError> {
        self.set(to, order, entry)
    }

    fn event(&mut self, _: Event) {}

    fn exhausted(&mut self, _: Gfn, _: &Stats) -> Policy {
        Policy::Lend(FrameCount::new(self.number()))
    }
}

/// Storage of these sizes, except that a slice may be shorter than it should be.
fn engine(host: &Liar, run: impl FnOnce(&mut Pod<'_>)) {
    let mut config = Config::new(FrameCount::new(host.max));
    if let (Some(s), Some(g)) = (Order::new(2), Order::new(4)) {
        config.geometry = Geometry::new(s, g).unwrap_or(Geometry::COMMON);
    }
    config.patterns[1] = 0x5555;
    config.patterns_used = 2;
    let mut sizes = Sizes::for_guest(&config, config.limit, 1);
    if host.draw(2) == 0 {
        sizes.blocks = usize::try_from(host.draw(4)).unwrap_or(0);
        sizes.gigas = usize::try_from(host.draw(2)).unwrap_or(0);
        sizes.loose = usize::try_from(host.draw(8)).unwrap_or(0);
    }
    let mut memory = Memory::new(&sizes);
    let Ok(mut pod) = Pod::new(config, memory.storage()) else {
        panic!("a legal configuration was refused");
    };
    run(&mut pod);
}

fn operate(pod: &mut Pod<'_>, host: &mut Liar) {
    let (gfn, other) = (Gfn::new(host.number()), Gfn::new(host.number()));
    let (count, order) = (FrameCount::new(host.number()), host.order());
    let entry = host.entry();
    let pattern = Pattern::new(u8::try_from(host.draw(4)).unwrap_or(0)).unwrap_or_default();
    let leave = if host.draw(2) == 0 {
        Leave::Hole
    } else {
        Leave::Promise(pattern)
    };
    let by = if host.draw(2) == 0 {
        Toucher::Host
    } else {
        Toucher::Vcpu(Vcpu::new(u16::MAX))
    };
    let mut budget = match host.draw(4) {
        0 => Budget::new(0),
        1 => Budget::new(1),
        2 => Budget::new(60),
        _ => Budget::default(),
    };
    let budget = &mut budget;
    let within = Gfn::new(gfn.get() % host.max);
    let rest = FrameCount::new(count.get() % (host.max - within.get()));
    let (gfn, count) = if host.draw(4) == 0 {
        (gfn, count)
    } else {
        (within, rest)
    };
    host.calls.set(0);
    match host.draw(15) {
        0 => _ = pod.set_target(host, FrameCount::new(count.get()), budget),
        1 => _ = pod.mark(host, gfn, count, pattern, budget),
        2 => _ = pod.set_pattern(host, gfn, count, pattern, budget),
        3 => _ = pod.fill(host, gfn, count, entry, budget),
        4..=6 => _ = pod.demand(host, gfn, by, order, budget),
        7 | 8 => _ = pod.release(host, gfn, count, leave, budget),
        9 => {
            let to = Gfn::new(other.get() % host.max).align_down(order);
            let content = if host.draw(2) == 0 {
                Content::Keep
            } else {
                Content::Discard
            };
            _ = pod.relocate(host, gfn.align_down(order), to, order, content, budget);
        }
        10 => _ = pod.reclaim_step(host, budget),
        11 => _ = pod.coalesce_step(host, budget),
        12 => _ = pod.pin(host, gfn, count, budget),
        13 => {
            let mfn = Mfn::new(host.number());
            _ = pod.frame_failed(host, mfn);
        }
        _ => {
            let _ = pod.audit(host);
            let _ = pod.promises(host).count();
            pod.set_around(order);
        }
    }
}

#[test]
fn xsa_014_no_answer_and_no_argument_brings_the_engine_down() {
    for seed in 0..5000 {
        let mut host = Liar {
            seed: Cell::new(seed),
            calls: Cell::new(0),
            honest: [0, 128, 240, 250][usize::try_from(seed % 4).unwrap_or(0)],
            max: 72,
            steady: seed % 3 == 0,
        };
        let engine_host = Liar {
            seed: Cell::new(seed),
            calls: Cell::new(0),
            ..host
        };
        engine(&engine_host, |pod| {
            for _ in 0..60 {
                operate(pod, &mut host);
            }
            // Whatever happened, the cache can be emptied.
            for _ in 0..10_000 {
                host.calls.set(0);
                if pod.drain(&mut host, &mut Budget::new(1)) == pod_core::Drain::Done {
                    break;
                }
            }
            assert_eq!(pod.stats().cache, FrameCount::ZERO, "seed {seed}");
        });
    }
}
