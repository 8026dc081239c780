//! Operations that no row of the history covers.

use pod_core::sim::{Content, World};
use pod_core::{
    Attr, AuditError, Budget, Config, Demand, Entry, Gfn, Host, Leave, Mfn, Node, Order, Pattern,
    Policy, RangeError, RelocateError, Target,
};

use super::superpages::scattered;
use super::{
    SUPER, cached, config, dirty, entry, fill, frames, guest, mfn, reclaim_all, release,
    small_config,
};

#[test]
fn the_host_is_asked_for_room_by_number() {
    let mut world = World::new(&config(8 * SUPER), 16 * SUPER, 1);
    world.mark_all(Pattern::ZERO);
    world.sim.set_heap(700);
    let answer = world.with(|p, s| p.set_target(s, frames(2 * SUPER), &mut Budget::default()));
    assert_eq!(answer, Ok(Target::Need(frames(2 * SUPER - 700))));
    assert_eq!(world.stats().cache.get(), 700);
    world.sim.set_heap(324);
    let answer = world.with(|p, s| p.set_target(s, frames(2 * SUPER), &mut Budget::default()));
    assert_eq!(answer, Ok(Target::Done));
    world.check();
}

#[test]
fn a_pinned_range_is_populated_and_stays() {
    let mut world = guest(8 * SUPER, 4 * SUPER);
    let step = world.with(|p, s| p.pin(s, Gfn::new(10), frames(20), &mut Budget::default()));
    assert!(step.unwrap().complete);
    let before: Vec<Mfn> = (10..30).map(|g| mfn(&world, g)).collect();
    assert_eq!(release(&mut world, 0, SUPER).unwrap().kept.get(), 20);
    reclaim_all(&mut world);
    assert_eq!(before, (10..30).map(|g| mfn(&world, g)).collect::<Vec<_>>());
    world.check();
}

#[test]
fn lending_keeps_a_guest_alive_and_is_counted() {
    let mut world = guest(4 * SUPER, 2 * SUPER);
    assert!(dirty(&mut world, 0..2 * SUPER));
    assert!(!world.write(0, Gfn::new(3 * SUPER), Content::Data(1)));
    world.sim.traits.policy = Policy::Lend(frames(10));
    assert!(world.write(0, Gfn::new(3 * SUPER), Content::Data(1)));
    assert_eq!(world.stats().totals.lent, 10);
    let owned = 2 * SUPER + 10;
    assert_eq!(world.stats().owned().get(), owned);
    world.check();
    // The loan pays debt, and is back with the host when the balloon has reached the target.
    assert_eq!(world.stats().debt().get(), 2 * SUPER - 10);
    let free = world.sim.heap_left();
    for gfn in 0..2 * SUPER {
        assert!(release(&mut world, gfn, 1).unwrap().progress.complete);
    }
    assert_eq!(world.stats().debt().get(), 0);
    assert_eq!(world.stats().owned().get(), 2 * SUPER);
    assert_eq!(world.sim.heap_left(), free + 10);
    world.check();
    // And no more than the guest's limit is ever lent.
    let limited = Config {
        limit: frames(2 * SUPER + 3),
        ..config(4 * SUPER)
    };
    let mut world = World::built(&limited, 2 * SUPER, 16 * SUPER, 1);
    world.sim.traits.policy = Policy::Lend(frames(10));
    assert!(dirty(&mut world, 0..2 * SUPER + 3));
    assert!(!dirty(&mut world, [2 * SUPER + 3]));
    assert_eq!(world.stats().totals.lent, 3);
}

