//! The guest and what surrounds it.

use balloon_core::testing::FakeSource;
use balloon_core::{
    Budget, Bytes, Compactor, Engine, FrameCount, FrameRange, FrameSource as _, Granularity, Nanos,
    Order, Pfn, Policy, Progress, Resume, Shared,
};
use transport_xen::hypercall::Woken;
use transport_xen::store::{BalloonNodes, Client, NodesConfig, StoreEvent};
use transport_xen::suspend::{SuspendAction, Suspension};
use transport_xen::testing::{Behaviour, FakeClear, FakePage, FakeStore, FakeXen, Fault};
use transport_xen::{FrameMap, Reservation, SharedPage as _, Target, XenBalloon};

use crate::action::Action;

const FIRST: u64 = 512;
pub(crate) const FRAMES: u64 = 3 * 512;
pub(crate) const MAX_KIB: u64 = FRAMES * 4;
/// Frames that the kernel uses at most: the rest can be given.
const MOST_USED: usize = 700;
/// Steps of one piece of work: far more than there are frames to move.
const STEPS: usize = 4096;
/// Refusals in a row from which on it may not be known what was given.
const DOUBT: usize = 3;
/// Turns in which the store is heard even if it says nothing: it may be late.
const TALK: usize = 4;

pub(crate) fn memory() -> FrameRange {
    FrameRange::new(Pfn::new(FIRST), FrameCount::new(FRAMES)).unwrap()
}

/// How a guest starts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start {
    pub(crate) has_store: bool,
    /// What the kernel uses lies all over its memory.
    pub(crate) scattered: bool,
}

/// The guest and what surrounds it.
pub(crate) struct World<F> {
    engine: Engine<2>,
    shared: &'static Shared<2>,
    compactor: Compactor<Vec<u32>>,
    pub(crate) balloon: XenBalloon<FakeXen, F, FakeClear>,
    source: FakeSource,
    used: Vec<Pfn>,
    /// None where there is no store, as in the first domain.
    nodes: Option<BalloonNodes<FakePage>>,
    suspension: Suspension,
    saving: bool,
    /// Times the domain was saved, or nearly.
    saves: u32,
    /// Only a new connection mends it.
    torn: bool,
    /// Nobody may be able to tell what the host has: what may be gone counts as
    /// given, so that at worst the host is not told of some.
    doubt: bool,
    store: FakeStore,
    page: FakePage,
    now: Nanos,
}

impl<F: FrameMap> World<F> {
    fn new(mut xen: FakeXen, map: F, start: Start) -> Self {
        let shared: &'static Shared<2> = Box::leak(Box::new(Shared::new()));
        let mut policy = Policy::DEFAULT;
        policy.granularity = Granularity::Adaptive;
        let page = FakePage::new();
        let mut store = FakeStore::new(page.clone());
        store.set("memory/target", MAX_KIB.to_string().as_bytes());
        let mut source = FakeSource::new(memory());
        if start.scattered {
            source = source.scattered();
        }
        let used: Vec<Pfn> = (0..FRAMES / 5).filter_map(|_| source.allocate()).collect();
        used.iter().for_each(|&pfn| xen.write(pfn));
        let target = Target::new(memory().count());
        let clear = FakeClear::of(&xen);
        Self {
            engine: Engine::new(shared, policy),
            shared,
            compactor: Compactor::new(vec![0; 2048], memory()).unwrap(),
            balloon: XenBalloon::new(Reservation::new(xen, map, clear), target),
            source,
            used,
            nodes: start
                .has_store
                .then(|| BalloonNodes::new(Client::new(page.clone()), NodesConfig::DEFAULT)),
            suspension: Suspension::new(),
            saving: false,
            saves: 0,
            torn: false,
            doubt: false,
            store,
            page,
            now: Nanos::ZERO,
        }
    }

    pub(crate) fn xen(&mut self) -> &mut FakeXen {
        self.balloon.reservation_mut().memory_mut()
    }

    /// What a kernel's loop does, until there is nothing to do.
    fn work(&mut self) {
        for round in 0..STEPS {
            if !self.turn() && round >= TALK {
                self.check();
                return;
            }
        }
        panic!("the guest never rests");
    }

