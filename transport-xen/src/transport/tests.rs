use balloon_core::testing::{FakeSource, check_migrate_laws, check_transport_laws};
use balloon_core::{
    Backing, BitmapLedger, Budget, Bytes, Engine, FrameRange, FrameSource, Granularity, Ledgered,
    Nanos, Policy, Progress, Shared,
};

use super::*;
use crate::frame_map::Translated;
use crate::reservation::{Counters, ExtentCounts};
use crate::testing::{FakeClear, FakeP2m, FakeXen, Fault, Kind as Guest};

const FRAMES: u64 = 8 * 512;

fn memory() -> FrameRange {
    FrameRange::new(Pfn::new(512), FrameCount::new(FRAMES)).unwrap()
}

fn reservation<F: FrameMap>(xen: FakeXen, map: F) -> Reservation<FakeXen, F, FakeClear> {
    let clear = FakeClear::of(&xen);
    Reservation::new(xen, map, clear)
}

fn balloon(guest: Guest) -> XenBalloon<FakeXen, Translated<true>, FakeClear> {
    let xen = FakeXen::new(guest, memory());
    let target = Target::new(memory().count());
    XenBalloon::new(reservation(xen, Translated), target)
}

#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn laws_hold_for_every_kind_of_guest() {
    check_transport_laws(&mut balloon(Guest::Pvh), memory(), |_| {});
    let xen = FakeXen::new(Guest::Arm, memory());
    let reservation = reservation(xen, Translated::<false>);
    check_transport_laws(
        &mut XenBalloon::new(reservation, Target::new(memory().count())),
        memory(),
        |_| {},
    );
    let xen = FakeXen::new(Guest::Pv, memory());
    let p2m = FakeP2m::of(&xen);
    let reservation = self::reservation(xen, p2m);
    check_transport_laws(
        &mut XenBalloon::new(reservation, Target::new(memory().count())),
        memory(),
        |_| {},
    );
}

#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn migrations_keep_their_law_for_every_kind_of_guest() {
    check_migrate_laws(&mut balloon(Guest::Pvh), memory(), |_| {});
    let target = || Target::new(memory().count());
    let xen = FakeXen::new(Guest::Pv, memory());
    let p2m = FakeP2m::of(&xen);
    let mut exchanged = XenBalloon::new(reservation(xen, p2m), target());
    assert_eq!(exchanged.migration(), Migration::Exchange);
    check_migrate_laws(&mut exchanged, memory(), |_| {});
    let xen = FakeXen::new(Guest::Arm, memory());
    let mut stepped = XenBalloon::new(reservation(xen, Translated::<false>), target());
    assert_eq!(stepped.migration(), Migration::InflateFirst);
    check_migrate_laws(&mut stepped, memory(), |_| {});
}

#[test]
fn a_pv_guest_counts_what_it_has() {
    let xen = FakeXen::new(Guest::Pv, memory());
    let p2m = FakeP2m::of(&xen);
    let target = Target::new(memory().count());
    let mut balloon = XenBalloon::new(reservation(xen, p2m), target);
    // It was started with less than it may have one day.
    assert!(!balloon.handle_event(StoreEvent::StaticMax(Bytes::new((FRAMES * 2) << 12))));
    assert!(balloon.handle_event(StoreEvent::Target(Bytes::new((FRAMES - 100) << 12))));
    assert_eq!(balloon.read_target(), Ok(FrameCount::new(100)));
}

#[test]
fn a_restored_domain_that_may_have_more_keeps_its_balloon() {
    let mut balloon = balloon(Guest::Pvh);
    let mib = |mib: u64| Bytes::new(mib << 20);
    for (max, video) in [(18, 2), (32, 0)] {
        balloon.handle_event(StoreEvent::StaticMax(mib(max)));
        balloon.handle_event(StoreEvent::VideoRam(mib(video)));
        balloon.handle_event(StoreEvent::Target(mib(14)));
        assert_eq!(balloon.read_target(), Ok(mib(2).frames()), "of {max} MiB");
    }
}

/// A balloon under its engine, with an allocator that knows every frame.
struct System<const N: usize> {
    engine: Engine<N>,
    balloon: XenBalloon<FakeXen, Translated<true>, FakeClear>,
    source: FakeSource,
    now: Nanos,
    shared: &'static Shared<N>,
}

