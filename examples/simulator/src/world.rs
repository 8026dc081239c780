//! One run: everything together, step by step, with the oracle looking on.

use anyhow::{Result, bail, ensure};
use balloon_core::{
    Budget, Compactor, Engine, FrameCount, FrameRange, Granularity, Kind, Ledger as _, Nanos, Need,
    Pfn, Policy, Progress, Resume, Shared, Step, Via, compactor_words, page_table_reserve,
};
use buddy_alloc::{Backing, Config, Frame, Order, Zone};

use crate::guest::Guest;
use crate::host::{Faults, Host, Model};
use crate::map::FrameMap;
use crate::rng::Rng;
use crate::services::Services;
use crate::tally::Tally;
use crate::trace::Trace;

pub(crate) const SLOTS: usize = 5;
/// 16 superpages, and an edge that is none.
pub(crate) const FRAMES: u64 = 16 * 512 + 77;
pub(crate) const FIRST: u64 = 0x1000;

/// A guest, its allocator, its balloon, and its host.
pub(crate) struct World<'m> {
    pub(crate) zone: Zone<'m>,
    pub(crate) engine: Box<Engine<SLOTS>>,
    pub(crate) compactor: Compactor<Vec<u32>, 2>,
    pub(crate) services: Services,
    pub(crate) shared: &'static Shared<SLOTS>,
    pub(crate) host: Host,
    pub(crate) guest: Guest,
    /// The oracle's own list of the frames in use.
    pub(crate) used: FrameMap,
    /// The device has forgotten a balloon that the guest has not taken apart yet.
    pub(crate) resetting: bool,
    /// A live migration is under way.
    migrating: bool,
    policy: Policy,
    /// What a step may do at most.
    most: usize,
    now: Nanos,
    rng: Rng,
    deaths: u64,
    migrations: u64,
    pub(crate) trace: &'m mut Trace,
}

/// Metadata words a world's allocator takes.
pub(crate) fn metadata_words() -> usize {
    Config::new().metadata_words(span())
}

fn span() -> buddy_alloc::FrameRange {
    buddy_alloc::FrameRange::new(Frame::new(FIRST), buddy_alloc::FrameCount::new(FRAMES))
}

pub(crate) fn all() -> Result<FrameRange> {
    match FrameRange::new(Pfn::new(FIRST), FrameCount::new(FRAMES)) {
        Some(range) => Ok(range),
        None => bail!("the simulated memory is out of range"),
    }
}

impl<'m> World<'m> {
    pub(crate) fn new(
        seed: u64,
        model: Model,
        metadata: &'m mut [u64],
        shared: &'static Shared<SLOTS>,
        trace: &'m mut Trace,
    ) -> Result<Self> {
        let mut rng = Rng::new(seed);
        let mut zone = Zone::new(span(), Config::new(), metadata)?;
        zone.add_range(span(), Backing::Unpopulated)?;
        let mut policy = Policy::DEFAULT;
        policy.granularity = if rng.chance(500) {
            Granularity::Adaptive
        } else {
            Granularity::Frames
        };
        policy.emergency_pool = FrameCount::new(rng.below(4));
        policy.min_free = match rng.below(3) {
            0 => FrameCount::ZERO,
            1 => page_table_reserve(FrameCount::new(FRAMES)),
            _ => FrameCount::new(rng.below(1200)),
        };
        if rng.chance(700) {
            policy.cool_down = Nanos::from_millis(rng.below(1500));
        } else {
            policy.cool_down = Nanos::ZERO;
        }
        policy.min_read_interval = Nanos::from_millis(rng.below(20));
        let words = usize::try_from(compactor_words(all()?))?;
        let most = 1 << rng.index(5);
        Ok(Self {
            zone,
            engine: Box::new(Engine::new(shared, policy)),
            compactor: Compactor::new(vec![0; words], all()?)?,
            services: Services::new(),
            shared,
            host: Host::new(model, all()?, Rng::new(rng.next())),
            used: FrameMap::new(all()?),
            guest: Guest::new(),
            resetting: false,
            migrating: false,
            policy,
            most,
            now: Nanos::ZERO,
            rng,
            deaths: 0,
            migrations: 0,
            trace,
        })
    }

    /// Runs the whole program of the seed.
    pub(crate) fn run(&mut self) -> Result<()> {
        let events = 40 + self.rng.below(120);
        for _ in 0..events {
            self.event()?;
            self.check()?;
        }
        self.calm_down()
    }

