//! Random guests on a host and an oracle that share nothing with the simulator: writers at every
//! callback, translations older than the table, failures, tiny storage, any leaf size.
//!
//! A few seeds here; more by command:
//! `POD_SEEDS=10000 cargo test --release -p pod-core --test worlds -- --nocapture`, or one with
//! `POD_SEED=7`.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::std_instead_of_core,
    clippy::std_instead_of_alloc,
    reason = "a test"
)]

mod host;

use std::collections::BTreeSet;

use host::{Kind, Rng, World};
use pod_core::sim::Memory;
use pod_core::{
    Budget, Config, Content, Drain, Entry, FrameCount, Geometry, Gfn, Leave, Mfn, Order, Pattern,
    Pod, RelocateError, Rules, Sizes, Toucher, Vcpu,
};

const STEPS: u64 = 300;

#[test]
fn random_guests_lose_nothing() {
    let number = |name| std::env::var(name).ok().map(|n| n.parse::<u64>().unwrap());
    let seeds = match number("POD_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("POD_SEEDS").unwrap_or(100),
    };
    let count = seeds.end - seeds.start;
    for seed in seeds {
        let _case = Case(seed);
        guest(seed);
    }
    println!("{count} seeds, nothing found");
}

/// Says which seed it was, if the test panics in it.
struct Case(u64);

impl Drop for Case {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("in seed {}", self.0);
        }
    }
}

fn order(n: u64) -> Order {
    Order::new(n as u8).unwrap()
}

fn config(rng: &Rng) -> Config {
    let superpage = 1 + rng.below(4);
    let giga = superpage + 1 + rng.below(3);
    let max = 1 + rng.below(6 << superpage) + rng.below(2) * (1 << giga);
    let mut config = Config::new(FrameCount::new(max));
    config.geometry = Geometry::new(order(superpage), order(giga)).unwrap();
    config.slack = FrameCount::new(rng.below(5));
    config.limit = FrameCount::new(max - rng.below(max / 3 + 1));
    config.reserve = FrameCount::new(if rng.percent(70) { 0 } else { rng.below(6) });
    config.around = order(rng.below(superpage + 1));
    config.rules = Rules {
        merge: rng.percent(80),
        tie: rng.percent(70),
        promote: rng.percent(80),
        giga: rng.percent(70),
        set_aside: rng.below(3) as u8,
        ring: rng.percent(50).then(|| rng.below(40) as u8),
    };
    config.patterns = [0, 5, 9, 0];
    config.patterns_used = 1 + rng.below(3) as u8;
    config
}

fn kind(rng: &Rng) -> Kind {
    Kind {
        any_leaf: rng.percent(50),
        unmaps: rng.percent(50),
        copies: rng.percent(50),
        tracks: rng.percent(50),
        fails: if rng.percent(50) {
            0
        } else {
            1 + rng.below(120)
        },
        own_order_fails: rng.percent(20),
        lend: if rng.percent(70) { 0 } else { rng.below(5) },
        nodes: 1 + rng.below(3),
        max_order: if rng.percent(60) {
            18
        } else {
            rng.below(6) as u8
        },
    }
}

