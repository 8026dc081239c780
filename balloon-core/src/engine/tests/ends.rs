//! Devices that fail or go away.

use super::*;

/// A balloon of 300 with 200 frames more on their way, and the host it has.
fn half_way(host: FakeHost) -> Rig {
    let mut rig = Rig::new(host, 1000);
    rig.inflate_to(300);
    rig.host.answers = Answers::WhenTold;
    rig.set_target(500);
    rig.step(Budget::LARGE);
    assert_eq!(rig.status().inflating.get(), 200);
    rig
}

fn hosts() -> [FakeHost; 2] {
    [FakeHost::plain(), FakeHost::bulk()]
}

#[track_caller]
fn assert_all_home(rig: &Rig) {
    let status = rig.status();
    let out = [status.size, status.inflating, status.deflating];
    assert_eq!(out, [FrameCount::ZERO; 3], "{status:?}");
    assert_eq!(rig.source.free().get(), 1000);
    assert_eq!(
        (status.target, status.progress),
        (None, Progress::Blocked(Blocked::DeviceGone))
    );
    assert!(rig.engine.is_drained());
}

#[test]
fn what_a_device_that_is_gone_had_comes_home_and_nothing_more_is_given() {
    for host in hosts() {
        let mut rig = half_way(host);
        rig.host.fails = Some(TransportErrorKind::Gone);
        rig.shared.signal().config_changed();
        let told = (
            rig.host.requests(),
            rig.host.kicks,
            rig.host.published.len(),
        );
        while rig.step(Budget::SMALL).more {}
        assert_all_home(&rig);
        // Interrupts of whoever else, and time: it is not spoken to again.
        rig.host.fails = None;
        for _ in 0..100 {
            rig.now = rig.now.saturating_add(Nanos::from_secs(1));
            rig.shared.signal().config_changed();
            rig.shared.signal().used();
            assert_eq!(rig.step(Budget::LARGE).wake_at, None);
        }
        assert_all_home(&rig);
        assert_eq!(
            told,
            (
                rig.host.requests(),
                rig.host.kicks,
                rig.host.published.len()
            )
        );
        // Another takes its place.
        rig.host = FakeHost::plain();
        rig.host.target = FrameCount::new(50);
        rig.engine.resume(Resume::Reset);
        rig.run();
        rig.run();
        rig.assert_reached(50);
    }
}

#[test]
fn a_silent_host_is_asked_whether_it_is_there() {
    let mut rig = half_way(FakeHost::plain());
    rig.host.fails = Some(TransportErrorKind::Gone);
    // No signal: the device was pulled out.
    for _ in 0..4 {
        let step = rig.step(Budget::LARGE);
        if !step.more {
            let Some(at) = step.wake_at else { break };
            rig.now = at;
        }
    }
    assert_all_home(&rig);
}

/// A device that is moved or asleep reads as an empty place, and is there a moment later.
#[test]
fn a_host_that_seems_absent_is_asked_again_after_a_second_and_given_nothing_meanwhile() {
    for resumed in [false, true] {
        let mut rig = half_way(FakeHost::plain());
        rig.set_target(900);
        rig.host.fails = Some(TransportErrorKind::Absent);
        rig.step(Budget::LARGE);
        let (reads, requests) = (rig.host.reads, rig.host.requests());
        // It is well again, and nobody looks, whoever calls.
        rig.host.fails = None;
        for _ in 0..19 {
            rig.now = rig.now.saturating_add(Nanos::from_millis(50));
            rig.shared.signal().config_changed();
            if resumed {
                rig.engine.quiesce();
                rig.engine.resume(Resume::Kept);
            }
            rig.step(Budget::LARGE);
            assert_eq!((rig.host.reads, rig.host.requests()), (reads, requests));
            let silent = Progress::Blocked(Blocked::DeviceSilent);
            assert_eq!(rig.status().progress, silent);
        }
        let step = rig.step(Budget::LARGE);
        let second = Some(Nanos::from_secs(1));
        assert_eq!((step.more, step.wake_at), (false, second));
        rig.now = Nanos::from_secs(1);
        rig.step(Budget::LARGE);
        assert_eq!(rig.host.reads, reads + 1);
        assert_eq!(rig.status().target, Some(FrameCount::new(900)));
        // Another one in its place is asked at once.
        rig.host.fails = Some(TransportErrorKind::Absent);
        rig.shared.signal().config_changed();
        rig.step(Budget::LARGE);
        rig.host = FakeHost::plain();
        rig.engine.resume(Resume::Reset);
        rig.run();
        assert!(rig.host.reads > 0);
    }
}

