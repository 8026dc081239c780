//! Random programs on the engine, next to a model that is as naive as possible.
//!
//! The model knows what the guest can see (the content of each page) and one number, the debt.
//! Which pages are RAM and which are promises is the engine's business: whatever it does, pages
//! must read as written, and the debt must follow the simple rules here.

use alloc::vec;
use alloc::vec::Vec;

use super::{Content, Fault, World};
use crate::{
    Budget, Config, Content as Moved, Demand, Entry, FrameCount, FrameFailed, Geometry, Gfn, Leave,
    Mfn, Order, Pattern, RangeError, Sizes, Toucher, Users, Vcpu,
};

const POISON: u64 = 0x5555_5555_5555_5555;
const MACHINE: u64 = 512;

/// One step of a program. Numbers are reduced to the range that makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// What to do.
    pub kind: u8,
    /// A guest frame.
    pub gfn: u8,
    /// Another guest frame, or a number of frames.
    pub other: u8,
    /// A choice within the kind.
    pub choice: u8,
}

/// The naive model.
#[derive(Clone, Debug)]
struct Model {
    memory: Vec<Option<Content>>,
    debt: u64,
    max: u64,
}

impl Model {
    fn pages(&self) -> u64 {
        self.memory.iter().filter(|c| c.is_some()).count() as u64
    }

    fn pay(&mut self, frames: u64) {
        self.debt = self.debt.saturating_sub(frames);
    }
}

fn content_of(choice: u8) -> Content {
    match choice % 4 {
        0 | 1 => Content::ZERO,
        2 => Content::Filled(POISON),
        _ if choice < 128 => Content::Late(u64::from(choice)),
        _ => Content::Data(u64::from(choice)),
    }
}

/// Superpages of 4 pages, giga pages of 16, two patterns.
fn small_config() -> Config {
    let mut config = Config::new(FrameCount::new(72));
    let orders = (Order::clamped(2), Order::clamped(4));
    if let Some(geometry) = Geometry::new(orders.0, orders.1) {
        config.geometry = geometry;
    }
    config.slack = FrameCount::new(1);
    config.patterns[1] = POISON;
    config.patterns_used = 2;
    config
}

/// Runs a program and panics at the first difference between engine, host and model.
///
/// `setup` chooses the target and the kind of host.
pub fn run_program(setup: u8, steps: &[Step]) {
    let config = small_config();
    let max = config.max.get();
    let target = 8 + u64::from(setup >> 3 & 15);
    let mut sizes = Sizes::for_guest(&config, config.limit, 2);
    let crowded = setup & 128 != 0;
    if crowded {
        sizes.blocks = 3;
    }
    let mut world = World::with_sizes(&config, MACHINE, 2, &sizes);
    world.sim.traits.scattered = crowded;
    world.sim.traits.unmaps = setup & 1 == 0;
    world.sim.traits.logical = setup & 2 != 0;
    world.sim.traits.dirty_heap = setup & 4 != 0;
    world.set_target(target);
    world.mark_all(Pattern::ZERO);
    world.with(|pod, sim| {
        pod.start();
        let _ = pod.reclaim_step(sim, &mut Budget::default());
    });
    let mut model = Model {
        memory: vec![Some(Content::ZERO); max as usize],
        debt: max - (target + 1).min(max),
        max,
    };
    for step in steps {
        run_step(&mut world, &mut model, *step);
        compare(&mut world, &model, *step);
    }
}

fn compare(world: &mut World, model: &Model, step: Step) {
    world.check();
    let stats = world.stats();
    assert_eq!(stats.debt().get(), model.debt, "{step:?}: {stats}");
    let pages = model.pages();
    assert_eq!(
        stats.populated.get() + stats.promises.get(),
        pages,
        "{step:?}: {stats}"
    );
    assert_eq!(stats.owned().get(), pages - model.debt, "{step:?}: {stats}");
    for (gfn, expected) in model.memory.iter().enumerate() {
        assert_eq!(
            world.sim.visible(Gfn::new(gfn as u64)),
            *expected,
            "{step:?}: page {gfn}"
        );
    }
    let ranges: u64 = world.with(|pod, sim| pod.promises(sim).map(|range| range.count.get()).sum());
    assert_eq!(ranges, stats.promises.get(), "{step:?}: promises as ranges");
}

/// Whether a plain scan of everything finds a page that could be taken back.
fn naive_reclaim(world: &World, max: u64) -> bool {
    (0..max)
        .map(Gfn::new)
        .any(|gfn| match world.sim.leaf(gfn).at(gfn) {
            Entry::Ram { mfn, .. } => {
                let free = world.sim.user_of(mfn.get(), 1) == Users::None;
                let known = [Some(Content::ZERO), Some(Content::Filled(POISON))];
                free && known.contains(&world.sim.visible(gfn))
            }
            _ => false,
        })
}

