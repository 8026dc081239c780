use alloc::boxed::Box;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::policy::{Granularity, page_table_reserve};
use crate::testing::{Answers, FakeHost, FakeSource};
use crate::transport::TransportErrorKind;
use crate::units::{FrameRange, Pfn};
use crate::{Need, Relieved, Resume};

mod clocks;
mod corners;
mod ends;
mod faults;
mod pressure;
mod rest;
mod silence;
mod units;
mod wake_ups;

const N: usize = 4;

/// Targets count at once: time stands still in most tests.
const POLICY: Policy = Policy {
    min_read_interval: Nanos::ZERO,
    ..Policy::DEFAULT
};

/// An engine between a fake host and a fake allocator, with a clock.
struct Rig {
    engine: Box<Engine<N>>,
    shared: &'static Shared<N>,
    host: FakeHost,
    source: FakeSource,
    now: Nanos,
    used: FrameCount,
}

impl Rig {
    fn new(host: FakeHost, frames: u64) -> Self {
        Self::with_policy(host, frames, POLICY)
    }

    fn with_policy(host: FakeHost, frames: u64, policy: Policy) -> Self {
        let shared = crate::shared::tests::leaked();
        let all = FrameRange::new(Pfn::new(0x100), FrameCount::new(frames)).expect("some frames");
        Self {
            engine: Box::new(Engine::new(shared, policy)),
            shared,
            host,
            source: FakeSource::new(all),
            now: Nanos::ZERO,
            used: FrameCount::ZERO,
        }
    }

    fn step(&mut self, budget: Budget) -> Step {
        let step = self
            .engine
            .step(&mut self.host, &mut self.source, self.now, budget);
        let reserved = self.shared.emergency_frames();
        self.source.check(self.used.saturating_add(reserved));
        assert!(self.host.breaches.is_empty(), "{:?}", self.host.breaches);
        assert_eq!(self.host.oversized, 0, "a request beyond the limits");
        let status = self.status();
        let moving = status.inflating.saturating_add(status.deflating);
        assert_eq!(self.source.in_hand(), moving);
        step
    }

    fn set_target(&mut self, frames: u64) {
        self.host.target = FrameCount::new(frames);
        self.shared.signal().config_changed();
    }

    /// Steps until nothing is to be done now; the last answer.
    fn run(&mut self) -> Step {
        for _ in 0..10_000 {
            let step = self.step(Budget::LARGE);
            if !step.more && self.host.waiting() == 0 {
                return step;
            }
        }
        panic!("the engine never comes to rest: {:?}", self.status());
    }

    fn inflate_to(&mut self, frames: u64) -> Step {
        self.set_target(frames);
        self.run()
    }

    fn status(&self) -> Status {
        self.engine.status(&self.source)
    }

    fn size(&self) -> u64 {
        self.status().size.get()
    }

    #[track_caller]
    fn assert_reached(&self, frames: u64) {
        let status = self.status();
        assert_eq!(status.progress, Progress::Reached, "{status:?}");
        assert_eq!(
            (status.size.get(), self.host.actual().get()),
            (frames, frames)
        );
    }
}

#[test]
fn reaches_every_target_exactly_and_rests() {
    for answers in [
        Answers::Promptly,
        Answers::AtOnce,
        Answers::Twice,
        Answers::Babbling,
    ] {
        for (host, scattered) in [
            (FakeHost::plain(), false),
            (FakeHost::bulk(), false),
            (FakeHost::plain(), true),
            (FakeHost::bulk(), true),
        ] {
            let mut rig = Rig::new(host, 5000);
            rig.host.answers = answers;
            if scattered {
                rig.source = rig.source.scattered();
            }
            for target in [1, 255, 256, 257, 4999, 5000, 3, 0, 1024] {
                let step = rig.inflate_to(target);
                rig.assert_reached(target);
                assert_eq!(
                    step,
                    Step {
                        more: false,
                        wake_at: None
                    },
                    "no wake-up at rest"
                );
            }
        }
    }
}

