//! The engine comes to rest whatever the host and the source do, at any budget.

use super::*;
use crate::slots::Completer;
use crate::slots::Request;
use crate::transport::Limits;

impl Rig {
    /// Steps with the smallest budget until nothing is to be done now.
    #[track_caller]
    pub(super) fn rest(&mut self) -> Step {
        for _ in 0..5_000 {
            let step = self.step(Budget::SMALL);
            if !step.more {
                return step;
            }
        }
        panic!("the engine never comes to rest: {:?}", self.status());
    }
}

#[test]
fn a_miss_within_tolerance_ends_at_the_smallest_budget_too() {
    let policy = Policy {
        tolerance: FrameCount::new(16),
        ..POLICY
    };
    let mut rig = Rig::with_policy(FakeHost::plain(), 1000, policy);
    rig.set_target(1010);
    assert_eq!(rig.rest().wake_at, None);
    assert_eq!(rig.status().progress, Progress::WithinTolerance);
}

#[test]
fn a_source_that_takes_nothing_back_is_not_asked_without_end() {
    for host in [FakeHost::plain(), FakeHost::bulk()] {
        let mut rig = Rig::new(host, 3000);
        rig.inflate_to(2000);
        rig.source.refuses = true;
        rig.set_target(100);
        assert!(rig.rest().wake_at.is_some());
        assert_eq!(
            rig.status().progress,
            Progress::Blocked(Blocked::SourceRefused)
        );
        // Asked again when the wait is over, and no more than that.
        let step = rig.rest();
        rig.now = step.wake_at.expect("it tries again");
        assert!(rig.rest().wake_at > Some(rig.now));
        rig.source.refuses = false;
        rig.now = rig.rest().wake_at.expect("it tries again");
        rig.run();
        rig.assert_reached(100);
    }
}

#[test]
fn a_transport_that_moves_nothing_does_not_keep_the_engine_busy() {
    let cripples: [fn(&mut Limits); 4] = [
        |limits| limits.frames = FrameCount::ZERO,
        |limits| limits.runs = 0,
        |limits| limits.run = FrameCount::ZERO,
        |limits| limits.in_flight = 0,
    ];
    for cripple in cripples {
        for unit in [
            Granularity::Frames,
            Granularity::Adaptive,
            Granularity::Whole(Order::SUPERPAGE),
        ] {
            let policy = Policy {
                granularity: unit,
                ..POLICY
            };
            let mut rig = Rig::with_policy(FakeHost::bulk(), 3000, policy);
            rig.host.capabilities.unit = Order::SUPERPAGE;
            let bulk = rig.host.capabilities.bulk.as_mut().expect("a bulk host");
            cripple(bulk);
            cripple(&mut rig.host.capabilities.inflate);
            rig.set_target(2000);
            assert_eq!(rig.rest().wake_at, None, "what it can do is fixed");
            assert_eq!(rig.size(), 0);
            rig.assert_unsupported();
        }
        // One path is enough.
        let mut rig = Rig::new(FakeHost::bulk(), 3000);
        let bulk = rig.host.capabilities.bulk.as_mut().expect("a bulk host");
        cripple(bulk);
        rig.inflate_to(2000);
        rig.assert_reached(2000);
        cripple(&mut rig.host.capabilities.deflate);
        rig.set_target(0);
        assert_eq!(rig.rest().wake_at, None, "what it can do is fixed");
        rig.assert_unsupported();
    }
}

impl Rig {
    #[track_caller]
    fn assert_unsupported(&self) {
        let progress = Progress::Blocked(Blocked::Unsupported);
        assert_eq!(self.status().progress, progress);
    }
}

#[test]
fn blocks_larger_than_a_request_are_named() {
    let policy = Policy {
        granularity: Granularity::Whole(Order::SUPERPAGE),
        ..POLICY
    };
    let mut rig = Rig::with_policy(FakeHost::plain(), 3000, policy);
    rig.set_target(1024);
    assert_eq!(rig.rest().wake_at, None);
    rig.assert_unsupported();
    // A target of no blocks needs none.
    rig.set_target(500);
    rig.rest();
    assert_eq!(rig.status().progress, Progress::Reached);
}

/// A host that takes fewer requests than it promised.
struct Crowded(FakeHost, usize);

impl Transport for Crowded {
    type Error = TransportErrorKind;

    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    fn read_target(&mut self) -> Result<FrameCount, TransportErrorKind> {
        self.0.read_target()
    }

    fn write_actual(&mut self, size: FrameCount) -> Result<(), TransportErrorKind> {
        self.0.write_actual(size)
    }

    fn submit(
        &mut self,
        request: Request<'_>,
        done: Completer<'_>,
    ) -> Result<(), TransportErrorKind> {
        if self.0.waiting() >= self.1 {
            return Err(TransportErrorKind::Full);
        }
        self.0.submit(request, done)
    }

    fn kick(&mut self, wake_after: usize) -> Result<bool, TransportErrorKind> {
        self.0.kick(wake_after)
    }

    fn notify(&mut self) -> Result<(), TransportErrorKind> {
        self.0.notify()
    }

    fn reap(&mut self, done: Completer<'_>) -> Result<usize, TransportErrorKind> {
        self.0.reap(done)
    }
}

#[test]
fn a_full_host_that_never_answers_is_not_asked_without_end() {
    let mut rig = Rig::new(FakeHost::plain(), 5000);
    rig.host.answers = Answers::WhenTold;
    rig.set_target(4000);
    let mut host = Crowded(core::mem::replace(&mut rig.host, FakeHost::plain()), 2);
    for answered in 0..80 {
        let rested = (0..100).any(|_| {
            let Rig {
                engine,
                source,
                now,
                ..
            } = &mut rig;
            !engine.step(&mut host, source, *now, Budget::SMALL).more
        });
        assert!(rested, "after {answered} answers: {:?}", rig.status());
        host.0.answer(1, rig.shared.slots().completer());
        rig.shared.signal().used();
    }
    assert_eq!(rig.size(), 4000);
}

#[test]
fn relief_counts_only_what_the_source_took() {
    let mut rig = Rig::new(FakeHost::bulk(), 1000);
    rig.host.capabilities.deflate_on_oom = true;
    rig.inflate_to(600);
    rig.source.refuses = true;
    let Rig {
        engine,
        host,
        source,
        now,
        ..
    } = &mut rig;
    let relieved = engine
        .relieve(host, source, Need::frames(FrameCount::new(10)), *now)
        .wake(|| unreachable!());
    assert_eq!(relieved, Relieved::default());
    assert_eq!(rig.status().counters.relieved, FrameCount::ZERO);
}