fn run_step(world: &mut World, model: &mut Model, step: Step) {
    let max = model.max;
    let gfn = u64::from(step.gfn) % max;
    let at = Gfn::new(gfn);
    let count = (u64::from(step.other) % 24 + 1).min(max - gfn);
    let frames = FrameCount::new(count);
    let vcpu = usize::from(step.choice & 1);
    let pattern = Pattern::new(step.choice >> 1 & 1).unwrap_or_default();
    let mut budget = Budget::new(if step.choice & 128 == 0 { 4096 } else { 7 });
    let filled = |p: Pattern| Some(Content::Filled(if p.get() == 0 { 0 } else { POISON }));
    match step.kind % 16 {
        0..=2 => {
            let content = content_of(step.choice);
            if world.write(vcpu, at, content) {
                land(world, model);
                model.memory[gfn as usize] = Some(content);
            } else if model.memory[gfn as usize].is_some() {
                land(world, model);
                assert_eq!(world.stats().cache.get(), 0, "refused a frame it has");
                assert!(
                    !naive_reclaim(world, max),
                    "gave up although pages were zero"
                );
            }
        }
        3 => foreign(world, model, (at, frames), step, &mut budget),
        4 => {
            let expected = model.memory[gfn as usize];
            match world.sim.guest_read(vcpu, at) {
                Ok(seen) => assert_eq!(Some(seen), expected),
                Err(Fault::Promise) => assert!(expected.is_some()),
                Err(_) => assert_eq!(expected, None),
            }
        }
        5 => {
            let largest = Order::clamped(step.other % 5);
            let by = Toucher::Vcpu(Vcpu::new(1));
            let answer = world.with(|pod, sim| pod.demand(sim, at, by, largest, &mut budget));
            let hole = model.memory[gfn as usize].is_none();
            assert_eq!(hole, answer == Ok(Demand::NotPromise), "{answer:?}");
        }
        6..=8 => {
            let leave = if step.kind % 16 == 8 {
                Leave::Promise(pattern)
            } else {
                Leave::Hole
            };
            // A repeated release of what is left must add up to one release.
            let mut done = 0;
            while done < count {
                let left = FrameCount::new(count - done);
                let answer = world
                    .with(|pod, sim| pod.release(sim, at.plus(done), left, leave, &mut budget));
                budget = Budget::new(7);
                let Ok(answer) = answer else {
                    panic!("{answer:?}")
                };
                done += answer.progress.done.get();
            }
            let _ = world.with(|pod, sim| pod.reclaim_step(sim, &mut Budget::default()));
            land(world, model);
            if let Leave::Promise(_) = leave {
                world.sim.forget(at, count);
            }
            for i in gfn..gfn + count {
                match (world.sim.leaf(Gfn::new(i)).at(Gfn::new(i)), leave) {
                    (Entry::Hole, Leave::Hole) if model.memory[i as usize].take().is_some() => {
                        model.pay(1);
                    }
                    (Entry::Promise(_), Leave::Promise(_)) => {
                        model.memory[i as usize] = world.sim.visible(Gfn::new(i));
                        // A page that was a promise already keeps its own pattern.
                        let patterns = [filled(Pattern::ZERO), Some(Content::Filled(POISON))];
                        assert!(patterns.contains(&model.memory[i as usize]));
                    }
                    (Entry::Ram { mfn, .. }, _) => {
                        assert_ne!(
                            world.sim.user_of(mfn.get(), 1),
                            Users::None,
                            "kept for nothing"
                        );
                    }
                    _ => {}
                }
            }
        }
        9 => {
            let free = (gfn..gfn + count).find(|i| {
                !matches!(
                    world.sim.leaf(Gfn::new(*i)).entry,
                    Entry::Hole | Entry::Promise(_)
                )
            });
            let answer = world.with(|pod, sim| pod.mark(sim, at, frames, pattern, &mut budget));
            let done = match answer {
                Ok(progress) => progress.done.get(),
                Err(_) => free.map_or(count, |f| f - gfn),
            };
            for i in gfn..gfn + done {
                let page = &mut model.memory[i as usize];
                if page.is_none() {
                    *page = filled(pattern);
                    model.debt += 1;
                }
            }
        }
        10 => {
            let answer =
                world.with(|pod, sim| pod.set_pattern(sim, at, frames, pattern, &mut budget));
            let Ok(progress) = answer else {
                panic!("{answer:?}")
            };
            for i in gfn..gfn + progress.done.get() {
                if let Entry::Promise(_) = world.sim.leaf(Gfn::new(i)).entry {
                    model.memory[i as usize] = filled(pattern);
                }
            }
        }
        11 => {
            let to = u64::from(step.other) % max;
            let order = Order::clamped(if step.choice & 4 == 0 { 0 } else { 2 });
            let content = if step.choice & 8 == 0 {
                Moved::Keep
            } else {
                Moved::Discard
            };
            let answer = world
                .with(|pod, sim| pod.relocate(sim, at, Gfn::new(to), order, content, &mut budget));
            // An eager virtual CPU may have written to the destination before it was over.
            let landed = world.sim.landed.clone();
            land(world, model);
            if answer.is_ok() {
                for i in 0..order.frames().get() {
                    let (a, b) = ((gfn + i) as usize, (to + i) as usize);
                    let seen = world.sim.visible(Gfn::new(to + i));
                    let was = model.memory[a].take();
                    assert!(was.is_some() && model.memory[b].is_none());
                    let written = landed
                        .iter()
                        .any(|(g, c)| g.get() == to + i && seen == Some(*c));
                    let cleared = content == Moved::Discard && seen == Some(Content::ZERO);
                    assert!(seen == was || cleared || written);
                    world.sim.expect(Gfn::new(to + i), seen);
                    model.memory[b] = seen;
                }
            }
        }
        12 => {
            if let Entry::Ram { mfn, .. } = world.sim.leaf(at).at(at) {
                world.sim.set_pinned(mfn, step.choice & 4 == 0);
            }
        }
        13 => {
            let target = FrameCount::new(u64::from(step.other) % max);
            let _ = world.with(|pod, sim| pod.set_target(sim, target, &mut budget));
            // The budget may end it early; the rest comes with the next call.
            let _ = world.with(|pod, sim| pod.set_target(sim, target, &mut Budget::default()));
            let pages = model.pages();
            let goal = (target.get() + 1).min(max).min(pages);
            model.debt = pages - (pages - model.debt).max(goal);
        }
        14 => {
            world.sim.traits.max_order = Order::clamped(step.other % 5);
            world.sim.traits.eager = step.choice & 64 != 0;
            world.sim.traits.copies = step.choice & 32 != 0;
            world.with(|pod, _| pod.set_around(Order::clamped(step.choice % 3)));
            // Writes that land in the next freeze.
            world
                .sim
                .writers
                .push((vcpu, at, Content::Data(u64::from(step.choice) + 1000)));
        }
        _ => {
            if step.choice & 4 == 0 {
                let answer = world.with(|pod, sim| pod.reclaim_step(sim, &mut budget));
                assert!(answer.is_ok());
            } else {
                let answer = world.with(|pod, sim| pod.coalesce_step(sim, &mut budget));
                assert!(answer.is_ok());
            }
        }
    }
    land(world, model);
}