#[test]
fn memory_comes_from_the_home_node_while_that_has_any() {
    let mut world = World::new(&config(8 * SUPER), 32 * SUPER, 1);
    world.sim.traits.nodes = 2;
    // The share is spread over the nodes as the map is.
    world.set_target(4 * SUPER);
    world.mark_all(Pattern::ZERO);
    let node = |world: &World, gfn: u64| world.sim.node_of(mfn(world, gfn)).get();
    for (superpage, expected) in [(0, 0), (7, 1), (1, 0), (2, 1)] {
        assert!(dirty(&mut world, [superpage * SUPER]));
        assert_eq!(
            node(&world, superpage * SUPER),
            expected,
            "superpage {superpage}"
        );
    }
    // A loan comes from the home of the page, too.
    assert!(dirty(
        &mut world,
        (0..3 * SUPER).chain(7 * SUPER..8 * SUPER)
    ));
    world.sim.traits.policy = Policy::Lend(frames(1));
    for (gfn, expected) in [(3 * SUPER, 0), (5 * SUPER, 1)] {
        assert!(dirty(&mut world, [gfn]));
        assert_eq!(node(&world, gfn), expected);
    }
    world.sim.traits.policy = Policy::Crash;
    let end = world.demand(0, Gfn::new(6 * SUPER));
    assert_eq!(end, Ok(Demand::Exhausted(Policy::Crash)));
    world.check();
}

#[test]
fn what_is_filled_in_has_one_home_and_leaves_of_its_own_alignment() {
    let mut world = guest(8 * SUPER, 4 * SUPER);
    let cached = cached(&mut world);
    let answer = fill(&mut world, 0, 1, Entry::ram(cached));
    assert_eq!(answer, Err(RangeError::Cached(Gfn::new(0), cached)));
    let unknown = Entry::Promise(Pattern::new(2).unwrap());
    let answer = fill(&mut world, 0, 1, unknown);
    assert_eq!(answer, Err(RangeError::UnknownPattern));
    let beyond = Entry::ram(Mfn::new(u64::MAX - 3));
    assert_eq!(fill(&mut world, 0, 5, beyond), Err(RangeError::OutOfRange));
    world.check();
    // A frame run that starts one off: the simulated host takes no leaf that is not aligned.
    let given = world.sim.alloc(Order::new(10).unwrap(), Node::default());
    let given = given.unwrap();
    world.sim.fill(given.mfn(), given.order(), 0);
    let odd = given.mfn().checked_add(frames(1)).unwrap();
    let answer = fill(&mut world, SUPER, SUPER, Entry::ram(odd));
    assert!(answer.unwrap().complete);
    assert_eq!(world.sim.leaf(Gfn::new(SUPER)).order, Order::FRAME);
    assert!(world.with(|p, s| p.audit(s)).is_ok());
}

#[test]
fn calls_with_no_budget_and_a_hurried_host_still_get_done() {
    let mut world = World::new(&small_config(64), 128, 1);
    world.sim.traits.hurried = true;
    for (target, steps) in [(8, 8), (20, 12)] {
        let mut left = steps;
        loop {
            world.sim.traits.scattered = true;
            let step = world.with(|p, s| p.set_target(s, frames(target), &mut Budget::new(0)));
            match step.unwrap() {
                Target::More => left -= 1,
                Target::Done => break,
                Target::Need(n) => panic!("{n}"),
            }
        }
        assert!(left <= 1, "{left}");
    }
    world.mark_all(Pattern::ZERO);
    world.with(|p, _| p.start());
    // More surplus than one run: what is released is trimmed by repeated calls.
    let mut at = 0;
    for _ in 0..200 {
        let (gfn, rest) = (Gfn::new(at), frames(62 - at));
        let step = world.with(|p, s| p.release(s, gfn, rest, Leave::Hole, &mut Budget::new(0)));
        let progress = step.unwrap().progress;
        at += progress.done.get();
        if progress.complete {
            break;
        }
    }
    assert_eq!((at, world.stats().surplus().get()), (62, 0));
    let mut world = guest(8 * SUPER, 8 * SUPER);
    world.sim.traits.hurried = true;
    world.with(|p, _| p.start());
    let mut at = 0;
    for _ in 0..200 {
        let (gfn, rest) = (Gfn::new(at), frames(7 * SUPER - at));
        let mut budget = Budget::new(0);
        let step = world.with(|p, s| p.fill(s, gfn, rest, Entry::Special, &mut budget));
        at += step.unwrap().done.get();
        if step.unwrap().complete {
            break;
        }
    }
    assert_eq!((at, world.stats().surplus().get()), (7 * SUPER, 0));
    // The budget ends with the range: the trimming is what is left to do.
    let mut world = guest(8 * SUPER, 8 * SUPER);
    world.with(|p, _| p.start());
    for (count, complete) in [(3 * SUPER, false), (0, false), (0, true)] {
        let (budget, count) = (&mut Budget::new(4), frames(count));
        world.sim.traits.hurried = count.get() == 0;
        let step = world.with(|p, s| p.fill(s, Gfn::new(0), count, Entry::Special, budget));
        assert_eq!(step.unwrap().complete, complete);
    }
    assert_eq!(world.stats().surplus().get(), 0);
}

