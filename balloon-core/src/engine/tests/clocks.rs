//! Moments, and clocks that are not what they were.

use super::*;
use crate::backoff::Delays;

const WEEK: Nanos = Nanos::from_secs(7 * 86_400);

impl Rig {
    /// Steps as asked for, for so long at most.
    fn obey(&mut self, seconds: u64) {
        let end = self.now.saturating_add(Nanos::from_secs(seconds));
        for _ in 0..100_000 {
            let step = self.step(Budget::LARGE);
            if step.more {
                continue;
            }
            match step.wake_at.filter(|&at| at <= end) {
                Some(at) => self.now = at,
                None => return,
            }
        }
        panic!("never asleep: {:?}", self.status());
    }
}

/// What holds a balloon up after a week.
#[derive(Clone, Copy, Debug)]
enum HeldUp {
    ByNothing,
    ByACoolDown,
    ByItsHost,
    ByItsAllocator,
    ByWantOfFrames,
    InFlight,
}

/// One whose every moment is of a clock that stands at a week.
fn a_week_old(held_up: HeldUp) -> Rig {
    let mut rig = Rig::with_policy(FakeHost::plain(), 1000, Policy::DEFAULT);
    rig.host.capabilities.deflate_on_oom = true;
    rig.now = WEEK;
    rig.inflate_to(300);
    rig.now = rig.now.saturating_add(Nanos::from_secs(1));
    match held_up {
        HeldUp::ByNothing => rig.shared.signal().config_changed(),
        HeldUp::ByACoolDown => {
            rig.relieve(Need::frames(FrameCount::ONE));
        }
        HeldUp::ByItsHost => {
            rig.host.fails = Some(TransportErrorKind::Refused);
            rig.set_target(400);
        }
        HeldUp::ByItsAllocator => {
            rig.source.refuses = true;
            rig.set_target(200);
        }
        HeldUp::ByWantOfFrames => rig.set_target(5000),
        HeldUp::InFlight => {
            rig.host.answers = Answers::WhenTold;
            rig.set_target(400);
        }
    }
    for _ in 0..100 {
        rig.step(Budget::LARGE);
    }
    rig.host.fails = None;
    rig.source.refuses = false;
    rig
}

const ALL: [HeldUp; 6] = [
    HeldUp::ByNothing,
    HeldUp::ByACoolDown,
    HeldUp::ByItsHost,
    HeldUp::ByItsAllocator,
    HeldUp::ByWantOfFrames,
    HeldUp::InFlight,
];

#[test]
fn no_moment_outlives_a_resume() {
    for held_up in ALL {
        for how in [Resume::Kept, Resume::Reset] {
            for now in [Nanos::ZERO, WEEK, Nanos::from_secs(40 * 86_400)] {
                let mut rig = a_week_old(held_up);
                rig.engine.quiesce();
                rig.step(Budget::LARGE);
                rig.host.target = FrameCount::new(100);
                if how == Resume::Reset {
                    rig.host = FakeHost::plain();
                    rig.host.target = FrameCount::new(100);
                }
                rig.engine.resume(how);
                rig.now = now;
                rig.step(Budget::LARGE);
                let silent = Progress::Blocked(Blocked::DeviceSilent);
                assert_ne!(rig.status().progress, silent, "{held_up:?} {how:?}");
                rig.host.answers = Answers::Promptly;
                rig.obey(0);
                let status = rig.status();
                assert_eq!(status.size.get(), 100, "{held_up:?} {how:?} {status:?}");
            }
        }
    }
}

#[test]
fn a_clock_that_goes_back_makes_nobody_deaf() {
    for held_up in ALL {
        for back in [Nanos::from_secs(1), Nanos::from_secs(3600), WEEK] {
            let mut rig = a_week_old(held_up);
            rig.now = rig.now.saturating_sub(back);
            rig.set_target(100);
            rig.host.answers = Answers::Promptly;
            rig.obey(70);
            let status = rig.status();
            assert_eq!(status.size.get(), 100, "{held_up:?} {back:?} {status:?}");
            assert_eq!(rig.host.actual().get(), 100);
        }
    }
}

#[test]
fn a_delay_of_zero_is_a_short_one() {
    let zero = Nanos::ZERO;
    let delays = |first, cap| Delays { first, cap };
    let poll = Policy {
        poll: zero,
        ..POLICY
    };
    let mut rig = Rig::with_policy(FakeHost::plain(), 1000, poll);
    rig.host.capabilities.interrupts = false;
    let step = rig.inflate_to(100);
    assert!(step.wake_at.is_some_and(|at| at > rig.now), "{step:?}");

    for retry in [
        delays(zero, zero),
        delays(zero, Nanos::from_secs(64)),
        delays(Nanos::from_secs(1), zero),
    ] {
        let mut rig = Rig::with_policy(FakeHost::plain(), 1000, Policy { retry, ..POLICY });
        for _ in 0..500 {
            rig.source.allocate().unwrap();
        }
        rig.used = FrameCount::new(500);
        let step = rig.inflate_to(600);
        assert!(step.wake_at.is_some_and(|at| at > rig.now), "{step:?}");
        rig.set_target(400);
        rig.host.fails = Some(TransportErrorKind::Refused);
        let step = rig.run();
        assert!(step.wake_at.is_some_and(|at| at > rig.now), "{step:?}");
    }
}