impl System<4> {
    fn new() -> Self {
        let shared: &'static Shared<4> =
            alloc::boxed::Box::leak(alloc::boxed::Box::new(Shared::new()));
        Self {
            engine: Engine::new(shared, Policy::DEFAULT),
            balloon: balloon(Guest::Pvh),
            source: FakeSource::new(memory()),
            now: Nanos::ZERO,
            shared,
        }
    }

    fn aim(&mut self, mib: u64) -> Progress {
        let target = StoreEvent::Target(Bytes::new(mib << 20));
        assert!(self.balloon.handle_event(target));
        self.shared.signal().config_changed();
        self.run()
    }

    fn run(&mut self) -> Progress {
        self.now = self.now.saturating_add(Nanos::from_secs(1));
        for _ in 0..10_000 {
            let step =
                self.engine
                    .step(&mut self.balloon, &mut self.source, self.now, Budget::SMALL);
            self.source.check(FrameCount::ZERO);
            if !step.more {
                let status = self.engine.status(&self.source);
                let xen = self.balloon.reservation_mut().memory_mut();
                assert!(xen.breaches.is_empty(), "{:?}", xen.breaches);
                for pfn in memory().frames() {
                    let given = self.source.ballooned(pfn).is_some();
                    assert_eq!(xen.is_populated(pfn), !given, "{pfn:?}");
                }
                return status.progress;
            }
        }
        panic!("it never comes to rest");
    }
}

#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn targets_are_followed_and_leaves_come_back() {
    let mut system = System::new();
    for mib in [16, 4, 10, 0, 16] {
        assert_eq!(system.aim(mib), Progress::Reached, "{mib} MiB");
    }
    assert_eq!(system.balloon.reservation_mut().memory_mut().leaves(), 8);
}

/// What must be cleared before it leaves, leaves last.
#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn what_was_never_written_leaves_first() {
    for (unit, mib, cleared) in [
        (Granularity::Adaptive, 8, 0),
        (Granularity::Adaptive, 4, 4 << 8),
        (Granularity::Frames, 8, 0),
        (Granularity::Frames, 7, 1 << 8),
    ] {
        let mut system = System::new();
        let mut policy = Policy::DEFAULT;
        policy.granularity = unit;
        system.engine = Engine::new(system.shared, policy);
        // Half of the memory, every other superpage.
        for start in (0..FRAMES).step_by(2 * 512) {
            let start = Pfn::new(512 + start);
            let block = FrameRange::new(start, Order::SUPERPAGE.frames()).unwrap();
            assert!(system.source.take_at(block).is_ok());
            assert!(system.source.put(block, Backing::Unpopulated).is_ok());
        }
        assert_eq!(system.aim(mib), Progress::Reached);
        let counters = system.balloon.reservation().counters();
        assert_eq!(counters.cleared, cleared, "{unit:?}, {mib} MiB");
    }
}

