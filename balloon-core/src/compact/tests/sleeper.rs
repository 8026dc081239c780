//! Nobody sleeps over news: a worker that steps engine and compactor in any order and
//! sleeps as it may, with a device that works between any two calls.

use alloc::format;
use alloc::string::String;

use super::*;
use crate::engine::relief::Need;
use crate::status::Progress;
use crate::testing::{Answers, FakeHost, FakeSource};

const FRAMES: u64 = 6 * BLOCK;
const FOR_EVER: Nanos = Nanos::from_secs(3600);

struct World {
    random: Random,
    shared: &'static Shared<SLOTS>,
    engine: Box<Engine<SLOTS>>,
    compactor: Box<Compactor<Vec<u32>, 2>>,
    host: FakeHost,
    source: FakeSource,
    used: Vec<Pfn>,
    now: Nanos,
    wake_at: Option<Nanos>,
    more: bool,
    /// Interrupts that the handler has seen.
    heard: usize,
    relief_tells: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..4 {
            random.below(2);
        }
        let shared = crate::shared::tests::leaked();
        let all = FrameRange::new(Pfn::new(0), FrameCount::new(FRAMES)).unwrap();
        let mut host = if random.below(3) == 0 {
            FakeHost::bulk()
        } else {
            FakeHost::plain()
        };
        host.answers = Answers::ByRing;
        host.event_idx = random.below(3) != 0;
        host.capabilities.must_tell_host = random.below(2) == 0;
        host.capabilities.deflate_on_oom = random.below(2) == 0;
        host.capabilities.inflate.in_flight = 1 + usize::try_from(random.below(6)).unwrap();
        host.capabilities.deflate.in_flight = 1 + usize::try_from(random.below(6)).unwrap();
        let mut policy = Policy::DEFAULT;
        // Longer than any run: what only time heals is lost.
        policy.silent_after = FOR_EVER;
        policy.min_read_interval = Nanos::ZERO;
        policy.cool_down = Nanos::ZERO;
        let words = usize::try_from(compactor_words(all)).unwrap();
        Self {
            random,
            shared,
            engine: Box::new(Engine::new(shared, policy)),
            compactor: Box::new(Compactor::new(vec![0; words], all).unwrap()),
            host,
            source: FakeSource::new(all).scattered(),
            used: Vec::new(),
            now: Nanos::ZERO,
            wake_at: None,
            more: true,
            heard: 0,
            relief_tells: false,
        }
    }

    /// The device, on a processor of its own, and the interrupt handler.
    fn device(&mut self, most: u64) {
        let count = usize::try_from(self.random.below(most + 1)).unwrap();
        self.answer(count);
    }

    fn answer(&mut self, count: usize) {
        self.host.answer(count, self.shared.slots().completer());
        if self.host.interrupts != self.heard {
            self.heard = self.host.interrupts;
            self.shared.signal().used();
        }
    }

    fn maybe_device(&mut self) {
        if self.random.below(3) == 0 {
            self.device(2);
        }
    }

    /// The worker: a round if something woke it, all in any order. Whether it ran.
    fn work(&mut self) -> bool {
        let due = self.wake_at.is_some_and(|at| at <= self.now);
        if !(self.shared.signal().take() | self.more | due) {
            return false;
        }
        let budget = Budget::requests(1 + usize::try_from(self.random.below(40)).unwrap());
        let mut steps = Vec::new();
        let first = self.random.below(2);
        for who in 0..2 {
            let (engine, host, source) = (&mut self.engine, &mut self.host, &mut self.source);
            steps.push(if who == first {
                engine.step(host, source, self.now, budget)
            } else {
                let compactor = &mut self.compactor;
                compactor.step(engine, host, source, self.now, budget)
            });
            self.maybe_device();
        }
        self.more = steps.iter().any(|step| step.more);
        self.wake_at = steps.iter().filter_map(|step| step.wake_at).min();
        true
    }

    fn set_target(&mut self, frames: u64) {
        self.host.target = FrameCount::new(frames);
        self.shared.signal().config_changed();
    }

    /// What happens now and then.
    fn event(&mut self) {
        match self.random.below(20) {
            0 => {
                let target = self.random.below(7 * BLOCK);
                self.set_target(target);
            }
            1 => drop(self.compactor.start()),
            2 => {
                let frames = FrameCount::new(1 + self.random.below(700));
                let (host, source) = (&mut self.host, &mut self.source);
                let relief = self
                    .engine
                    .relieve(host, source, Need::frames(frames), self.now);
                relief.wake(|| self.relief_tells = true);
                assert!(!core::mem::take(&mut self.relief_tells) || self.shared.signal().is_set());
            }
            3 => {
                let frames = FrameCount::new(1 + self.random.below(700));
                self.shared.request_relief(frames);
            }
            4 => {
                for _ in 0..self.random.below(200) {
                    self.used.extend(self.source.allocate());
                }
            }
            5 => {
                for pfn in self.used.drain(..) {
                    self.source.free_allocated(pfn);
                }
            }
            6..12 => self.device(4),
            _ => drop(self.work()),
        }
        self.maybe_device();
    }

    /// The device answers what it heard of, one by one, everybody sleeps as long as
    /// they may.
    fn settle(&mut self) {
        for _ in 0..200_000 {
            let before = self.host.waiting();
            if self.work() {
                continue;
            }
            self.answer(1);
            if self.host.waiting() < before {
                continue;
            }
            // A retry of what the host had no room for.
            let Some(at) = self.wake_at.filter(|&at| at < FOR_EVER) else {
                return;
            };
            self.now = self.now.max(at);
        }
        panic!("never at rest");
    }

    /// From here on nobody asks for anything: the target is reached and the round is
    /// over.
    fn calm(&mut self) {
        for pfn in self.used.drain(..) {
            self.source.free_allocated(pfn);
        }
        let target = self.random.below(5 * BLOCK);
        self.set_target(target);
        self.settle();
        let status = self.engine.status(&self.source);
        let state = self.describe();
        assert_eq!(status.progress, Progress::Reached, "{state}");
        assert_eq!(status.size.get(), target, "{state}");
        assert_eq!(self.host.unheard(), 0, "{state}");
        assert!(!self.compactor.is_running(), "{state}");
        assert!(self.host.breaches.is_empty(), "{state}");
        assert_eq!(self.host.actual().get(), target, "{state}");
    }

    fn describe(&self) -> String {
        format!(
            "{:?}; with the host {}, unheard {}, compacting {}, wake {:?}, {:?}",
            self.engine.status(&self.source),
            self.host.waiting(),
            self.host.unheard(),
            self.compactor.is_running(),
            self.wake_at,
            self.host.breaches,
        )
    }
}

