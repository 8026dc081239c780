//! Nobody sleeps over news: a worker that steps engine, compactor, and services in any
//! order and sleeps as it may, with a device that works between any two calls.

// Whole guests on memory that is safe code: hours under Miri.
#![cfg(not(any(miri, loom)))]
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use balloon_core::testing::FakeSource;
use balloon_core::{
    BitmapLedger, Budget, Compactor, Engine, FrameCount, FrameRange, Nanos, Need, Order, Pfn,
    Policy, Progress, Shared, compactor_words,
};
use transport_virtio::testing::{self, Chain, FakeBalloon, FakeDevice, Profile};
use transport_virtio::{
    DriverOptions, Features, Hinting, QueueId, ReportPace, Reporting, Statistics, Tag,
};

const N: usize = 4;
const FIRST: u64 = 0x1000;
const FRAMES: u64 = 4 * 512 + 37;
/// Longer than any run: what only time heals is lost.
const FOR_EVER: Nanos = Nanos::from_secs(3600);
/// How far time goes on now and then.
const PAUSE: Nanos = Nanos::from_millis(1);
const DONE: u32 = 1;

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// Whom the worker steps.
#[derive(Clone, Copy)]
enum Party {
    Engine,
    Compactor,
    Hinting,
    Reporting,
    Statistics,
}

