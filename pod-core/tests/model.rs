//! Every reachable state of a small guest, and all invariants in each.
//!
//! Breadth first. Two states are the same if they differ only in frame numbers, in which of two
//! superpages is which, in the order of pages inside a superpage, or in the order of blocks in a
//! list of the cache. [`World::key`] holds the table, the records of the regions with their runs
//! and idle marks, the classes of the blocks, the recent regions and the sweep's place. A sample
//! of the states that were taken for known ones is explored like new ones. To keep the number
//! finite and small, a complete search fixes how many recent regions are remembered and has each
//! operation's search for filled pages start at the same place.
//!
//! Complete for 2 superpages of 4 pages, here at the smallest target; for 6 of 4, with recent
//! regions that adapt and sweeps that go on, as far as the bound goes. More by command:
//! `POD_MODEL=deep cargo test --release -p pod-core --test model -- --nocapture`.
//!
//! The invariants of each state (`World::check`): counters equal the recount of table and cache,
//! in all orders; owned frames are mapped or cached, once; a started guest has no surplus; debt
//! never rises but by marking; cached frames are zero, in no table, no translation and no reverse
//! map; reverse map and dirty log follow the table; the guest reads what it wrote.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::std_instead_of_alloc,
    reason = "a test"
)]

use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering::Relaxed;
use std::collections::{HashSet, VecDeque};

use pod_core::sim::{Content, World};
use pod_core::{
    Budget, Config, Content as Moved, Demand, Entry, FrameCount, Geometry, Gfn, Leave, Order,
    Pattern, Toucher, Vcpu,
};

const SIZE: u64 = 4;

#[derive(Clone, Copy, Debug)]
enum Op {
    Write(u64, Content),
    Frame(u64),
    Release(u64, u64),
    Discard(u64, u64),
    Mark(u64, u64),
    Move(u64, u64, Moved),
    Reclaim,
    Coalesce,
    Raise,
}

/// What is explored.
#[derive(Clone, Copy, Debug)]
struct Model {
    superpages: u64,
    target: u64,
    /// Freezing unmaps; otherwise it write-protects.
    unmaps: bool,
    /// The host tracks writes.
    tracks: bool,
    /// Sweeps go on and recent regions adapt; the target may rise.
    open: bool,
    /// Transitions at most.
    limit: usize,
}

fn world(model: Model) -> World {
    let Model {
        superpages, target, ..
    } = model;
    let mut config = Config::new(FrameCount::new(superpages * SIZE));
    config.geometry = Geometry::new(Order::new(2).unwrap(), Order::new(3).unwrap()).unwrap();
    config.slack = FrameCount::ZERO;
    config.rules.set_aside = 1;
    config.rules.ring = if model.open { None } else { Some(1) };
    let mut world = World::built(&config, target, 8 * superpages, 1);
    world.sim.traits.unmaps = model.unmaps;
    world.sim.traits.tracks_writes = model.tracks;
    world.with(|pod, sim| {
        pod.start();
        pod.reclaim_step(sim, &mut Budget::default()).unwrap();
    });
    world
}

fn alphabet(model: Model) -> Vec<Op> {
    let superpages = model.superpages;
    let pages = superpages * SIZE;
    let mut ops = vec![Op::Reclaim, Op::Coalesce];
    if model.open {
        ops.push(Op::Raise);
    }
    for page in 0..pages {
        ops.extend([
            Op::Write(page, Content::Data(1)),
            Op::Write(page, Content::ZERO),
            Op::Frame(page),
            Op::Release(page, 1),
            Op::Mark(page, 1),
        ]);
        // Pages of a superpage are interchangeable only if a page may move to each of another.
        let next = (page / SIZE + 1) % superpages * SIZE;
        for to in next..next + SIZE {
            ops.extend([
                Op::Move(page, to, Moved::Keep),
                Op::Move(page, to, Moved::Discard),
            ]);
        }
    }
    for superpage in 0..superpages {
        let start = superpage * SIZE;
        ops.extend([
            Op::Release(start, SIZE),
            Op::Discard(start, SIZE),
            Op::Mark(start, SIZE),
        ]);
        if model.open {
            // The only operation that would tell the pages of a superpage apart.
            ops.push(Op::Release(start + 1, 2));
        }
    }
    ops
}