    /// One thing that happens.
    fn event(&mut self) -> Result<()> {
        // Whoever looks after the guest notices at some time.
        if self.host.is_dead() && self.rng.chance(100) {
            return self.reset();
        }
        match self.rng.below(100) {
            0..26 => _ = self.step()?,
            26..43 => self.answer()?,
            43..52 => self.allocate(),
            52..61 => self.free()?,
            61..68 => {
                let target = if self.rng.chance(30) {
                    u64::MAX
                } else {
                    self.rng.below(FRAMES + FRAMES / 8)
                };
                self.set_target(target);
            }
            68..77 => self.pass_time(),
            77..80 => self.change_faults(),
            80..86 => self.compact()?,
            86..88 => self.run_short(),
            88 => self.squeeze()?,
            89..91 => self.use_reserve(),
            91 => self.suspend()?,
            92 => self.reset()?,
            93 => self.kill(),
            94..97 => self.ask_service()?,
            97..99 => self.live_migration()?,
            _ => {
                self.trace.say(|| "verify all content".into());
                self.guest.verify(&mut self.host)?;
            }
        }
        Ok(())
    }

    /// The guest's turn: whatever steps, and by how much.
    fn step(&mut self) -> Result<Step> {
        let budget = Budget::requests(1 + self.rng.index(self.most));
        if self.host.interrupt {
            self.host.interrupt = false;
            self.shared.signal().used();
        }
        let before = self.engine.status(&self.zone);
        let free = self.zone.free_frames().get();
        let step = self
            .engine
            .step(&mut self.host, &mut self.zone, self.now, budget);
        self.check_overshoot(before)?;
        let moved = self.compactor.step(
            &mut self.engine,
            &mut self.host,
            &mut self.zone,
            self.now,
            budget,
        );
        let left = self.zone.free_frames().get();
        ensure!(
            left >= free.min(self.policy.min_free.get()),
            "{left} frames are free, {} are to be kept",
            self.policy.min_free
        );
        self.services.settle(&mut self.zone)?;
        let held = Via::ALL.map(|via| self.zone.held(via));
        let over = self.engine.is_drained() && self.compactor.is_drained();
        self.resetting &= !(over && held == [FrameCount::ZERO; 2]);
        let status = self.engine.status(&self.zone);
        let trace = &mut *self.trace;
        for (event, times) in self.engine.take_events().iter() {
            trace.say(|| format!("  {event} ({times})"));
        }
        self.trace.say(|| {
            format!(
                "step: {:?}, size {}, +{} -{}, more {}/{}, wake {:?}/{:?}",
                status.progress,
                status.size.get(),
                status.inflating.get(),
                status.deflating.get(),
                step.more,
                moved.more,
                step.wake_at.map(Nanos::get),
                moved.wake_at.map(Nanos::get),
            )
        });
        let wakes = [step.wake_at, moved.wake_at];
        let step = Step {
            more: step.more || moved.more || self.shared.signal().take(),
            wake_at: wakes.into_iter().flatten().min(),
        };
        if !step.more && step.wake_at.is_none() && !self.host.is_dead() {
            self.check_told()?;
        }
        Ok(step)
    }

    fn answer(&mut self) -> Result<()> {
        let count = 1 + self.rng.index(6);
        self.host.work(count, self.shared.slots().completer());
        let left = self.host.waiting();
        self.trace
            .say(|| format!("host works on up to {count} requests, {left} left"));
        if self.rng.chance(self.host.faults.lie) {
            self.trace.say(|| "an interrupt for nothing".into());
            self.shared.signal().used();
        }
        self.services.settle(&mut self.zone)
    }

    fn set_target(&mut self, target: u64) {
        self.host.target = FrameCount::new(target);
        self.shared.signal().config_changed();
        self.trace.say(|| format!("target {target}"));
    }

    fn pass_time(&mut self) {
        let millis = self.rng.below(4000);
        self.now = self.now.saturating_add(Nanos::from_millis(millis));
        self.trace.say(|| format!("{millis} ms pass"));
    }

    fn change_faults(&mut self) {
        self.host.faults = if self.rng.chance(400) {
            Faults::NONE
        } else {
            Faults {
                refuse: self.rng.below(300),
                partial: self.rng.below(500),
                twice: self.rng.below(300),
                lie: self.rng.below(300),
                silent: self.rng.chance(100),
                dies_in: None,
            }
        };
        let faults = self.host.faults;
        self.trace.say(|| format!("{faults:?}"));
    }

    fn compact(&mut self) -> Result<()> {
        let started = self.compactor.start();
        self.trace.say(|| format!("compaction starts: {started}"));
        self.step()?;
        Ok(())
    }

    /// The host dies, now or in one of the next calls.
    fn kill(&mut self) {
        if self.host.is_dead() || self.host.faults.dies_in.is_some() {
            return;
        }
        self.deaths += 1;
        if self.rng.chance(300) {
            self.trace.say(|| "the host dies".into());
            self.host.die();
        } else {
            let calls = self.rng.below(12);
            self.trace
                .say(|| format!("the host dies in the call after {calls} more"));
            self.host.faults.dies_in = Some(calls);
        }
    }