struct World {
    random: Random,
    balloon: FakeBalloon<16>,
    shared: &'static Shared<N>,
    engine: Box<Engine<N>>,
    compactor: Compactor<Vec<u32>, 2>,
    source: FakeSource,
    hinting: Option<(Hinting<4>, BitmapLedger<Vec<u64>>)>,
    reporting: Option<Reporting>,
    statistics: Option<Statistics>,
    parties: Vec<Party>,
    /// With the device, seen and not answered.
    pending: Vec<(QueueId, Chain)>,
    used: Vec<Pfn>,
    command: u32,
    now: Nanos,
    wake_at: Option<Nanos>,
    more: bool,
    heard: u32,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..5 {
            random.below(2);
        }
        let mut features = Features::empty();
        for feature in [
            Features::EVENT_IDX,
            Features::EVENT_IDX,
            Features::PAGE_REPORTING,
            Features::DEFLATE_ON_OOM,
            Features::FREE_PAGE_HINT,
            Features::STATS_VQ,
            Features::MUST_TELL_HOST,
        ] {
            if random.chance(60) {
                features |= feature;
            }
        }
        let mut options = DriverOptions::new().with_hints().with_statistics();
        if random.chance(60) {
            options = options.with_reporting();
        }
        if random.chance(30) {
            options = options.without_bulk();
        }
        let profile = match random.below(3) {
            0 => Profile::qemu(features),
            1 => Profile::specification(features),
            _ => Profile::cloud_hypervisor(features),
        };
        let balloon = testing::bring_up::<16>(profile, &options).unwrap();
        let mut policy = Policy::DEFAULT;
        policy.silent_after = FOR_EVER;
        policy.cool_down = Nanos::ZERO;
        policy.min_read_interval = Nanos::ZERO;
        let shared: &'static Shared<N> = Box::leak(Box::default());
        let memory = FrameRange::new(Pfn::new(FIRST), FrameCount::new(FRAMES)).unwrap();
        let words = usize::try_from(compactor_words(memory)).unwrap();
        let mut parties = vec![Party::Engine, Party::Compactor];
        let hinting = balloon.hint_limits().map(|_| {
            parties.push(Party::Hinting);
            let words = vec![0; usize::try_from(BitmapLedger::words(memory.count())).unwrap()];
            let held = BitmapLedger::new(words, &[memory]).unwrap();
            (Hinting::new(FrameCount::ZERO), held)
        });
        let reporting = balloon.report_limits().map(|_| {
            parties.push(Party::Reporting);
            Reporting::new(ReportPace {
                order: Order::new(u8::try_from(random.below(4)).unwrap()).unwrap(),
                rest: FOR_EVER,
                ..ReportPace::DEFAULT
            })
        });
        let statistics = balloon.negotiated().contains(Features::STATS_VQ).then(|| {
            parties.push(Party::Statistics);
            Statistics::new(&[Tag::FREE])
        });
        Self {
            random,
            balloon,
            shared,
            engine: Box::new(Engine::new(shared, policy)),
            compactor: Compactor::new(vec![0; words], memory).unwrap(),
            source: FakeSource::new(memory).scattered(),
            hinting,
            reporting,
            statistics,
            parties,
            pending: Vec::new(),
            used: Vec::new(),
            command: DONE,
            now: Nanos::ZERO,
            wake_at: None,
            more: true,
            heard: 0,
        }
    }

    fn device(&mut self) -> &mut FakeDevice {
        self.balloon.queues_mut().device_mut()
    }

    /// The interrupt handler, which runs at once.
    fn interrupt(&mut self) {
        let interrupts = self.device().interrupts();
        if core::mem::replace(&mut self.heard, interrupts) != interrupts {
            self.shared.signal().used();
        }
    }

    /// The device, on a processor of its own, answers in an order of its own.
    fn progress(&mut self, most: u64) {
        for queue in QueueId::ALL {
            // The buffer of statistics stays until the host wants new ones.
            if queue == QueueId::Statistics && !self.random.chance(10) {
                continue;
            }
            for _ in 0..self.random.below(most + 1) {
                let chain = self.device().take(queue);
                self.pending.extend(chain.map(|chain| (queue, chain)));
            }
        }
        for _ in 0..self.random.below(most + 1) {
            self.answer_one();
            self.interrupt();
        }
    }

    fn answer_one(&mut self) {
        if !self.pending.is_empty() {
            let at = self.random.below(self.pending.len() as u64);
            let (queue, chain) = self.pending.swap_remove(usize::try_from(at).unwrap());
            self.device().answer(queue, chain.head.into(), 0);
        }
    }

    fn maybe_progress(&mut self) {
        if self.random.chance(30) {
            self.progress(2);
        }
    }

    fn step(&mut self, party: Party) {
        let (balloon, source, shared) = (&mut self.balloon, &mut self.source, self.shared);
        let budget = Budget::requests(1 + usize::try_from(self.random.below(40)).unwrap());
        let (more, wake_at) = match party {
            Party::Engine => {
                let step = self.engine.step(balloon, source, self.now, budget);
                (step.more, step.wake_at)
            }
            Party::Compactor => {
                let engine = &mut self.engine;
                let step = self
                    .compactor
                    .step(engine, balloon, source, self.now, budget);
                (step.more, step.wake_at)
            }
            Party::Hinting => {
                let (hinting, held) = self.hinting.as_mut().unwrap();
                let step = hinting
                    .step(balloon, shared, source, held, self.now)
                    .unwrap();
                (step.more, step.wake_at)
            }
            Party::Reporting => {
                let reporting = self.reporting.as_mut().unwrap();
                let step = reporting.step(balloon, shared, source, self.now).unwrap();
                (step.more, step.wake_at)
            }
            Party::Statistics => {
                let statistics = self.statistics.as_mut().unwrap();
                let step = statistics.step(balloon, shared, self.now, |_| 1).unwrap();
                (false, step.wake_at)
            }
        };
        self.more |= more;
        self.wake_at = [self.wake_at, wake_at].into_iter().flatten().min();
    }

    /// The worker: a round, if something has woken it; whether it ran.
    fn work(&mut self) -> bool {
        let due = self.wake_at.is_some_and(|at| at <= self.now);
        if !(self.shared.signal().take() | self.more | due) {
            return false;
        }
        (self.more, self.wake_at) = (false, None);
        let turn = usize::try_from(self.random.below(5)).unwrap() % self.parties.len();
        self.parties.rotate_left(turn);
        for party in self.parties.clone() {
            self.step(party);
            self.maybe_progress();
        }
        true
    }

    fn set_target(&mut self, target: u64) {
        self.device().set_target(u32::try_from(target).unwrap());
        self.heard = self.device().interrupts();
        self.shared.signal().config_changed();
    }

    fn set_command(&mut self, command: u32) {
        self.device().set_hint_command(command);
        self.heard = self.device().interrupts();
        self.shared.signal().config_changed();
    }

    /// What happens now and then.
    fn event(&mut self) {
        match self.random.below(20) {
            0 => {
                let target = self.random.below(FRAMES + 300);
                self.set_target(target);
            }
            1 => drop(self.compactor.start()),
            2 => {
                let need = Need::frames(FrameCount::new(1 + self.random.below(700)));
                let (balloon, source) = (&mut self.balloon, &mut self.source);
                // The worker is woken by the signal.
                let relief = self.engine.relieve(balloon, source, need, self.now);
                relief.wake(|| {});
            }
            3 => {
                let frames = FrameCount::new(1 + self.random.below(700));
                self.shared.request_relief(frames);
            }
            4 => {
                for _ in 0..self.random.below(300) {
                    self.used.extend(self.source.allocate());
                }
            }
            5 => self.free(),
            6 => {
                self.command += 1;
                let command = [0, DONE, self.command, self.command];
                let at = usize::try_from(self.random.below(4)).unwrap();
                self.set_command(command.get(at).copied().unwrap());
            }
            7 => self.now = self.now.saturating_add(PAUSE),
            8..13 => self.progress(4),
            _ => drop(self.work()),
        }
        self.maybe_progress();
    }

    /// Much is freed: whoever reports is told.
    fn free(&mut self) {
        for pfn in self.used.drain(..) {
            self.source.free_allocated(pfn);
        }
        if let Some(reporting) = &mut self.reporting {
            reporting.look_again();
            self.shared.signal().used();
        }
    }

    /// The device answers one by one, everybody sleeps as long as they may.
    fn settle(&mut self) {
        for _ in 0..200_000 {
            self.interrupt();
            if self.work() {
                continue;
            }
            for queue in QueueId::ALL {
                if queue != QueueId::Statistics {
                    let chain = self.device().take(queue);
                    self.pending.extend(chain.map(|chain| (queue, chain)));
                }
            }
            if !self.pending.is_empty() {
                self.answer_one();
                continue;
            }
            // A look at hints, a retry of what the host had no room for.
            let Some(at) = self.wake_at.filter(|&at| at < FOR_EVER) else {
                return;
            };
            self.now = at;
        }
        panic!("never at rest");
    }

    fn calm(&mut self) {
        if self.hinting.is_some() {
            self.set_command(DONE);
        }
        self.free();
        let target = self.random.below(FRAMES - 100);
        self.set_target(target);
        self.settle();
        let status = self.engine.status(&self.source);
        assert_eq!(status.progress, Progress::Reached, "{status:?}");
        assert_eq!(status.size.get(), target, "{status:?}");
        assert_eq!(u64::from(self.device().actual()), target);
        assert!(!self.compactor.is_running(), "a round that nobody wakes");
        if let Some((hinting, _)) = &self.hinting {
            assert!(hinting.is_drained(), "a hint that nobody hears of");
        }
        if let Some(reporting) = &self.reporting {
            assert!(reporting.is_idle(), "a report that nobody hears of");
        }
        if self.statistics.is_some() {
            for _ in 0..3 {
                let buffer = self.device().take(QueueId::Statistics);
                let chain = buffer.expect("a host that asks is answered");
                self.pending.push((QueueId::Statistics, chain));
                self.settle();
            }
        }
    }
}

/// As many seeds as `SLEEPER_SEEDS` says, or some.
#[test]
fn no_order_of_steps_and_answers_puts_the_worker_to_sleep_over_news() {
    let seeds = std::env::var("SLEEPER_SEEDS").ok();
    let seeds = seeds.and_then(|seeds| seeds.parse().ok()).unwrap_or(60);
    for seed in 0..seeds {
        println!("seed {seed}");
        let mut world = World::new(seed);
        for _ in 0..world.random.below(400) {
            world.event();
        }
        world.calm();
    }
}
