//! Engine-driven rounds when things go wrong or change meanwhile.

use super::*;
use crate::engine::relief::Need;
use crate::testing::Fault;

fn half(way: Migration) -> Rig {
    Rig::scattered(way, 8 * BLOCK, 4 * BLOCK, 9)
}

#[test]
fn one_step_does_no_more_than_its_budget() {
    let mut rig = half(Migration::Move);
    rig.compactor.start();
    let mut steps = 0;
    while rig.compactor.is_running() {
        let before = rig.compactor.report().moves;
        let requests = rig.host.requests;
        rig.step(Budget::requests(3));
        assert!(
            rig.host.requests - requests <= 1,
            "a batch costs at least two units"
        );
        assert!(rig.compactor.report().moves.saturating_sub(before).get() <= 256);
        steps += 1;
    }
    assert!(steps > 10, "{steps} steps");
    assert_eq!(rig.compactor.report().after.blocks(), 4);
}

#[test]
fn a_block_whose_holes_cannot_be_had_is_passed_over() {
    for way in WAYS {
        let mut rig = Rig::scattered(way, 8 * BLOCK, BLOCK, 9);
        rig.zone.stuck = rig.host.given().take(3).collect();
        let report = rig.compact();
        rig.check_at_rest();
        assert!(
            report.moves > FrameCount::ZERO,
            "{way:?}: the other holes move"
        );
        assert!(report.after.blocks() >= 5, "{way:?}: {report:?}");
        assert!(report.lost_blocks == 1, "{way:?}: {report:?}");
    }
}

#[test]
fn a_fault_at_any_request_loses_nothing_and_the_next_round_mends_it() {
    let refuse = Fault::Refuse(TransportErrorKind::Refused);
    let some = Fault::Partly(FrameCount::new(100));
    for way in WAYS {
        for delayed in [false, true] {
            for fault in [refuse, some, Fault::Refuse(TransportErrorKind::Full)] {
                for at in 0..6 {
                    let mut rig = half(way);
                    rig.host.delayed = delayed;
                    rig.host
                        .faults
                        .extend(core::iter::repeat_n(Fault::None, at));
                    rig.host.faults.push_back(fault);
                    rig.compact();
                    rig.check_at_rest();
                    assert_eq!(
                        rig.host.owned().get(),
                        4 * BLOCK,
                        "the engine mends the size"
                    );
                    let report = rig.compact();
                    rig.check_at_rest();
                    assert_eq!(report.after.blocks(), 4, "{way:?} {fault:?} at {at}");
                }
            }
        }
    }
}

#[test]
fn a_refusing_host_is_asked_ever_less_often() {
    let mut rig = half(Migration::Exchange);
    rig.host.faults.extend(core::iter::repeat_n(
        Fault::Refuse(TransportErrorKind::Refused),
        10_000,
    ));
    rig.compactor.start();
    let mut wakes = 0;
    let end = Nanos::from_secs(3600);
    while rig.now < end {
        let step = rig.step(Budget::LARGE);
        if !step.more {
            wakes += 1;
            rig.now = step.wake_at.unwrap_or(end);
        }
    }
    assert!(wakes <= 120, "{wakes} wake-ups in an hour");
    assert!(!rig.compactor.is_running(), "it has given up");
    assert_eq!(rig.compactor.report().moves, FrameCount::ZERO);
    rig.host.faults.clear();
    assert_eq!(rig.compact().after.blocks(), 4);
}

