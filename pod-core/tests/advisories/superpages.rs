//! Superpages: whole in the cache, whole again in the table.

use pod_core::sim::{Content, World};
use pod_core::{Budget, Demand, Entry, Gfn, Leave, Order, Pattern, ReclaimStep, Toucher};

use super::{SUPER, config, dirty, frames, guest, release, small};

#[test]
fn small_pages_of_one_region_become_one_leaf_without_copying() {
    let mut world = guest(8 * SUPER, 4 * SUPER);
    let fills = world.sim.work.fills;
    let levels = |world: &mut World| world.with(|p, s| p.audit(s)).unwrap().levels_milli();
    let frame = |world: &mut World, gfn: u64| {
        let (gfn, by) = (Gfn::new(gfn), Toucher::Host);
        world.with(|p, s| p.demand(s, gfn, by, Order::FRAME, &mut Budget::default()))
    };
    for gfn in (0..SUPER).map(|i| i * 5 % SUPER) {
        assert_eq!(world.sim.leaf(Gfn::new(gfn)).order > Order::FRAME, gfn == 0);
        assert_eq!(frame(&mut world, gfn), Ok(Demand::Populated(Order::FRAME)));
        if gfn == 5 {
            assert_eq!(levels(&mut world), 4000);
        }
    }
    assert_eq!(world.sim.leaf(Gfn::new(0)).order, Order::SUPERPAGE);
    assert_eq!(world.stats().totals.promoted, 1);
    assert_eq!((world.sim.work.fills, levels(&mut world)), (fills, 3000));
    let census = world.with(|p, s| p.audit(s)).unwrap();
    assert_eq!(census.accesses_milli(4), 13_000);
}

#[test]
fn a_giga_page_is_freed_whole_and_stolen_in_superpages_that_merge() {
    let giga = Order::new(4).unwrap();
    let mut world = small(64, 64);
    assert!(dirty(&mut world, [0]));
    assert_eq!(world.sim.leaf(Gfn::new(0)).order, giga);
    let frees = world.sim.work.frees;
    assert_eq!(release(&mut world, 0, 16).unwrap().freed.get(), 16);
    assert_eq!(world.sim.work.frees, frees + 1);
    // With debt: 48 frames for the 48 promises that are left and 16 new ones.
    assert!(dirty(&mut world, [16]));
    assert_eq!(world.sim.leaf(Gfn::new(16)).order, giga);
    assert!(super::mark(&mut world, 0, 16).unwrap().complete);
    assert_eq!(world.stats().debt().get(), 16);
    assert_eq!(release(&mut world, 16, 16).unwrap().stolen.get(), 16);
    assert_eq!(world.stats().debt().get(), 0);
    assert!(dirty(&mut world, [32]));
    assert_eq!(world.sim.leaf(Gfn::new(32)).order, giga);
    world.check();
}

#[test]
fn superpages_find_a_place_beside_single_frames_of_many_runs() {
    let mut config = config(16 * SUPER);
    config.limit = frames(8 * SUPER);
    let mut world = World::new(&config, 64 * SUPER, 1);
    world.sim.traits.scattered = true;
    world.set_target(40);
    world.sim.traits.scattered = false;
    world.mark_all(Pattern::ZERO);
    assert!(world.stats().loose.get() > 0, "there are blocks left");
    // Whole superpages of the host: all find a block, the singles move.
    world.set_target(8 * SUPER);
    assert_eq!(world.stats().owned().get(), 8 * SUPER);
    assert_eq!(world.stats().totals.refused, 0);
    assert!(world.stats().superpages >= 6, "{}", world.stats());
    world.check();
    // And superpages that the balloon gives back pay the debt, frame by frame.
    assert!(dirty(&mut world, (0..7).map(|i| i * SUPER)));
    let debt = world.stats().debt().get();
    assert_eq!(debt, 8 * SUPER);
    for gfn in (0..7).map(|i| i * SUPER) {
        let given = release(&mut world, gfn, SUPER).unwrap();
        assert_eq!(
            given.stolen.get() + given.promises.get(),
            SUPER,
            "{given:?}"
        );
    }
    assert_eq!(world.stats().debt().get(), debt - 7 * SUPER);
    assert_eq!(world.stats().totals.refused, 0);
    world.check();
}

