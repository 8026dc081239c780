//! Relief, cool-down, reserve; quiesce and reset.

use super::*;
use crate::backing::Backing;
use crate::events::Event;

impl Rig {
    pub(super) fn relieve(&mut self, need: Need) -> Relieved {
        let relieved = self
            .engine
            .relieve(&mut self.host, &mut self.source, need, self.now)
            .wake(|| {});
        self.source.check(self.used);
        assert!(self.host.breaches.is_empty(), "{:?}", self.host.breaches);
        relieved
    }
}

fn oom_host(mut host: FakeHost) -> FakeHost {
    host.capabilities.deflate_on_oom = true;
    host.capabilities.must_tell_host = false;
    host
}

#[test]
fn relief_returns_frames_at_once_and_inflation_pauses() {
    for host in [FakeHost::plain(), FakeHost::bulk()] {
        let mut rig = Rig::new(oom_host(host), 1000);
        rig.inflate_to(1000);
        let relieved = rig.relieve(Need::frames(FrameCount::new(100)));
        assert_eq!(
            relieved,
            Relieved {
                usable: FrameCount::new(100),
                coming: FrameCount::ZERO
            }
        );
        assert_eq!(rig.source.free().get(), 100);
        let step = rig.run();
        assert_eq!((rig.size(), rig.host.actual().get()), (900, 900));
        assert_eq!(rig.status().progress, Progress::Blocked(Blocked::CoolDown));
        rig.now = step.wake_at.expect("the end of the cool-down");
        rig.run();
        rig.assert_reached(1000);
    }
}

#[test]
fn freed_memory_is_looked_at_after_the_first_delay_and_wakes_once() {
    let mut rig = Rig::new(FakeHost::plain(), 1000);
    let taken = FrameRange::new(Pfn::new(0x100), FrameCount::new(100)).expect("frames");
    rig.source.take_at(taken).expect("free");
    rig.set_target(1000);
    while rig
        .engine
        .step(&mut rig.host, &mut rig.source, rig.now, Budget::LARGE)
        .more
    {}
    let first = Policy::DEFAULT.retry.first;
    // The delay has grown by now.
    for _ in 0..4 {
        rig.now = rig.now.saturating_add(Nanos::from_secs(5));
        rig.engine
            .step(&mut rig.host, &mut rig.source, rig.now, Budget::LARGE);
    }
    let failed = rig.now;
    assert!(rig.shared.signal().take());
    rig.source.put(taken, Backing::Populated).expect("taken");
    rig.shared.memory_freed();
    assert!(rig.shared.signal().take(), "whoever steps is woken");
    rig.shared.memory_freed();
    assert!(!rig.shared.signal().take(), "once");
    let step = rig.step(Budget::LARGE);
    assert_eq!(step.wake_at, Some(failed.saturating_add(first)));
    rig.now = failed.saturating_add(first);
    rig.run();
    rig.assert_reached(1000);
    rig.shared.memory_freed();
    assert!(!rig.shared.signal().take(), "no frame is waited for");
}

#[test]
fn a_cool_down_ends_before_the_first_target_too() {
    let policy = Policy {
        emergency_pool: FrameCount::new(2),
        ..POLICY
    };
    let mut rig = Rig::with_policy(oom_host(FakeHost::plain()), 1000, policy);
    rig.host.fails = Some(TransportErrorKind::Unstable);
    rig.relieve(Need::frames(FrameCount::ONE));
    rig.run();
    assert_eq!(rig.status().target, None);
    assert_eq!(rig.shared.emergency_frames(), FrameCount::ZERO);
    rig.now = Nanos::from_secs(6);
    rig.run();
    assert_eq!(
        rig.status().progress,
        Progress::Blocked(Blocked::HostRefused)
    );
    assert_eq!(
        rig.shared.emergency_frames(),
        FrameCount::new(2),
        "refilled"
    );
}