fn apply(world: &mut World, op: Op) {
    let mut budget = Budget::default();
    let debt = world.stats().debt();
    match op {
        Op::Write(page, content) => {
            if !world.write(0, Gfn::new(page), content)
                && world.sim.visible(Gfn::new(page)).is_some()
            {
                assert_eq!(world.stats().cache.get(), 0);
            }
        }
        Op::Frame(page) => {
            let by = Toucher::Vcpu(Vcpu::new(0));
            let answer = world
                .with(|pod, sim| pod.demand(sim, Gfn::new(page), by, Order::FRAME, &mut budget));
            assert!(!matches!(answer, Ok(Demand::Retry(_))), "{answer:?}");
        }
        Op::Release(start, count) => release(world, start, count, Leave::Hole),
        Op::Discard(start, count) => {
            release(world, start, count, Leave::Promise(Pattern::ZERO));
            world.sim.forget(Gfn::new(start), count);
        }
        Op::Mark(start, count) => {
            let _ = world.with(|pod, sim| {
                let count = FrameCount::new(count);
                pod.mark(sim, Gfn::new(start), count, Pattern::ZERO, &mut budget)
            });
        }
        Op::Move(from, to, content) => {
            let (from, to) = (Gfn::new(from), Gfn::new(to));
            let done = world
                .with(|pod, sim| pod.relocate(sim, from, to, Order::FRAME, content, &mut budget));
            if done.is_ok() {
                let seen = world.sim.visible(to);
                world.sim.expect(to, seen);
            }
        }
        Op::Reclaim => {
            world
                .with(|pod, sim| pod.reclaim_step(sim, &mut budget))
                .unwrap();
        }
        Op::Coalesce => {
            world
                .with(|pod, sim| pod.coalesce_step(sim, &mut budget))
                .unwrap();
        }
        Op::Raise => {
            let owned = world.stats().owned();
            let _ = world.with(|pod, sim| {
                let target = FrameCount::new(owned.get() + 1);
                pod.set_target(sim, target, &mut budget)
            });
        }
    }
    // Whatever is stale after the next operation has to be seen.
    world.touch_all();
    world.check();
    if !matches!(op, Op::Mark(..)) {
        assert!(world.stats().debt() <= debt, "{op:?} raised the debt");
    }
    if matches!(
        op,
        Op::Write(..) | Op::Frame(_) | Op::Reclaim | Op::Coalesce | Op::Move(..)
    ) {
        assert_eq!(world.stats().debt(), debt, "{op:?} changed the debt");
    }
}

/// Most moves are from or to the wrong page: they are not worth the time.
fn is_refused(world: &World, op: Op) -> bool {
    let hole = |page| world.sim.leaf(Gfn::new(page)).entry == Entry::Hole;
    matches!(op, Op::Move(from, to, _) if hole(from) || !hole(to))
}

fn release(world: &mut World, start: u64, count: u64, leave: Leave) {
    let done = world.with(|pod, sim| {
        let count = FrameCount::new(count);
        pod.release(sim, Gfn::new(start), count, leave, &mut Budget::default())
    });
    assert!(done.unwrap().progress.complete);
}

/// The way to a state, printed if it leads to a panic.
#[derive(Clone)]
struct Trail(Vec<Op>);

impl Drop for Trail {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.0.is_empty() && !REPORTED.swap(true, Relaxed) {
            eprintln!("after {:?}", self.0);
        }
    }
}

static REPORTED: AtomicBool = AtomicBool::new(false);

/// Of so many transitions, one that led to a known state has its end explored all the same: what
/// the key leaves out could make a difference there.
const TWINS: usize = 997;

/// States visited; whether there was nothing new left.
fn explore(model: Model) -> (usize, bool) {
    let ops = alphabet(model);
    let mut first = world(model);
    first.check();
    let mut seen = HashSet::from([first.key()]);
    let mut queue = VecDeque::from([(first, Trail(Vec::new()), false)]);
    let (mut transitions, mut depth, mut by_twins) = (0, 0, 0);
    let complete = 'all: {
        while let Some((state, trail, is_twin)) = queue.pop_front() {
            depth = depth.max(trail.0.len());
            for op in &ops {
                if transitions == model.limit {
                    break 'all false;
                }
                if is_refused(&state, *op) {
                    continue;
                }
                let mut next = state.clone();
                let mut path = trail.clone();
                path.0.push(*op);
                apply(&mut next, *op);
                if !model.open {
                    next.restart_sweep();
                }
                transitions += 1;
                let new = seen.insert(next.key());
                by_twins += usize::from(new && is_twin);
                if new || transitions % TWINS == 0 {
                    queue.push_back((next, path, !new));
                }
            }
        }
        true
    };
    let states = seen.len();
    println!(
        "{model:?}: {states} states ({by_twins} by twins), {transitions} transitions, \
         depth {depth}, complete: {complete}"
    );
    (states, complete)
}

fn deep() -> bool {
    std::env::var("POD_MODEL").is_ok_and(|how| how == "deep")
}

#[test]
fn all_states_of_two_superpages() {
    let small = Model {
        superpages: 2,
        target: 1,
        unmaps: true,
        tracks: false,
        open: false,
        limit: usize::MAX,
    };
    let mut models = vec![small];
    if deep() {
        for (target, unmaps, tracks) in [(1, false, true), (2, true, false), (3, false, false)] {
            models.push(Model {
                target,
                unmaps,
                tracks,
                ..small
            });
        }
    }
    for model in models {
        let (states, complete) = explore(model);
        assert!(complete && states > 1_500, "{states}");
    }
}

#[test]
fn states_of_six_superpages_as_far_as_the_bound() {
    let (states, _) = explore(Model {
        superpages: 6,
        target: 9,
        unmaps: true,
        tracks: true,
        open: true,
        limit: if deep() { 200_000 } else { 20_000 },
    });
    assert!(states > 1_000);
}