fn guest(seed: u64) {
    let rng = Rng::new(seed);
    let config = config(&rng);
    let mut sizes = Sizes::for_guest(&config, config.limit, 1 + rng.below(3) as u16);
    if rng.percent(40) {
        sizes.blocks = rng.below(4) as usize;
        sizes.gigas = rng.below(2) as usize;
        sizes.loose = rng.below(20) as usize;
    }
    let max = config.max.get();
    // Frame numbers below, across and above 32 bits.
    let base = [1 << 33, (1 << 32) - 20, 0, 0][rng.below(4) as usize];
    let apart = if rng.percent(30) { 3 } else { 1 };
    let pool: BTreeSet<u64> = (0..2 * max + 16).map(|i| base + i * apart).collect();
    let kind = kind(&rng);
    let mut world = World::new(rng, kind, config, pool);
    let mut memory = Memory::new(&sizes);
    let mut pod = Pod::new(config, memory.storage()).unwrap();
    let mut foreign = base + 32 * max + 64;
    for step in 0..STEPS {
        let looks = [1, 3, 40, 4096][world.rng.below(4) as usize];
        world.begin();
        let operation = operation(&mut pod, &mut world, &mut foreign, &mut Budget::new(looks));
        let done = format!("step {step}: {operation}: {}", pod.stats());
        let bound = u64::from(looks).max(6 * config.geometry.superpage().frames().get() + 16);
        assert!(
            world.work.get() <= bound,
            "{done}: {} looks",
            world.work.get()
        );
        check(&mut pod, &world, &done);
        world.doing = host::Doing::default();
        if world.rng.percent(5) {
            let (suspended, storage) = pod.suspend();
            pod = Pod::resume(suspended, storage).unwrap();
        }
    }
    while pod.drain(&mut world, &mut Budget::new(3)) == Drain::More {}
    assert_eq!(pod.stats().cache, FrameCount::ZERO);
    assert_eq!(
        world.owned.len(),
        world.mapped.len(),
        "frames left after the end"
    );
}

/// One operation; its name and its answer.
fn operation(
    pod: &mut Pod<'_>,
    world: &mut World,
    foreign: &mut u64,
    budget: &mut Budget,
) -> String {
    let max = world.max;
    let at = world.rng.below(max + 1);
    let n = world.rng.below(max + 2 - at);
    let (gfn, count) = (Gfn::new(at), FrameCount::new(n));
    let pattern = Pattern::new(world.rng.below(4) as u8).unwrap();
    match world.rng.below(20) {
        0 | 1 => {
            let target = FrameCount::new(at);
            format!("target {at} {:?}", pod.set_target(world, target, budget))
        }
        2 | 3 => {
            let answer = pod.mark(world, gfn, count, pattern, budget);
            renew(world);
            format!("mark {at} {n} {answer:?}")
        }
        4 => {
            let answer = pod.set_pattern(world, gfn, count, pattern, budget);
            renew(world);
            format!("pattern {at} {n} {answer:?}")
        }
        5..=9 => {
            let vcpu = Toucher::Vcpu(Vcpu::new(world.rng.below(9) as u16));
            let by = if world.rng.percent(80) {
                vcpu
            } else {
                Toucher::Host
            };
            let largest = order(world.rng.below(19));
            format!(
                "demand {at} {:?}",
                pod.demand(world, gfn, by, largest, budget)
            )
        }
        10 | 11 => {
            world.doing.drops = true;
            let to_hole = world.rng.percent(50);
            let leave = if to_hole {
                Leave::Hole
            } else {
                Leave::Promise(pattern)
            };
            let answer = pod.release(world, gfn, count, leave, budget);
            renew(world);
            format!("release {at} {n} {leave:?} {answer:?}")
        }
        12 | 13 => relocate(pod, world, at, budget),
        14 => format!("reclaim {:?}", pod.reclaim_step(world, budget)),
        15 => format!("coalesce {:?}", pod.coalesce_step(world, budget)),
        16 if world.rng.percent(20) => {
            let few = FrameCount::new(n.min(3));
            format!("pin {at} {:?}", pod.pin(world, gfn, few, budget))
        }
        16 => {
            world.pins.clear();
            "unpin".into()
        }
        17 => {
            let any = world.rng.below(world.owned.len() as u64 + 1) as usize;
            let mfn = Mfn::new(world.owned.iter().copied().nth(any).unwrap_or(7));
            format!("broken {mfn} {:?}", pod.frame_failed(world, mfn))
        }
        18 => fill(pod, world, at, foreign, budget),
        _ => {
            pod.set_around(order(world.rng.below(19)));
            if world.rng.percent(30) {
                pod.start();
            }
            "settings".into()
        }
    }
}

/// Promises have the content that was asked for.
fn renew(world: &World) {
    for gfn in 0..world.max {
        if let Entry::Promise(_) = world.entries[gfn as usize] {
            world.truth.borrow_mut()[gfn as usize] = world.seen(gfn);
        }
    }
}