    /// Something is asked or offered beside the balloon.
    fn ask_service(&mut self) -> Result<()> {
        let kind = match self.rng.below(3) {
            0 => Kind::Statistics,
            _ => Kind::Report,
        };
        self.start_service(kind)
    }

    fn start_service(&mut self, kind: Kind) -> Result<()> {
        self.trace.say(|| format!("a service request: {kind:?}"));
        let (zone, host) = (&mut self.zone, &mut self.host);
        self.services
            .start(kind, self.shared, zone, host, &mut self.rng)
    }

    /// A live migration begins, goes on with hints, or ends.
    fn live_migration(&mut self) -> Result<()> {
        if self.host.is_dead() {
            return Ok(());
        }
        if !self.migrating || self.rng.chance(700) {
            self.migrating = true;
            for _ in 0..=self.rng.below(3) {
                self.start_service(Kind::Hint)?;
            }
            return Ok(());
        }
        self.trace.say(|| "the guest goes on elsewhere".into());
        self.migrating = false;
        self.migrations += 1;
        self.host.migrate(all()?);
        self.guest.verify(&mut self.host)
    }

    /// The program allocates; when memory is short it asks the balloon.
    fn allocate(&mut self) {
        let blocks = 1 + self.rng.below(24);
        for _ in 0..blocks {
            let order = if self.rng.chance(150) {
                self.rng.below(10)
            } else {
                self.rng.below(3)
            };
            let order = Order::new(u8::try_from(order).unwrap_or(0)).unwrap_or(Order::FRAME);
            if !self.guest.allocate(order, &mut self.zone, &mut self.host) {
                self.relieve(Need::run(
                    FrameCount::new(order.frames()),
                    balloon_order(order),
                ));
                self.guest.allocate(order, &mut self.zone, &mut self.host);
            }
        }
        let used = self.guest.frames();
        self.trace
            .say(|| format!("allocate {blocks} blocks: {used} frames in use"));
    }

    fn free(&mut self) -> Result<()> {
        let blocks = 1 + self.rng.below(24);
        for _ in 0..blocks {
            self.guest
                .free(&mut self.rng, &mut self.zone, &mut self.host)?;
        }
        let used = self.guest.frames();
        self.trace
            .say(|| format!("free {blocks} blocks: {used} frames in use"));
        Ok(())
    }

    /// Memory runs short: the program takes all there is, then relief is asked.
    fn run_short(&mut self) {
        let mut blocks = 0;
        while blocks < 400
            && self
                .guest
                .allocate(Order::FRAME, &mut self.zone, &mut self.host)
        {
            blocks += 1;
        }
        let frames = FrameCount::new(1 + self.rng.below(100));
        if self.rng.chance(300) {
            self.shared.request_relief(frames);
            self.trace
                .say(|| format!("relief of {frames} requested behind the engine's back"));
        } else {
            self.relieve(Need::frames(frames));
        }
    }

    /// The host wants all there is, relief comes before it has answered.
    fn squeeze(&mut self) -> Result<()> {
        self.set_target(FRAMES);
        for _ in 0..8 {
            self.step()?;
            self.answer()?;
        }
        let frames = FrameCount::new(1 + self.rng.below(100));
        self.relieve(Need::frames(frames));
        self.pass_time();
        self.step()?;
        Ok(())
    }

    fn relieve(&mut self, need: Need) {
        let relieved = self
            .engine
            .relieve(&mut self.host, &mut self.zone, need, self.now)
            .wake(|| {});
        self.trace
            .say(|| format!("relief for {need:?}: {relieved:?}"));
    }

    fn use_reserve(&mut self) {
        let Some(frame) = self.shared.take_emergency() else {
            return;
        };
        self.trace
            .say(|| format!("a frame of the reserve: {frame}"));
        let first = Frame::new(frame.start().get());
        let returned = self.zone.free(first, Order::FRAME);
        if returned.is_err() {
            self.host
                .breaches
                .push(format!("reserved frame {frame} was not allocated"));
        }
    }

    /// Stop, drain, freeze, and go on: a snapshot, a migration, another device.
    fn suspend(&mut self) -> Result<()> {
        if self.host.is_dead() {
            return self.reset();
        }
        self.trace.say(|| "quiesce".into());
        self.engine.quiesce();
        self.compactor.stop();
        self.host.faults = Faults::NONE;
        let requests = self.engine.status(&self.zone).counters.requests;
        for _ in 0..2000 {
            self.answer()?;
            self.now = self.now.saturating_add(Nanos::from_millis(200));
            self.step()?;
            if self.engine.is_drained() && self.compactor.is_drained() {
                self.check()?;
                return self.frozen(requests);
            }
        }
        bail!(
            "the balloon does not drain: {:?}",
            self.engine.status(&self.zone)
        )
    }