/// Registers of a device that is asleep read as those of none.
#[test]
fn a_quiesced_engine_does_not_look_whether_there_is_a_device() {
    for host in hosts() {
        let mut rig = half_way(host);
        rig.engine.quiesce();
        let reads = rig.host.reads;
        rig.host.fails = Some(TransportErrorKind::Absent);
        for _ in 0..10 {
            rig.shared.signal().config_changed();
            while rig.step(Budget::LARGE).more {}
            rig.now = rig.now.saturating_add(POLICY.silent_after);
        }
        assert_eq!(rig.host.reads, reads);
        let status = rig.status();
        assert_eq!(status.progress, Progress::Quiesced);
        assert_eq!((status.size.get(), status.inflating.get()), (300, 200));
        rig.host.fails = Some(TransportErrorKind::Gone);
        rig.engine.resume(Resume::Kept);
        while rig.step(Budget::LARGE).more {}
        assert_all_home(&rig);
    }
}

#[test]
fn memory_that_is_short_gets_what_a_device_that_is_gone_had() {
    let mut rig = half_way(FakeHost::plain());
    rig.host.fails = Some(TransportErrorKind::Gone);
    rig.host.capabilities.deflate_on_oom = true;
    rig.shared.signal().config_changed();
    // Refused, so that it does not come by itself.
    rig.source.refuses = true;
    rig.step(Budget::LARGE);
    assert_eq!(rig.size(), 300);
    rig.source.refuses = false;
    let need = Need::frames(FrameCount::new(10));
    let relieved = rig
        .engine
        .relieve(&mut rig.host, &mut rig.source, need, rig.now)
        .wake(|| {});
    assert_eq!(relieved.usable.get(), 10);
}

#[test]
fn a_source_that_refuses_gets_the_frames_later() {
    let mut rig = half_way(FakeHost::plain());
    rig.host.fails = Some(TransportErrorKind::Gone);
    rig.source.refuses = true;
    rig.shared.signal().config_changed();
    let at = loop {
        let step = rig.step(Budget::LARGE);
        if !step.more {
            break step.wake_at;
        }
    };
    rig.source.refuses = false;
    rig.now = at.expect("a moment at which it is asked again");
    while rig.step(Budget::LARGE).more {}
    assert_all_home(&rig);
}

#[test]
fn a_balloon_is_retired_without_its_device() {
    for host in hosts() {
        let mut rig = half_way(host);
        let (engine, source) = (&mut rig.engine, &mut rig.source);
        while engine.retire(source, rig.now, Budget::SMALL).more {}
        assert_all_home(&rig);
        let told = rig.host.requests();
        rig.shared.signal().config_changed();
        while rig.step(Budget::LARGE).more {}
        assert_all_home(&rig);
        assert_eq!(told, rig.host.requests());
    }
}

#[test]
fn a_balloon_that_was_quiesced_is_retired_all_the_same() {
    for host in hosts() {
        let mut rig = half_way(host);
        rig.engine.quiesce();
        while rig.step(Budget::LARGE).more {}
        let (engine, source) = (&mut rig.engine, &mut rig.source);
        while engine.retire(source, rig.now, Budget::SMALL).more {}
        assert_all_home(&rig);
    }
}

/// Others of the same host's have frames out, and may have been stepped before.
#[test]
fn that_a_device_is_gone_is_news_for_the_others() {
    let reasons = [TransportErrorKind::Gone, TransportErrorKind::NeedsReset];
    for reason in reasons {
        let mut rig = half_way(FakeHost::plain());
        rig.host.fails = Some(reason);
        rig.shared.signal().config_changed();
        assert!(rig.shared.signal().take());
        rig.step(Budget::LARGE);
        assert!(rig.shared.signal().take(), "{reason:?}");
        // Once is enough.
        while rig.step(Budget::LARGE).more {
            let _ = rig.shared.signal().take();
        }
        rig.shared.signal().config_changed();
        assert!(rig.shared.signal().take());
        rig.step(Budget::LARGE);
        assert!(!rig.shared.signal().take(), "{reason:?}");
    }
}

/// Until it is reset it may do to them what it was asked to.
#[test]
fn a_device_that_asks_for_a_reset_keeps_what_it_was_told_of() {
    let mut rig = half_way(FakeHost::plain());
    rig.host.fails = Some(TransportErrorKind::NeedsReset);
    rig.shared.signal().config_changed();
    let step = rig.step(Budget::LARGE);
    assert_eq!((step.more, step.wake_at), (false, None));
    let status = rig.status();
    assert_eq!((status.size.get(), status.inflating.get()), (300, 200));
    let reason = Blocked::DeviceNeedsReset;
    assert_eq!(status.progress, Progress::Blocked(reason));
    rig.host = FakeHost::plain();
    rig.host.target = FrameCount::new(50);
    rig.engine.resume(Resume::Reset);
    rig.run();
    rig.run();
    rig.assert_reached(50);
}