#[test]
fn ranges_go_in_bulk_and_scattered_frames_do_not() {
    let mut rig = Rig::new(FakeHost::bulk(), 4096);
    rig.inflate_to(2048);
    assert_eq!(rig.source.held(Via::Bulk).get(), 2048);
    assert_eq!(rig.host.requests(), 1);
    let mut rig = Rig::new(FakeHost::bulk(), 4096);
    rig.source = rig.source.scattered();
    rig.inflate_to(2048);
    assert_eq!(rig.source.held(Via::Inflate).get(), 2048);
    assert_eq!(
        rig.host.requests(),
        8,
        "256 scattered frames fill one request"
    );
}

#[test]
fn frames_beyond_a_pfn_array_go_in_bulk_however_scattered() {
    let mut rig = Rig::new(FakeHost::bulk(), 0x1000);
    let all = FrameRange::new(Pfn::new(1 << 32), FrameCount::new(0x1000)).unwrap();
    rig.source = FakeSource::new(all).scattered();
    rig.inflate_to(100);
    rig.assert_reached(100);
    assert_eq!(rig.source.held(Via::Bulk).get(), 100);
    // The plain path alone cannot name them: told so, and nothing is lost.
    let mut rig = Rig::new(FakeHost::plain(), 0x1000);
    rig.source = FakeSource::new(all);
    rig.inflate_to(100);
    assert_eq!(
        rig.status().progress,
        Progress::Blocked(Blocked::OutOfReach)
    );
    assert_eq!(rig.size(), 0);
}

#[test]
fn memory_that_comes_at_run_time_raises_the_clamp() {
    let boot = FrameCount::new(1 << 15);
    let mut rig = Rig::with_policy(FakeHost::plain(), 1 << 17, Policy::for_memory(boot));
    rig.source.floor = FrameCount::ZERO;
    rig.inflate_to(40_000);
    let clamped = rig.size();
    assert_eq!(rig.status().progress, Progress::Blocked(Blocked::Floor));
    let policy = Policy {
        max_size: Policy::for_memory(FrameCount::new(1 << 17)).max_size,
        ..*rig.engine.policy()
    };
    rig.engine.set_policy(policy);
    assert!(rig.shared.signal().is_set(), "whoever sleeps steps");
    rig.run();
    assert!(clamped < 40_000);
    rig.assert_reached(40_000);
    // And the other way: what is above the new clamp comes back.
    rig.engine.set_policy(Policy {
        max_size: FrameCount::new(100),
        ..policy
    });
    rig.run();
    assert_eq!(rig.size(), 100);
}

#[test]
fn a_target_above_memory_gives_what_there_is_and_says_why() {
    let mut rig = Rig::new(FakeHost::plain(), 1000);
    let step = rig.inflate_to(u64::MAX);
    assert_eq!(
        rig.status().progress,
        Progress::Blocked(Blocked::AllocatorEmpty)
    );
    assert_eq!((rig.size(), rig.host.actual().get()), (1000, 1000));
    assert!(step.wake_at.is_some(), "it tries again");
    rig.inflate_to(0);
    rig.assert_reached(0);
}

#[test]
fn what_the_kernel_keeps_is_left_and_named() {
    type Obstacle = fn(&mut FakeSource, FrameCount);
    let cases: [(u64, Obstacle, Blocked); 3] = [
        (0, |source, frames| source.floor = frames, Blocked::Floor),
        (100, |_, _| {}, Blocked::Reserve),
        (0, |source, frames| source.pinned = frames, Blocked::Pinned),
    ];
    for (min_free, put, reason) in cases {
        let min_free = FrameCount::new(min_free);
        let mut rig = Rig::with_policy(FakeHost::bulk(), 1000, Policy { min_free, ..POLICY });
        put(&mut rig.source, FrameCount::new(100));
        rig.inflate_to(1000);
        assert_eq!(rig.status().progress, Progress::Blocked(reason));
        assert_eq!(rig.size(), 900);
        if min_free.is_zero() {
            // Lifted: the next due retry finishes.
            put(&mut rig.source, FrameCount::ZERO);
            rig.now = rig.run().wake_at.unwrap();
            rig.run();
            rig.assert_reached(1000);
        }
    }
}