/// More superpages than one request holds, with single holes below them: what a
/// request carries is whole superpages to its limit.
#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn whole_holes_are_filled_by_superpages_whatever_lies_below() {
    const SUPERPAGE: u64 = Order::SUPERPAGE.frames().get();
    const WHOLE: u64 = 80;
    const SINGLES: u64 = 4 * SUPERPAGE / 16;
    let memory = FrameRange::new(Pfn::new(512), FrameCount::new(90 * SUPERPAGE)).unwrap();
    let singles = (512..512 + 4 * SUPERPAGE).filter(|pfn| pfn % 16 == 3);
    let whole = memory.end().get() - WHOLE * SUPERPAGE..memory.end().get();
    let mut source = FakeSource::new(memory);
    while source.allocate().is_some() {}
    for pfn in singles.chain(whole).map(Pfn::new) {
        source.free_allocated(pfn);
    }
    let words = usize::try_from(BitmapLedger::words(memory.count())).unwrap();
    let ledger = BitmapLedger::new(alloc::vec![0; words], &[memory]).unwrap();
    let mut source = Ledgered { source, ledger };
    let mut policy = Policy::DEFAULT;
    policy.granularity = Granularity::Adaptive;
    let shared: &'static Shared<2> = alloc::boxed::Box::leak(alloc::boxed::Box::new(Shared::new()));
    let mut engine = Engine::new(shared, policy);
    let reservation = reservation(FakeXen::new(Guest::Pvh, memory), Translated::<true>);
    let mut balloon = XenBalloon::new(reservation, Target::new(memory.count()));
    let mut seconds = 0;
    let mut aim = |holes: u64| {
        let frames = memory.count().saturating_sub(FrameCount::new(holes));
        assert!(balloon.handle_event(StoreEvent::Target(frames.bytes())));
        shared.signal().config_changed();
        seconds += 1;
        let now = Nanos::from_secs(seconds);
        while engine
            .step(&mut balloon, &mut source, now, Budget::SMALL)
            .more
        {}
        assert_eq!(engine.status(&source).progress, Progress::Reached);
        let Counters {
            inflated: given,
            deflated: taken,
            ..
        } = balloon.reservation().counters();
        let leaves = balloon.reservation_mut().memory_mut().leaves() as u64;
        (given, taken, leaves)
    };
    let extents = |superpages, frames| ExtentCounts {
        superpages,
        medium: 0,
        frames,
    };
    let given = extents(WHOLE, SINGLES);
    let all = WHOLE * SUPERPAGE + SINGLES;
    assert_eq!(aim(all), (given, extents(0, 0), 90 - WHOLE - 4));
    // A few frames break no hole that a superpage fills.
    assert_eq!(aim(all - 50), (given, extents(0, 50), 90 - WHOLE - 4));
    let most = aim(10 * SUPERPAGE + SINGLES - 60);
    assert_eq!(most, (given, extents(70, 60), 90 - 10 - 4));
    assert_eq!(aim(0), (given, extents(WHOLE, SINGLES), 90 - 4));
}

#[test]
fn a_migration_that_xen_will_not_show_stays_in_flight() {
    let shared: &'static Shared<2> = alloc::boxed::Box::leak(alloc::boxed::Box::new(Shared::new()));
    let slots = shared.slots();
    let mut balloon = balloon(Guest::Pvh);
    let run = |start| {
        let range = FrameRange::new(Pfn::new(start), FrameCount::new(12)).unwrap();
        [Run::new(range).unwrap()]
    };
    let (from, to) = (run(512), run(1024));
    let reservation = balloon.reservation_mut();
    assert_eq!(reservation.inflate(&from).stopped, None);
    let mut faults = alloc::vec![Fault::None; 1 + 7];
    faults.extend([Fault::Refuse(Errno::NoMemory); 100]);
    reservation.memory_mut().faults = faults.into();
    let slot = slots.claim(Kind::Migrate).unwrap().launch();
    let migrate = MigrateRequest {
        slot: slot.slot(),
        from: &from,
        to: &to,
    };
    balloon.submit_migrate(migrate, slots.completer()).unwrap();
    balloon.reap(slots.completer()).unwrap();
    let slot = slot.answer().unwrap_err();
    balloon.reservation_mut().memory_mut().faults.clear();
    balloon.reap(slots.completer()).unwrap();
    let (_, outcome) = slot.answer().unwrap();
    assert_eq!(outcome, Outcome::Partial(FrameCount::new(7)));
}

#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn a_target_stays_unread_until_the_engine_looks() {
    let mut system = System::new();
    assert_eq!(system.aim(12), Progress::Reached);
    assert!(system.balloon.is_target_read());
    // Sooner than the engine reads again.
    assert!(
        system
            .balloon
            .handle_event(StoreEvent::Target(Bytes::new(8 << 20)))
    );
    system.shared.signal().config_changed();
    assert!(system.shared.signal().take());
    let budget = Budget::SMALL;
    let soon = system.now.saturating_add(Nanos::from_millis(1));
    let System {
        engine,
        balloon,
        source,
        ..
    } = &mut system;
    engine.step(balloon, source, soon, budget);
    let status = engine.status(source);
    assert_eq!(status.progress, Progress::Reached, "of the last one");
    assert!(!system.shared.signal().is_set());
    assert!(!system.balloon.is_target_read());
    assert_eq!(system.run(), Progress::Reached);
    assert!(system.balloon.is_target_read());
}

