//! Weaknesses that remain elsewhere.

use pod_core::sim::{Content, World};
use pod_core::{
    Budget, Config, Demand, Entry, FrameCount, FrameFailed, Gfn, Order, Pattern, Rules, Toucher,
    Vcpu, Wait,
};

use super::{SUPER, cached, config, dirty, entry, fill, guest, mfn, reclaim_all, release};

#[test]
fn weakness_1_yielding_is_not_exhaustion() {
    let mut world = guest(64 * SUPER, 32 * SUPER);
    assert!(dirty(&mut world, 0..32 * SUPER));
    // One zero page, as far from the sweep's start as can be.
    assert!(world.write(0, Gfn::new(0), Content::ZERO));
    let by = Toucher::Vcpu(Vcpu::new(1));
    let gfn = Gfn::new(60 * SUPER);
    let first = world
        .with(|p, s| p.demand(s, gfn, by, Order::MAX, &mut Budget::new(1)))
        .unwrap();
    assert_eq!(first, Demand::Retry(Wait::Sweeping));
    assert!(matches!(world.demand(1, gfn), Ok(Demand::Populated(_))));
}

#[test]
fn weakness_2_the_balloon_asks_for_other_users_like_the_zero_check() {
    let mut world = guest(8 * SUPER, 2 * SUPER);
    assert!(dirty(&mut world, [0]));
    let mapped = mfn(&world, 0);
    world.sim.set_pinned(mapped, true);
    let answer = release(&mut world, 0, 1).unwrap();
    assert_eq!((answer.stolen.get(), answer.kept.get()), (0, 1));
    assert_eq!(world.sim.visible(Gfn::new(0)), Some(Content::Data(1)));
}

#[test]
fn weakness_3_nothing_is_stranded_when_the_last_promise_is_filled() {
    let mut world = guest(4 * SUPER, 2 * SUPER);
    assert!(dirty(&mut world, [0]));
    for gfn in (SUPER..4 * SUPER).step_by(64) {
        assert!(fill(&mut world, gfn, 64, Entry::Special).is_ok());
    }
    let stats = world.stats();
    assert_eq!((stats.promises.get(), stats.cache.get()), (0, 0));
}

#[test]
fn weakness_4_the_sweep_sees_the_first_and_the_last_page() {
    for zero in [0, 1, SUPER - 1, 2 * SUPER - 1] {
        let mut world = guest(4 * SUPER, 2 * SUPER);
        assert!(dirty(&mut world, 0..2 * SUPER));
        assert!(world.write(0, Gfn::new(zero), Content::ZERO));
        assert!(matches!(
            world.demand(0, Gfn::new(3 * SUPER)),
            Ok(Demand::Populated(_))
        ));
        assert_eq!(entry(&world, zero), Entry::Promise(Pattern::ZERO));
    }
}

#[test]
fn weakness_5_a_superpage_too_many_goes_back_whole() {
    let mut world = guest(8 * SUPER, 8 * SUPER);
    world.with(|p, _| p.start());
    let (before, frees) = (world.stats().superpages, world.sim.work.frees);
    assert_eq!(release(&mut world, 0, SUPER).unwrap().promises.get(), SUPER);
    assert_eq!(world.sim.work.frees, frees + 1);
    assert_eq!(world.stats().superpages, before - 1);
    // And a few pages too many break at most one.
    let frees = world.sim.work.frees;
    assert!(release(&mut world, SUPER, 3).is_ok());
    assert_eq!(world.stats().superpages, before - 2);
    assert_eq!(
        world.sim.work.frees,
        frees + 2,
        "a run of two and one of one"
    );
    assert!(release(&mut world, SUPER + 3, 3).is_ok());
    assert_eq!(world.stats().superpages, before - 2);
    // Exactly a superpage too many goes whole although a broken one has nearly as much.
    let frees = world.sim.work.frees;
    assert!(release(&mut world, 2 * SUPER, SUPER).is_ok());
    assert_eq!(world.sim.work.frees, frees + 1);
    assert_eq!(world.stats().superpages, before - 3);
}

#[test]
fn weakness_7_a_proven_zero_page_is_not_written_again() {
    let mut world = guest(8 * SUPER, 4 * SUPER);
    assert!(world.write(0, Gfn::new(0), Content::ZERO));
    let fills = world.sim.work.fills;
    assert_eq!(reclaim_all(&mut world), SUPER);
    assert_eq!(world.sim.work.fills, fills);
}

#[test]
fn weakness_8_broken_superpages_merge_again() {
    let mut world = guest(8 * SUPER, 2 * SUPER);
    world.sim.traits.max_order = Order::FRAME;
    let before = world.stats().superpages;
    for gfn in 0..SUPER / 2 {
        assert!(world.write(0, Gfn::new(gfn), Content::ZERO));
    }
    assert_eq!(world.stats().superpages, before - 1);
    assert_eq!(reclaim_all(&mut world), SUPER / 2);
    assert_eq!(world.stats().superpages, before);

    let mut xen = Config {
        rules: Rules::XEN,
        ..config(8 * SUPER)
    };
    xen.slack = FrameCount::ZERO;
    let mut world = World::built(&xen, 2 * SUPER, 16 * SUPER, 1);
    world.sim.traits.max_order = Order::FRAME;
    assert!(world.write(0, Gfn::new(0), Content::ZERO));
    reclaim_all(&mut world);
    assert_eq!(world.stats().superpages, 1, "the baseline must not merge");
}

#[test]
fn weakness_9_a_broken_frame_is_found_by_number() {
    let mut world = guest(8 * SUPER, 4 * SUPER);
    let cached = cached(&mut world);
    let lookups = world.sim.lookup_count();
    let answer = world.with(|p, s| p.frame_failed(s, cached));
    assert_eq!(answer, Ok(FrameFailed::Replaced));
    assert_eq!(world.sim.retired(), [cached.get()]);
    assert_eq!(world.sim.lookup_count(), lookups);
    world.check();
}

#[test]
fn weakness_10_a_missing_replacement_is_said() {
    let mut world = guest(8 * SUPER, 4 * SUPER);
    world.sim.set_heap(0);
    let cached = cached(&mut world);
    let debt = world.stats().debt().get();
    let answer = world.with(|p, s| p.frame_failed(s, cached));
    assert_eq!(answer, Ok(FrameFailed::Short));
    assert_eq!(world.stats().debt().get(), debt + 1);
    world.check();
}
