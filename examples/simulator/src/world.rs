//! One run: everything together, step by step, with the oracle looking on.

use anyhow::{Result, bail, ensure};
use balloon_core::{
    Budget, Compactor, Engine, FrameCount, FrameRange, Nanos, Need, Pfn, Policy, Progress, Resume,
    Shared, Status, Unit, compactor_words,
};
use buddy_alloc::{Backing, Config, Frame, Order, State, Zone};

use crate::guest::Guest;
use crate::host::{Faults, Host, Model};
use crate::map::FrameMap;
use crate::rng::Rng;
use crate::trace::Trace;

const SLOTS: usize = 5;
/// 16 superpages, and an edge that is none.
const FRAMES: u64 = 16 * 512 + 77;
const FIRST: u64 = 0x1000;

/// A guest, its allocator, its balloon, and its host.
pub(crate) struct World<'m> {
    zone: Zone<'m>,
    engine: Box<Engine<SLOTS>>,
    compactor: Compactor<Vec<u32>, 2>,
    shared: &'static Shared<SLOTS>,
    host: Host,
    guest: Guest,
    /// The oracle's own list of the frames in use.
    used: FrameMap,
    now: Nanos,
    rng: Rng,
    pub(crate) trace: Trace,
}

/// What runs did, to see that they did something.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) inflated: u64,
    pub(crate) deflated: u64,
    pub(crate) relieved: u64,
    pub(crate) migrated: u64,
    pub(crate) downgrades: u64,
    pub(crate) errors: u64,
}

impl Tally {
    pub(crate) const fn add(&mut self, other: Self) {
        self.inflated += other.inflated;
        self.deflated += other.deflated;
        self.relieved += other.relieved;
        self.migrated += other.migrated;
        self.downgrades += other.downgrades;
        self.errors += other.errors;
    }
}

/// Metadata words a world's allocator takes.
pub(crate) fn metadata_words() -> usize {
    Config::new().metadata_words(span())
}

fn span() -> buddy_alloc::FrameRange {
    buddy_alloc::FrameRange::new(Frame::new(FIRST), buddy_alloc::FrameCount::new(FRAMES))
}

