//! A guest made of the real balloon engine and the real allocator boots ballooned on this
//! engine: the transport between them is this file, everything else is what others ship.
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test"
)]

use balloon_core::{
    self as balloon, Capabilities, Compactor, Completer, Kind, Limits, Migrate, MigrateRequest,
    Migration, Nanos, Outcome, Pfn, Policy, Run, Shared, Transport, TransportErrorKind,
};
use buddy_alloc::{Config as ZoneConfig, Frame, FrameRange, Preference, Zone};
use pod_core::sim::{Content, World};
use pod_core::{
    Budget, Config, Content as Moved, Entry, FrameCount, Gfn, Leave, Order, RelocateError,
};

const MAX: u64 = 16 * 512;

/// The road from the guest's balloon to the engine: releases and relocations, at once.
struct Road<'a> {
    world: &'a mut World,
    balloon: balloon::FrameCount,
    /// Leaves one migration split at most.
    worst_splits: u64,
    migrations: u64,
}

impl Road<'_> {
    fn release(&mut self, run: Run) {
        let (mut at, end) = (run.range().start().get(), run.range().end().get());
        while at < end {
            let (gfn, left) = (Gfn::new(at), FrameCount::new(end - at));
            let step = self
                .world
                .with(|pod, sim| pod.release(sim, gfn, left, Leave::Hole, &mut Budget::default()));
            let step = step.unwrap();
            assert_eq!(step.kept.get(), 0);
            at += step.progress.done.get();
        }
    }
}

impl Transport for Road<'_> {
    type Error = TransportErrorKind;

    fn capabilities(&self) -> Capabilities {
        let limits = Limits {
            frames: balloon::FrameCount::new(256),
            runs: 256,
            run: balloon::FrameCount::new(256),
            in_flight: 4,
            below: Pfn::new(MAX),
        };
        Capabilities::new(limits, limits)
    }

    fn read_target(&mut self) -> Result<balloon::FrameCount, Self::Error> {
        Ok(self.balloon)
    }

    fn write_actual(&mut self, _: balloon::FrameCount) -> Result<(), Self::Error> {
        Ok(())
    }

    fn submit(
        &mut self,
        request: balloon::Request<'_>,
        done: Completer<'_>,
    ) -> Result<(), Self::Error> {
        if request.kind != Kind::Inflate {
            return Err(TransportErrorKind::Unsupported);
        }
        request.runs.iter().for_each(|run| self.release(*run));
        done.complete(request.kind, request.slot, Outcome::Whole)
            .unwrap();
        Ok(())
    }

    fn kick(&mut self, _: usize) -> Result<bool, Self::Error> {
        Ok(false)
    }

    fn reap(&mut self, _: Completer<'_>) -> Result<usize, Self::Error> {
        Ok(0)
    }
}

impl Migrate for Road<'_> {
    fn migration(&self) -> Migration {
        Migration::Exchange
    }

    fn submit_migrate(
        &mut self,
        request: MigrateRequest<'_>,
        done: Completer<'_>,
    ) -> Result<(), Self::Error> {
        let frames = |runs: &[Run]| -> Vec<u64> {
            runs.iter()
                .flat_map(|run| run.range().frames())
                .map(Pfn::get)
                .collect()
        };
        let pairs = frames(request.from).into_iter().zip(frames(request.to));
        for (old, new) in pairs {
            let splits = self.world.sim.table_work().splits;
            let (from, to) = (Gfn::new(new), Gfn::new(old));
            let moved = self.world.with(|pod, sim| {
                let mut budget = Budget::default();
                pod.relocate(sim, from, to, Order::FRAME, Moved::Discard, &mut budget)
            });
            assert_eq!(moved, Ok::<(), RelocateError>(()), "{old:#x} <- {new:#x}");
            let seen = self.world.sim.visible(to);
            self.world.sim.expect(to, seen);
            self.migrations += 1;
            self.worst_splits = self
                .worst_splits
                .max(self.world.sim.table_work().splits - splits);
        }
        done.complete(Kind::Migrate, request.slot, Outcome::Whole)
            .unwrap();
        Ok(())
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040);
        (self.0 >> 33) % n
    }
}

/// Every page the guest may use gets data: no touch may fail any more.
fn use_all(world: &mut World) {
    for gfn in (0..MAX).map(Gfn::new) {
        if world.sim.leaf(gfn).entry != Entry::Hole {
            assert!(
                world.write(0, gfn, Content::Data(gfn.get() + 1)),
                "{gfn}: {}",
                world.stats()
            );
        }
    }
}

