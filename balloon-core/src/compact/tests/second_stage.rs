//! The host's superpages are not worse off: a migration splits at most one
//! more, the one around `new`.

use std::println;

use proptest::prelude::*;

use super::*;
use crate::testing::SecondStage;

fn one(rig: &mut Rig, old: Pfn, new: Pfn) {
    rig.zone.take_at(FrameRange::single(new).unwrap()).unwrap();
    let isolated = rig.isolate(old).unwrap();
    let ticket = rig.migrate(isolated, new).unwrap();
    assert_eq!(rig.compactor.finish(ticket), Ok(Migrated::Done));
    rig.zone
        .put(FrameRange::single(old).unwrap(), Backing::Unknown)
        .unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn each_migration_splits_at_most_the_superpage_of_new(
        way in prop::sample::select(&WAYS[..]),
        given in 1..2000u64,
        seed: u64,
        greedy_neighbours: bool,
        scattered: bool,
    ) {
        let frames = 16 * BLOCK;
        let mut rig = Rig::new(way, frames);
        let mut random = Random(seed);
        if scattered {
            rig.zone.shuffle(&mut random);
        }
        rig.set_target(given);
        rig.settle();
        rig.host.second_stage.greedy_neighbours = greedy_neighbours;
        if greedy_neighbours {
            rig.host.second_stage.heap_pages = 0;
        }
        let heap_before = rig.host.second_stage.heap_splits;
        for _ in 0..64 {
            let start = pfn(random.below(frames));
            let rest = FrameRange::new(start, FrameCount::new(pfn(frames).get() - start.get()));
            let old = rig.zone.next_held(rest.unwrap()).or(rig.zone.next_held(rig.zone.all));
            let start = pfn(random.below(frames));
            let rest = FrameRange::new(start, FrameCount::new(pfn(frames).get() - start.get()));
            let new = rig.zone.next_free(rest.unwrap()).or(rig.zone.next_free(rig.zone.all));
            let (old, new) = (old.unwrap().0.start(), new.unwrap().start());
            let before: SecondStage = rig.host.second_stage.clone();
            one(&mut rig, old, new);
            let after = &rig.host.second_stage;
            prop_assert_eq!(
                after.guest_splits - before.guest_splits,
                u64::from(!before.is_split(new)),
                "the superpage of `new` and no other"
            );
            prop_assert!(after.is_split(new));
            let heap = after.heap_splits - before.heap_splits;
            match way {
                // The heap has no part in it, or has just got a page.
                Migration::Move => prop_assert_eq!(heap, 0),
                Migration::InflateFirst if !greedy_neighbours => prop_assert_eq!(heap, 0),
                _ => prop_assert!(heap <= 1),
            }
        }
        // What one migration takes from the heap it gives back: one break lasts.
        if !greedy_neighbours {
            prop_assert!(rig.host.second_stage.heap_splits - heap_before <= 1);
        }
        rig.check();
    }
}

#[test]
fn compaction_of_a_scattered_balloon_splits_nothing_more() {
    for way in WAYS {
        let mut rig = Rig::scattered(way, 64 * BLOCK, 32 * BLOCK, 11);
        assert_eq!(
            rig.host.second_stage.guest_splits, 64,
            "the balloon did that"
        );
        let report = rig.compact();
        assert_eq!(report.after.blocks(), 32);
        let stage = &rig.host.second_stage;
        println!(
            "{way:?}: {} moves, {} guest superpages split, {} heap superpages broken",
            report.moves.get(),
            stage.guest_splits - 64,
            stage.heap_splits
        );
        assert_eq!((stage.guest_splits, stage.heap_splits), (64, 0), "{way:?}");
    }
}

/// Two blocks' worth of holes in the first four of 16 blocks, one in each of
/// the next `broken`; all but the first four have a frame in use too.
fn crowded(broken: u64) -> Rig {
    let mut rig = Rig::new(Migration::Move, 16 * BLOCK);
    for block in 4..16 {
        rig.zone.set(pfn(block * BLOCK), At::Used);
    }
    let mut random = Random(2);
    let mut order: Vec<Pfn> = (0..4 * BLOCK).map(pfn).collect();
    for i in (1..order.len()).rev() {
        order.swap(i, random.below(i as u64 + 1) as usize);
    }
    order.extend((4..4 + broken).map(|block| pfn(block * BLOCK + 7)));
    rig.zone.order = order;
    rig.set_target(2 * BLOCK + broken);
    rig.settle();
    assert_eq!(rig.host.second_stage.guest_splits, 4 + broken);
    rig
}

#[test]
fn broken_superpages_are_filled_before_whole_ones_are_touched() {
    // Each block outside has room for 510 or 511 of the 1024 holes.
    for (broken, more) in [(4, 0), (3, 0), (2, 1), (1, 2), (0, 3)] {
        let mut rig = crowded(broken);
        let report = rig.compact();
        assert_eq!(report.after.blocks(), 4);
        let splits = rig.host.second_stage.guest_splits;
        assert_eq!(splits - 4 - broken, more, "with {broken} broken blocks");
    }
}