#[test]
fn a_silent_host_keeps_frames_in_hand_and_costs_few_wake_ups() {
    let mut rig = half(Migration::Exchange);
    rig.host.faults.extend([Fault::Silence, Fault::Silence]);
    rig.compactor.start();
    for _ in 0..20 {
        rig.step(Budget::LARGE);
    }
    // To notify it once more.
    rig.now = rig.step(Budget::LARGE).wake_at.unwrap();
    let silent = crate::status::Progress::Blocked(Blocked::DeviceSilent);
    assert!(rig.step(Budget::LARGE).more);
    assert_eq!(rig.engine.status(&rig.zone).progress, silent);
    let step = rig.step(Budget::LARGE);
    let later = rig.now.saturating_add(rig.engine.policy().silent_after);
    assert_eq!((step.more, step.wake_at), (false, Some(later)));
    let in_hand = rig.zone.count(At::Hand);
    assert!(
        in_hand > 0 && in_hand.is_multiple_of(2),
        "both sides of both batches"
    );
    assert_eq!(rig.engine.status(&rig.zone).size.get(), 4 * BLOCK);
    // The engine goes on all the same.
    rig.set_target(4 * BLOCK - 100);
    for _ in 0..20 {
        rig.step(Budget::LARGE);
        rig.now = rig.now.saturating_add(Nanos::from_millis(10));
    }
    assert_eq!(rig.engine.status(&rig.zone).size.get(), 4 * BLOCK - 100);
}

#[test]
fn a_source_that_refuses_keeps_frames_in_hand_until_it_does_not() {
    for way in WAYS {
        let mut rig = half(way);
        rig.zone.refuses = true;
        rig.compactor.start();
        for _ in 0..50 {
            rig.step(Budget::LARGE);
            rig.now = rig.now.saturating_add(Nanos::from_millis(10));
        }
        assert!(rig.zone.count(At::Hand) > 0);
        assert_eq!(
            rig.engine.status(&rig.zone).size.get(),
            4 * BLOCK,
            "{way:?}"
        );
        rig.zone.refuses = false;
        rig.settle();
        rig.check_at_rest();
        assert_eq!(rig.compactor.report().after.blocks(), 4);
    }
}

#[test]
fn targets_change_under_a_round() {
    for way in WAYS {
        for enforces in [false, true] {
            let mut rig = half(way);
            rig.host.enforces = enforces;
            rig.host.delayed = true;
            let mut random = Random(17);
            rig.compactor.start();
            for _ in 0..200 {
                rig.set_target(random.below(6 * BLOCK));
                rig.step(Budget::requests(4));
                rig.now = rig.now.saturating_add(Nanos::from_millis(20));
                if !rig.compactor.is_running() {
                    rig.compactor.start();
                }
            }
            rig.set_target(4 * BLOCK);
            rig.settle();
            rig.check_at_rest();
            assert_eq!(rig.host.owned().get(), 4 * BLOCK, "{way:?}");
            // From a quiet balloon the round reaches what it can.
            rig.compact();
            let report = rig.compact();
            assert_eq!(report.after.blocks(), 4, "{way:?} {enforces}");
        }
    }
}

#[test]
fn exchange_and_move_work_above_an_enforced_target() {
    for way in [Migration::Exchange, Migration::Move] {
        let mut rig = half(way);
        // The target is out of reach: the kernel keeps all free frames but a few.
        rig.engine.quiesce();
        rig.engine.resume(crate::Resume::Kept);
        rig.host.enforces = true;
        rig.host.target = FrameCount::new(6 * BLOCK);
        let report = rig.compact();
        assert_eq!(
            rig.host.owned().get(),
            6 * BLOCK,
            "the engine reaches the target"
        );
        assert!(report.after.blocks() > 0);
    }
}

