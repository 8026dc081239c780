//! Services beside the balloon: what a device does to them is not the balloon's.

// Whole guests on memory that is safe code: hours under Miri.
#![cfg(not(any(miri, loom)))]
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use balloon_core::testing::FakeSource;
use balloon_core::{
    BitmapLedger, Blocked, Budget, Engine, FrameCount, FrameRange, Kind, Nanos, Order, Pfn, Policy,
    Progress, Resume, Shared,
};
use transport_virtio::testing::{self, FakeBalloon, FakeDevice, NoDelay, Profile};
use transport_virtio::{
    DriverOptions, Features, Hinting, QueueError, QueueId, ReportPace, Reporting, Statistics, Tag,
    UnusedPages, VirtioError,
};

#[test]
fn a_statistics_queue_that_runs_away_leaves_the_balloon_alone() {
    let shared: &'static Shared<16> = Box::leak(Box::default());
    let options = DriverOptions::new().with_statistics();
    let mut balloon = testing::bring_up::<16>(Profile::qemu(Features::empty()), &options).unwrap();
    let mut statistics = Statistics::new(&[Tag::FREE]);
    let memory = FrameRange::new(Pfn::new(0x1000), FrameCount::new(2048)).unwrap();
    let mut source = FakeSource::new(memory);
    let mut engine = Engine::new(shared, Policy::DEFAULT);
    let offered = statistics.step(&mut balloon, shared, Nanos::ZERO, |_| 1);
    assert!(offered.unwrap().offered);

    let device = balloon.queues_mut().device_mut();
    device.jump(QueueId::Statistics, 1000);
    device.set_target(1024);
    shared.signal().config_changed();
    for millis in 0..100 {
        let now = Nanos::from_millis(millis);
        engine.step(&mut balloon, &mut source, now, Budget::LARGE);
        let device = balloon.queues_mut().device_mut();
        device.serve(QueueId::Inflate);
        shared.signal().used();
    }
    let status = engine.status(&source);
    assert_eq!(status.progress, Progress::Reached, "{status:?}");
    assert_eq!(balloon.queues().device().actual(), 1024);
    let told = statistics.step(&mut balloon, shared, Nanos::from_secs(1), |_| 1);
    let broken = VirtioError::Queue(QueueId::Statistics, QueueError::Broken);
    assert_eq!(told, Err(broken), "the service is told");
}

/// A device that hands its buffer straight back, before anybody could ask for an
/// interrupt.
#[test]
fn a_device_that_asks_for_statistics_without_end_keeps_nobody_from_sleeping() {
    let shared: &'static Shared<16> = Box::leak(Box::default());
    let options = DriverOptions::new().with_statistics();
    let mut balloon = testing::bring_up::<16>(Profile::qemu(Features::empty()), &options).unwrap();
    let mut statistics = Statistics::new(&[Tag::FREE]);
    let mut now = Nanos::ZERO;
    let mut offered = 0;
    for _ in 0..100 {
        let before = now;
        // The device's turn is before each step of ours: all it can do.
        balloon.queues_mut().device_mut().serve(QueueId::Statistics);
        let step = statistics.step(&mut balloon, shared, now, |_| 1);
        let step = step.unwrap();
        offered += u32::from(step.offered);
        // It has answered before that.
        let silent = before.saturating_add(Nanos::from_secs(10));
        if let Some(at) = step.wake_at.filter(|&at| at != silent) {
            assert!(at > before, "asked for again at once");
            now = at;
        }
    }
    assert!(offered > 1 && now < Nanos::from_millis(u64::from(offered) + 1));
}

#[test]
fn statistics_do_not_wait_for_a_moment_of_the_clock_before_a_restore() {
    let shared: &'static Shared<16> = Box::leak(Box::default());
    let options = DriverOptions::new().with_statistics();
    let mut balloon = testing::bring_up::<16>(Profile::qemu(Features::empty()), &options).unwrap();
    let mut statistics = Statistics::new(&[Tag::FREE]);
    for now in [Nanos::from_secs(86_400), Nanos::from_secs(1)] {
        let step = statistics.step(&mut balloon, shared, now, |_| 1).unwrap();
        assert!(step.offered, "{step:?}");
        balloon.queues_mut().device_mut().serve(QueueId::Statistics);
    }
}