#[test]
fn a_synchronous_host_gives_back_at_once_and_each_time() {
    for must_tell_host in [true, false] {
        let mut host = oom_host(FakeHost::plain());
        host.capabilities.must_tell_host = must_tell_host;
        host.answers = Answers::AtOnce;
        let mut rig = Rig::new(host, 1000);
        rig.inflate_to(1000);
        // More often than there are slots, and no step in between.
        for _ in 0..40 {
            let relieved = rig.relieve(Need::frames(FrameCount::new(10)));
            let all = Relieved {
                usable: FrameCount::new(10),
                coming: FrameCount::ZERO,
            };
            assert_eq!(relieved, all);
        }
        rig.run();
        assert_eq!((rig.size(), rig.source.free().get()), (600, 400));
    }
}

#[test]
fn relief_brings_home_what_was_answered_since_the_last_step() {
    let mut host = oom_host(FakeHost::plain());
    host.capabilities.must_tell_host = true;
    let mut rig = Rig::new(host, 1000);
    rig.inflate_to(1000);
    let need = Need::frames(FrameCount::new(10));
    rig.host.answers = Answers::WhenTold;
    assert_eq!(rig.relieve(need).coming.get(), 10);
    rig.host.answer(1, rig.shared.slots().completer());
    // No step is needed to have those.
    let relieved = rig.relieve(need);
    assert_eq!((relieved.usable.get(), relieved.coming.get()), (10, 10));
    assert_eq!(rig.source.free().get(), 10);
}

#[test]
fn a_host_that_must_be_told_first_keeps_frames_until_it_was() {
    let mut host = oom_host(FakeHost::plain());
    host.capabilities.must_tell_host = true;
    let mut rig = Rig::new(host, 1000);
    rig.inflate_to(1000);
    rig.host.answers = Answers::WhenTold;
    let relieved = rig.relieve(Need::frames(FrameCount::new(10)));
    assert_eq!(
        relieved,
        Relieved {
            usable: FrameCount::ZERO,
            coming: FrameCount::new(10)
        }
    );
    assert_eq!(rig.source.free().get(), 0);
    rig.host.answers = Answers::Promptly;
    rig.run();
    assert_eq!(rig.source.free().get(), 10);
}

#[test]
fn relief_finds_a_slot_while_a_deflation_uses_all_it_may() {
    let mut rig = Rig::new(oom_host(FakeHost::plain()), 5000);
    rig.inflate_to(5000);
    rig.host.answers = Answers::WhenTold;
    rig.set_target(0);
    rig.step(Budget::LARGE);
    assert!(rig.status().deflating.get() > 256);
    assert_eq!(
        rig.relieve(Need::frames(FrameCount::new(50))).usable.get(),
        50
    );
    rig.host.answers = Answers::Promptly;
    rig.run();
    rig.assert_reached(0);
}

#[test]
fn a_frame_used_early_is_not_given_again_before_the_host_answered() {
    let mut rig = Rig::new(oom_host(FakeHost::plain()), 1000);
    rig.inflate_to(1000);
    rig.host.answers = Answers::WhenTold;
    rig.relieve(Need::frames(FrameCount::new(50)));
    // The cool-down is over, the host has not looked at its queue.
    rig.now = Nanos::from_secs(6);
    rig.step(Budget::LARGE);
    assert_eq!(rig.status().inflating, FrameCount::ZERO);
    rig.host.answers = Answers::Promptly;
    rig.shared.signal().used();
    rig.run();
    rig.assert_reached(1000);
}

#[test]
fn without_the_feature_only_surplus_returns() {
    for (target, expected) in [(900, 100), (1000, 0)] {
        let mut host = FakeHost::bulk();
        host.capabilities.must_tell_host = false;
        let mut rig = Rig::with_policy(host, 1000, POLICY);
        rig.inflate_to(1000);
        // The host lowers its target; memory runs short before the step.
        rig.set_target(target);
        rig.source.refuses = true;
        rig.step(Budget::LARGE);
        rig.source.refuses = false;
        let relieved = rig.relieve(Need::frames(FrameCount::new(500)));
        let deflating = rig.status().deflating;
        let allowed = expected - u64::min(expected, deflating.get());
        assert_eq!(relieved.usable.get(), allowed, "at {target}");
    }
}