    /// Once around the loop; whether there is more to do.
    fn turn(&mut self) -> bool {
        let talk = self.talk();
        self.store.run();
        let Self {
            engine,
            compactor,
            balloon,
            source,
            now,
            ..
        } = self;
        let compacted = compactor.step(engine, balloon, source, *now, Budget::SMALL);
        let stepped = engine.step(balloon, source, *now, Budget::SMALL);
        if self.saving && self.engine.is_drained() && self.compactor.is_drained() {
            self.save();
        }
        talk || compacted.more || stepped.more || self.shared.signal().take()
    }

    /// Whether the store had something to say, or may have more.
    fn talk(&mut self) -> bool {
        let Some(nodes) = &mut self.nodes else {
            return false;
        };
        let event = match nodes.step(self.now) {
            Ok(Some(event)) => event,
            Ok(None) => return nodes.wake_at().is_some_and(|at| at <= self.now),
            // Gone for good until a restore: the kernel goes on without.
            Err(_) => {
                assert_eq!(nodes.wake_at(), None);
                self.torn = true;
                return false;
            }
        };
        if self.balloon.handle_event(event) {
            self.shared.signal().config_changed();
        }
        let action = match event {
            StoreEvent::Shutdown(_) => self.suspension.asked(),
            StoreEvent::Acknowledged(request) => self.suspension.acknowledged(request),
            StoreEvent::Withdrawn => {
                self.suspension.withdrawn();
                None
            }
            _ => None,
        };
        match action {
            Some(SuspendAction::Acknowledge) => nodes.acknowledge(),
            Some(SuspendAction::Suspend) => {
                self.engine.quiesce();
                self.saving = true;
            }
            // This kernel has its own mind there.
            Some(SuspendAction::Stop(_)) | None => {}
        }
        true
    }

    fn save(&mut self) {
        self.saving = false;
        let xen = self.balloon.reservation_mut().memory_mut();
        // Where Xen refuses, the domain goes on.
        let woken = self.suspension.suspend(xen);
        self.saves += u32::from(woken.is_ok());
        match (&mut self.nodes, woken) {
            (_, Ok(Woken::Restored)) => self.restored(),
            (Some(nodes), _) => nodes.reread(),
            (None, _) => {}
        }
        self.engine.resume(Resume::Kept);
    }

    /// In a new domain, with a new store.
    fn restored(&mut self) {
        self.balloon.restored();
        if let Some(nodes) = &mut self.nodes {
            self.store.reset();
            self.store.set("control/shutdown", b"");
            nodes.restored();
        }
    }

    /// Every frame has one owner, and the hypervisor agrees.
    fn check(&mut self) {
        self.source.check(FrameCount::new(self.used.len() as u64));
        let Self {
            balloon, source, ..
        } = self;
        let xen = balloon.reservation_mut().memory_mut();
        for pfn in memory().frames() {
            let (given, there) = (source.ballooned(pfn).is_some(), xen.is_populated(pfn));
            if !given && !there {
                // In a migration that Xen would neither finish nor show.
                let free = FrameRange::single(pfn).and_then(|at| source.next_free(at));
                assert!(free.is_none(), "{pfn:?} is a hole and can be used");
            }
            assert!(self.doubt || !(given && there), "{pfn:?} was never given");
        }
        let breaches = &xen.breaches;
        assert!(self.doubt || breaches.is_empty(), "{breaches:?}");
        for &pfn in &self.used {
            assert!(xen.is_populated(pfn), "{pfn:?} is in use and gone");
        }
    }

    fn aim(&mut self, text: &[u8]) {
        if self.nodes.is_some() {
            self.store.set("memory/target", text);
        } else if let Some(kib) = core::str::from_utf8(text).ok().and_then(|t| t.parse().ok()) {
            let bytes = Bytes::new(u64::saturating_mul(kib, 1024));
            self.balloon.target_mut().set_target(bytes);
            self.shared.signal().config_changed();
        }
    }