#[test]
fn a_lost_notification_is_made_again_for_every_party() {
    for event_idx in [Features::EVENT_IDX, Features::empty()] {
        let features = event_idx | Features::PAGE_REPORTING | Features::STATS_VQ;
        let options = DriverOptions::new().with_reporting().without_bulk();
        let mut guest = Sleeper::with_policy(Profile::qemu(features), &options.with_statistics());
        let mut statistics = Statistics::new(&[Tag::FREE]);
        let now = Nanos::ZERO;
        let offered = statistics.step(&mut guest.balloon, guest.shared, now, |_| 1);
        assert!(offered.unwrap().offered);
        guest.balloon.queues_mut().device_mut().set_target(100);
        guest.run(Nanos::ZERO);
        // The device was paused, and looks only when it is notified: it never was.
        let parties = [QueueId::Inflate, QueueId::Reporting, QueueId::Statistics];
        let rung = |guest: &Sleeper| parties.map(|q| guest.balloon.queues().device().notified(q));
        let before = rung(&guest);
        assert!(before.iter().all(|&times| times > 0));
        guest.run(Nanos::from_secs(10));
        let again = rung(&guest);
        // By the engine, and by a service that has waited as long.
        let told = before
            .iter()
            .zip(again)
            .all(|(before, again)| (1..=2).contains(&(again - before)));
        assert!(told, "once more: {before:?}, {again:?}");
        guest.run(Nanos::from_secs(1000));
        // After twice as long each time: 20 to 640 s.
        let often = rung(&guest);
        let seldom = again
            .iter()
            .zip(often)
            .all(|(before, often)| often - before <= 12);
        assert!(seldom, "ever more seldom: {again:?}, {often:?}");
        guest.engine.resume(Resume::Kept);
        guest.wake_at = Some(Nanos::ZERO);
        guest.run(Nanos::from_secs(1001));
        assert_eq!(rung(&guest), often.map(|times| times + 1));
    }
}

/// A guest that sleeps until it is interrupted, or until the moment its last step
/// named: whoever uses up the interrupt of another shows as a guest that sleeps on.
struct Sleeper {
    balloon: FakeBalloon<16>,
    shared: &'static Shared<16>,
    engine: Engine<16>,
    source: FakeSource,
    reporting: Reporting,
    heard: u32,
    wake_at: Option<Nanos>,
}

impl Sleeper {
    fn new(profile: Profile) -> Self {
        Self::with_policy(profile, &DriverOptions::new().with_reporting())
    }

    fn with_policy(profile: Profile, options: &DriverOptions) -> Self {
        let shared: &'static Shared<16> = Box::leak(Box::default());
        let memory = FrameRange::new(Pfn::new(0x1000), FrameCount::new(2048)).unwrap();
        let policy = ReportPace {
            order: Order::FRAME,
            ..ReportPace::DEFAULT
        };
        Self {
            balloon: testing::bring_up(profile, options).unwrap(),
            shared,
            engine: Engine::new(shared, Policy::DEFAULT),
            source: FakeSource::new(memory),
            reporting: Reporting::new(policy),
            heard: 0,
            wake_at: Some(Nanos::ZERO),
        }
    }

    fn run(&mut self, now: Nanos) {
        let interrupts = self.balloon.queues().device().interrupts();
        if self.heard == interrupts && self.wake_at.is_none_or(|at| at > now) {
            return;
        }
        self.heard = interrupts;
        self.shared.signal().config_changed();
        self.shared.signal().used();
        loop {
            let (balloon, source) = (&mut self.balloon, &mut self.source);
            let step = self.engine.step(balloon, source, now, Budget::SMALL);
            let report = self
                .reporting
                .step(balloon, self.shared, source, now)
                .unwrap();
            if !step.more && !report.more && !self.shared.signal().take() {
                self.wake_at = [step.wake_at, report.wake_at].into_iter().flatten().min();
                return;
            }
        }
    }
}