#[test]
fn relief_can_ask_for_one_aligned_run() {
    for host in [FakeHost::plain(), FakeHost::bulk()] {
        let mut rig = Rig::new(oom_host(host), 4096);
        rig.inflate_to(4096);
        let relieved = rig.relieve(Need::run(FrameCount::new(512), Order::SUPERPAGE));
        assert_eq!(relieved.usable.get(), 512);
        let run = FrameRange::new(Pfn::new(512), FrameCount::new(512)).unwrap();
        rig.source.take_at(run).expect("just these frames are free");
        rig.source.put(run, Backing::Populated).unwrap();
        let none = rig.relieve(Need::run(FrameCount::new(8192), Order::FRAME));
        assert_eq!(none, Relieved::default(), "part of a run is no run");
    }
}

#[test]
fn a_run_that_needs_more_requests_than_relief_makes_is_left_alone() {
    let mut rig = Rig::new(oom_host(FakeHost::plain()), 4096);
    rig.inflate_to(4096);
    let none = rig.relieve(Need::run(FrameCount::new(2048), Order::FRAME));
    assert_eq!((none, rig.size()), (Relieved::default(), 4096));
}

#[test]
fn relief_asked_for_behind_the_engines_back_is_honoured_by_the_next_step() {
    let mut rig = Rig::new(oom_host(FakeHost::bulk()), 1000);
    rig.inflate_to(1000);
    rig.shared.request_relief(FrameCount::new(30));
    assert!(rig.shared.signal().is_set(), "whoever waits steps");
    rig.step(Budget::SMALL);
    assert_eq!(rig.source.free().get(), 30);
    assert_eq!(rig.status().counters.relieved.get(), 30);
}

#[test]
fn relief_asked_for_costs_a_step_no_more_than_its_budget() {
    for answers in [Answers::Promptly, Answers::AtOnce] {
        let mut host = oom_host(FakeHost::plain());
        host.answers = answers;
        let mut rig = Rig::new(host, 4096);
        rig.inflate_to(4096);
        rig.shared.request_relief(FrameCount::new(3000));
        let (mut steps, mut before) = (0, 0);
        while before < 3000 {
            let requests = rig.host.requests();
            assert!(rig.shared.signal().take(), "{before} after {steps} steps");
            let step = rig.step(Budget::SMALL);
            let free = rig.source.free().get();
            let came = free - before;
            assert!((1..=256).contains(&came), "{came} in one step");
            assert!(rig.host.requests() - requests <= 1);
            assert!(free >= 3000 || step.more);
            (steps, before) = (steps + 1, free);
        }
        assert_eq!(before, 3000);
    }
}

/// Between the look for room and the frame's arrival another may have filled it.
#[test]
fn a_frame_that_was_taken_for_the_reserve_is_not_lost() {
    let policy = Policy {
        emergency_pool: FrameCount::new(1),
        ..POLICY
    };
    // A source that does not give it away, and then does not take it back.
    let mut rig = Rig::with_policy(FakeHost::plain(), 10, policy);
    rig.source.keeps = true;
    rig.source.refuses = true;
    for _ in 0..3 {
        let step = rig.step(Budget::LARGE);
        assert!(step.more || step.wake_at.is_some(), "it is asked again");
        assert_eq!(rig.shared.emergency_frames(), FrameCount::ZERO);
        rig.source.check(FrameCount::ZERO);
        assert_eq!(rig.source.in_hand(), rig.status().inflating);
        rig.now = rig.now.saturating_add(Nanos::from_secs(100));
    }
    rig.source.refuses = false;
    rig.run();
    assert_eq!(rig.source.free().get(), 10);
    rig.source.keeps = false;
    rig.run();
    assert_eq!(rig.shared.emergency_frames(), FrameCount::ONE);
}

