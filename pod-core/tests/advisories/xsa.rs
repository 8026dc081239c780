//! Security advisories.

use pod_core::sim::{Balloon, Boot, Content, Scrub, World};
use pod_core::{
    Budget, Config, Demand, DemandError, Entry, Event, Gfn, Leave, Order, Policy, RangeError,
    ReleaseError, TargetError, Toucher, Vcpu, Wait,
};

use super::{
    SUPER, config, dirty, entry, fill, frames, guest, mark, mfn, reclaim_all, release, small,
};

#[test]
fn xsa_022_derived_tables_follow_only_a_successful_write() {
    let mut world = small(64, 32);
    world.sim.recording = true;
    world.sim.script.fail_at = Some(world.sim.script.fallible() + 1);
    world.sim.script.fail_on = true;
    let by = Toucher::Vcpu(Vcpu::new(0));
    let answer =
        world.with(|p, s| p.demand(s, Gfn::new(0), by, Order::MAX, &mut Budget::default()));
    assert_eq!(answer, Err(DemandError::NoTableMemory));
    assert!(
        !world
            .sim
            .events
            .iter()
            .any(|e| matches!(e, Event::Populated { .. }))
    );
    world.sim.script.fail_at = None;
    world.check();
}

#[test]
fn xsa_030_an_error_leaves_nothing_half_done() {
    let mut world = World::new(&config(4 * SUPER), 8 * SUPER, 1);
    assert!(fill(&mut world, 700, 1, Entry::Special).is_ok());
    let answer = mark(&mut world, 0, 4 * SUPER);
    assert_eq!(answer, Err(RangeError::Occupied(Gfn::new(700))));
    world.check();
    assert_eq!(world.stats().promises.get(), 700);
    // A table that stops in the middle of one write. The write of a leaf at its own order never
    // does, so the range has to end inside the leaf that the emptied map consists of.
    for prefix in 0..4 {
        let mut world = small(64, 32);
        assert!(release(&mut world, 0, 64).unwrap().progress.complete);
        assert!(world.sim.leaf(Gfn::new(0)).order > Order::new(2).unwrap());
        world.sim.script.fail_at = Some(world.sim.script.fallible() + 1);
        world.sim.script.prefix = prefix;
        let answer = mark(&mut world, 0, 6);
        assert_eq!(answer, Err(RangeError::NoTableMemory(Gfn::new(prefix))));
        assert_eq!(world.stats().promises.get(), prefix);
        world.check();
        world.sim.script.fail_at = None;
        assert!(mark(&mut world, prefix, 64 - prefix).unwrap().complete);
        assert_eq!(world.stats().promises.get(), 64);
        world.check();
    }
}

#[test]
fn xsa_031_158_any_length_is_bounded_work() {
    let mut world = guest(64 * SUPER, 8 * SUPER);
    world.sim.traits.max_order = Order::FRAME;
    assert!(dirty(&mut world, 0..6 * SUPER));
    let mut budget = Budget::new(100);
    let over = release(&mut world, 1, 64 * SUPER);
    assert_eq!(over, Err(ReleaseError::OutOfRange));
    let (from, all) = (Gfn::new(1), frames(64 * SUPER - 1));
    let step = world.with(|p, s| p.release(s, from, all, Leave::Hole, &mut budget));
    assert!(!step.unwrap().progress.complete);
    assert!(budget.used() < 3 * 512 + 100, "{}", budget.used());
}