#[test]
fn a_guest_that_sleeps_is_woken_for_every_party() {
    const QUEUES: [QueueId; 3] = [QueueId::Inflate, QueueId::Deflate, QueueId::Reporting];
    for seed in 1..=100u64 {
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut below = |bound: u32| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            u32::try_from(random % u64::from(bound)).unwrap()
        };
        let mut guest = Sleeper::new(match below(3) {
            0 => Profile::specification(Features::PAGE_REPORTING),
            1 => Profile::qemu(Features::PAGE_REPORTING),
            _ => Profile::cloud_hypervisor(Features::PAGE_REPORTING),
        });
        let (mut set, mut target) = (Nanos::ZERO, 0);
        for millis in 0..4000 {
            let now = Nanos::from_millis(millis);
            guest.run(now);
            let device = guest.balloon.queues_mut().device_mut();
            if millis % 500 == 0 {
                target = below(2048);
                device.set_target(target);
                set = now;
            }
            // Answers now and then, some at a time.
            for queue in QUEUES {
                for _ in 0..below(12).saturating_sub(8) {
                    if let Some(chain) = device.take(queue) {
                        device.answer(queue, chain.head.into(), 0);
                    }
                }
            }
            // Used and freed again before the target changes: something to report, and
            // nothing that would wake anybody later on.
            if millis % 500 > 490
                && let Some(pfn) = guest.source.allocate()
            {
                guest.source.free_allocated(pfn);
                guest.reporting.look_again();
            }
            let settled = now.saturating_sub(set) > Nanos::from_millis(400);
            let actual = guest.balloon.queues().device().actual();
            assert!(
                !settled || actual == target,
                "seed {seed} sleeps at {millis} ms"
            );
        }
    }
}

/// Engine and all services of one device, in a guest that sleeps: what each says is the
/// only thing that wakes it but interrupts.
struct Everybody {
    balloon: FakeBalloon<16>,
    shared: &'static Shared<16>,
    engine: Box<Engine<16>>,
    source: FakeSource,
    statistics: Statistics,
    reporting: Box<Reporting>,
    hinting: Hinting,
    unused: Box<UnusedPages>,
    held: [BitmapLedger<Vec<u64>>; 2],
    now: Nanos,
    wakes: u32,
}

const FRAMES: u64 = 2048;

impl Everybody {
    fn new(profile: Profile, options: &DriverOptions) -> Self {
        let shared: &'static Shared<16> = Box::leak(Box::default());
        let memory = FrameRange::new(Pfn::new(0x1000), FrameCount::new(FRAMES)).unwrap();
        let words = usize::try_from(BitmapLedger::words(memory.count())).unwrap();
        let ledger = || BitmapLedger::new(vec![0; words], &[memory]).unwrap();
        let policy = ReportPace {
            order: Order::FRAME,
            ..ReportPace::DEFAULT
        };
        Self {
            balloon: testing::bring_up(profile, options).unwrap(),
            shared,
            engine: Box::new(Engine::new(shared, Policy::DEFAULT)),
            source: FakeSource::new(memory),
            statistics: Statistics::new(&[Tag::FREE]),
            reporting: Box::new(Reporting::new(policy)),
            hinting: Hinting::new(FrameCount::ZERO),
            unused: Box::new(UnusedPages::new(FrameCount::ZERO)),
            held: [ledger(), ledger()],
            now: Nanos::ZERO,
            wakes: 0,
        }
    }

    fn device(&mut self) -> &mut FakeDevice {
        self.balloon.queues_mut().device_mut()
    }

    /// What a service that the device has not, or has no more, says is no news.
    fn round(&mut self) -> (bool, Option<Nanos>) {
        let now = self.now;
        let (balloon, source, shared) = (&mut self.balloon, &mut self.source, self.shared);
        let [hinted, unused] = &mut self.held;
        let step = self.engine.step(balloon, source, now, Budget::SMALL);
        let (mut more, mut wakes) = (step.more, vec![step.wake_at]);
        if let Ok(step) = self.statistics.step(balloon, shared, now, |_| 1) {
            wakes.push(step.wake_at);
        }
        if let Ok(step) = self.reporting.step(balloon, shared, source, now) {
            more |= step.more;
            wakes.push(step.wake_at);
        }
        if let Ok(step) = self.hinting.step(balloon, shared, source, hinted, now) {
            more |= step.more;
            wakes.push(step.wake_at);
        }
        if let Ok(step) = self.unused.step(balloon, shared, source, unused, now) {
            more |= step.more;
            wakes.push(step.wake_at);
        }
        (more, wakes.into_iter().flatten().min())
    }