#[test]
fn the_reserve_is_had_without_the_engine_and_refilled() {
    let policy = Policy {
        emergency_pool: FrameCount::new(5),
        ..POLICY
    };
    let mut rig = Rig::with_policy(FakeHost::bulk(), 1000, policy);
    rig.run();
    assert_eq!(rig.shared.emergency_frames().get(), 5);
    let frame = rig.shared.take_emergency().expect("a reserved frame");
    // The taker's, as any frame it allocated.
    rig.source.free_allocated(frame.start());
    rig.run();
    assert_eq!(rig.shared.emergency_frames().get(), 5);
    rig.inflate_to(1000);
    assert_eq!(rig.size(), 995, "reserved frames are not given");
    for _ in 0..5 {
        let frame = rig.shared.take_emergency().unwrap();
        rig.source.free_allocated(frame.start());
    }
    assert_eq!(rig.shared.take_emergency(), None);
}

#[test]
fn quiescing_drains_and_freezes() {
    let mut host = FakeHost::plain();
    host.answers = Answers::WhenTold;
    let mut rig = Rig::new(host, 2000);
    rig.set_target(600);
    rig.step(Budget::LARGE);
    rig.engine.quiesce();
    assert!(!rig.engine.is_drained());
    rig.set_target(100);
    rig.step(Budget::LARGE);
    rig.host.answers = Answers::Promptly;
    rig.shared.signal().used();
    rig.run();
    assert!(rig.engine.is_drained());
    assert_eq!(rig.status().progress, Progress::Quiesced);
    assert_eq!(
        (rig.size(), rig.host.actual().get()),
        (600, 600),
        "counts are reported"
    );
    assert_eq!(
        rig.relieve(Need::frames(FrameCount::ONE)),
        Relieved::default()
    );
    rig.engine.resume(Resume::Kept);
    rig.run();
    rig.assert_reached(100);
}

#[test]
fn after_a_reset_everything_returns_and_the_target_counts_anew() {
    for answers in [Answers::Promptly, Answers::WhenTold] {
        let mut rig = Rig::new(FakeHost::plain(), 2000);
        rig.inflate_to(500);
        rig.host.answers = answers;
        rig.set_target(900);
        rig.step(Budget::LARGE);
        // The device is replaced by a new one that knows nothing.
        rig.host = FakeHost::plain();
        rig.host.target = FrameCount::new(300);
        rig.engine.resume(Resume::Reset);
        rig.step(Budget::SMALL);
        assert_eq!(
            rig.host.published.first(),
            Some(&FrameCount::ZERO),
            "zero comes first"
        );
        assert_eq!(
            rig.host.requests(),
            0,
            "nothing is told to a host that knows nothing"
        );
        rig.run();
        rig.run();
        rig.assert_reached(300);
    }
}

#[test]
fn what_a_reset_left_to_take_back_is_frozen_too() {
    let mut rig = Rig::new(FakeHost::plain(), 2000);
    rig.inflate_to(1500);
    rig.host = FakeHost::plain();
    rig.host.target = FrameCount::new(100);
    rig.engine.resume(Resume::Reset);
    rig.step(Budget::SMALL);
    let left = rig.size();
    assert!(left > 0 && left < 1500, "{left} are left");
    rig.engine.quiesce();
    rig.run();
    assert!(rig.engine.is_drained());
    assert_eq!(
        (rig.size(), rig.status().progress),
        (left, Progress::Quiesced)
    );
    assert_eq!(rig.host.requests(), 0);
    rig.engine.resume(Resume::Kept);
    rig.run();
    rig.assert_reached(100);
    assert_eq!(rig.host.requests(), 1, "one inflation, no deflation");
}

