//! What went wrong in eighteen years of populate-on-demand, one test per lesson.
//!
//! `xsa_NNN_…` are security advisories, `fix_YYYY_…` other faults, `weakness_N_…` weaknesses that
//! remain elsewhere; `operations` and `superpages` hold what has no such row. `mutations.tsv` lists, for each
//! test, changes of the engine; all were tried, and each makes its test fail. Where the third
//! column of a line is `both`, the lesson is guarded twice: one change alone may stay green, all
//! lines of that test together do not.
//!
//! Guarded elsewhere: XSA-14's lesson, that no argument and no answer of the host may bring the
//! engine down, in `hostile.rs`; XSA-159's, that a guest may die at any step, in `failures.rs`;
//! the pinned frames of 2009 by `xsa_217_…`; the lazy flush of 2016 by `xsa_480_…`; the needless
//! sweeps of 2011 by `fix_2016_…`.
//!
//! Out of this engine's reach, with the reason:
//! * XSA-29, -212: arrays in guest memory are read by the caller, not here.
//! * XSA-159's other half (exchange): there is no such call.
//! * XSA-378's identity map: such entries are `Special` here, whatever the host means by it.
//! * XSA-409, -410: the size, teardown and reuse of table memory are the host's.
//! * 2009, 2012: races between shadow tables and teardown, double unlock; 2009, 2011, 2021:
//!   recursive and inverted locks. The engine has no lock.
//! * 2017: an invalid number spilled into the type bits of an entry. No encoding here.
//! * Weakness 6, yielding inside the shrink path: a target never shrinks the share.
#![expect(clippy::unwrap_used, reason = "a test")]

mod fixes;
mod mutations;
mod operations;
mod superpages;
mod weaknesses;
mod xsa;

use pod_core::sim::{Content, World};
use pod_core::{
    Budget, Config, Entry, FrameCount, Geometry, Gfn, Leave, Mfn, Order, Pattern, Progress,
    RangeError, ReclaimStep, ReleaseError, Released,
};

const SUPER: u64 = 512;

fn frames(n: u64) -> FrameCount {
    FrameCount::new(n)
}

fn config(max: u64) -> Config {
    Config {
        slack: FrameCount::ZERO,
        ..Config::new(frames(max))
    }
}

fn guest(max: u64, target: u64) -> World {
    World::built(&config(max), target, 4 * max, 2)
}

fn small_config(max: u64) -> Config {
    let mut config = config(max);
    config.geometry = Geometry::new(Order::new(2).unwrap(), Order::new(4).unwrap()).unwrap();
    config
}

fn small(max: u64, target: u64) -> World {
    World::built(&small_config(max), target, 4 * max, 2)
}

fn release(world: &mut World, gfn: u64, count: u64) -> Result<Released, ReleaseError> {
    let (gfn, count) = (Gfn::new(gfn), frames(count));
    world.with(|p, s| p.release(s, gfn, count, Leave::Hole, &mut Budget::default()))
}

fn mark(world: &mut World, gfn: u64, count: u64) -> Result<Progress, RangeError> {
    let (gfn, count) = (Gfn::new(gfn), frames(count));
    world.with(|p, s| p.mark(s, gfn, count, Pattern::ZERO, &mut Budget::default()))
}

fn fill(world: &mut World, gfn: u64, count: u64, entry: Entry) -> Result<Progress, RangeError> {
    let (gfn, count) = (Gfn::new(gfn), frames(count));
    world.with(|p, s| p.fill(s, gfn, count, entry, &mut Budget::default()))
}

fn dirty(world: &mut World, gfns: impl IntoIterator<Item = u64>) -> bool {
    gfns.into_iter()
        .all(|g| world.write(0, Gfn::new(g), Content::Data(g + 1)))
}

fn entry(world: &World, gfn: u64) -> Entry {
    world.sim.leaf(Gfn::new(gfn)).at(Gfn::new(gfn))
}

fn mfn(world: &World, gfn: u64) -> Mfn {
    match entry(world, gfn) {
        Entry::Ram { mfn, .. } => mfn,
        other => panic!("{gfn:#x} is {other:?}"),
    }
}

fn cached(world: &mut World) -> Mfn {
    (0..32 * SUPER)
        .map(Mfn::new)
        .find(|m| world.with(|p, _| p.is_cached(*m)))
        .unwrap()
}

fn reclaim_all(world: &mut World) -> u64 {
    let mut found = 0;
    loop {
        match world.with(|p, s| p.reclaim_step(s, &mut Budget::default())) {
            Ok(ReclaimStep::Found(n)) => found += n.get(),
            Ok(ReclaimStep::More) => {}
            Ok(ReclaimStep::Done) | Err(_) => return found,
        }
    }
}