    /// Works, and sleeps as it was told, until then.
    fn run_until(&mut self, end: Nanos) {
        loop {
            let (more, wake_at) = self.round();
            if more | self.shared.signal().take() {
                continue;
            }
            match wake_at.filter(|&at| at <= end) {
                Some(at) => {
                    assert!(at > self.now, "it does not sleep");
                    self.now = at;
                }
                None => break,
            }
            self.wakes += 1;
        }
        self.now = end;
    }
}

/// Each service alone has something out: a device whose doorbell was lost, or that is
/// pulled out.
fn alone() -> Vec<(&'static str, QueueId, Everybody)> {
    let hints = DriverOptions::new().with_hints();
    let chunks = DriverOptions::new().with_chunk_transfer();
    let reports = DriverOptions::new().with_reporting();
    let statistics = DriverOptions::new().with_statistics();
    let qemu = |features| Profile::qemu(features);
    let mut hinting = Everybody::new(qemu(Features::FREE_PAGE_HINT), &hints);
    hinting.device().set_hint_command(9);
    vec![
        (
            "statistics",
            QueueId::Statistics,
            Everybody::new(qemu(Features::empty()), &statistics),
        ),
        (
            "reports",
            QueueId::Reporting,
            Everybody::new(qemu(Features::PAGE_REPORTING), &reports),
        ),
        ("hints", QueueId::Hint, hinting),
        (
            "requests",
            QueueId::Hint,
            Everybody::new(Profile::chunk_transfer(Features::empty()), &chunks),
        ),
    ]
}

#[test]
fn a_silent_device_is_notified_once_more_of_what_a_service_has_there() {
    for (name, queue, mut guest) in alone() {
        guest.run_until(Nanos::from_secs(9));
        assert!(guest.balloon.in_flight(queue) > 0, "{name}");
        let rung = guest.balloon.queues().device().notified(queue);
        assert!(rung > 0, "{name}");
        guest.run_until(Nanos::from_secs(11));
        let again = guest.balloon.queues().device().notified(queue);
        assert_eq!(again, rung + 1, "{name}");
        let wakes = guest.wakes;
        guest.run_until(Nanos::from_secs(3600));
        // After 20 s, and whenever the silence is twice as long.
        let often = guest.balloon.queues().device().notified(queue);
        assert_eq!(often, again + 8, "{name}");
        // Hints are polled for, ever more rarely.
        assert!(
            guest.wakes - wakes < 16,
            "{name}: {} wake-ups",
            guest.wakes - wakes
        );
        // It has heard at last, and is told of what follows.
        guest.device().serve(queue);
        guest.shared.signal().used();
        guest.now = guest.now.saturating_add(Nanos::from_secs(3600));
        guest.run_until(guest.now);
        let interest = guest.balloon.in_flight(queue);
        assert!(interest > 0 || queue != QueueId::Statistics, "{name}");
    }
}

#[test]
fn a_device_that_is_pulled_out_with_only_a_services_frames_is_found_out() {
    for byte in [0xff, 0] {
        for (name, queue, mut guest) in alone() {
            guest.run_until(Nanos::from_secs(1));
            assert!(guest.balloon.in_flight(queue) > 0, "{name}");
            guest.device().gone = Some(byte);
            guest.run_until(Nanos::from_secs(30));
            assert_eq!(guest.balloon.lost(), Some(VirtioError::Gone), "{name}");
            assert_eq!(guest.source.free().get(), FRAMES, "{name}");
        }
    }
}