fn all() -> Result<FrameRange> {
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
        trace: Trace,
    ) -> Result<Self> {
        let mut rng = Rng::new(seed);
        let mut zone = Zone::new(span(), Config::new(), metadata)?;
        zone.add_range(span(), Backing::Untouched)?;
        let mut policy = Policy::DEFAULT;
        policy.unit = if rng.chance(500) {
            Unit::Adaptive
        } else {
            Unit::Frames
        };
        policy.reserve = FrameCount::new(rng.below(4));
        policy.keep = FrameCount::new(rng.below(64));
        if rng.chance(700) {
            policy.cool_down = Nanos::from_millis(rng.below(1500));
        } else {
            policy.cool_down = Nanos::ZERO;
        }
        policy.min_read_interval = Nanos::from_millis(rng.below(20));
        let words = usize::try_from(compactor_words(all()?))?;
        Ok(Self {
            zone,
            engine: Box::new(Engine::new(shared, policy)),
            compactor: Compactor::new(vec![0; words], all()?)?,
            shared,
            host: Host::new(model, all()?, Rng::new(rng.next())),
            used: FrameMap::new(all()?),
            guest: Guest::new(),
            now: Nanos::ZERO,
            rng,
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
        match self.rng.below(100) {
            0..28 => self.step(),
            28..46 => self.answer(),
            46..55 => self.allocate(),
            55..64 => self.free()?,
            64..72 => {
                let target = self.rng.below(FRAMES + FRAMES / 8);
                self.set_target(target);
            }
            72..82 => self.pass_time(),
            82..85 => self.change_faults(),
            85..91 => self.compact(),
            91..93 => self.run_short(),
            93 => self.squeeze(),
            94..96 => self.use_reserve(),
            96 => self.suspend()?,
            97 => self.reset(),
            _ => {
                self.trace.say(|| "verify all content".into());
                self.guest.verify(&mut self.host)?;
            }
        }
        Ok(())
    }

    fn step(&mut self) {
        let budget = Budget::requests(1 + self.rng.index(16));
        if self.host.interrupt {
            self.host.interrupt = false;
            self.shared.signal().used();
        }
        let before = self.engine.status(&self.zone);
        let step = self
            .engine
            .step(&mut self.host, &mut self.zone, self.now, budget);
        self.check_overshoot(before);
        let moved = self.compactor.step(
            &mut self.engine,
            &mut self.host,
            &mut self.zone,
            self.now,
            budget,
        );
        let status = self.engine.status(&self.zone);
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
    }

    /// What is on its way counts: no step goes beyond what the host wants.
    fn check_overshoot(&mut self, before: Status) {
        // Half of a pair counts, too, until the other half is answered.
        if !self.compactor.is_drained() {
            return;
        }
        let after = self.engine.status(&self.zone);
        let reach = after.size.saturating_add(after.inflating);
        // Frames on their way back stay the host's if it refuses.
        let held = before.size.saturating_add(before.inflating);
        let held = held.saturating_add(before.deflating);
        if reach > held && after.goal.is_none_or(|goal| reach > goal) {
            self.host.breaches.push(format!(
                "{reach} are given or on their way, the host wants {:?}",
                after.goal
            ));
        }
    }

    fn answer(&mut self) {
        let count = 1 + self.rng.index(6);
        self.host.work(count, self.shared.slots().completer());
        let left = self.host.waiting();
        self.trace
            .say(|| format!("host works on up to {count} requests, {left} left"));
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
                invent: self.rng.below(300),
                silent: self.rng.chance(100),
            }
        };
        let faults = self.host.faults;
        self.trace.say(|| format!("{faults:?}"));
    }

    fn compact(&mut self) {
        let started = self.compactor.start();
        self.trace.say(|| format!("compaction starts: {started}"));
        self.step();
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
    fn squeeze(&mut self) {
        self.set_target(FRAMES);
        for _ in 0..8 {
            self.step();
            self.answer();
        }
        let frames = FrameCount::new(1 + self.rng.below(100));
        self.relieve(Need::frames(frames));
        self.pass_time();
        self.step();
    }

    fn relieve(&mut self, need: Need) {
        let relieved = self
            .engine
            .relieve(&mut self.host, &mut self.zone, need, self.now);
        self.trace
            .say(|| format!("relief for {need:?}: {relieved:?}"));
    }

    fn use_reserve(&mut self) {
        let Some(frame) = self.shared.take_reserve() else {
            return;
        };
        self.trace
            .say(|| format!("a frame of the reserve: {frame}"));
        let returned =
            balloon_core::FrameSource::put(&mut self.zone, frame, balloon_core::Backing::Populated);
        if returned.is_err() {
            self.host
                .breaches
                .push(format!("reserved frame {frame} was not in hand"));
        }
    }

    /// Stop, drain, and go on, as around a snapshot.
    fn suspend(&mut self) -> Result<()> {
        self.trace.say(|| "quiesce".into());
        self.engine.quiesce();
        self.compactor.stop();
        self.host.faults = Faults::NONE;
        for _ in 0..2000 {
            self.answer();
            self.now = self.now.saturating_add(Nanos::from_millis(200));
            self.step();
            if self.engine.is_drained() && self.compactor.is_drained() {
                self.guest.verify(&mut self.host)?;
                self.engine.resume(Resume::Kept);
                self.trace.say(|| "resume".into());
                return Ok(());
            }
        }
        bail!(
            "the balloon does not drain: {:?}",
            self.engine.status(&self.zone)
        )
    }

    /// The device is reset under the guest.
    fn reset(&mut self) {
        self.trace.say(|| "device reset".into());
        self.host.reset();
        self.engine.resume(Resume::Reset);
    }

    /// The host becomes reasonable: a reachable target must be reached.
    fn calm_down(&mut self) -> Result<()> {
        self.host.faults = Faults::NONE;
        self.compactor.stop();
        let reachable = FRAMES.saturating_sub(self.guest.frames() + 100);
        let target = self.rng.below(reachable.max(1));
        self.set_target(target);
        self.trace
            .say(|| format!("the host calms down; {reachable} frames could be given"));
        for _ in 0..4000 {
            self.host.work(100, self.shared.slots().completer());
            self.now = self.now.saturating_add(Nanos::from_millis(500));
            self.shared.signal().used();
            self.step();
            if self.is_settled() {
                self.check()?;
                self.guest.verify(&mut self.host)?;
                return self.release_all();
            }
        }
        bail!(
            "target {target} is never reached: {:?}",
            self.engine.status(&self.zone)
        )
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
        }
    }

    fn is_settled(&self) -> bool {
        let reached = self.engine.status(&self.zone).progress == Progress::Reached;
        reached && self.compactor.is_drained() && self.host.waiting() == 0
    }

    /// The program ends, the host gives all back: nothing may be missing.
    fn release_all(&mut self) -> Result<()> {
        while self.guest.has_blocks() {
            self.guest
                .free(&mut self.rng, &mut self.zone, &mut self.host)?;
        }
        self.set_target(0);
        for _ in 0..4000 {
            self.host.work(100, self.shared.slots().completer());
            self.now = self.now.saturating_add(Nanos::from_millis(500));
            self.shared.signal().used();
            self.step();
            if self.is_settled() {
                break;
            }
        }
        self.check()?;
        let free = self.zone.stats().free.get() + self.shared.reserved().get();
        ensure!(
            free == FRAMES,
            "{} frames are missing at the end",
            FRAMES - free
        );
        Ok(())
    }

    /// Each frame has one owner, and all books agree.
    fn check(&mut self) -> Result<()> {
        if let Some(breach) = self.host.breaches.first() {
            bail!("{breach}");
        }
        self.used.clear();
        for (start, end) in self.guest.used() {
            ensure!(
                self.used.add(start, end),
                "a frame of {start:#x}..{end:#x} is in use twice"
            );
        }
        let mut counts = [0u64; 4];
        let mut frame = FIRST;
        while frame < FIRST + FRAMES {
            let Some(at) = self.zone.state(Frame::new(frame)) else {
                bail!("the allocator does not know frame {frame:#x}");
            };
            let end = at.block.end().get().min(FIRST + FRAMES);
            let place = match at.state {
                State::Free => 0,
                State::Used => 1,
                State::InHand => 2,
                State::Ballooned(_) => 3,
                other => bail!("frame {frame:#x} is {other:?}, which nobody asked for"),
            };
            ensure!(
                !self.used.any(frame, end, place != 1),
                "the allocator says {:?} of {frame:#x}..{end:#x}",
                at.state
            );
            if place < 2 && self.host.told.any(frame, end, true) {
                // Told to return, and used before the host acknowledged it.
                let early = |pfn| !self.host.must_tell && self.host.is_returning(pfn);
                let mut told = (frame..end).map(Pfn::new);
                if let Some(pfn) = told.find(|&pfn| self.host.told.contains(pfn) && !early(pfn)) {
                    bail!("frame {:#x} is the host's and {:?}", pfn.get(), at.state);
                }
            }
            if let Some(count) = counts.get_mut(place) {
                *count += end - frame;
            }
            frame = end;
        }
        let [_, _, in_hand, ballooned] = counts;
        let status = self.engine.status(&self.zone);
        let moving = status.inflating.get() + status.deflating.get() + self.shared.reserved().get();
        // The rest is the compactor's: half of a pair counts as ballooned.
        let Some(trading) = in_hand.checked_sub(moving) else {
            bail!("{moving} frames move, {in_hand} are in hand");
        };
        ensure!(
            trading == 0 || !self.compactor.is_drained(),
            "{trading} frames are in nobody's hand"
        );
        ensure!(
            (ballooned..=ballooned + trading).contains(&status.size.get()),
            "size {}, ballooned {ballooned}, trading {trading}",
            status.size
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
