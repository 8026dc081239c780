//! A host that does not answer, because it never heard.

use super::*;

/// Steps and sleeps as told for so long; the host answers what it was rung for.
fn live(rig: &mut Rig, seconds: u64) {
    let end = rig.now.saturating_add(Nanos::from_secs(seconds));
    loop {
        let step = rig.step(Budget::LARGE);
        let interrupts = rig.host.interrupts;
        rig.host.answer(usize::MAX, rig.shared.slots().completer());
        if step.more || rig.host.interrupts > interrupts {
            continue;
        }
        match step.wake_at.filter(|&at| at <= end) {
            Some(at) => rig.now = at,
            None => return,
        }
    }
}

fn rig() -> Rig {
    let mut host = FakeHost::plain();
    host.answers = Answers::ByRing;
    Rig::new(host, 2000)
}

#[test]
fn a_host_that_turns_silent_is_rung_once_more() {
    let mut rig = rig();
    rig.host.deaf = 1;
    rig.set_target(100);
    live(&mut rig, 5);
    assert_eq!((rig.size(), rig.host.doorbells), (0, 1));
    live(&mut rig, 3600);
    rig.assert_reached(100);
    assert_eq!(rig.host.doorbells, 2);
}

#[test]
fn a_host_that_misses_bells_is_rung_ever_more_seldom() {
    for (deaf, bells) in [(3, 4), (usize::MAX, 15)] {
        let mut rig = rig();
        rig.host.deaf = deaf;
        rig.set_target(100);
        live(&mut rig, 24 * 3600);
        assert_eq!(rig.host.doorbells, bells);
        assert_eq!(rig.size(), if deaf == 3 { 100 } else { 0 });
    }
}

#[test]
fn a_host_that_goes_on_is_rung_for_what_it_kept() {
    for resumed in [true, false] {
        let mut rig = rig();
        rig.host.deaf = usize::MAX;
        rig.set_target(100);
        live(&mut rig, 3600);
        let silent = Progress::Blocked(Blocked::DeviceSilent);
        assert_eq!(rig.status().progress, silent);
        let bells = rig.host.doorbells;
        rig.host.deaf = 0;
        if resumed {
            rig.engine.quiesce();
            rig.engine.resume(Resume::Kept);
        } else {
            // Or it is there again, and says so.
            rig.shared.signal().config_changed();
        }
        live(&mut rig, 1);
        rig.assert_reached(100);
        // Once is enough.
        live(&mut rig, 3600);
        assert_eq!(rig.host.doorbells, bells + 1);
    }
}

#[test]
fn relief_in_between_does_not_swallow_the_second_ring() {
    let mut rig = rig();
    rig.host.capabilities.deflate_on_oom = true;
    rig.set_target(100);
    live(&mut rig, 1);
    rig.assert_reached(100);
    rig.host.deaf = 2;
    rig.set_target(200);
    rig.step(Budget::LARGE);
    rig.now = rig.now.saturating_add(POLICY.silent_after);
    assert!(rig.step(Budget::LARGE).more, "silent by now");
    let need = Need::frames(FrameCount::new(10));
    let relief = rig
        .engine
        .relieve(&mut rig.host, &mut rig.source, need, rig.now);
    assert_ne!(relief.wake(|| {}), Relieved::default());
    let rung = rig.host.doorbells;
    rig.step(Budget::LARGE);
    assert_eq!(rig.host.doorbells, rung + 1);
}

#[test]
fn answers_to_others_that_relief_takes_up_wake_the_worker() {
    let mut rig = rig();
    let shared = rig.shared;
    let done = shared.slots().completer();
    let slot = shared.slots().claim(Kind::Inflate).unwrap().launch();
    let run = FrameRange::single(Pfn::new(1)).and_then(crate::run::Run::new);
    let runs = [run.unwrap()];
    let request = slot.request(Via::Inflate, &runs);
    rig.host.submit(request, done).unwrap();
    // The engine's own is not answered: somebody else's answer is all relief finds.
    rig.set_target(100);
    rig.step(Budget::LARGE);
    let _ = shared.signal().take();
    rig.host.answer(1, done);
    let need = Need::frames(FrameCount::new(10));
    let mut woken = false;
    let relief = rig
        .engine
        .relieve(&mut rig.host, &mut rig.source, need, rig.now);
    let relieved = relief.wake(|| woken = true);
    assert_eq!(relieved, Relieved::default());
    assert_eq!((slot.is_answered(), woken), (true, true));
}

#[test]
fn answers_to_others_are_news_for_whoever_has_looked_already() {
    for others in [false, true] {
        let mut rig = rig();
        rig.set_target(100);
        rig.step(Budget::LARGE);
        // Somebody else's request beside the engine's: of a frame the host has.
        let shared = rig.shared;
        let done = shared.slots().completer();
        let slot = shared.slots().claim(Kind::Inflate).unwrap().launch();
        let run = FrameRange::single(Pfn::new(1)).and_then(crate::run::Run::new);
        let runs = [run.unwrap()];
        if others {
            let request = slot.request(Via::Inflate, &runs);
            rig.host.submit(request, done).unwrap();
            rig.host.kick(1).unwrap();
        }
        assert!(shared.signal().take());
        rig.host.answer(usize::MAX, done);
        rig.step(Budget::LARGE);
        assert_eq!(rig.size(), 100);
        assert_eq!(
            (slot.is_answered(), shared.signal().take()),
            (others, others)
        );
    }
}