/// Two superpages of data, and single frames of other runs in the cache, most of them loose.
pub(crate) fn scattered() -> World {
    let sizes = pod_core::Sizes {
        blocks: 2,
        ..pod_core::Sizes::for_guest(&config(8 * SUPER), frames(8 * SUPER), 1)
    };
    let mut world = World::with_sizes(&config(8 * SUPER), 8 * SUPER, 1, &sizes);
    world.set_target(2 * SUPER);
    world.mark_all(Pattern::ZERO);
    assert!(dirty(&mut world, [0, SUPER]));
    world.sim.traits.scattered = true;
    world.set_target(2 * SUPER + 12);
    assert_eq!(world.stats().loose.get(), 8);
    world
}

#[test]
fn a_superpage_without_a_block_pays_the_debt_in_single_frames() {
    let mut world = scattered();
    let debt = world.stats().debt().get();
    let given = release(&mut world, 0, SUPER).unwrap();
    assert_eq!(given.stolen.get(), SUPER, "{given:?}");
    assert_eq!(world.stats().debt().get(), debt - SUPER);
    assert_eq!(world.stats().loose.get(), 8 + SUPER);
    world.check();
    assert!(dirty(&mut world, 3 * SUPER..4 * SUPER + 12));
    assert_eq!(world.stats().cache.get(), 0);
    world.check();
}

/// Data in small pages, in the first superpages.
fn splinters(superpages: u64) -> World {
    let mut world = guest(8 * SUPER, 4 * SUPER);
    world.sim.traits.max_order = Order::FRAME;
    assert!(dirty(&mut world, 0..superpages * SUPER));
    world.sim.traits.max_order = Order::MAX;
    world
}

#[test]
fn every_region_that_is_all_promises_is_one_promise() {
    let one_promise = |world: &World, superpages: u64| {
        (0..superpages).all(|i| {
            let leaf = world.sim.leaf(Gfn::new(i * SUPER));
            (leaf.order, leaf.entry) == (Order::SUPERPAGE, Entry::Promise(Pattern::ZERO))
        })
    };
    // Whatever the budget: in one call, or a few pages at a time.
    for looks in [1 << 20, 4096, 100] {
        let mut world = splinters(3);
        let mut at = 0;
        while at < 3 * SUPER {
            let (gfn, rest) = (Gfn::new(at), frames(3 * SUPER - at));
            let budget = &mut Budget::new(looks);
            let leave = Leave::Promise(Pattern::ZERO);
            let step = world.with(|p, s| p.release(s, gfn, rest, leave, budget));
            at += step.unwrap().progress.done.get();
        }
        world.sim.forget(Gfn::new(0), 3 * SUPER);
        assert!(one_promise(&world, 3), "{looks} looks");
        world.check();
    }
    // A reclaim that lacks the budget leaves it to the next touch.
    let mut scattered = config(8 * SUPER);
    scattered.rules.tie = false;
    let mut world = World::built(&scattered, 4 * SUPER, 32 * SUPER, 1);
    world.sim.traits.max_order = Order::FRAME;
    let order = (1..=SUPER).map(|i| i * 5 % SUPER);
    assert!(
        order
            .clone()
            .all(|g| world.write(0, Gfn::new(g), Content::ZERO))
    );
    world.sim.traits.max_order = Order::MAX;
    while world.stats().totals.reclaimed < SUPER {
        let step = world.with(|p, s| p.reclaim_step(s, &mut Budget::new(1)));
        assert_ne!(step, Ok(ReclaimStep::Done));
    }
    assert_eq!(world.sim.leaf(Gfn::new(0)).order, Order::FRAME);
    let touched = world.demand(0, Gfn::new(7));
    assert_eq!(touched, Ok(Demand::Populated(Order::SUPERPAGE)));
    world.check();
}
