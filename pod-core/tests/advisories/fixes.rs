//! Faults of the past without an advisory.

use pod_core::sim::{Content, World};
use pod_core::{Budget, Demand, Drain, Entry, Gfn, Order, Pattern, TargetError, Toucher, Wait};

use super::{SUPER, config, dirty, entry, fill, frames, guest, reclaim_all, release, small};

#[test]
fn fix_2009_a_populated_page_is_zero_whatever_the_host_gave() {
    // The simulated host checks the content of every frame that is mapped over a promise.
    let mut world = guest(8 * SUPER, 4 * SUPER);
    world.sim.traits.dirty_heap = true;
    assert!(dirty(&mut world, [0, 3 * SUPER]));
    assert!(release(&mut world, 0, 1).is_ok());
    assert!(dirty(&mut world, (4 * SUPER..6 * SUPER).step_by(8)));
    world.check();
}

#[test]
fn fix_2009_the_cache_is_trimmed_on_every_balloon_path() {
    let mut world = guest(8 * SUPER, 4 * SUPER);
    world.with(|p, _| p.start());
    assert!(release(&mut world, SUPER, 5 * SUPER).is_ok());
    assert_eq!(world.stats().surplus().get(), 0);
    world.check();
}

#[test]
fn fix_2009_the_cache_of_a_dying_guest_takes_nothing_in() {
    let mut world = guest(8 * SUPER, 4 * SUPER);
    assert!(world.write(0, Gfn::new(0), Content::ZERO));
    while world.with(|p, s| p.drain(s, &mut Budget::new(1))) == Drain::More {}
    assert!(release(&mut world, 0, SUPER).is_err());
    reclaim_all(&mut world);
    let target = world.with(|p, s| p.set_target(s, frames(8 * SUPER), &mut Budget::default()));
    assert_eq!(target, Err(TargetError::Dying));
    assert_eq!(world.stats().cache.get(), 0);
}

#[test]
fn fix_2011_populated_frames_are_marked_dirty() {
    let mut world = guest(8 * SUPER, 4 * SUPER);
    let by = Toucher::Host;
    world
        .with(|p, s| p.demand(s, Gfn::new(0), by, Order::MAX, &mut Budget::default()))
        .unwrap();
    assert_eq!(world.sim.dirty_log(), (0..SUPER).collect::<Vec<_>>());
}

#[test]
fn fix_2011_five_hundred_and_twelve_entries_become_one_promise() {
    let mut world = guest(8 * SUPER, 4 * SUPER);
    world.sim.traits.max_order = Order::FRAME;
    for gfn in 0..SUPER {
        assert!(world.write(0, Gfn::new(gfn), Content::ZERO));
    }
    assert_eq!(reclaim_all(&mut world), SUPER);
    let leaf = world.sim.leaf(Gfn::new(0));
    assert_eq!(
        (leaf.order, leaf.entry),
        (Order::SUPERPAGE, Entry::Promise(Pattern::ZERO))
    );
}

#[test]
fn fix_2012_a_touch_at_any_step_of_the_build_is_no_death() {
    let mut world = World::new(&config(8 * SUPER), 16 * SUPER, 1);
    world.mark_all(Pattern::ZERO);
    let touch = |w: &mut World| {
        w.with(|p, s| {
            p.demand(
                s,
                Gfn::new(3),
                Toucher::Host,
                Order::MAX,
                &mut Budget::default(),
            )
        })
    };
    assert_eq!(touch(&mut world), Ok(Demand::Retry(Wait::NoTarget)));
    world.set_target(2 * SUPER);
    assert!(matches!(touch(&mut world), Ok(Demand::Populated(_))));
    // And before anything is marked the cache is full, and stays.
    let mut world = World::new(&config(8 * SUPER), 16 * SUPER, 1);
    world.set_target(2 * SUPER);
    assert_eq!(touch(&mut world), Ok(Demand::NotPromise));
    assert_eq!(world.stats().cache.get(), 2 * SUPER);
}

#[test]
fn fix_2012_promises_of_every_order_are_populated_split_and_released() {
    let giga = 512 * SUPER;
    let mut world = World::built(&config(2 * giga), giga, 2 * giga, 1);
    assert_eq!(world.sim.leaf(Gfn::new(0)).order, Order::MAX);
    assert!(dirty(&mut world, [5]));
    assert_eq!(world.sim.leaf(Gfn::new(0)).order, Order::SUPERPAGE);
    assert!(release(&mut world, giga + 7, 1).is_ok());
    assert_eq!(entry(&world, giga + 7), Entry::Hole);
    assert!(world.with(|p, s| p.audit(s)).is_ok());
}

#[test]
fn fix_2015_filling_from_outside_counts_and_trims() {
    let mut world = guest(8 * SUPER, 4 * SUPER);
    assert!(dirty(&mut world, [0]));
    let count = 6 * SUPER + 5;
    let filled = fill(&mut world, SUPER + 1, count, Entry::Special);
    assert!(filled.unwrap().complete);
    assert_eq!(world.stats().promises.get(), 7 * SUPER - count);
    world.check();
}

#[test]
fn fix_2016_no_reclaim_while_the_cache_covers_the_promises() {
    let mut world = guest(8 * SUPER, 8 * SUPER);
    for gfn in 0..8 * SUPER {
        assert!(world.write(0, Gfn::new(gfn), Content::ZERO));
    }
    assert_eq!(world.stats().totals.reclaimed, 0);
    assert_eq!(world.sim.work.peeks, 0);
}

#[test]
fn fix_2018_mixed_extents_are_released_in_one_call() {
    let mut world = small(64, 32);
    assert!(dirty(&mut world, [0, 9]));
    assert!(release(&mut world, 20, 3).unwrap().progress.complete);
    assert!(fill(&mut world, 21, 1, Entry::Special).is_ok());
    let all = release(&mut world, 0, 64).unwrap();
    assert_eq!(all.kept.get(), 1);
    assert!(all.stolen.get() + all.freed.get() > 0, "{all:?}");
    assert!(all.progress.complete && all.promises.get() > 0);
    world.check();
}

#[test]
fn fix_2020_only_real_memory_is_asked_for_its_users() {
    // `users` on a hole, a promise or a special entry would index outside the host's frames.
    let mut world = small(64, 32);
    assert!(release(&mut world, 0, 7).unwrap().progress.complete);
    assert!(release(&mut world, 0, 64).is_ok());
    reclaim_all(&mut world);
    world.check();
}

#[test]
fn fix_2024_promises_are_counted_when_others_can_see_them() {
    let mut world = World::new(&config(4 * SUPER), 8 * SUPER, 1);
    let step = world.with(|p, s| {
        p.mark(
            s,
            Gfn::new(0),
            frames(4 * SUPER),
            Pattern::ZERO,
            &mut Budget::new(1),
        )
    });
    let done = step.unwrap().done;
    assert!(done.get() < 4 * SUPER);
    assert_eq!(world.stats().promises, done);
    world.check();
}

#[test]
fn fix_2025_every_page_of_a_leaf_leaves_the_reverse_map() {
    // The simulated host checks the reverse map of each page that is freed, and of all in `check`.
    let mut world = guest(8 * SUPER, 8 * SUPER);
    assert!(dirty(&mut world, [0, SUPER]));
    assert_eq!(release(&mut world, 0, SUPER).unwrap().freed.get(), SUPER);
    world.check();
}