#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn refusals_and_short_counts_are_retried() {
    let mut system = System::new();
    for number in [1, 12, 14, 22, 38, 95] {
        let errno = Errno::from_number(number);
        let xen = system.balloon.reservation_mut().memory_mut();
        xen.faults
            .extend([Fault::Refuse(errno), Fault::Extents(0), Fault::Extents(1)]);
        assert_ne!(system.aim(4), Progress::Reached);
        for _ in 0..20 {
            system.now = system.now.saturating_add(Nanos::from_secs(100));
            system.run();
        }
        assert_eq!(system.run(), Progress::Reached, "{errno:?}");
        assert_eq!(system.aim(16), Progress::Reached);
    }
}

#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn a_target_above_the_limit_ends_in_a_back_off() {
    let mut system = System::new();
    assert_eq!(system.aim(4), Progress::Reached);
    let xen = system.balloon.reservation_mut().memory_mut();
    xen.limit = FrameCount::new(6 * 256);
    assert!(matches!(system.aim(16), Progress::Blocked(_)));
    let xen = system.balloon.reservation_mut().memory_mut();
    assert_eq!(xen.owned(), FrameCount::new(6 * 256));
    let calls = xen.hypercalls;
    system.run();
    let spun = system.balloon.reservation_mut().memory_mut().hypercalls - calls;
    assert!(spun < 10, "{spun} hypercalls for nothing");
}

#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn growing_without_memory_for_tables_costs_an_extent_and_waits() {
    let mut system = System::new();
    assert_eq!(system.aim(4), Progress::Reached);
    let xen = system.balloon.reservation_mut().memory_mut();
    xen.tables = 0;
    xen.limit = FrameCount::new(2 * FRAMES);
    assert!(matches!(system.aim(8), Progress::Blocked(_)));
    let lost = |system: &mut System<4>| system.balloon.reservation_mut().memory_mut().lost;
    let first = lost(&mut system);
    assert_eq!(first, 512);
    for _ in 0..30 {
        system.run();
    }
    assert_eq!(lost(&mut system), first, "the pause is the longest");
    // A pause later each attempt costs a frame.
    system.now = system.now.saturating_add(Nanos::from_secs(64));
    system.run();
    assert_eq!(lost(&mut system), first + 1);
    assert_eq!(system.balloon.reservation().counters().lost, first + 1);
    system.balloon.reservation_mut().memory_mut().tables = u64::MAX;
    system.now = system.now.saturating_add(Nanos::from_secs(64));
    assert_eq!(system.run(), Progress::Reached);
    assert_eq!(system.aim(16), Progress::Reached);
}

#[test]
fn a_loss_after_what_was_served_is_paused_for_once() {
    let mut system = balloon(Guest::Pvh);
    let all = [Run::new(memory()).unwrap()];
    let reservation = system.reservation_mut();
    assert_eq!(reservation.inflate(&all).stopped, None);
    reservation.memory_mut().tables = 3;
    let slots = balloon_core::Slots::<4>::new();
    let mut take = |runs: &[Run]| {
        let slot = slots.claim(Kind::Deflate).unwrap().launch();
        let request = slot.request(Via::Inflate, runs);
        let answer = system.submit(request, slots.completer());
        let reservation = system.reservation_mut();
        let lost = reservation.counters().lost;
        (answer, lost, reservation.memory_mut().hypercalls)
    };
    let (served, lost, calls) = take(&all);
    assert_eq!((served, lost), (Ok(()), 512));
    let rest = FrameRange::new(Pfn::new(512 * 4), FrameCount::new(FRAMES - 3 * 512)).unwrap();
    let rest = [Run::new(rest).unwrap()];
    let nothing = Err(XenError::Nothing(Stopped::NoTables));
    assert_eq!(take(&rest), (nothing, 512, calls), "the longest pause");
    let (again, lost, _) = take(&rest);
    assert_eq!((again, lost), (nothing, 513), "and a frame after it");
}

/// Two requests need no look.
#[test]
fn where_a_policy_forbids_looks_content_is_copied() {
    for errno in (1..134).map(Errno::from_number) {
        let mut balloon = balloon(Guest::Pvh);
        let looks = [Fault::Refuse(errno); 8];
        refuse_after(&mut balloon, errno, &looks);
        let cannot = matches!(
            errno,
            Errno::NotPermitted | Errno::Access | Errno::NotSupported | Errno::NotImplemented
        );
        assert_eq!(
            balloon.migration() == Migration::InflateFirst,
            cannot,
            "{errno}"
        );
        balloon.restored();
        assert_eq!(balloon.migration(), Migration::Move);
    }
}