#[test]
fn answered_requests_with_nothing_left_in_them_end_no_step() {
    let mut host = oom_host(FakeHost::plain());
    host.capabilities.must_tell_host = false;
    let mut rig = Rig::new(host, 1000);
    rig.inflate_to(600);
    rig.host.answers = Answers::WhenTold;
    // Used early, each by a request of its own.
    for _ in 0..2 {
        let need = Need::frames(FrameCount::new(5));
        let (host, source) = (&mut rig.host, &mut rig.source);
        rig.engine.relieve(host, source, need, rig.now).wake(|| {});
    }
    assert!(!rig.engine.is_drained(), "the host has not answered");
    rig.host = FakeHost::plain();
    rig.engine.resume(Resume::Reset);
    while rig.step(Budget::SMALL).more {}
    assert_eq!(rig.size(), 0, "all is taken back");
}

#[test]
fn an_answer_with_nothing_left_in_it_ends_no_step() {
    let mut host = oom_host(FakeHost::plain());
    host.capabilities.must_tell_host = false;
    let mut rig = Rig::new(host, 1000);
    rig.inflate_to(600);
    rig.host.answers = Answers::WhenTold;
    let need = Need::frames(FrameCount::new(5));
    let (host, source) = (&mut rig.host, &mut rig.source);
    rig.engine.relieve(host, source, need, rig.now).wake(|| {});
    rig.step(Budget::SMALL);
    rig.now = POLICY.cool_down;
    rig.host.answer(1, rig.shared.slots().completer());
    while rig.step(Budget::SMALL).more {}
    assert_eq!(rig.status().inflating.get(), 5, "the balloon grows again");
}

#[test]
fn without_a_cool_down_the_balloon_grows_again_at_once() {
    let policy = Policy {
        cool_down: Nanos::ZERO,
        ..POLICY
    };
    let mut rig = Rig::with_policy(oom_host(FakeHost::bulk()), 1000, policy);
    rig.inflate_to(600);
    rig.shared.request_relief(FrameCount::new(5));
    rig.run();
    rig.assert_reached(600);
    assert_eq!(rig.status().counters.relieved.get(), 5);
}

#[test]
fn a_reset_mends_a_broken_device() {
    let mut rig = Rig::new(FakeHost::plain(), 1000);
    rig.inflate_to(100);
    rig.host.answers = Answers::WhenTold;
    rig.set_target(400);
    rig.step(Budget::LARGE);
    rig.host.fails = Some(TransportErrorKind::Broken);
    rig.run_once();
    rig.host = FakeHost::plain();
    rig.host.target = FrameCount::new(50);
    rig.engine.resume(Resume::Reset);
    rig.run();
    rig.run();
    rig.assert_reached(50);
}

#[test]
fn events_tell_the_story() {
    let mut rig = Rig::new(FakeHost::bulk(), 1000);
    rig.inflate_to(100);
    let events: Vec<_> = rig.engine.take_events().iter().collect();
    let target = Event::Target(FrameCount::new(100));
    assert_eq!(events.first(), Some(&(target, 1)));
    assert_eq!(
        events.last(),
        Some(&(Event::Progress(Progress::Reached), 1))
    );
    assert!(rig.engine.take_events().is_empty());
}

#[test]
fn a_target_out_of_reach_leaves_what_a_kernel_cannot_do_without() {
    // 128 MiB, of which programs have two thirds.
    let total = FrameCount::new(1 << 15);
    for host in [FakeHost::plain(), FakeHost::bulk()] {
        let policy = Policy {
            min_read_interval: Nanos::ZERO,
            ..Policy::for_memory(total)
        };
        let mut rig = Rig::with_policy(host, total.get(), policy);
        for _ in 0..22_000 {
            rig.source.allocate().expect("a frame");
            rig.used = rig.used.saturating_add(FrameCount::ONE);
        }
        rig.inflate_to(u64::from(u32::MAX));
        let left = rig.source.free();
        assert!(left >= crate::low_watermark(total), "{left:?} are free");
        assert_eq!(rig.status().progress, Progress::Blocked(Blocked::Reserve));
    }
}