/// What others do to the guest's memory: pins, entries filled from outside, broken frames.
fn foreign(
    world: &mut World,
    model: &mut Model,
    (at, frames): (Gfn, FrameCount),
    step: Step,
    budget: &mut Budget,
) {
    let pages = at.get()..at.get() + frames.get();
    match step.choice & 7 {
        0..=3 => {
            let _ = world.with(|pod, sim| pod.pin(sim, at, frames, budget));
        }
        4 | 5 => {
            let pattern = Pattern::new(step.choice >> 3 & 1).unwrap_or_default();
            let entry = match step.choice >> 4 & 7 {
                0 => Entry::Special,
                1..=4 => Entry::Hole,
                _ => Entry::Promise(pattern),
            };
            let answer = world.with(|pod, sim| pod.fill(sim, at, frames, entry, budget));
            let occupied = |i: &u64| {
                let entry = world.sim.leaf(Gfn::new(*i)).entry;
                matches!(entry, Entry::Ram { .. } | Entry::Special)
            };
            let done = match answer {
                Ok(progress) => progress.done.get(),
                Err(RangeError::Occupied(gfn)) => gfn.get() - at.get(),
                Err(e) => panic!("{e}"),
            };
            assert!(answer.is_ok() || pages.clone().any(|i| occupied(&i)));
            let _ = world.with(|pod, sim| pod.reclaim_step(sim, &mut Budget::default()));
            for i in pages.take(done as usize) {
                let page = &mut model.memory[i as usize];
                let promised = page.is_some();
                *page = world.sim.visible(Gfn::new(i));
                match (promised, page.is_some()) {
                    (true, false) => model.pay(1),
                    (false, true) => model.debt += 1,
                    _ => {}
                }
            }
        }
        _ => {
            let mfn = Mfn::new(u64::from(step.other) * 2 + at.get() % 2);
            let cached = world.with(|pod, _| pod.is_cached(mfn));
            world
                .sim
                .set_heap(if step.choice & 8 == 0 { 0 } else { MACHINE / 4 });
            let answer = world.with(|pod, sim| pod.frame_failed(sim, mfn));
            world.sim.set_heap(MACHINE / 4);
            assert_eq!(cached, answer != Ok(FrameFailed::NotCached));
            if answer == Ok(FrameFailed::Short) {
                model.debt += 1;
            }
        }
    }
}

/// Writes that went through a translation during the step happened before its effect.
fn land(world: &mut World, model: &mut Model) {
    for (gfn, content) in core::mem::take(&mut world.sim.landed) {
        if let Some(page) = &mut model.memory[gfn.get() as usize] {
            *page = content;
        }
    }
}