/// What is set aside stays free after every step, also if each second request
/// fails and leaves two holes for one.
#[test]
fn a_migration_in_two_steps_leaves_what_is_set_aside() {
    let frames = 8 * BLOCK;
    let min_free = page_table_reserve(FrameCount::new(frames * 128)).get();
    for way in WAYS {
        for (delayed, second) in [
            (false, Fault::None),
            (true, Fault::None),
            (true, Fault::Refuse(TransportErrorKind::Refused)),
        ] {
            let policy = Policy {
                min_free: FrameCount::new(min_free),
                ..Policy::DEFAULT
            };
            let mut rig = Rig::with_policy(way, frames, policy);
            rig.zone.shuffle(&mut Random(5));
            // All but little more than what is set aside, and 2 MiB.
            rig.set_target(frames - min_free - BLOCK - 40);
            rig.settle();
            // The kernel takes the surplus, so that each migration matters.
            for pfn in rig.zone.all.frames() {
                if rig.zone.at(pfn) == At::Free && rig.zone.count(At::Free) > min_free + 40 {
                    rig.zone.set(pfn, At::Used);
                }
            }
            rig.host.delayed = delayed;
            let odd = core::iter::repeat_n([Fault::None, second], 64);
            rig.host.faults.extend(odd.flatten());
            let two_steps = way == Migration::InflateFirst;
            rig.compactor.start();
            for _ in 0..2000 {
                rig.step(Budget::requests(8));
                let free = rig.zone.count(At::Free);
                assert!(
                    free >= min_free || !two_steps,
                    "{way:?}: {free} of {min_free}"
                );
                let step = rig.step(Budget::requests(8));
                rig.now = step.wake_at.unwrap_or(rig.now);
                if !rig.compactor.is_running() {
                    break;
                }
            }
            assert!(!rig.compactor.is_running(), "{way:?}: the round ends");
            let refused = second != Fault::None;
            let blocks = rig.compactor.report().after.blocks();
            assert!(blocks > 0 || refused, "{way:?}: what may move moves");
            rig.settle();
            rig.check_at_rest();
        }
    }
}

#[test]
fn blocks_that_come_into_use_are_given_up() {
    let mut rig = half(Migration::Move);
    rig.compactor.start();
    while !rig.compactor.plan.is_moving() {
        rig.step(Budget::requests(1));
    }
    // The kernel takes a frame in each of the first two blocks.
    for block in 0..2 {
        let at = FrameRange::new(pfn(block * BLOCK), FrameCount::new(BLOCK)).unwrap();
        let free = rig.zone.next_free(at).unwrap().start();
        rig.zone.set(free, At::Used);
    }
    rig.settle();
    let report = rig.compactor.report();
    assert!((1..=2).contains(&report.lost_blocks), "{report:?}");
    assert_eq!(report.after.blocks() + report.lost_blocks, 4);
    let report = rig.compact();
    assert_eq!(
        report.after.blocks(),
        report.before.possible_blocks(),
        "the next round mends it"
    );
}

#[test]
fn the_smallest_budget_moves_frames_too() {
    let mut rig = half(Migration::Move);
    rig.compactor.start();
    for _ in 0..20_000 {
        if !rig.compactor.is_running() {
            break;
        }
        rig.step(Budget::SMALL);
    }
    assert_eq!(rig.compactor.report().after.blocks(), 4);
}

#[test]
fn a_round_can_be_stopped() {
    for delayed in [false, true] {
        let mut rig = half(Migration::InflateFirst);
        rig.host.delayed = delayed;
        rig.compactor.start();
        assert!(!rig.compactor.start(), "one round at a time");
        // One block is complete, and not all are.
        while rig.compactor.report().moves < FrameCount::new(300) {
            rig.step(Budget::requests(2));
        }
        rig.compactor.stop();
        rig.settle();
        rig.check_at_rest();
        assert!(!rig.compactor.is_running());
        let report = rig.compactor.report();
        assert!((1..4).contains(&report.after.blocks()), "{report:?}");
        assert_eq!(rig.compact().after.blocks(), 4);
    }
}

#[test]
fn quiescing_the_engine_stops_new_batches() {
    let mut rig = half(Migration::Move);
    rig.compactor.start();
    while rig.compactor.report().moves.is_zero() {
        rig.step(Budget::requests(2));
    }
    rig.engine.quiesce();
    let moves = rig.compactor.report().moves;
    for _ in 0..50 {
        rig.step(Budget::LARGE);
    }
    assert_eq!(rig.compactor.report().moves, moves);
    assert!(rig.engine.is_drained());
    rig.engine.resume(crate::Resume::Kept);
    rig.settle();
    assert_eq!(rig.compactor.report().after.blocks(), 4);
}