#[test]
fn frames_in_flight_count_so_nothing_overshoots() {
    let mut host = FakeHost::plain();
    host.answers = Answers::WhenTold;
    let mut rig = Rig::new(host, 2000);
    rig.set_target(600);
    rig.step(Budget::LARGE);
    assert_eq!(rig.status().inflating.get(), 600);
    let requests = rig.host.requests();
    for target in [600, 300, 500, 600] {
        rig.set_target(target);
        rig.step(Budget::LARGE);
    }
    assert_eq!(
        rig.host.requests(),
        requests,
        "600 frames are on their way already"
    );
    rig.set_target(200);
    rig.step(Budget::LARGE);
    rig.host.answers = Answers::Promptly;
    rig.run();
    rig.assert_reached(200);
    assert!(
        rig.host.published.iter().all(|size| size.get() <= 600),
        "never above"
    );
}

#[test]
fn one_step_does_no_more_than_its_budget() {
    let mut rig = Rig::new(FakeHost::plain(), 3000);
    rig.set_target(3000);
    let mut before = 0;
    for _ in 0..200 {
        rig.step(Budget::SMALL);
        assert!(rig.host.requests() <= before + 1);
        before = rig.host.requests();
    }
    rig.assert_reached(3000);
}

#[test]
fn bursts_refill_when_half_is_answered() {
    let mut host = FakeHost::plain();
    host.answers = Answers::WhenTold;
    let mut rig = Rig::new(host, 256 * 64);
    rig.set_target(256 * 64);
    rig.step(Budget::LARGE);
    let mut steps = 0;
    while rig.size() < 256 * 64 {
        rig.host.answer(1, rig.shared.slots().completer());
        rig.shared.signal().used();
        rig.step(Budget::LARGE);
        steps += 1;
        assert!(steps < 1000);
    }
    assert_eq!(rig.host.requests(), 64);
}

#[test]
fn a_silent_device_is_named_and_may_come_back() {
    let mut host = FakeHost::plain();
    host.answers = Answers::WhenTold;
    let mut rig = Rig::new(host, 1000);
    rig.set_target(500);
    let step = rig.step(Budget::LARGE);
    assert_eq!(rig.status().progress, Progress::Working);
    rig.now = step.wake_at.expect("a deadline for the answer");
    let step = rig.step(Budget::LARGE);
    assert_eq!(
        rig.status().progress,
        Progress::Blocked(Blocked::DeviceSilent)
    );
    let later = rig.now.saturating_add(POLICY.silent_after);
    assert_eq!(step.wake_at, Some(later), "after twice as long");
    assert_eq!(
        rig.source.free().get(),
        500,
        "the guest runs on with the rest"
    );
    rig.host.answers = Answers::Promptly;
    rig.shared.signal().used();
    rig.run();
    rig.assert_reached(500);
}

#[test]
fn a_partial_answer_gives_the_rest_back() {
    for host in [FakeHost::plain(), FakeHost::bulk()] {
        let mut rig = Rig::new(host, 1000);
        rig.host.answers = Answers::Partly(FrameCount::new(100));
        rig.set_target(300);
        rig.step(Budget::LARGE);
        rig.step(Budget::LARGE);
        let given = rig.size();
        assert_eq!(rig.host.owned().get(), given);
        assert!(given > 0 && given < 300);
        rig.host.answers = Answers::Promptly;
        rig.run();
        rig.assert_reached(300);
    }
}

#[test]
fn only_populated_frames_are_useful_and_a_partial_answer_counts_few_too_many() {
    for (emptied, done) in [(0, 60), (40, 100), (40, 60), (100, 60), (40, 7), (40, 95)] {
        let mut rig = Rig::new(FakeHost::plain(), 1000);
        // So many came back from the host a moment ago, and are the next to go.
        rig.inflate_to(emptied);
        assert_eq!(rig.status().counters.useful.get(), emptied);
        rig.inflate_to(0);
        rig.host.answers = Answers::Partly(FrameCount::new(done));
        rig.set_target(100);
        rig.step(Budget::LARGE);
        rig.step(Budget::LARGE);
        assert_eq!(rig.host.owned().get(), done, "one request");
        let given = (0x100..0x100 + 1000).map(Pfn::new);
        let given = given.filter(|&pfn| rig.source.ballooned(pfn).is_some());
        let gained = given.filter(|&pfn| rig.source.is_populated(pfn)).count() as u64;
        let counted = rig.status().counters.useful.get() - emptied;
        let case = std::format!("{emptied} {done}: {counted}, truly {gained}");
        assert!(
            counted >= gained && counted - gained <= 100 - done,
            "{case}"
        );
    }
}