#[test]
fn what_hinting_finds_is_news_for_the_engine() {
    let options = DriverOptions::new().with_hints();
    for fails in [false, true] {
        let mut guest = Everybody::new(Profile::qemu(Features::FREE_PAGE_HINT), &options);
        guest.run_until(Nanos::from_millis(10));
        let _ = guest.shared.signal().take();
        // No interrupt tells.
        if fails {
            guest.device().set_hint_command(9);
            guest.device().fail();
        } else {
            guest.device().gone = Some(0xff);
        }
        for _ in 0..3 {
            let (balloon, source, shared) = (&mut guest.balloon, &mut guest.source, guest.shared);
            let [held, _] = &mut guest.held;
            let found = guest.hinting.step(balloon, shared, source, held, guest.now);
            let error = [VirtioError::Absent, VirtioError::NeedsReset][usize::from(fails)];
            assert_eq!(found.err(), Some(error));
        }
        assert!(guest.shared.signal().is_set());
        guest.run_until(Nanos::from_secs(3));
        let blocked = [Blocked::DeviceGone, Blocked::DeviceNeedsReset][usize::from(fails)];
        let progress = guest.engine.status(&guest.source).progress;
        assert_eq!(progress, Progress::Blocked(blocked));
    }
}

#[test]
fn services_know_that_a_device_was_started_anew() {
    for (name, queue, mut guest) in alone() {
        guest.run_until(Nanos::from_secs(1));
        assert!(guest.balloon.in_flight(queue) > 0, "{name}");
        guest.device().fail();
        guest.shared.signal().config_changed();
        guest.run_until(Nanos::from_secs(2));
        assert_eq!(
            guest.balloon.lost(),
            Some(VirtioError::NeedsReset),
            "{name}"
        );
        let restarted = guest.balloon.restart(&mut guest.engine, &mut NoDelay);
        assert_eq!(restarted, Ok(()));
        guest.device().set_target(100);
        guest.shared.signal().config_changed();
        for millis in 2000..2100 {
            if millis == 2050 && name == "hints" {
                guest.device().set_hint_command(1);
                guest.shared.signal().config_changed();
            }
            guest.run_until(Nanos::from_millis(millis));
            for queue in [QueueId::Inflate, QueueId::Reporting, QueueId::Hint] {
                guest.device().serve(queue);
            }
            guest.shared.signal().used();
        }
        assert_eq!(guest.balloon.queues().device().actual(), 100, "{name}");
        // As many slots as before are there for it.
        let kind = match queue {
            QueueId::Statistics => Kind::Statistics,
            QueueId::Hint => Kind::Hint,
            _ => Kind::Report,
        };
        let slots = (0..16).map_while(|_| guest.shared.slots().claim(kind).ok());
        let slots = slots.collect::<Vec<_>>().len();
        assert!(slots >= 15, "{name}: {slots}");
        let free = guest.source.free().get();
        assert!(free + 100 == FRAMES || name == "reports", "{name}: {free}");
    }
}

/// Whoever takes up answers completes those of everybody.
#[test]
fn engine_and_services_have_one_shared_together() {
    let features = Features::PAGE_REPORTING | Features::FREE_PAGE_HINT;
    let options = DriverOptions::new()
        .with_reporting()
        .with_statistics()
        .with_hints();
    let other: &'static Shared<16> = Box::leak(Box::default());
    let mut guest = Everybody::new(Profile::qemu(features), &options);
    guest.device().set_target(1000);
    guest.round();
    assert!(guest.balloon.in_flight(QueueId::Reporting) > 0);
    let (balloon, source) = (&mut guest.balloon, &mut guest.source);
    let [held, _] = &mut guest.held;
    let now = Nanos::from_millis(1);
    let free = source.free();
    let refused = Err(VirtioError::OtherShared);
    let mut reporting: Reporting = Reporting::new(ReportPace::DEFAULT);
    let mut hinting: Hinting = Hinting::new(FrameCount::ZERO);
    let mut statistics = Statistics::new(&[Tag::FREE]);
    assert_eq!(
        reporting.step(balloon, other, source, now).map(drop),
        refused
    );
    assert_eq!(reporting.drain(balloon, other, source).map(drop), refused);
    assert_eq!(
        hinting.step(balloon, other, source, held, now).map(drop),
        refused
    );
    assert_eq!(
        statistics.step(balloon, other, now, |_| 1).map(drop),
        refused
    );
    // An engine of its own neither.
    let mut engine: Box<Engine<16>> = Box::new(Engine::new(other, Policy::DEFAULT));
    engine.step(balloon, source, now, Budget::LARGE);
    assert_eq!(engine.status(source).inflating, FrameCount::ZERO);
    assert_eq!(source.free(), free);
}
