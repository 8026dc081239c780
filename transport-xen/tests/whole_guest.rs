//! A whole guest, engine to ring, between a hypervisor and a store that do what
//! they like: after each piece of work every frame is where the guest thinks it
//! is, and once both behave the target is reached.

// Safe code all the way, and minutes long there.
#![cfg(not(miri))]
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use balloon_core::testing::FakeSource;
use balloon_core::{
    Budget, Compactor, Engine, FrameCount, FrameRange, Nanos, Order, Pfn, Policy, Progress, Resume,
    Shared, Unit,
};
use proptest::prelude::*;
use transport_xen::hypercall::Woken;
use transport_xen::store::{Client, Desk, DeskPolicy, Notice};
use transport_xen::suspend::{Duty, Suspension};
use transport_xen::testing::{FakeP2m, FakePage, FakeStore, FakeXen, Fault, Kind, Manners};
use transport_xen::{
    Errno, FrameMap, Reservation, SharedPage as _, Target, Translated, XenBalloon,
};

const FIRST: u64 = 512;
const FRAMES: u64 = 4 * 512;
const MAX_KIB: u64 = FRAMES * 4;
/// Steps of one piece of work: far more than there are frames to move.
const STEPS: usize = 4096;

/// Turns in which the store is heard even if it says nothing: it may be late.
const TALK: usize = 4;

/// What happens to the guest.
#[derive(Clone, Debug)]
enum Action {
    /// The target node holds this; half of the time no sensible number.
    Target(Vec<u8>),
    Manners(Manners),
    /// Somebody writes to the ring's page.
    Scribble(u16, u32),
    /// What happens to the next hypercalls.
    Faults(Vec<Fault>),
    /// The host can serve extents of this order, and has so many frames.
    Host(u8, u64),
    /// The domain's limit in frames.
    Limit(u64),
    Compact,
    /// The domain is saved if it is ready, and comes back so.
    Shutdown(Vec<u8>, bool),
    /// Milliseconds pass.
    Wait(u64),
}

fn target() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => (0..MAX_KIB).prop_map(|kib| kib.to_string().into_bytes()),
        1 => (MAX_KIB..MAX_KIB * 3).prop_map(|kib| kib.to_string().into_bytes()),
        1 => any::<i64>().prop_map(|number| number.to_string().into_bytes()),
        1 => proptest::collection::vec(any::<u8>(), 0..24),
        1 => Just(Vec::new()),
    ]
}

fn manners() -> impl Strategy<Value = Manners> {
    prop_oneof![
        Just(Manners::Good),
        Just(Manners::Silent),
        Just(Manners::Gone),
        Just(Manners::Backwards),
        Just(Manners::Babbling),
        Just(Manners::Confused),
    ]
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        2 => Just(Fault::None),
        2 => (1u16..134)
            .prop_map(|number| Fault::Refuse(Errno::from_number(number))),
        2 => prop_oneof![Just(0), 0usize..70].prop_map(Fault::Extents),
        2 => (0u64..1500).prop_map(Fault::Frames),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        5 => target().prop_map(Action::Target),
        1 => manners().prop_map(Action::Manners),
        1 => (any::<u16>(), any::<u32>()).prop_map(|(at, word)| Action::Scribble(at, word)),
        3 => proptest::collection::vec(fault(), 1..8).prop_map(Action::Faults),
        1 => (prop_oneof![Just(9u8), Just(4), Just(0)], 0..FRAMES * 2)
            .prop_map(|(order, heap)| Action::Host(order, heap)),
        1 => (FRAMES / 4..FRAMES * 2).prop_map(Action::Limit),
        1 => Just(Action::Compact),
        1 => (prop_oneof![Just(&b"suspend"[..]), Just(&b"nonsense"[..]), Just(&b""[..])], any::<bool>())
            .prop_map(|(why, restored)| Action::Shutdown(why.to_vec(), restored)),
        3 => (0u64..100_000).prop_map(Action::Wait),
    ]
}

fn memory() -> FrameRange {
    FrameRange::new(Pfn::new(FIRST), FrameCount::new(FRAMES)).unwrap()
}

/// The guest and what surrounds it.
struct World<F> {
    engine: Engine<2>,
    shared: &'static Shared<2>,
    compactor: Compactor<Vec<u32>>,
    balloon: XenBalloon<FakeXen, F>,
    source: FakeSource,
    used: Vec<Pfn>,
    desk: Desk<FakePage>,
    suspension: Suspension,
    saving: bool,
    store: FakeStore,
    page: FakePage,
    now: Nanos,
}

impl<F: FrameMap> World<F> {
    fn new(xen: FakeXen, map: F) -> Self {
        let shared: &'static Shared<2> = Box::leak(Box::new(Shared::new()));
        let mut policy = Policy::DEFAULT;
        policy.unit = Unit::Adaptive;
        let page = FakePage::new();
        let mut store = FakeStore::new(page.clone());
        store.set("memory/static-max", MAX_KIB.to_string().as_bytes());
        store.set("memory/target", MAX_KIB.to_string().as_bytes());
        let mut source = FakeSource::new(memory()).scattered();
        let used = (0..FRAMES / 5).filter_map(|_| source.allocate()).collect();
        let target = Target::new(memory().count());
        Self {
            engine: Engine::new(shared, policy),
            shared,
            compactor: Compactor::new(vec![0; 2048], memory()).unwrap(),
            balloon: XenBalloon::new(Reservation::new(xen, map), target),
            source,
            used,
            desk: Desk::new(Client::new(page.clone()), DeskPolicy::DEFAULT),
            suspension: Suspension::new(),
            saving: false,
            store,
            page,
            now: Nanos::ZERO,
        }
    }