    /// Nothing moves until the guest is awake again.
    fn frozen(&mut self, requests: u32) -> Result<()> {
        let frozen = self.engine.status(&self.zone);
        let target = self.rng.below(FRAMES);
        self.set_target(target);
        for _ in 0..3 {
            self.pass_time();
            self.step()?;
        }
        let status = self.engine.status(&self.zone);
        ensure!(
            status.counters.requests == requests && status.size == frozen.size,
            "a frozen balloon moves: {frozen:?}, {status:?}"
        );
        let owned = self.host.told.count() + self.zone.held(Via::Bulk).get();
        ensure!(
            self.resetting || status.size.get() == owned,
            "the guest froze at {}, the host has {owned}",
            status.size
        );
        match self.rng.below(3) {
            0 => return self.reset(),
            1 => {
                self.trace.say(|| "resume elsewhere".into());
                self.host.migrate(all()?);
                self.host.unit = None;
                self.migrations += 1;
            }
            _ => self.trace.say(|| "resume".into()),
        }
        self.guest.verify(&mut self.host)?;
        self.engine.resume(Resume::Kept);
        Ok(())
    }

    /// The device is reset under the guest, or comes back from the dead.
    fn reset(&mut self) -> Result<()> {
        self.trace.say(|| "device reset".into());
        self.host.reset();
        self.migrating = false;
        self.resetting = true;
        self.engine.resume(Resume::Reset);
        self.services.reset(&mut self.zone)
    }

    /// The host becomes reasonable: a reachable target must be reached.
    fn calm_down(&mut self) -> Result<()> {
        if self.host.is_dead() {
            self.reset()?;
        }
        self.host.faults = Faults::NONE;
        self.compactor.stop();
        let kept = self.policy.min_free.get() + self.guest.frames() + 40;
        let reachable = FRAMES.saturating_sub(kept);
        let target = self.rng.below(reachable.max(1));
        self.set_target(target);
        self.trace
            .say(|| format!("the host calms down; {reachable} frames could be given"));
        self.settle()?;
        let status = self.engine.status(&self.zone);
        ensure!(
            status.progress == Progress::Reached,
            "target {target} is never reached: {status:?}"
        );
        self.check()?;
        self.guest.verify(&mut self.host)?;
        self.release_all()
    }

    /// Lets everything come to rest, and steps only when there is a reason to: an
    /// interrupt, more to do, or the moment that a step named.
    fn settle(&mut self) -> Result<()> {
        let mut step = self.step()?;
        for _ in 0..20_000 {
            self.host.work(100, self.shared.slots().completer());
            self.services.settle(&mut self.zone)?;
            let awake = step.more || self.host.interrupt;
            if !awake {
                let Some(at) = step.wake_at else {
                    return self.at_rest();
                };
                self.now = at;
            }
            step = self.step()?;
        }
        bail!(
            "never at rest: {:?}, compaction {:?}",
            self.engine.status(&self.zone),
            self.compactor.report()
        )
    }

    /// Nobody will wake up any more: nothing may be under way.
    fn at_rest(&mut self) -> Result<()> {
        let status = self.engine.status(&self.zone);
        let drained = self.compactor.is_drained() && self.services.is_drained();
        ensure!(
            self.engine.is_drained() && drained && self.host.waiting() == 0,
            "nobody wakes what is under way: {status:?}, {} requests wait",
            self.host.waiting()
        );
        Ok(())
    }

    /// What this run did.
    pub(crate) fn tally(&self) -> Tally {
        let counters = self.engine.status(&self.zone).counters;
        Tally {
            inflated: counters.inflated.get(),
            deflated: counters.deflated.get(),
            relieved: counters.relieved.get(),
            migrated: self.compactor.counters().migrated.get(),
            downgrades: counters.downgrades.into(),
            errors: counters.transport_errors.into(),
            hinted: self.services.hinted,
            reported: self.services.reported,
            statistics: self.services.statistics,
            deaths: self.deaths,
            migrations: self.migrations,
        }
    }

    /// The program ends, the host gives all back: nothing may be missing.
    fn release_all(&mut self) -> Result<()> {
        while self.guest.has_blocks() {
            self.guest
                .free(&mut self.rng, &mut self.zone, &mut self.host)?;
        }
        self.set_target(0);
        self.settle()?;
        self.check()?;
        let free = self.zone.stats().free.get() + self.shared.emergency_frames().get();
        ensure!(
            free == FRAMES,
            "{} frames are missing at the end",
            FRAMES - free
        );
        Ok(())
    }
}

const fn balloon_order(order: Order) -> balloon_core::Order {
    match balloon_core::Order::new(order.get()) {
        Some(order) => order,
        None => balloon_core::Order::FRAME,
    }
}