fn run(seed: u64) {
    let mut world = World::new(seed);
    for _ in 0..world.random.below(400) {
        world.event();
    }
    world.calm();
}

/// As many as `SLEEPER_SEEDS` says, or some.
#[test]
fn no_order_of_steps_and_answers_puts_the_worker_to_sleep_over_news() {
    let seeds = std::env::var("SLEEPER_SEEDS").ok();
    let seeds = seeds.and_then(|seeds| seeds.parse().ok()).unwrap_or(60);
    for seed in 0..seeds {
        std::println!("seed {seed}");
        run(seed);
    }
}

#[test]
fn a_migration_that_was_never_heard_of_is_told_again() {
    for how in 0..2 {
        let mut world = World::new(5);
        world.host = FakeHost::plain();
        world.host.answers = Answers::ByRing;
        *world.engine = Engine::new(world.shared, Policy::DEFAULT);
        world.set_target(2 * BLOCK);
        world.settle();
        world.compactor.start();
        world.more = true;
        world.host.deaf = if how == 0 { 2 } else { usize::MAX };
        world.settle();
        if how == 1 {
            let silent = Progress::Blocked(Blocked::DeviceSilent);
            assert_eq!(world.engine.status(&world.source).progress, silent);
            world.host.deaf = 0;
            world.engine.resume(crate::Resume::Kept);
            world.settle();
        }
        assert!(!world.compactor.is_running(), "{}", world.describe());
        assert!(!world.compactor.report().moves.is_zero());
    }
}
