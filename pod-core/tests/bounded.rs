//! Work per call against 1 TiB in which nothing can be reclaimed.
#![expect(clippy::unwrap_used, reason = "a test")]

use pod_core::sim::{Content, Full, Memory, Sim, World};
use pod_core::{
    Budget, CoalesceStep, Config, Content as Moved, Demand, Entry, FrameCount, Gfn, Host as _,
    Leave, Mfn, Order, Pattern, PinError, Pod, Policy, Progress, ReclaimStep, Sizes, Toucher, Vcpu,
    Wait,
};

const TIB: u64 = 1 << 28;
const SUPER: u64 = 512;
/// Looks of the default budget, and what a call may do at most.
const LIMIT: u64 = 4096;

/// A guest whose cache has room for `cached` frames.
fn full(max: u64, cached: u64, run: impl FnOnce(&mut Pod<'_>, &mut Full)) {
    let mut config = Config::new(FrameCount::new(max));
    config.patterns[1] = 0xaaaa;
    config.patterns_used = 2;
    let sizes = Sizes::for_guest(&config, FrameCount::new(cached), 1);
    let mut memory = Memory::new(&sizes);
    let mut pod = Pod::new(config, memory.storage()).unwrap();
    let mut host = Full::adopted(&mut pod, true);
    run(&mut pod, &mut host);
}

/// One call with the default budget: neither what it says nor what it did exceeds that.
fn step<R>(host: &mut Full, call: impl FnOnce(&mut Full, &mut Budget) -> R) -> R {
    let (mut budget, before) = (Budget::default(), host.work());
    let result = call(host, &mut budget);
    let (used, work) = (u64::from(budget.used()), host.work() - before);
    assert!(used <= LIMIT && work <= LIMIT, "{used} looks, {work} done");
    result
}

/// Calls until the range is done.
fn range(from: u64, to: u64, mut call: impl FnMut(Gfn, FrameCount) -> Progress) -> u64 {
    let (mut at, mut calls) = (from, 0);
    while at < to {
        let progress = call(Gfn::new(at), FrameCount::new(to - at));
        assert!(progress.done.get() > 0);
        at += progress.done.get();
        calls += 1;
    }
    calls
}

#[test]
fn no_step_over_a_tebibyte_exceeds_its_budget() {
    full(TIB, 1, |pod, host| {
        let by = Toucher::Vcpu(Vcpu::new(0));
        let last = Gfn::new(TIB - 1);
        // The half that looks at superpages; the page by page half has steps of the same bound.
        for _ in 0..2000 {
            let answer = step(host, |h, b| pod.demand(h, last, by, Order::MAX, b));
            assert_eq!(answer, Ok(Demand::Retry(Wait::Sweeping)));
            // A pin that has to wait for a frame says so, and has done as much.
            let pinned = step(host, |h, b| pod.pin(h, last, FrameCount::new(1), b));
            assert_eq!(pinned.unwrap().done.get(), 0);
        }
        for tiny in [1, 100] {
            let mut budget = Budget::new(tiny);
            assert_eq!(pod.reclaim_step(host, &mut budget), Ok(ReclaimStep::More));
            assert!(budget.used() <= 4 * 512 + 8, "{} looks", budget.used());
        }
    });
}

#[test]
fn no_operation_on_a_range_of_a_tebibyte_exceeds_its_budget() {
    full(TIB, 1 << 20, |pod, host| {
        let poison = Pattern::new(1).unwrap();
        let calls = range(0, TIB - SUPER, |gfn, count| {
            step(host, |h, b| pod.pin(h, gfn, count, b)).unwrap()
        });
        assert!(calls > 200);
        let calls = range(0, TIB, |gfn, count| {
            step(host, |h, b| pod.set_pattern(h, gfn, count, poison, b)).unwrap()
        });
        assert!(calls > 100);
        while step(host, |h, b| pod.coalesce_step(h, b)) == Ok(CoalesceStep::More) {}
        // What pays the debt has to be cleared, what comes after goes to the host as it is.
        let to_promises = Leave::Promise(Pattern::ZERO);
        for (from, to, leave) in [
            (1, 64 * SUPER + 1, to_promises),
            (64 * SUPER + 1, 1 << 23, Leave::Hole),
        ] {
            range(from, to, |gfn, count| {
                step(host, |h, b| pod.release(h, gfn, count, leave, b))
                    .unwrap()
                    .progress
            });
        }
        let fill = [
            Entry::Special,
            Entry::Promise(poison),
            Entry::ram(Mfn::new(TIB + 1)),
            Entry::Hole,
        ];
        for (i, entry) in (0..).zip(fill) {
            let from = (i + 1) << 16;
            range(from, from + (1 << 16), |gfn, count| {
                step(host, |h, b| pod.fill(h, gfn, count, entry, b)).unwrap()
            });
        }
        range(1 << 20, 1 << 23, |gfn, count| {
            step(host, |h, b| pod.mark(h, gfn, count, poison, b)).unwrap()
        });
    });
}

#[test]
fn a_giga_page_that_cannot_be_is_tried_once_in_a_pass() {
    let max = 1 << 24;
    full(max, 1, |pod, host| {
        let before = host.work();
        while step(host, |h, b| pod.coalesce_step(h, b)) == Ok(CoalesceStep::More) {}
        assert!(host.work() - before <= 4 * max / SUPER);
    });
}

#[test]
fn no_relocation_exceeds_its_budget() {
    full(TIB, 1 << 20, |pod, host| {
        let holes = FrameCount::new(8 * SUPER);
        let given = step(host, |h, b| {
            pod.release(h, Gfn::new(0), holes, Leave::Hole, b)
        });
        assert!(given.unwrap().stolen.get() >= SUPER);
        let orders = [
            Order::SUPERPAGE,
            Order::FRAME,
            Order::SUPERPAGE,
            Order::FRAME,
        ];
        let contents = [Moved::Keep, Moved::Keep, Moved::Discard, Moved::Discard];
        for (i, (order, content)) in (0..).zip(orders.into_iter().zip(contents)) {
            let (from, to) = (Gfn::new((9 + i) * SUPER), Gfn::new(i * SUPER));
            let moved = step(host, |h, b| pod.relocate(h, from, to, order, content, b));
            assert_eq!(moved, Ok(()), "{order} {content:?}");
        }
    });
}

#[test]
fn a_second_pass_skips_what_was_seen_in_use_and_not_written() {
    const MAX: u64 = 1 << 20;
    let config = Config::new(FrameCount::new(MAX));
    let sizes = Sizes::for_guest(&config, FrameCount::new(1), 1);
    let mut memory = Memory::new(&sizes);
    let mut pod = Pod::new(config, memory.storage()).unwrap();
    let mut host = Full::adopted(&mut pod, true);
    let by = Toucher::Vcpu(Vcpu::new(0));
    let mut looks = [0; 2];
    for total in &mut looks {
        loop {
            let mut budget = Budget::default();
            let gfn = Gfn::new(MAX - 1);
            let answer = pod
                .demand(&mut host, gfn, by, Order::MAX, &mut budget)
                .unwrap();
            *total += u64::from(budget.used());
            assert!(budget.used() <= 4096);
            if answer == Demand::Exhausted(Policy::Pause) {
                break;
            }
        }
    }
    assert!(looks[0] >= MAX - 512, "the first pass looks at every page");
    assert!(looks[1] * 50 <= MAX, "{} looks of {MAX}", looks[1]);
}

/// A pass costs a question or two for each superpage once the host watches for writes, also where
/// one page of each looks zero, is frozen, read, and thawed, and its leaf split and joined again.
#[test]
fn what_is_known_of_a_region_outlives_the_joining_of_its_leaf() {
    for gib in [1, 4] {
        let max = gib << 18;
        full(max, 512, |pod, host| {
            host.set_late(5);
            let by = Toucher::Vcpu(Vcpu::new(0));
            for pass in 0..4 {
                let before = host.callbacks();
                let touch = |h: &mut Full, b: &mut Budget| {
                    pod.demand(h, Gfn::new(max - 3), by, Order::MAX, b)
                };
                let mut touch = touch;
                while step(host, &mut touch) == Ok(Demand::Retry(Wait::Sweeping)) {}
                let callbacks = host.callbacks() - before;
                assert!(
                    pass == 0 || callbacks <= 1100 * gib,
                    "{gib} GiB: {callbacks}"
                );
            }
        });
    }
}

/// Streams of 4 KiB touches on one virtual CPU, in turns, while promises outnumber the cache.
#[test]
fn interleaved_streams_cost_a_few_looks_a_fault() {
    for ring in [None, Some(32)] {
        for streams in [1, 2, 3, 8, 16, 64, 128] {
            let regions = streams.max(16);
            let mut config = Config::new(FrameCount::new(2 * regions * SUPER));
            config.slack = FrameCount::ZERO;
            config.rules.ring = ring;
            let machine = 4 * regions * SUPER;
            let mut world = World::built(&config, regions * SUPER, machine, 1);
            world.sim.traits.max_order = Order::FRAME;
            let before = world.sim.page_work();
            let (mut looks, mut faults) = (0, 0);
            for base in (0..regions / streams).map(|i| i * streams) {
                for (page, stream) in (0..SUPER).flat_map(|p| (0..streams).map(move |s| (p, s))) {
                    let gfn = Gfn::new((base + stream) * SUPER + page);
                    let by = Toucher::Vcpu(Vcpu::new(0));
                    let mut budget = Budget::default();
                    let answer = world.with(|p, s| p.demand(s, gfn, by, Order::MAX, &mut budget));
                    assert!(matches!(answer, Ok(Demand::Populated(_))), "{answer:?}");
                    assert!(world.write(0, gfn, Content::Data(1)));
                    looks += u64::from(budget.used());
                    faults += 1;
                    if faults % SUPER == 0 {
                        // Few translations, which the simulator reads at each write of the table.
                        world.sim.flush();
                    }
                }
            }
            let work = world.sim.page_work() - before;
            assert!(
                looks <= 8 * faults && work <= 8 * faults,
                "{streams} streams, {faults} faults: {looks} looks, {work} done"
            );
        }
    }
}

/// The dearest guest there is: every page lies in a leaf of its own and looks empty, or filled
/// with a pattern, without being so; hence each costs a lookup, a peek, a scan, and the search for
/// a leaf to make whole.
#[test]
fn pages_that_only_look_empty_keep_every_call_within_its_budget() {
    let mut config = Config::new(FrameCount::new(8 * SUPER));
    config.slack = FrameCount::ZERO;
    config.patterns[1] = 0x5555;
    config.patterns_used = 2;
    let mut start = World::built(&config, 5 * SUPER, 16 * SUPER, 1);
    start.sim.traits.max_order = Order::FRAME;
    assert!((0..5 * SUPER).all(|gfn| start.write(0, Gfn::new(gfn), Content::Late(gfn))));
    start.sim.traits.max_order = Order::MAX;
    let poison = Pattern::new(1).unwrap();
    let promises = (Gfn::new(5 * SUPER), FrameCount::new(3 * SUPER));
    let set =
        start.with(|p, s| p.set_pattern(s, promises.0, promises.1, poison, &mut Budget::default()));
    assert!(set.unwrap().complete);
    // With a few pages that are filled, so that a search may end with something to populate.
    for filled in [0, 1, 511, 512, 1024] {
        let mut world = start.clone();
        for i in 0..filled {
            let word = if i % 2 == 0 { 0 } else { 0x5555 };
            assert!(world.write(0, Gfn::new(5 * SUPER - 1 - 2 * i), Content::Filled(word)));
        }
        whole_life(&mut world);
    }
}

/// One call, see [`step`].
fn world_step<R>(
    world: &mut World,
    call: impl FnOnce(&mut Pod<'_>, &mut Sim, &mut Budget) -> R,
) -> R {
    let (mut budget, before) = (Budget::default(), world.sim.page_work());
    let result = world.with(|pod, sim| call(pod, sim, &mut budget));
    let (used, work) = (u64::from(budget.used()), world.sim.page_work() - before);
    assert!(used <= LIMIT && work <= LIMIT, "{used} looks, {work} done");
    result
}

/// All operations; none does more than its budget says.
fn whole_life(world: &mut World) {
    let by = Toucher::Vcpu(Vcpu::new(0));
    for i in 0..24 {
        let touched = Gfn::new((5 + i % 3) * SUPER + i);
        let largest = if i % 2 == 0 { Order::MAX } else { Order::FRAME };
        let answer = world_step(world, |p, s, b| p.demand(s, touched, by, largest, b));
        assert!(answer.is_ok());
        let count = FrameCount::new(SUPER);
        let pinned = world_step(world, |p, s, b| p.pin(s, Gfn::new(7 * SUPER), count, b));
        let out_of_frames = Demand::Exhausted(Policy::Pause);
        assert!(
            pinned.is_ok_and(|p| p.done <= count)
                || matches!(pinned, Err(PinError::Unavailable(_, d)) if d == out_of_frames)
        );
        assert!(world_step(world, |p, s, b| p.reclaim_step(s, b)).is_ok());
        assert!(world_step(world, |p, s, b| p.coalesce_step(s, b)).is_ok());
    }
    let all = |at: u64| (Gfn::new(at), FrameCount::new(7 * SUPER - at));
    for leave in [Leave::Promise(Pattern::ZERO), Leave::Hole] {
        range(1, 7 * SUPER, |gfn, count| {
            let given = world_step(world, |p, s, b| p.release(s, gfn, count, leave, b));
            given.unwrap().progress
        });
    }
    let (gfn, count) = all(1);
    assert!(world_step(world, |p, s, b| p.mark(s, gfn, count, Pattern::ZERO, b)).is_ok());
}

/// The oldest recent region fails the check at its last page, and so does the next, or it is
/// filled and has to be cleared; then the touch itself has a superpage to fill.
#[test]
fn recent_regions_and_the_touch_together_stay_within_the_budget() {
    const POISON: u64 = 0x5555;
    let mut config = Config::new(FrameCount::new(8 * SUPER));
    config.slack = FrameCount::ZERO;
    config.patterns[1] = POISON;
    config.patterns_used = 2;
    for last in [Content::Filled(POISON), Content::Late(1)] {
        let mut world = World::built(&config, 3 * SUPER + 1, 16 * SUPER, 1);
        world.sim.traits.max_order = Order::FRAME;
        let words = [Content::ZERO, Content::Filled(POISON), Content::Data(1)];
        let ends = [Content::Late(1), last, Content::Data(1)];
        for (region, (word, end)) in (0..).zip(words.into_iter().zip(ends)) {
            let mut pages = region * SUPER..(region + 1) * SUPER;
            let written = pages.all(|g| world.write(0, Gfn::new(g), word));
            assert!(written && world.write(0, Gfn::new((region + 1) * SUPER - 1), end));
        }
        assert!(world.write(0, Gfn::new(3 * SUPER), Content::Data(1)));
        world.sim.traits.max_order = Order::MAX;
        let (touched, count) = (Gfn::new(5 * SUPER), FrameCount::new(SUPER));
        let poison = Pattern::new(1).unwrap();
        let set = world_step(&mut world, |p, s, b| {
            p.set_pattern(s, touched, count, poison, b)
        });
        assert!(set.unwrap().complete);
        assert_eq!(world.stats().cache.get(), 0);
        let by = Toucher::Vcpu(Vcpu::new(0));
        let mut touch = || {
            world_step(&mut world, |p, s, b| {
                p.demand(s, touched, by, Order::MAX, b)
            })
        };
        assert_eq!(touch(), Ok(Demand::Retry(Wait::Sweeping)));
        while touch() == Ok(Demand::Retry(Wait::Sweeping)) {}
        let populated = matches!(world.sim.leaf(touched).entry, Entry::Ram { .. });
        assert!(populated, "{}", world.stats());
        world.check();
    }
}

#[test]
fn a_pin_of_single_pages_stays_within_the_budget() {
    let mut world = World::built(
        &Config::new(FrameCount::new(8 * SUPER)),
        8 * SUPER,
        8 * SUPER,
        1,
    );
    world.sim.traits.max_order = Order::FRAME;
    let calls = range(0, 8 * SUPER, |gfn, count| {
        world_step(&mut world, |p, s, b| p.pin(s, gfn, count, b)).unwrap()
    });
    assert!(calls > 3);
    world.check();
}