#[test]
fn frames_given_in_bulk_come_back_without_a_request() {
    let mut rig = half(Migration::InflateFirst);
    let all: Vec<Pfn> = rig.zone.all.frames().collect();
    for frame in all {
        if rig.zone.at(frame) == At::Ballooned(Via::Inflate) && frame.get() % 2 == 0 {
            rig.host.inflate_in_bulk(frame);
            rig.zone.set(frame, At::Ballooned(Via::Bulk));
        }
    }
    let report = rig.compact();
    assert_eq!(report.after.blocks(), 4);
    assert_eq!(rig.zone.count(At::Hand), 0);
    let size = rig.engine.status(&rig.zone).size.get();
    assert_eq!(size, 4 * BLOCK);
}

#[test]
fn returned_frames_are_backed_as_the_way_says() {
    for way in WAYS {
        let mut rig = half(way);
        rig.zone.put.clear();
        rig.compact();
        let populated = matches!(way, Migration::Exchange | Migration::Move);
        let expected = if populated {
            Backing::Populated
        } else {
            Backing::Unpopulated
        };
        assert!(
            rig.zone.put.iter().all(|&(_, backing)| backing == expected),
            "{way:?}"
        );
    }
}

#[test]
fn storage_that_is_too_small_is_refused() {
    let zone = FrameRange::new(Pfn::new(100), FrameCount::new(1000)).unwrap();
    assert_eq!(compactor_words(zone), 3, "parts of blocks count");
    assert_eq!(
        Compactor::<_, 2>::new(vec![0; 2], zone).unwrap_err(),
        TooFewWords
    );
    assert!(Compactor::<_, 2>::new(vec![0; 3], zone).is_ok());
}

#[test]
fn room_that_migrations_leave_is_used() {
    let mut rig = half(Migration::Move);
    rig.host.delayed = true;
    rig.compactor.start();
    while rig.host.waiting() < 2 {
        let (host, zone) = (&mut rig.host, &mut rig.zone);
        rig.compactor
            .step(&mut rig.engine, host, zone, rig.now, Budget::LARGE);
    }
    rig.compactor.stop();
    rig.now = Nanos::from_secs(1);
    // No room for the engine beside them.
    rig.set_target(4 * BLOCK + 100);
    let full = Fault::Refuse(TransportErrorKind::Full);
    rig.host.faults.push_back(full);
    let (host, zone) = (&mut rig.host, &mut rig.zone);
    rig.engine.step(host, zone, rig.now, Budget::LARGE);
    assert!(rig.host.faults.is_empty(), "it tried");
    rig.settle();
    rig.check_at_rest();
    assert_eq!(rig.host.owned().get(), 4 * BLOCK + 100);
}

#[test]
fn relief_finds_a_slot_whatever_else_is_under_way() {
    let mut rig = half(Migration::InflateFirst);
    rig.host.capabilities.deflate_on_oom = true;
    rig.host.capabilities.must_tell_host = false;
    // Migrations and a deflation use all the slots they may to take frames back, unanswered.
    rig.host.faults.extend([Fault::None; 2]);
    rig.host.faults.extend([Fault::Silence; 2 * SLOTS]);
    assert!(rig.compactor.start());
    for _ in 0..10 {
        rig.step(Budget::LARGE);
    }
    rig.set_target(0);
    for _ in 0..10 {
        rig.now = rig.now.saturating_add(Nanos::from_millis(100));
        rig.step(Budget::LARGE);
    }
    assert!(!rig.engine.status(&rig.zone).deflating.is_zero());
    rig.host.faults.clear();
    let need = Need::frames(FrameCount::ONE);
    let relieved = rig
        .engine
        .relieve(&mut rig.host, &mut rig.zone, need, rig.now)
        .wake(|| {});
    assert_eq!(relieved.usable, FrameCount::ONE);
}