    fn xen(&mut self) -> &mut FakeXen {
        self.balloon.reservation_mut().memory_mut()
    }

    /// What a kernel's loop does, until there is nothing to do.
    fn work(&mut self) {
        for round in 0..STEPS {
            let talk = self.talk() || round < TALK;
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
            if !(talk || compacted.more || stepped.more || self.shared.signal().pending()) {
                self.check();
                return;
            }
        }
        panic!("the guest never rests");
    }

    /// Whether the store had something to say, or may have more.
    fn talk(&mut self) -> bool {
        let notice = match self.desk.step(self.now) {
            Ok(Some(notice)) => notice,
            Ok(None) => return self.desk.wake_at().is_some_and(|at| at <= self.now),
            // Gone for good until a restore: the kernel goes on without.
            Err(_) => return false,
        };
        if self.balloon.hear(notice) {
            self.shared.signal().config_changed();
        }
        let duty = match notice {
            Notice::Shutdown(_) => self.suspension.asked(),
            Notice::Acknowledged(request) => self.suspension.acknowledged(request),
            Notice::Withdrawn => {
                self.suspension.withdrawn();
                None
            }
            _ => None,
        };
        match duty {
            Some(Duty::Acknowledge) => self.desk.acknowledge(),
            Some(Duty::Suspend) => {
                self.engine.quiesce();
                self.saving = true;
            }
            Some(Duty::Stop(_)) | None => {}
        }
        true
    }

    fn save(&mut self) {
        self.saving = false;
        let xen = self.balloon.reservation_mut().memory_mut();
        match self.suspension.suspend(xen) {
            Ok(Woken::Restored) => self.restored(),
            Ok(Woken::Cancelled) => self.desk.cancelled(),
            // Xen refused; the domain goes on.
            Err(_) => {}
        }
        self.engine.resume(Resume::Kept);
    }

    /// In a new domain, with a new store.
    fn restored(&mut self) {
        self.store.reset();
        self.store.set("control/shutdown", b"");
        self.desk.restored();
    }

    /// Every frame has one owner, and the hypervisor agrees.
    fn check(&mut self) {
        self.source.check(FrameCount::new(self.used.len() as u64));
        let Self {
            balloon, source, ..
        } = self;
        let xen = balloon.reservation_mut().memory_mut();
        assert!(xen.breaches.is_empty(), "{:?}", xen.breaches);
        for pfn in memory().frames() {
            let given = source.ballooned(pfn).is_some();
            assert_eq!(xen.is_populated(pfn), !given, "{pfn:?}");
        }
        for &pfn in &self.used {
            assert!(xen.is_populated(pfn), "{pfn:?} is in use and gone");
        }
    }

    fn suffer(&mut self, action: &Action) {
        match action {
            Action::Target(text) => self.store.set("memory/target", text),
            Action::Manners(manners) => self.store.manners = *manners,
            Action::Scribble(at, word) => self.page.store(usize::from(*at) % 4096, *word),
            Action::Faults(faults) => self.xen().faults.extend(faults.iter().copied()),
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
            Action::Wait(millis) => {
                self.now = self.now.saturating_add(Nanos::from_millis(*millis));
            }
        }
    }

    /// From now on all is well; the guest has to get there by itself.
    fn recover(&mut self, kib: u64) {
        let xen = self.xen();
        xen.faults.clear();
        (xen.largest, xen.heap) = (Order::SUPERPAGE, u64::MAX);
        xen.limit = FrameCount::new(FRAMES + 256);
        xen.woken = Woken::Restored;
        self.store.manners = Manners::Good;
        self.restored();
        self.store.set("memory/target", kib.to_string().as_bytes());
        let wanted = FrameCount::new(FRAMES - kib / 4);
        for _ in 0..200 {
            self.now = self.now.saturating_add(Nanos::from_secs(100));
            self.work();
            let status = self.engine.status(&self.source);
            if (status.progress, status.size) == (Progress::Reached, wanted) {
                return;
            }
        }
        panic!("not at {wanted:?}: {:?}", self.engine.status(&self.source));
    }
}

fn live<F: FrameMap>(xen: FakeXen, map: F, actions: &[Action], kib: u64) -> World<F> {
    let mut world = World::new(xen, map);
    world.work();
    for action in actions {
        world.suffer(action);
        world.work();
    }
    world.recover(kib);
    world
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_frames_are_kept_and_the_target_is_reached(
        actions in proptest::collection::vec(action(), 0..16),
        // As much as is not in use.
        kib in (MAX_KIB / 2..=MAX_KIB).prop_map(|kib| kib / 4 * 4),
    ) {
        live(FakeXen::new(Kind::Pvh, memory()), Translated::<true>, &actions, kib);
        live(FakeXen::new(Kind::Arm, memory()), Translated::<false>, &actions, kib);
        let xen = FakeXen::new(Kind::Pv, memory());
        let map = FakeP2m::of(&xen);
        let mut world = live(xen, map, &actions, kib);
        let xen = world.xen();
        let machines: Vec<_> = memory().frames().map(|pfn| xen.machine(pfn)).collect();
        let map = world.balloon.reservation_mut().map_mut();
        let mapped: Vec<_> = memory().frames().map(|pfn| map.unmap(pfn)).collect();
        prop_assert_eq!(machines, mapped);
    }
}
