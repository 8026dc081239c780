//! How much compaction brings, and for how many moves.

use std::println;

use proptest::prelude::*;

use super::oracle::by_subsets;
use super::*;

const GIB: u64 = 1 << 18;

/// At least 95 % of what is possible for at most 1.1 times the fewest moves.
#[track_caller]
fn assert_bar(report: Report) {
    let possible = report.before.possible_blocks();
    assert!(report.after.blocks() * 100 >= possible * 95, "{report:?}");
    assert!(
        report.moves.get() * 10 <= report.fewest_moves.get() * 11,
        "{report:?}"
    );
}

fn print(name: &str, report: Report) {
    let levels = WalkLevels { guest: 4, host: 4 };
    let (before, after) = (report.before, report.after);
    println!(
        "{name}: {} of {} possible 2 MiB blocks (before: {}), {} moves (fewest: {}), \
         unusable {} -> {} of 1000, walk x100 {:?} -> {:?}",
        after.blocks(),
        before.possible_blocks(),
        before.blocks(),
        report.moves.get(),
        report.fewest_moves.get(),
        before.unusable_index(),
        after.unusable_index(),
        before.walk(levels),
        after.walk(levels),
    );
}

#[test]
fn half_of_memory_scattered_comes_together() {
    for way in WAYS {
        // Checking a gigabyte of owners after each step would take minutes.
        let frames = if way == Migration::Move { GIB } else { GIB / 8 };
        let mut rig = Rig::scattered(way, frames, frames / 2, 1);
        let report = rig.compact();
        print("half scattered", report);
        rig.check_at_rest();
        assert_bar(report);
        assert_eq!(report.before.blocks(), 0);
        assert_eq!(report.after.blocks(), frames / 2 / BLOCK);
        assert_eq!(
            rig.host.owned().get(),
            frames / 2,
            "the balloon keeps its size"
        );
    }
}

#[test]
fn frames_in_use_are_worked_around() {
    for (name, used) in [("1 in 4096 in use", 4096), ("1 in 600 in use", 600)] {
        let mut rig = Rig::new(Migration::Exchange, GIB / 4);
        let mut random = Random(7);
        for _ in 0..GIB / 4 / used {
            let frame = pfn(random.below(GIB / 4));
            rig.zone.set(frame, At::Used);
        }
        rig.zone.shuffle(&mut random);
        rig.set_target(GIB / 8);
        rig.settle();
        let report = rig.compact();
        print(name, report);
        rig.check_at_rest();
        assert_bar(report);
        assert_eq!(report.after.blocks(), report.before.possible_blocks());
    }
}

#[test]
fn holes_move_from_the_start_to_the_end() {
    let mut rig = Rig::scattered(Migration::Move, GIB / 4, GIB / 8, 3);
    rig.compact();
    let middle = GIB / 8;
    let low = (0..middle)
        .filter(|&n| rig.zone.at(pfn(n)) == At::Free)
        .count() as u64;
    println!("{low} of {middle} frames of the lower half are free");
    assert!(
        low * 100 >= middle * 99,
        "free memory is together at the start"
    );
}

#[test]
fn a_second_round_finds_nothing_to_do() {
    let mut rig = Rig::scattered(Migration::Move, 64 * BLOCK, 32 * BLOCK, 3);
    rig.compact();
    let report = rig.compact();
    assert_eq!((report.moves.get(), report.fewest_moves.get()), (0, 0));
    assert_eq!(report.before, report.after);
}

/// A zone of blocks with so many holes and free frames, in random places.
fn mixed(way: Migration, blocks: &[(u64, u64)], seed: u64) -> Rig {
    let mut rig = Rig::new(way, blocks.len() as u64 * BLOCK);
    let mut random = Random(seed);
    for (at, &(holes, free)) in (0u64..).zip(blocks) {
        let mut frames: Vec<u64> = (at * BLOCK..(at + 1) * BLOCK).collect();
        for i in (1..frames.len()).rev() {
            frames.swap(i, random.below(i as u64 + 1) as usize);
        }
        for (i, &frame) in (0u64..).zip(&frames) {
            if i >= holes + free {
                rig.zone.set(pfn(frame), At::Used);
            } else if i >= holes {
                rig.zone.set(pfn(frame), At::Hand);
            }
        }
    }
    // The rest goes to the host, the frames kept aside become free.
    let holes = rig.zone.count(At::Free);
    rig.set_target(holes);
    rig.settle();
    for frame in rig.zone.all.frames() {
        if rig.zone.at(frame) == At::Hand {
            rig.zone.set(frame, At::Free);
        }
    }
    rig
}

#[test]
fn equals_are_chosen_no_more_than_fit() {
    // Three blocks can be whole: the last two for 20 moves, and one of the first.
    let blocks = [(100, 412), (100, 412), (10, 502), (10, 502)];
    let mut rig = mixed(Migration::Move, &blocks, 4);
    let report = rig.compact();
    assert_eq!(
        (report.after.blocks(), report.moves.get()),
        (3, 120),
        "{report:?}"
    );
}

/// Scatterings of a block: holes, free, in use, and how they are mixed.
fn block() -> impl Strategy<Value = (u64, u64)> {
    prop_oneof![
        Just((0, BLOCK)),
        Just((BLOCK, 0)),
        Just((0, 0)),
        (0..=BLOCK).prop_map(|holes| (holes, BLOCK - holes)),
        (0..=20u64).prop_map(|holes| (holes, BLOCK - holes)),
        (0..BLOCK, 0..BLOCK).prop_map(|(holes, free)| (holes, free.min(BLOCK - 1 - holes))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Against the oracle: all possible blocks, for few more than the fewest
    /// moves.
    #[test]
    fn small_zones_reach_what_the_oracle_says(
        blocks in prop::collection::vec(block(), 1..=8),
        seed: u64,
        way in prop::sample::select(&WAYS[..]),
        delayed: bool,
    ) {
        let mut rig = mixed(way, &blocks, seed);
        let holes = rig.host.owned().get();
        rig.host.delayed = delayed;
        let (possible, fewest) = by_subsets(&blocks, BLOCK);
        let report = rig.compact();
        rig.check_at_rest();
        prop_assert_eq!(report.before.possible_blocks(), possible);
        prop_assert_eq!(report.fewest_moves.get(), fewest);
        prop_assert_eq!(report.after.blocks(), possible);
        prop_assert!(report.moves.get() * 16 <= fewest * 17, "{:?}", report);
        prop_assert_eq!(rig.host.owned().get(), holes);
    }
}
