//! Every reachable state of a small guest, and all invariants in each.
//!
//! Breadth first. Two states are the same if they differ only in frame numbers, in which of two
//! superpages is which, in the order of pages inside a superpage, or in the order in which lists
//! and the sweep would visit them; what only steers later choices (rings, idle marks, which run a
//! region prefers) is left out of the comparison, so that completeness is that of this abstraction.
//! Complete in it for 2 superpages of 4 pages; for 6 of 4 as far as the bound below goes.
//!
//! The invariants of each state (`World::check`): counters equal the recount of table and cache,
//! in all orders; owned frames are mapped or cached, once; a started guest has no surplus; debt
//! never rises but by marking; cached frames are zero, in no table, no translation and no reverse
//! map; reverse map and dirty log follow the table; the guest reads what it wrote.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
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

fn world(superpages: u64, target: u64, unmaps: bool) -> World {
    let mut config = Config::new(FrameCount::new(superpages * SIZE));
    config.geometry = Geometry::new(Order::new(2).unwrap(), Order::new(3).unwrap()).unwrap();
    config.slack = FrameCount::ZERO;
    config.rules.set_aside = 1;
    let mut world = World::built(&config, target, 8 * superpages, 1);
    world.sim.traits.unmaps = unmaps;
    world.with(|pod, sim| {
        pod.start();
        pod.reclaim_step(sim, &mut Budget::default()).unwrap();
    });
    world
}

fn alphabet(superpages: u64, raise: bool) -> Vec<Op> {
    let pages = superpages * SIZE;
    let mut ops = vec![Op::Reclaim, Op::Coalesce];
    if raise {
        ops.push(Op::Raise);
    }
    for page in 0..pages {
        ops.extend([
            Op::Write(page, Content::Data(1)),
            Op::Write(page, Content::ZERO),
            Op::Frame(page),
            Op::Release(page, 1),
            Op::Mark(page, 1),
            Op::Move(page, (page + SIZE) % pages, Moved::Keep),
            Op::Move(page, (page + SIZE) % pages, Moved::Discard),
        ]);
    }
    for superpage in 0..superpages {
        let start = superpage * SIZE;
        ops.extend([
            Op::Release(start, SIZE),
            Op::Discard(start, SIZE),
            Op::Mark(start, SIZE),
            Op::Release(start + 1, 2),
        ]);
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

fn release(world: &mut World, start: u64, count: u64, leave: Leave) {
    let done = world.with(|pod, sim| {
        let count = FrameCount::new(count);
        pod.release(sim, Gfn::new(start), count, leave, &mut Budget::default())
    });
    assert!(done.unwrap().progress.complete);
}

fn start_plus(start: Gfn, pages: u64) -> Gfn {
    Gfn::new(start.get() + pages)
}

/// What makes two states different, see above.
fn canonical(world: &mut World, superpages: u64) -> Vec<u8> {
    let mut regions: Vec<Vec<u8>> = (0..superpages)
        .map(|s| {
            let start = Gfn::new(s * SIZE);
            let leaf = world.sim.leaf(start);
            // The machine run most of the region's pages lie on in their own place.
            let mut runs = [0_u8; 64];
            for gfn in (0..SIZE).map(|i| start_plus(start, i)) {
                if let Entry::Ram { mfn, .. } = world.sim.leaf(gfn).at(gfn) {
                    runs[mfn.get() as usize / 4] += u8::from(mfn.get() % SIZE == gfn.get() % SIZE);
                }
            }
            let most = runs.iter().max().copied().unwrap_or(0);
            let base = runs.iter().position(|n| *n == most).unwrap_or(0) as u64;
            let mut pages: Vec<u8> = (0..SIZE)
                .map(|i| {
                    let gfn = Gfn::new(s * SIZE + i);
                    match world.sim.leaf(gfn).at(gfn) {
                        Entry::Hole => 0,
                        Entry::Promise(_) => 1,
                        Entry::Ram { mfn, .. } => {
                            let zero = world.sim.visible(gfn) == Some(Content::ZERO);
                            let own = mfn.get() == base * SIZE + i;
                            2 + u8::from(zero) + 2 * u8::from(own)
                        }
                        Entry::Special => 10,
                    }
                })
                .collect();
            pages.sort_unstable();
            pages.push(leaf.order.get());
            pages
        })
        .collect();
    regions.sort();
    let stats = world.stats();
    let mut key: Vec<u8> = regions.concat();
    key.extend([
        stats.cache.get() as u8,
        stats.superpages as u8,
        stats.loose.get() as u8,
    ]);
    key
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

/// States and transitions visited; whether there was nothing new left.
fn explore(
    (superpages, target): (u64, u64),
    unmaps: bool,
    raise: bool,
    limit: usize,
) -> (usize, usize, bool) {
    let ops = alphabet(superpages, raise);
    let mut first = world(superpages, target, unmaps);
    first.check();
    let mut seen = HashSet::from([canonical(&mut first, superpages)]);
    let mut queue = VecDeque::from([(first, Trail(Vec::new()))]);
    let mut transitions = 0;
    while let Some((state, trail)) = queue.pop_front() {
        for op in &ops {
            if transitions >= limit {
                return (seen.len(), transitions, false);
            }
            let mut next = state.clone();
            let mut path = trail.clone();
            path.0.push(*op);
            apply(&mut next, *op);
            transitions += 1;
            if seen.insert(canonical(&mut next, superpages)) {
                queue.push_back((next, path));
            }
        }
    }
    (seen.len(), transitions, true)
}

#[test]
fn all_states_of_two_superpages() {
    for (target, unmaps) in [(3, true), (4, false)] {
        let (states, transitions, complete) = explore((2, target), unmaps, false, usize::MAX);
        println!("target {target}: {states} states, {transitions} transitions");
        assert!(complete && states > 500, "{states}");
    }
}

#[test]
fn states_of_six_superpages_as_far_as_the_bound() {
    let (states, transitions, _) = explore((6, 9), true, true, 30_000);
    println!("{states} states, {transitions} transitions");
    assert!(states > 1_000);
}