#[test]
fn a_torn_pair_is_the_hosts_on_both_sides() {
    let shared: &'static Shared<2> = alloc::boxed::Box::leak(alloc::boxed::Box::new(Shared::new()));
    let slots = shared.slots();
    for shown in [true, false] {
        let mut balloon = balloon(Guest::Pvh);
        let run = |start| {
            let range = FrameRange::new(Pfn::new(start), FrameCount::new(12)).unwrap();
            [Run::new(range).unwrap()]
        };
        let (from, to) = (run(512), run(1024));
        let reservation = balloon.reservation_mut();
        assert_eq!(reservation.inflate(&from).stopped, None);
        let xen = reservation.memory_mut();
        xen.tables = 7;
        if !shown {
            xen.faults.extend([Fault::None; 1 + 8]);
            xen.faults.extend([Fault::Refuse(Errno::NotPermitted); 8]);
        }
        let slot = slots.claim(Kind::Migrate).unwrap().launch();
        let migrate = MigrateRequest {
            slot: slot.slot(),
            from: &from,
            to: &to,
        };
        balloon.submit_migrate(migrate, slots.completer()).unwrap();
        balloon.reap(slots.completer()).unwrap();
        let (_, outcome) = slot.answer().unwrap();
        assert_eq!(outcome, Outcome::Torn(FrameCount::new(7)));
    }
}

#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn a_hypervisor_that_cannot_migrate_is_asked_no_more() {
    let mut cannot = balloon(Guest::Arm);
    assert_eq!(cannot.migration(), Migration::Move);
    refuse_migration(&mut cannot, Errno::NotImplemented);
    assert_eq!(cannot.migration(), Migration::InflateFirst);
    cannot.restored();
    assert_eq!(cannot.migration(), Migration::Move, "another hypervisor");
}

#[test]
fn what_a_refused_migration_says_of_the_next() {
    for errno in (1..134).map(Errno::from_number) {
        let cannot = matches!(errno, Errno::NotSupported | Errno::NotImplemented);
        let mut pvh = balloon(Guest::Pvh);
        refuse_migration(&mut pvh, errno);
        assert_eq!(
            pvh.migration() == Migration::InflateFirst,
            cannot,
            "{errno}"
        );
        let xen = FakeXen::new(Guest::Pv, memory());
        let p2m = FakeP2m::of(&xen);
        let mut pv = XenBalloon::new(reservation(xen, p2m), Target::new(memory().count()));
        refuse_migration(&mut pv, errno);
        // What a guest of its kind is not to do.
        let may_not = cannot || errno == Errno::Access;
        assert_eq!(
            pv.migration() == Migration::InflateFirst,
            may_not,
            "{errno}"
        );
    }
}

fn refuse_migration<F: FrameMap>(balloon: &mut XenBalloon<FakeXen, F, FakeClear>, errno: Errno) {
    // Whether Xen lets itself be shown what is behind a frame.
    let looks = usize::from(F::MIGRATION == Migration::Move);
    let faults = [Fault::None, Fault::Refuse(errno)];
    refuse_after(balloon, errno, faults.get(1 - looks..).unwrap());
}

fn refuse_after<F: FrameMap>(
    balloon: &mut XenBalloon<FakeXen, F, FakeClear>,
    errno: Errno,
    faults: &[Fault],
) {
    let old = [Run::new(FrameRange::single(Pfn::new(512)).unwrap()).unwrap()];
    balloon.reservation_mut().inflate(&old);
    balloon.reservation_mut().memory_mut().faults.extend(faults);
    let slots = balloon_core::Slots::<1>::new();
    let claimed = slots.claim(Kind::Migrate).unwrap();
    let migrate = MigrateRequest {
        slot: claimed.slot(),
        from: &old,
        to: &[Run::new(FrameRange::single(Pfn::new(600)).unwrap()).unwrap()],
    };
    let refused = balloon.submit_migrate(migrate, slots.completer());
    assert_eq!(refused, Err(XenError::Nothing(Stopped::Refused(errno))));
}