#[test]
fn target_equal_to_the_maximum_is_no_work_for_the_engine() {
    let config = config(8 * SUPER);
    assert!(config.is_ordinary(frames(8 * SUPER)));
    let mut world = World::new(&config, 16 * SUPER, 1);
    let calls = world.sim.script.calls();
    assert_eq!(world.stats().owned().get(), 0);
    assert_eq!(world.sim.script.calls(), calls);
    assert!(!world.write(0, Gfn::new(0), Content::ZERO));
}

fn relocate(world: &mut World, from: u64, to: u64) -> Result<(), RelocateError> {
    let (from, to) = (Gfn::new(from), Gfn::new(to));
    let result = world.with(|p, s| {
        let keep = pod_core::Content::Keep;
        p.relocate(s, from, to, Order::FRAME, keep, &mut Budget::default())
    });
    if result.is_ok() {
        world.sim.expect(to, Some(Content::Data(from.get() + 1)));
    }
    world.check();
    result
}

#[test]
fn relocation_changes_no_count_at_above_and_below_every_limit() {
    // At the limit, above the target, and with an empty host: the columns of the analysis. A host
    // that has to copy needs one frame more for a moment.
    for (heap, target, copies) in [
        (0, 4 * SUPER, false),
        (0, SUPER, false),
        (100, 4 * SUPER, false),
        (0, 4 * SUPER, true),
        (0, SUPER, true),
    ] {
        let mut world = guest(8 * SUPER, 4 * SUPER);
        world.sim.traits.copies = copies;
        let used = if copies { 3 } else { 4 };
        assert!(dirty(&mut world, 0..used * SUPER));
        let hole = release(&mut world, 5 * SUPER, SUPER);
        assert!(hole.unwrap().progress.complete);
        world
            .with(|p, s| p.set_target(s, frames(target), &mut Budget::default()))
            .unwrap();
        world.sim.set_heap(heap);
        let before = (world.stats().owned(), world.stats().debt());
        let (from, to) = (2 * SUPER + 9, 5 * SUPER + 1);
        assert_eq!(relocate(&mut world, from, to), Ok(()));
        let moved = world.sim.visible(Gfn::new(to));
        assert_eq!(moved, Some(Content::Data(from + 1)));
        assert_eq!(entry(&world, from), Entry::Hole);
        assert_eq!((world.stats().owned(), world.stats().debt()), before);
    }
}

#[test]
fn a_copy_without_a_frame_to_copy_to_changes_nothing() {
    // Limit, frames of the host, and whether there is still debt; the cache is empty.
    for (limit, heap, debt, answer) in [
        (8 * SUPER, 100, false, Ok(())),
        (4 * SUPER, 100, false, Err(RelocateError::NoFrame)),
        (8 * SUPER, 0, false, Err(RelocateError::NoFrame)),
        (8 * SUPER, 100, true, Err(RelocateError::NoFrame)),
    ] {
        let limited = Config {
            limit: frames(limit),
            ..config(8 * SUPER)
        };
        let mut world = World::built(&limited, 4 * SUPER, 16 * SUPER, 1);
        world.sim.traits.copies = true;
        assert!(dirty(&mut world, 0..4 * SUPER));
        let rest = if debt { SUPER } else { 4 * SUPER };
        let hole = release(&mut world, 4 * SUPER, rest);
        assert!(hole.unwrap().progress.complete);
        world.sim.set_heap(heap);
        let before = (world.stats().owned(), world.stats().debt());
        assert_eq!(relocate(&mut world, 9, 4 * SUPER + 1), answer);
        assert_eq!((world.stats().owned(), world.stats().debt()), before);
    }
}