#[test]
fn a_host_that_refuses_is_asked_ever_less_often() {
    for kind in [
        TransportErrorKind::Refused,
        TransportErrorKind::Unstable,
        TransportErrorKind::Full,
    ] {
        let mut rig = Rig::new(FakeHost::plain(), 1000);
        rig.inflate_to(10);
        rig.host.fails = Some(kind);
        rig.inflate_to(500);
        assert_eq!(
            rig.status().progress,
            Progress::Blocked(Blocked::HostRefused)
        );
        assert_eq!((rig.size(), rig.source.free().get()), (10, 990));
        rig.host.fails = None;
        rig.now = Nanos::from_secs(3600);
        rig.run();
        rig.assert_reached(500);
    }
}

#[test]
fn a_host_that_speaks_is_asked_again_at_once() {
    let mut rig = Rig::new(FakeHost::plain(), 1000);
    rig.inflate_to(10);
    rig.host.fails = Some(TransportErrorKind::Refused);
    let first = rig.inflate_to(500).wake_at;
    // The same target once more, in vain: the wait goes on growing.
    let second = rig.inflate_to(500).wake_at;
    assert!(second > first, "{second:?} after {first:?}");
    rig.host.fails = None;
    rig.inflate_to(500);
    rig.assert_reached(500);
}

#[test]
fn a_broken_device_ends_all_talk_and_loses_nothing() {
    let mut host = FakeHost::plain();
    host.answers = Answers::WhenTold;
    let mut rig = Rig::new(host, 1000);
    rig.set_target(500);
    rig.step(Budget::LARGE);
    rig.host.fails = Some(TransportErrorKind::Broken);
    let step = rig.run_once();
    assert_eq!(
        step,
        Step {
            more: false,
            wake_at: None
        }
    );
    assert_eq!(
        rig.status().progress,
        Progress::Blocked(Blocked::DeviceBroken)
    );
    assert_eq!(
        rig.status().inflating.get(),
        500,
        "the device may still write to them"
    );
}

impl Rig {
    fn run_once(&mut self) -> Step {
        self.shared.signal().used();
        self.step(Budget::LARGE)
    }
}

#[test]
fn a_source_that_takes_nothing_back_keeps_frames_in_hand() {
    for host in [FakeHost::plain(), FakeHost::bulk()] {
        let mut rig = Rig::new(host, 1000);
        rig.inflate_to(600);
        rig.source.refuses = true;
        rig.set_target(100);
        let mut step = rig.step(Budget::LARGE);
        for _ in 0..3 {
            step = rig.step(Budget::LARGE);
        }
        assert_eq!(
            rig.status().progress,
            Progress::Blocked(Blocked::SourceRefused)
        );
        rig.source.refuses = false;
        rig.now = step.wake_at.expect("it tries again");
        rig.run();
        rig.assert_reached(100);
    }
}

#[test]
fn a_full_transport_is_retried_after_the_next_answer() {
    let mut host = FakeHost::plain();
    host.capabilities.inflate.in_flight = 3;
    let mut rig = Rig::new(host, 5000);
    // The host promises three requests and takes two.
    rig.host.answers = Answers::WhenTold;
    rig.set_target(5000);
    rig.step(Budget::LARGE);
    rig.host.answers = Answers::Promptly;
    rig.run();
    rig.assert_reached(5000);
}