    fn suffer(&mut self, action: &Action) {
        match action {
            Action::Target(text) => self.aim(text),
            Action::Storm(texts) => {
                for text in texts {
                    self.aim(text);
                    self.now = self.now.saturating_add(Nanos::from_millis(1));
                    self.turn();
                }
            }
            Action::Sizes(max, video) => {
                self.store.set("memory/static-max", max);
                self.store.set("memory/videoram", video);
            }
            Action::Behaviour(behaviour) => self.store.behaviour = *behaviour,
            Action::Scribble(at, word) => {
                self.page.store(usize::from(*at) % 4096, *word);
                self.torn = true;
            }
            Action::Faults(faults) => {
                let queue = &mut self.balloon.reservation_mut().memory_mut().faults;
                for &fault in faults {
                    let is_refusal = |fault: &&Fault| matches!(fault, Fault::Refuse(_));
                    let refusals = queue.iter().rev().take_while(is_refusal).count();
                    self.doubt |= refusals >= DOUBT;
                    queue.push_back(fault);
                }
            }
            Action::Host(order, heap) => {
                self.xen().largest = Order::new(*order).unwrap();
                self.xen().heap = *heap;
            }
            Action::Limit(frames) => self.xen().limit = FrameCount::new(*frames),
            Action::Compact => {
                self.compactor.start();
            }
            Action::Shutdown(why, restored) => {
                self.xen().woken = if *restored {
                    Woken::Restored
                } else {
                    Woken::Cancelled
                };
                self.store.set("control/shutdown", why);
            }
            Action::Use(frames) => {
                let room = MOST_USED.saturating_sub(self.used.len());
                for _ in 0..room.min(usize::from(*frames)) {
                    if let Some(pfn) = self.source.allocate() {
                        self.used.push(pfn);
                        // Nobody else is ever to read it.
                        self.xen().write(pfn);
                    }
                }
            }
            Action::Free(frames) => {
                let kept = self.used.len().saturating_sub(usize::from(*frames));
                for pfn in self.used.drain(kept..) {
                    self.source.free_allocated(pfn);
                }
            }
            Action::Wait(millis) => {
                self.now = self.now.saturating_add(Nanos::from_millis(*millis));
            }
        }
    }

    /// From now on all is well; the guest has to get there by itself, unless the
    /// connection cannot be mended.
    fn recover(&mut self, kib: u64) {
        let xen = self.xen();
        xen.faults.clear();
        (xen.largest, xen.heap) = (Order::SUPERPAGE, u64::MAX);
        xen.limit = FrameCount::new(FRAMES + 256);
        xen.woken = Woken::Restored;
        self.store.behaviour = Behaviour::Good;
        if self.torn {
            self.restored();
        }
        self.aim(kib.to_string().as_bytes());
        let wanted = FrameCount::new(FRAMES - kib / 4);
        self.until("at its target", |world| {
            let status = world.engine.status(&world.source);
            (status.progress, status.size) == (Progress::Reached, wanted)
        });
        if self.nodes.is_some() {
            // No request before has left anything behind that is in its way.
            let saves = self.saves;
            self.store.set("control/shutdown", b"suspend");
            self.until("saved", |world| world.saves > saves);
            let node = self.store.nodes.get("control/shutdown");
            assert_eq!(node.map(Vec::as_slice), Some(&b""[..]));
        }
    }

    fn until(&mut self, what: &str, there: impl Fn(&Self) -> bool) {
        for _ in 0..200 {
            self.now = self.now.saturating_add(Nanos::from_secs(100));
            self.work();
            if there(self) {
                return;
            }
        }
        panic!("not {what}: {:?}", self.engine.status(&self.source));
    }

    fn sizes(&mut self) {
        let max = MAX_KIB.to_string();
        self.store.set("memory/static-max", max.as_bytes());
        self.store.set("memory/videoram", b"0");
    }
}

/// A life: what happens, and then all is well.
pub(crate) fn live<F: FrameMap>(
    xen: FakeXen,
    map: F,
    start: Start,
    actions: &[Action],
    kib: u64,
) -> World<F> {
    let mut world = World::new(xen, map, start);
    world.sizes();
    world.work();
    for action in actions {
        world.suffer(action);
        world.work();
    }
    world.recover(kib);
    world
}