#[test]
fn state_of_entries_survives_a_failed_reclaim() {
    let mut world = guest(8 * SUPER, 4 * SUPER);
    assert!(dirty(&mut world, 0..SUPER));
    world.sim.set_attr(Gfn::new(4), Attr::new(3));
    assert!(world.write(0, Gfn::new(4), Content::Late(1)));
    assert_eq!(reclaim_all(&mut world), 0);
    assert!(matches!(entry(&world, 4), Entry::Ram { attr, .. } if attr == Attr::new(3)));
    world.check();
}

#[test]
fn loose_frames_are_not_lost_when_a_run_is_asked_for() {
    let mut config = config(8 * SUPER);
    config.around = Order::new(4).unwrap();
    let mut world = World::new(&config, 16 * SUPER, 1);
    world.sim.traits.scattered = true;
    // One frame in each superpage of the host: most of them find no block.
    let sizes = pod_core::Sizes {
        blocks: 2,
        ..pod_core::Sizes::for_guest(&config, frames(8 * SUPER), 1)
    };
    let mut scattered = World::with_sizes(&config, 16 * SUPER, 1, &sizes);
    scattered.sim.traits.scattered = true;
    for world in [&mut world, &mut scattered] {
        world.set_target(64);
        world.mark_all(Pattern::ZERO);
        assert!(dirty(world, (0..64).map(|i| i * 17)));
        assert_eq!(world.stats().cache.get(), 0);
        world.check();
    }
}

#[test]
fn a_frame_of_the_cache_has_no_second_home_be_it_in_a_block_or_loose() {
    let mut world = scattered();
    let cached: Vec<Mfn> = (0..8 * SUPER)
        .map(Mfn::new)
        .filter(|m| world.with(|p, _| p.is_cached(*m)))
        .collect();
    assert_eq!(cached.len(), 12);
    for mfn in cached {
        let answer = fill(&mut world, 5 * SUPER, 1, Entry::ram(mfn));
        assert_eq!(answer, Err(RangeError::Cached(Gfn::new(5 * SUPER), mfn)));
        let mut world = world.clone();
        world.sim.set_frame(Gfn::new(3), mfn);
        let audit = world.with(|p, s| p.audit(s));
        assert_eq!(audit, Err(AuditError::TwoHomes(mfn)));
    }
    world.check();
}

#[test]
fn a_pattern_is_set_on_splinters_in_time_for_each_page() {
    let mut config = config(2 * SUPER);
    config.patterns[1] = 0x5555;
    config.patterns_used = 2;
    let mut world = World::built(&config, SUPER, 8 * SUPER, 1);
    let poison = Pattern::new(1).unwrap();
    let mut set = |from: u64, count: u64, pattern| {
        let mut budget = Budget::default();
        let (gfn, count) = (Gfn::new(from), frames(count));
        let step = world.with(|p, s| p.set_pattern(s, gfn, count, pattern, &mut budget));
        assert!(step.unwrap().complete);
        (budget.used(), world.sim.leaf(gfn).order)
    };
    assert_eq!(set(0, 7, poison).1, Order::FRAME);
    let (used, order) = set(0, SUPER, poison);
    assert_eq!(order, Order::SUPERPAGE);
    assert!(used <= 2 * 512 + 2, "{used}");
}