#[test]
fn a_host_without_interrupts_is_polled() {
    let mut host = FakeHost::plain();
    host.capabilities.interrupts = false;
    let mut rig = Rig::new(host, 1000);
    rig.host.target = FrameCount::new(70);
    let mut wakes = 0;
    for _ in 0..10 {
        rig.now = rig.step(Budget::LARGE).wake_at.expect("polled");
        wakes += 1;
    }
    assert_eq!((rig.size(), wakes), (70, 10));
    assert_eq!(rig.now, Nanos::from_secs(1));
}

/// What may happen to a rig.
#[derive(Clone, Debug)]
enum Event {
    Target(u16),
    Step(u8),
    Answer(u8),
    Time(u16),
    Allocate(u8),
    Answers(u8),
    Refuse(bool),
    Short(u8),
    Fail(u8),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => any::<u16>().prop_map(|t| Event::Target(t % 2500)),
        8 => (1..20u8).prop_map(Event::Step),
        4 => (1..8u8).prop_map(Event::Answer),
        2 => any::<u16>().prop_map(Event::Time),
        1 => any::<u8>().prop_map(Event::Allocate),
        1 => (0..6u8).prop_map(Event::Answers),
        1 => any::<bool>().prop_map(Event::Refuse),
        1 => any::<u8>().prop_map(Event::Short),
        1 => (0..4u8).prop_map(Event::Fail),
    ]
}

impl Rig {
    fn apply(&mut self, event: &Event) -> Option<Step> {
        match *event {
            Event::Target(frames) => self.set_target(frames.into()),
            Event::Step(budget) => return Some(self.step(Budget::requests(budget.into()))),
            Event::Answer(count) => {
                self.host
                    .answer(count.into(), self.shared.slots().completer());
                self.shared.signal().used();
            }
            Event::Time(millis) => {
                self.now = self.now.saturating_add(Nanos::from_millis(millis.into()));
            }
            Event::Allocate(frames) => {
                for _ in 0..frames {
                    if let Some(pfn) = self.source.allocate() {
                        self.host.touched(pfn);
                        self.used = self.used.saturating_add(FrameCount::ONE);
                    }
                }
            }
            Event::Answers(how) => {
                self.host.answers = match how {
                    0 => Answers::AtOnce,
                    1 => Answers::Promptly,
                    2 => Answers::WhenTold,
                    3 => Answers::Twice,
                    4 => Answers::Babbling,
                    _ => Answers::Partly(FrameCount::new(37)),
                };
            }
            Event::Refuse(refuses) => self.source.refuses = refuses,
            Event::Short(frames) => {
                self.source.short = FrameCount::new(u64::from(frames) + 1);
            }
            Event::Fail(how) => {
                self.host.fails = match how {
                    0 => Some(TransportErrorKind::Refused),
                    1 => Some(TransportErrorKind::Full),
                    _ => None,
                };
            }
        }
        None
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 4 } else { 256 }, ..ProptestConfig::default() })]

    /// Whatever happens, each frame has one owner (checked after every step),
    /// the guest breaks no rule, steps come to rest as things are, and once they
    /// calm down the target is reached.
    #[test]
    fn no_program_loses_a_frame(bulk: bool, events in prop::collection::vec(event(), 1..120)) {
        let host = if bulk { FakeHost::bulk() } else { FakeHost::plain() };
        let mut rig = Rig::new(host, 2000);
        for event in &events {
            rig.apply(event);
        }
        rig.rest();
        rig.source.refuses = false;
        rig.source.short = FrameCount::MAX;
        rig.host.fails = None;
        rig.host.answers = Answers::Promptly;
        let reachable = 2000 - rig.used.get();
        rig.set_target(reachable / 2);
        for _ in 0..20 {
            rig.now = rig.now.saturating_add(Nanos::from_secs(100));
            rig.run();
        }
        rig.assert_reached(reachable / 2);
    }

    /// Same events, same actions.
    #[test]
    fn is_deterministic(events in prop::collection::vec(event(), 1..60)) {
        let run = || {
            let mut rig = Rig::new(FakeHost::bulk(), 2000);
            let steps: Vec<_> = events.iter().map(|event| rig.apply(event)).collect();
            (steps, rig.host.published, rig.host.kicks, rig.engine.status(&rig.source))
        };
        prop_assert_eq!(run(), run());
    }
}