fn census(world: &mut World) -> pod_core::Census {
    world.with(|pod, sim| pod.audit(sim)).unwrap()
}

/// Boots, scrubbing or using `touched` pages, with a scattered allocator and the balloon; then
/// compacts.
fn boot(seed: u64, target: u64, touched: Option<u64>, compact: bool) {
    let config = Config {
        slack: FrameCount::ZERO,
        ..Config::new(FrameCount::new(MAX))
    };
    let mut world = World::built(&config, target, 2 * MAX, 2);
    let mut random = Random(seed);
    for gfn in 0..touched.unwrap_or(MAX) {
        let content = touched.map_or(Content::ZERO, |_| Content::Data(gfn + 1));
        let vcpu = (gfn & 1) as usize;
        assert!(
            world.write(vcpu, Gfn::new(gfn), content),
            "{}",
            world.stats()
        );
    }

    let span = FrameRange::new(Frame::new(0), buddy_alloc::FrameCount::new(MAX));
    let mut memory = vec![0; ZoneConfig::new().metadata_words(span)];
    let mut zone = Zone::new(span, ZoneConfig::new(), &mut memory).unwrap();
    zone.add_range(span, buddy_alloc::Backing::Populated)
        .unwrap();
    let mut held: Vec<Frame> = (0..MAX)
        .map(|_| {
            zone.allocate(buddy_alloc::Order::FRAME, Preference::Populated)
                .unwrap()
        })
        .collect();
    // While the balloon inflates the guest holds its whole share, scattered over the map.
    while held.len() as u64 > target {
        let at = random.below(held.len() as u64) as usize;
        let frame = held.swap_remove(at);
        zone.free(frame, buddy_alloc::Order::FRAME).unwrap();
    }
    // A guest that has used up its share already dirties nothing new before the balloon is there.
    let data = if touched.is_none() { held.len() / 4 } else { 0 };
    for frame in held.iter().rev().take(data) {
        let gfn = Gfn::new(frame.get());
        assert!(
            world.write(0, gfn, Content::Data(gfn.get())),
            "{}",
            world.stats()
        );
    }

    let shared: &'static Shared = Box::leak(Box::new(Shared::new()));
    shared.signal().config_changed();
    let mut engine = balloon::Engine::new(shared, Policy::DEFAULT);
    let given = balloon::FrameCount::new(MAX - target);
    let mut road = Road {
        world: &mut world,
        balloon: given,
        worst_splits: 0,
        migrations: 0,
    };
    let mut now = Nanos::ZERO;
    let mut steps = 0;
    loop {
        let step = engine.step(&mut road, &mut zone, now, balloon::Budget::LARGE);
        steps += 1;
        assert!(steps < 10_000, "the balloon does not arrive");
        match step.wake_at {
            _ if step.more => {}
            Some(at) => now = at,
            None => break,
        }
    }
    assert_eq!(road.world.stats().debt().get(), 0, "{}", road.world.stats());
    for frame in held.drain(..target as usize * 3 / 4) {
        zone.free(frame, buddy_alloc::Order::FRAME).unwrap();
    }
    if !compact {
        use_all(road.world);
    }
    let before = census(road.world);
    if compact {
        let zone_range =
            balloon::FrameRange::new(Pfn::new(0), balloon::FrameCount::new(MAX)).unwrap();
        let words = vec![0; balloon::compactor_words(zone_range) as usize];
        let mut compactor = Compactor::<_, 2>::new(words, zone_range).unwrap();
        assert!(compactor.start());
        while compactor.is_running() {
            let step = compactor.step(
                &mut engine,
                &mut road,
                &mut zone,
                now,
                balloon::Budget::LARGE,
            );
            match step.wake_at {
                _ if step.more => {}
                Some(at) => now = at,
                None => break,
            }
        }
        assert!(road.migrations > 0);
        assert!(
            road.worst_splits <= 1,
            "a migration split {} leaves",
            road.worst_splits
        );
        use_all(road.world);
        let after = census(road.world);
        let leaves = |c: &pod_core::Census| c.superpages.get() / 512;
        assert!(
            leaves(&after) >= leaves(&before) + 2,
            "{before:?} {after:?}"
        );
        assert!(after.levels_milli() < before.levels_milli());
    }
    world.check();
}

#[test]
fn boots_ballooned_without_exhaustion_for_any_seed() {
    for seed in 0..4 {
        boot(seed, 6 * 512, None, false);
    }
}

#[test]
fn superpage_leaves_recover_with_compaction() {
    for seed in 0..2 {
        boot(seed, 12 * 512, Some(12 * 512), true);
    }
}
