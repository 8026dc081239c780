//! Who wakes whom: what comes to rest wakes the engine, what cannot go on sleeps.

use super::*;
use crate::Resume;
use crate::testing::Fault;

impl Rig {
    /// Goes on if somebody has called for it.
    pub(super) fn settle_if_woken(&mut self) {
        if self.shared.signal().is_set() {
            self.settle();
        }
    }

    /// Steps of a simulated hour, made only when asked for.
    fn wake_ups_of_an_hour(&mut self) -> u32 {
        let end = self.now.saturating_add(Nanos::from_secs(3600));
        let mut wakes = 0;
        for _ in 0..100_000 {
            let step = self.step(Budget::LARGE);
            if step.more {
                continue;
            }
            let Some(at) = step.wake_at.filter(|&at| at < end) else {
                return wakes;
            };
            self.now = at;
            wakes += 1;
        }
        panic!("never asleep: {:?}", self.engine.status(&self.zone));
    }

    /// All but one frame is back, and everybody sleeps.
    fn with_one_isolated() -> (Self, Isolated) {
        let mut rig = Self::scattered(Migration::Exchange, 4 * BLOCK, BLOCK, 5);
        let old = rig.zone.next_held(rig.zone.all).unwrap().0.start();
        let isolated = rig.isolate(old).unwrap();
        rig.set_target(0);
        rig.settle();
        assert_eq!(rig.host.owned().get(), 1);
        (rig, isolated)
    }
}

#[test]
fn a_frame_put_back_is_taken_back_at_once() {
    let (mut rig, isolated) = Rig::with_one_isolated();
    rig.put_back(isolated).unwrap();
    rig.settle_if_woken();
    rig.check_at_rest();
    assert_eq!(rig.host.owned().get(), 0);
}

#[test]
fn a_frame_migrated_is_taken_back_at_once() {
    for delayed in [false, true] {
        let (mut rig, isolated) = Rig::with_one_isolated();
        let new = rig.zone.next_free(rig.zone.all).unwrap().start();
        rig.zone.take_at(FrameRange::single(new).unwrap()).unwrap();
        let old = isolated.frame();
        rig.host.delayed = delayed;
        let ticket = rig.migrate(isolated, new).unwrap();
        if delayed {
            rig.shared.signal().used();
        }
        rig.settle_if_woken();
        assert_eq!(rig.compactor.finish(ticket), Ok(Migrated::Done));
        rig.zone.set(old, At::Free);
        rig.check_at_rest();
        assert_eq!(rig.host.owned().get(), 0);
    }
}

#[test]
fn a_reset_ends_with_the_last_frame_put_back() {
    let mut rig = Rig::scattered(Migration::Exchange, 4 * BLOCK, BLOCK, 5);
    let old = rig.zone.next_held(rig.zone.all).unwrap().0.start();
    let isolated = rig.isolate(old).unwrap();
    rig.host.reset();
    rig.engine.resume(Resume::Reset);
    for _ in 0..10 {
        // As `settle`, but the size is what the guest still has to forget.
        rig.engine
            .step(&mut rig.host, &mut rig.zone, rig.now, Budget::LARGE);
    }
    assert!(
        rig.engine.is_resetting() && rig.shared.signal().take() && !rig.shared.signal().is_set()
    );
    rig.put_back(isolated).unwrap();
    while rig.shared.signal().take() {
        rig.engine
            .step(&mut rig.host, &mut rig.zone, rig.now, Budget::LARGE);
    }
    rig.check_at_rest();
    assert_eq!(rig.host.owned().get(), BLOCK, "the target is followed anew");
}

#[test]
fn a_target_that_drops_meanwhile_is_reached_whoever_steps_first() {
    for way in WAYS {
        let mut rig = Rig::scattered(way, 4 * BLOCK, 1, 5);
        let old = rig.zone.next_held(rig.zone.all).unwrap().0.start();
        let new = rig.zone.next_free(rig.zone.all).unwrap().start();
        rig.zone.take_at(FrameRange::single(new).unwrap()).unwrap();
        rig.host.delayed = true;
        let isolated = rig.isolate(old).unwrap();
        let ticket = rig.migrate(isolated, new).unwrap();
        rig.now = rig.now.saturating_add(Nanos::from_secs(1));
        rig.set_target(0);
        // The engine first: what it is to take back is still on its way.
        rig.settle();
        assert_eq!(rig.compactor.finish(ticket), Ok(Migrated::Done));
        rig.zone.set(old, At::Free);
        rig.check_at_rest();
        assert_eq!(rig.host.owned().get(), 0, "{way:?}");
    }
}

#[test]
fn a_transport_that_stays_full_costs_few_wake_ups_and_ends_the_round() {
    for way in WAYS {
        let mut rig = Rig::scattered(way, 4 * BLOCK, BLOCK, 5);
        let full = Fault::Refuse(TransportErrorKind::Full);
        rig.host.faults.extend(core::iter::repeat_n(full, 100_000));
        rig.compactor.start();
        let wakes = rig.wake_ups_of_an_hour();
        assert!(wakes <= 120, "{wakes} wake-ups, {way:?}");
        assert!(!rig.compactor.is_running(), "{way:?}");
        rig.check_at_rest();
        assert_eq!(rig.wake_ups_of_an_hour(), 0);

        rig.host.faults.clear();
        let report = rig.compact();
        assert!(!report.moves.is_zero(), "the next round finds the way free");
    }
}

#[test]
fn a_device_that_answers_nothing_costs_few_wake_ups_and_ends_the_round() {
    let mut rig = Rig::scattered(Migration::InflateFirst, 16 * BLOCK, BLOCK, 5);
    // What the host keeps is in the first blocks, the others can be cleared.
    rig.zone.order.clear();
    rig.host
        .faults
        .extend(core::iter::repeat_n(Fault::Silence, SLOTS));
    rig.now = rig.now.saturating_add(Nanos::from_secs(1));
    rig.set_target(8 * BLOCK);
    rig.step(Budget::LARGE);
    assert!(rig.host.faults.is_empty(), "no slot is left");
    rig.compactor.start();
    let wakes = rig.wake_ups_of_an_hour();
    assert!(wakes <= 120, "{wakes} wake-ups");
    assert!(!rig.compactor.is_running() && rig.compactor.is_drained());
    assert!(!rig.compactor.report().fewest_moves.is_zero(), "no plan");
}

#[test]
fn the_kernel_is_answered_by_a_transport_that_stays_full() {
    let mut rig = Rig::scattered(Migration::Exchange, 4 * BLOCK, BLOCK, 5);
    let old = rig.zone.next_held(rig.zone.all).unwrap().0.start();
    let new = rig.zone.next_free(rig.zone.all).unwrap().start();
    rig.zone.take_at(FrameRange::single(new).unwrap()).unwrap();
    let full = Fault::Refuse(TransportErrorKind::Full);
    rig.host.faults.extend(core::iter::repeat_n(full, 100_000));
    let isolated = rig.isolate(old).unwrap();
    let ticket = rig.migrate(isolated, new).unwrap();
    let wakes = rig.wake_ups_of_an_hour();
    assert!(wakes <= 120, "{wakes} wake-ups");
    assert_eq!(rig.compactor.finish(ticket), Ok(Migrated::Unchanged));
}