fn relocate(pod: &mut Pod<'_>, world: &mut World, at: u64, budget: &mut Budget) -> String {
    let superpage = u64::from(world.cfg.geometry.superpage().get());
    let size = order(world.rng.below(superpage + 2));
    let length = size.frames().get();
    let from = at / length * length;
    let to = world.rng.below(world.max) / length * length;
    let keep = world.rng.percent(60);
    let content = if keep {
        Content::Keep
    } else {
        Content::Discard
    };
    world.doing.destination = to..to + length;
    world.doing.drops = true;
    let before: Vec<Entry> = { world.entries.iter().skip(from as usize) }
        .take(length as usize)
        .copied()
        .collect();
    let result = pod.relocate(world, Gfn::new(from), Gfn::new(to), size, content, budget);
    let moved = match result {
        Ok(()) => length,
        Err(RelocateError::Partial(frames)) => frames.get(),
        _ => 0,
    };
    for i in 0..moved {
        let expected = world.truth.borrow()[(from + i) as usize];
        let seen = world.seen(to + i);
        if keep || matches!(before[i as usize], Entry::Promise(_)) {
            assert_eq!(seen, expected, "{from:#x} + {i} at {to:#x}");
        }
        world.truth.borrow_mut()[(to + i) as usize] = seen;
    }
    if let Err(RelocateError::BothHoles | RelocateError::BothMapped) = result {
        assert!(world.kind.fails > 0);
        for gfn in (from..from + length).chain(to..to + length) {
            let seen = world.seen(gfn);
            world.truth.borrow_mut()[gfn as usize] = seen;
        }
    }
    format!("relocate {from:#x} to {to:#x} {size} {content:?} {result:?}")
}

/// Frames of the host's own choice, or none, over a part of the map.
fn fill(
    pod: &mut Pod<'_>,
    world: &mut World,
    at: u64,
    foreign: &mut u64,
    budget: &mut Budget,
) -> String {
    world.doing.filling = true;
    let length = 1 + world
        .rng
        .below(world.cfg.geometry.superpage().frames().get());
    let first = *foreign;
    let pattern = Pattern::new(world.rng.below(4) as u8).unwrap();
    let entry = match world.rng.below(4) {
        0 => Entry::Special,
        1 => Entry::Hole,
        2 => Entry::Promise(pattern),
        _ => {
            *foreign += length + world.rng.below(9);
            for mfn in first..first + length {
                world.owned.insert(mfn);
                world.content.borrow_mut().insert(mfn, 123_000_000 + mfn);
            }
            Entry::ram(Mfn::new(first))
        }
    };
    let answer = pod.fill(world, Gfn::new(at), FrameCount::new(length), entry, budget);
    renew(world);
    // What was refused is the host's again.
    for mfn in first..*foreign {
        if !world.mapped.contains_key(&mfn) {
            world.owned.remove(&mfn);
        }
    }
    format!("fill {at} {length} {entry:?} {answer:?}")
}

fn check(pod: &mut Pod<'_>, world: &World, done: &str) {
    assert!(!world.frozen.contains(&true), "{done}: left frozen");
    let mut promises = 0;
    for gfn in 0..world.max {
        let seen = world.seen(gfn);
        let truth = &mut world.truth.borrow_mut()[gfn as usize];
        promises += u64::from(matches!(world.entries[gfn as usize], Entry::Promise(_)));
        if seen.is_some() {
            assert_eq!(seen, *truth, "{done}: {gfn:#x}");
        }
        *truth = seen;
    }
    for mfn in &world.owned {
        let (cached, mapped) = (
            pod.is_cached(Mfn::new(*mfn)),
            world.mapped.contains_key(mfn),
        );
        assert!(
            cached ^ mapped,
            "{done}: {mfn:#x} cached {cached} mapped {mapped}"
        );
    }
    let stats = pod.stats();
    assert_eq!(stats.owned().get(), world.owned.len() as u64, "{done}");
    assert_eq!(stats.promises.get(), promises, "{done}");
    let audit = pod.audit(world);
    assert!(audit.is_ok(), "{done}: {audit:?}");
}
