//! Services beside the balloon: what a device does to them is not the balloon's.

// Whole guests on memory that is safe code: hours under Miri.
#![cfg(not(any(miri, loom)))]
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use balloon_core::testing::FakeSource;
use balloon_core::{
    Budget, Engine, FrameCount, FrameRange, Nanos, Order, Pfn, Policy as Pace, Progress, Shared,
};
use transport_virtio::fake::{self, FakeBalloon, Profile};
use transport_virtio::{
    Features, Policy, QueueError, QueueId, ReportPace, Reporting, Statistics, Tag, VirtioError,
};

#[test]
fn a_statistics_queue_that_runs_away_leaves_the_balloon_alone() {
    let shared: &'static Shared<16> = Box::leak(Box::default());
    let policy = Policy::new().with_statistics();
    let mut balloon = fake::bring_up::<16>(Profile::qemu(Features::empty()), &policy).unwrap();
    let mut statistics = Statistics::new(&[Tag::FREE]);
    let memory = FrameRange::new(Pfn::new(0x1000), FrameCount::new(2048)).unwrap();
    let mut source = FakeSource::new(memory);
    let mut engine = Engine::new(shared, Pace::DEFAULT);
    let offered = statistics.step(&mut balloon, shared.slots(), |_| 1);
    assert_eq!(offered, Ok(true));

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
    let told = statistics.step(&mut balloon, shared.slots(), |_| 1);
    let broken = VirtioError::Queue(QueueId::Statistics, QueueError::Broken);
    assert_eq!(told, Err(broken), "the service is told");
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
        let shared: &'static Shared<16> = Box::leak(Box::default());
        let memory = FrameRange::new(Pfn::new(0x1000), FrameCount::new(2048)).unwrap();
        let pace = ReportPace {
            order: Order::FRAME,
            ..ReportPace::DEFAULT
        };
        Self {
            balloon: fake::bring_up(profile, &Policy::new().with_reporting()).unwrap(),
            shared,
            engine: Engine::new(shared, Pace::DEFAULT),
            source: FakeSource::new(memory),
            reporting: Reporting::new(pace),
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
                .step(balloon, self.shared.slots(), source, now)
                .unwrap();
            if !step.more && !report.more && !self.shared.signal().pending() {
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
