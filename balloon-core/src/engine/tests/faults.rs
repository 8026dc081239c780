//! Calls into the transport that fail one at a time.

use super::*;
use crate::testing::{FaultInjector, Injection};

const REFUSED: Injection = Injection::Fail(TransportErrorKind::Refused);

/// A [`Rig`] with faults in the way of its host.
struct Faulty {
    engine: Box<Engine<N>>,
    shared: &'static Shared<N>,
    host: FaultInjector<FakeHost>,
    source: FakeSource,
    now: Nanos,
}

impl Faulty {
    fn new(policy: Policy) -> Self {
        let shared = crate::shared::tests::leaked();
        let all = FrameRange::new(Pfn::new(0x200), FrameCount::new(1024)).expect("some frames");
        Self {
            engine: Box::new(Engine::new(shared, policy)),
            shared,
            host: FaultInjector::new(FakeHost::plain()),
            source: FakeSource::new(all),
            now: Nanos::ZERO,
        }
    }

    fn set_target(&mut self, frames: u64) {
        self.host.inner_mut().target = FrameCount::new(frames);
        self.shared.signal().config_changed();
    }

    fn step(&mut self) -> Step {
        let (host, source) = (&mut self.host, &mut self.source);
        self.engine.step(host, source, self.now, Budget::LARGE)
    }

    /// Steps when asked to, until nothing is to be done any more.
    fn settle(&mut self) {
        for _ in 0..100 {
            let step = self.step();
            match step.wake_at {
                _ if step.more => {}
                Some(at) => self.now = at,
                None => return,
            }
        }
        panic!("never at rest");
    }

    fn size(&self) -> u64 {
        self.engine.status(&self.source).size.get()
    }
}

#[test]
fn a_kick_that_fails_is_made_again() {
    let mut rig = Faulty::new(POLICY);
    rig.host.kicks.push_back(REFUSED);
    rig.set_target(100);
    let step = rig.step();
    assert_eq!(rig.size(), 0, "the host has seen nothing");
    assert_eq!(step.wake_at, Some(POLICY.retry.first));
    rig.settle();
    assert_eq!((rig.size(), rig.now), (100, POLICY.retry.first));
}

#[test]
fn a_kick_that_got_lost_is_made_again_once_the_host_is_silent() {
    let mut rig = Faulty::new(POLICY);
    rig.host.kicks.push_back(Injection::Lose);
    rig.set_target(100);
    rig.settle();
    assert_eq!((rig.size(), rig.now), (100, POLICY.silent_after));
}

#[test]
fn a_unit_that_could_not_be_announced_is_announced_later() {
    let policy = Policy {
        granularity: Granularity::Adaptive,
        ..POLICY
    };
    let mut rig = Faulty::new(policy);
    let caps = &mut rig.host.inner_mut().capabilities;
    caps.unit = Order::SUPERPAGE;
    caps.inflate.frames = Order::SUPERPAGE.frames();
    caps.inflate.run = Order::SUPERPAGE.frames();
    rig.host.units.push_back(REFUSED);
    rig.set_target(1000);
    rig.settle();
    assert_eq!(rig.size(), 1000);
    assert_eq!(rig.host.inner().units, [Order::FRAME]);
    // Another host knows nothing of it.
    rig.engine.quiesce();
    rig.engine.resume(Resume::Kept);
    rig.settle();
    assert_eq!(rig.host.inner().units, [Order::FRAME; 2]);
}

#[test]
fn a_broken_device_is_not_asked_for_relief() {
    let mut rig = Faulty::new(POLICY);
    rig.host.inner_mut().capabilities.deflate_on_oom = true;
    rig.set_target(100);
    rig.settle();
    rig.host.inner_mut().fails = Some(TransportErrorKind::Broken);
    rig.shared.signal().config_changed();
    rig.step();
    let before = rig.engine.status(&rig.source);
    for need in [
        Need::frames(FrameCount::new(10)),
        Need::run(FrameCount::new(4), Order::FRAME),
    ] {
        let (host, source) = (&mut rig.host, &mut rig.source);
        let relieved = rig.engine.relieve(host, source, need, rig.now).wake(|| {});
        assert_eq!(relieved.usable, FrameCount::ZERO);
    }
    assert_eq!(rig.engine.status(&rig.source), before);
}