#[test]
fn a_release_clears_no_more_than_a_superpage_before_it_asks_whether_to_return() {
    let mut world = guest(8 * SUPER, 4 * SUPER);
    assert!(dirty(&mut world, (0..4).map(|i| i * SUPER)));
    let whole = frames(4 * SUPER);
    for (hurried, done) in [(true, 1), (false, 4)] {
        let mut world = world.clone();
        world.sim.traits.hurried = hurried;
        let (flushes, fills) = (world.sim.work.flushes, world.sim.work.fills);
        let budget = &mut Budget::new(1 << 20);
        let given = world.with(|p, s| p.release(s, Gfn::new(0), whole, Leave::Hole, budget));
        assert_eq!(given.unwrap().progress.done.get(), done * SUPER);
        assert_eq!(world.sim.work.fills, fills + done * SUPER);
        assert_eq!(world.sim.work.flushes, flushes + done);
    }
}

#[test]
fn the_smallest_budget_is_good_for_a_region() {
    let mut world = guest(8 * SUPER, 4 * SUPER);
    world.sim.traits.max_order = Order::FRAME;
    assert!(dirty(&mut world, 0..2 * SUPER));
    let (gfn, all) = (Gfn::new(9), frames(2 * SUPER - 9));
    let tiny = || Budget::new(1);
    let given = world.with(|p, s| p.release(s, gfn, all, Leave::Hole, &mut tiny()));
    assert_eq!(given.unwrap().progress.done.get(), SUPER - 9);
    assert!(release(&mut world, SUPER, SUPER).unwrap().progress.complete);
    let marked = world.with(|p, s| p.mark(s, gfn, all, Pattern::ZERO, &mut tiny()));
    assert_eq!(marked.unwrap().done.get(), SUPER - 9);
    world.check();
}

#[test]
fn a_batch_takes_no_more_than_the_cache_has_places_for() {
    let mut config = config(8 * SUPER);
    config.rules.set_aside = 0;
    // Every frame has a block of its own; one is left when the cache is full again.
    let sizes = pod_core::Sizes {
        blocks: 40,
        loose: 0,
        ..pod_core::Sizes::for_guest(&config, frames(8 * SUPER), 1)
    };
    let mut world = World::with_sizes(&config, 128 * SUPER, 1, &sizes);
    world.sim.traits.scattered = true;
    world.set_target(32);
    world.mark_all(Pattern::ZERO);
    for gfn in 0..32 {
        assert!(world.write(0, Gfn::new(gfn), Content::ZERO));
    }
    world.set_target(32 + 39);
    let before = (world.stats().owned(), world.stats().debt());
    reclaim_all(&mut world);
    let stats = world.stats();
    assert_eq!((stats.owned(), stats.debt()), before, "{stats}");
    assert_eq!(stats.totals.refused, 0);
    assert_eq!(stats.totals.reclaimed, 1);
    world.check();
}

#[test]
fn a_page_moves_to_its_own_frame_only_below_the_limit() {
    for (limit, in_place) in [(2 * SUPER, true), (2 * SUPER - 1, false)] {
        let limited = Config {
            limit: frames(limit),
            ..config(3 * SUPER)
        };
        let mut world = World::built(&limited, 2 * SUPER - 1, 16 * SUPER, 1);
        assert!(release(&mut world, 2 * SUPER - 1, SUPER + 1).is_ok());
        assert!(dirty(&mut world, 0..2 * SUPER - 1));
        // The frame of this page goes to the host, and another comes for a page elsewhere.
        let hole = Gfn::new(5);
        assert!(release(&mut world, hole.get(), 1).is_ok());
        assert!(crate::mark(&mut world, 2 * SUPER, 1).is_ok());
        world.set_target(2 * SUPER - 1);
        assert!(dirty(&mut world, [2 * SUPER]));
        let stats = world.stats();
        assert_eq!(stats.owned().get(), 2 * SUPER - 1);
        assert_eq!((stats.debt().get(), stats.cache.get()), (0, 0));
        let from = Gfn::new(SUPER + 9);
        let moved = world.with(|p, s| {
            let drop = pod_core::Content::Discard;
            p.relocate(s, from, hole, Order::FRAME, drop, &mut Budget::default())
        });
        assert_eq!(moved, Ok(()));
        let there = matches!(entry(&world, hole.get()), Entry::Ram { .. });
        assert_eq!(there, in_place, "limit {limit}");
    }
}