#[test]
fn xsa_150_no_step_of_the_sweep_is_long() {
    let mut world = guest(64 * SUPER, 32 * SUPER);
    assert!(dirty(&mut world, 0..32 * SUPER));
    let mut steps = 0;
    loop {
        let mut budget = Budget::default();
        let by = Toucher::Vcpu(Vcpu::new(0));
        let gfn = Gfn::new(40 * SUPER);
        let answer = world
            .with(|p, s| p.demand(s, gfn, by, Order::MAX, &mut budget))
            .unwrap();
        assert!(budget.used() <= 4096, "{}", budget.used());
        steps += 1;
        match answer {
            Demand::Retry(Wait::Sweeping) => assert!(steps < 64, "no end"),
            Demand::Exhausted(Policy::Pause) => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(steps > 2);
}

#[test]
fn xsa_153_a_balloon_short_by_the_slack_is_survived() {
    for short in [0, 1, 17, 255, 256] {
        let mut config = Config::new(frames(32 * SUPER));
        config.slack = frames(256);
        let mut world = World::built(&config, 12 * SUPER, 64 * SUPER, 2);
        let boot = Boot {
            scrub: Scrub::Word(0),
            balloon: Balloon::Short(short),
            extent: Order::FRAME,
            piece: Order::FRAME,
            data: 6 * SUPER,
            early_data: 0,
            seed: short,
        };
        assert!(boot.run(&mut world).survived);
        // The guest now dirties all it has, to the last page.
        let rest: Vec<u64> = (0..32 * SUPER)
            .filter(|g| entry(&world, *g) != Entry::Hole)
            .collect();
        assert!(
            dirty(&mut world, rest),
            "short by {short}: {}",
            world.stats()
        );
    }
}

#[test]
fn xsa_217_a_frame_with_another_user_is_never_taken() {
    let mut world = guest(8 * SUPER, 4 * SUPER);
    assert!(world.write(0, Gfn::new(5), Content::ZERO));
    assert!(world.write(0, Gfn::new(2 * SUPER), Content::ZERO));
    let (pinned, _) = (mfn(&world, 5), mfn(&world, 2 * SUPER));
    world.sim.set_pinned(pinned, true);
    let kept = release(&mut world, 0, SUPER).unwrap().kept.get();
    assert_eq!(kept, 1);
    assert_eq!(mfn(&world, 5), pinned);
    reclaim_all(&mut world);
    assert_eq!(mfn(&world, 5), pinned);
    world.check();
}

#[test]
fn xsa_222_247_a_refused_unmap_frees_nothing() {
    let mut world = guest(8 * SUPER, 4 * SUPER);
    assert!(dirty(&mut world, [0]));
    assert!(world.write(0, Gfn::new(SUPER), Content::ZERO));
    let owned = world.sim.owned();
    world.sim.set_table_pages(Some(0));
    assert_eq!(
        release(&mut world, 3, 1),
        Err(ReleaseError::NoTableMemory(Gfn::new(3)))
    );
    assert_eq!(world.sim.owned(), owned);
    world.check();
    // The zero check: freezing works, committing stops in the middle of a run of small entries.
    let mut world = small(64, 32);
    world.sim.traits.max_order = Order::FRAME;
    assert!((20..24).all(|g| world.write(0, Gfn::new(g), Content::ZERO)));
    assert!(world.write(0, Gfn::new(0), Content::ZERO));
    assert!(world.write(0, Gfn::new(4), Content::Data(1)));
    for n in 1..40 {
        let mut world = world.clone();
        world.sim.script.fail_at = Some(world.sim.script.fallible() + n);
        world.sim.script.prefix = 2;
        reclaim_all(&mut world);
        world.check();
    }
}

#[test]
fn xsa_246_a_split_that_fails_ends_the_retries() {
    let mut world = guest(SUPER, SUPER / 2);
    world.sim.set_table_pages(Some(0));
    let answer = world.demand(0, Gfn::new(7));
    assert_eq!(answer, Err(DemandError::NoTableMemory));
    world.check();
    world.sim.set_table_pages(None);
    assert!(matches!(
        world.demand(0, Gfn::new(7)),
        Ok(Demand::Populated(_))
    ));
}

#[test]
fn xsa_277_no_error_path_leaves_a_frame_frozen_or_lost() {
    for n in 1..60 {
        let mut world = small(64, 24);
        assert!(dirty(&mut world, [0, 4, 9]));
        world.sim.script.fail_at = Some(world.sim.script.fallible() + n);
        let _ = release(&mut world, 1, 10);
        world.sim.script.fail_at = None;
        reclaim_all(&mut world);
        world.check();
    }
}

#[test]
fn xsa_304_works_without_superpages_and_with_them_taken_away() {
    let mut world = guest(8 * SUPER, 4 * SUPER);
    assert!(dirty(&mut world, [0]));
    world.sim.traits.max_order = Order::FRAME;
    assert!(dirty(&mut world, SUPER..2 * SUPER));
    assert_eq!(world.sim.leaf(Gfn::new(SUPER)).order, Order::FRAME);
    world.sim.traits.max_order = Order::MAX;
    world
        .with(|p, s| p.coalesce_step(s, &mut Budget::new(1 << 20)))
        .unwrap();
    assert_eq!(world.sim.leaf(Gfn::new(SUPER)).order, Order::SUPERPAGE);
    world.check();
}

#[test]
fn xsa_328_writers_between_freeze_and_flush_lose_nothing() {
    for unmaps in [true, false] {
        let mut world = guest(8 * SUPER, 4 * SUPER);
        world.sim.traits.unmaps = unmaps;
        for gfn in [0, 1, 2 * SUPER] {
            assert!(world.write(1, Gfn::new(gfn), Content::ZERO));
        }
        world.sim.writers.push((1, Gfn::new(1), Content::Data(77)));
        reclaim_all(&mut world);
        assert_eq!(
            world.sim.visible(Gfn::new(1)),
            Some(Content::Data(77)),
            "lost write"
        );
        world.check();
    }
}

#[test]
fn xsa_378_only_holes_and_promises_are_marked() {
    let mut world = guest(8 * SUPER, 4 * SUPER);
    assert!(dirty(&mut world, [0]));
    assert!(fill(&mut world, 3 * SUPER, 1, Entry::Special).is_ok());
    for gfn in [0, 3 * SUPER] {
        let occupied = Err(RangeError::Occupied(Gfn::new(gfn)));
        assert_eq!(mark(&mut world, gfn, 1), occupied);
    }
    world.check();
}

#[test]
fn xsa_388_every_start_and_length_is_legal() {
    for start in 0..32 {
        for count in 1..=32 - start {
            let mut world = small(32, 16);
            assert!(dirty(&mut world, [2, 13, 20]));
            let promised = world.stats().debt().get();
            assert!(release(&mut world, start, count).unwrap().progress.complete);
            assert_eq!(world.stats().debt().get(), promised.saturating_sub(count));
            assert!(mark(&mut world, start, count).unwrap().complete);
            world.check();
        }
    }
}

#[test]
fn xsa_389_a_partial_write_is_accounted_to_the_page() {
    for prefix in 0..4 {
        let mut world = small(64, 32);
        world.sim.traits.logical = true;
        world.sim.script.fail_at = Some(world.sim.script.fallible() + 1);
        world.sim.script.prefix = prefix;
        let by = Toucher::Vcpu(Vcpu::new(0));
        let answer =
            world.with(|p, s| p.demand(s, Gfn::new(1), by, Order::MAX, &mut Budget::default()));
        assert_eq!(answer.is_ok(), prefix > 1, "{answer:?}");
        assert_eq!(world.stats().populated.get(), prefix);
        world.sim.script.fail_at = None;
        world.check();
    }
}

#[test]
fn xsa_385_counts_do_not_wrap() {
    let mut world = guest(8 * SUPER, 4 * SUPER);
    let huge = [
        (u64::MAX, 1),
        (1, u64::MAX),
        (8 * SUPER, 1),
        (u64::MAX, u64::MAX),
    ];
    for (gfn, count) in huge {
        assert_eq!(
            release(&mut world, gfn, count),
            Err(ReleaseError::OutOfRange)
        );
        assert_eq!(mark(&mut world, gfn, count), Err(RangeError::OutOfRange));
    }
    let target = world.with(|p, s| p.set_target(s, frames(u64::MAX), &mut Budget::default()));
    assert_eq!(target, Err(TargetError::AboveLimit));
    world.check();
}

#[test]
fn xsa_480_frames_and_tables_are_used_again_only_after_a_flush() {
    // The simulated host panics when a frame is filled, freed or mapped while a stale
    // translation reaches it, with write protection as with unmapping.
    for unmaps in [true, false] {
        let mut world = guest(8 * SUPER, 2 * SUPER);
        world.sim.traits.unmaps = unmaps;
        for gfn in 0..6 * SUPER {
            assert!(world.write((gfn & 1) as usize, Gfn::new(gfn), Content::ZERO));
        }
        assert!(world.stats().totals.reclaimed > 0);
        assert!(release(&mut world, 0, 8 * SUPER).is_ok());
        world.check();
    }
}

#[test]
fn xsa_507_special_frames_never_enter_the_cache() {
    let mut world = guest(8 * SUPER, 4 * SUPER);
    assert!(world.write(0, Gfn::new(9), Content::ZERO));
    let special = mfn(&world, 9);
    world.sim.set_special(special);
    let _ = release(&mut world, 0, 2 * SUPER).unwrap();
    reclaim_all(&mut world);
    assert_eq!(mfn(&world, 9), special);
    assert!(!world.with(|p, _| p.is_cached(special)));
}
