//! A guest in the same process: the engine and the driver over an allocator of
//! its own, on the memory the device sees.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use balloon_core::{
    Backing, BitmapLedger, Budget, Engine, FrameCount, FrameRange, FrameSource, Ledger, Nanos,
    Order, Pfn, Policy, Progress, RangeSink, Shared, Shortage, Status, Step, TakeRequest, Via,
};
use buddy_alloc::{Config, Zone};
use embedded_hal::delay::DelayNs;
use transport_virtio::{
    DriverOptions, Features, Hinting, ReportPace, Reporting, Rings, Statistics, Tag, UnusedPages,
    VirtioBalloon,
};
use vm_memory::{Bytes as _, GuestAddress};

use crate::front::{Front, Registers};
use crate::ram::{Ram, RamDma};

/// What the guest needs for itself: its rings lie there.
const KERNEL: FrameCount = FrameCount::new(1 << 10);
const RINGS: u64 = 1 << 20;

/// An allocator whose taking is timed, and whose free frames all hold a value if the
/// guest relies on one.
#[derive(Debug)]
pub struct Timed {
    zone: Zone<'static>,
    taking: Duration,
    ram: Arc<Ram>,
    poison: Option<u32>,
}

impl Timed {
    /// Writes the value where it is not: frames that were only reported hold it.
    fn fill(&self, range: FrameRange) {
        let Some(value) = self.poison else { return };
        let filled = [value.to_le_bytes(); 1024].concat();
        let mut content = vec![0; filled.len()];
        let memory = self.ram.memory();
        for pfn in range.frames() {
            let at = GuestAddress(pfn.address());
            let read = memory.read_slice(&mut content, at);
            if read.is_err() || content != filled {
                memory.write_slice(&filled, at).expect("guest memory");
            }
        }
    }
}

impl FrameSource for Timed {
    fn take(&mut self, ask: TakeRequest, out: &mut RangeSink<'_>) -> Shortage {
        let begin = Instant::now();
        let stop = FrameSource::take(&mut self.zone, ask, out);
        self.taking += begin.elapsed();
        stop
    }

    fn put(&mut self, range: FrameRange, backing: Backing) -> Result<(), FrameRange> {
        self.fill(range);
        FrameSource::put(&mut self.zone, range, backing)
    }
}

impl Ledger for Timed {
    fn store(&mut self, range: FrameRange, via: Via) -> Result<(), FrameRange> {
        Ledger::store(&mut self.zone, range, via)
    }

    fn recall(&mut self, via: Via, unit: Order, out: &mut RangeSink<'_>) -> Shortage {
        Ledger::recall(&mut self.zone, via, unit, out)
    }

    fn held(&self, via: Via) -> FrameCount {
        Ledger::held(&self.zone, via)
    }
}

/// A guest with `N` slots for requests of each kind, and queues of `S`.
#[derive(Debug)]
pub struct Guest<const N: usize, const S: usize = N> {
    balloon: VirtioBalloon<Rings<Registers, RamDma, S>>,
    engine: Box<Engine<N>>,
    shared: &'static Shared<N>,
    front: Arc<Front>,
    source: Timed,
    statistics: Statistics,
    hinting: Hinting,
    unused: UnusedPages,
    held: BitmapLedger<Vec<u64>>,
    reporting: Reporting,
    /// When to look for something to report.
    look_at: Option<Nanos>,
    begin: Instant,
    steps: u64,
}

/// A reset is over when its write is.
struct NoDelay;

impl DelayNs for NoDelay {
    fn delay_ns(&mut self, _: u32) {}
}

impl<const N: usize, const S: usize> Guest<N, S> {
    /// What interrupts and the guest share: made before the device.
    #[must_use]
    pub fn shared() -> &'static Shared<N> {
        Box::leak(Box::default())
    }

    /// Brings the driver up on a device whose interrupts set `shared`. All of
    /// its memory counts as populated.
    ///
    /// # Errors
    /// If the device does not suit or the memory is too small.
    pub fn new(
        front: Arc<Front>,
        shared: &'static Shared<N>,
        ram: Arc<Ram>,
        policy: &DriverOptions,
    ) -> Result<Self> {
        let all = FrameCount::new(ram.len() as u64 >> 12);
        let usable = all.get().checked_sub(KERNEL.get());
        let usable = usable.filter(|&frames| frames > 0).context("more memory")?;
        let own = buddy_alloc::FrameRange::new(
            buddy_alloc::Frame::new(KERNEL.get()),
            buddy_alloc::FrameCount::new(usable),
        );
        let config = Config::new();
        let words = vec![0; config.metadata_words(own)].leak();
        let mut zone = Zone::new_zeroed(own, config, words).map_err(|e| anyhow!("{e}"))?;
        zone.add_range(own, buddy_alloc::Backing::Populated)
            .map_err(|e| anyhow!("{e}"))?;
        let len = Rings::<Registers, RamDma, S>::dma_bytes(policy);
        ensure!(
            len as u64 + RINGS <= KERNEL.bytes().get(),
            "rings beyond the kernel"
        );
        let memory = ram.dma(RINGS, len)?;
        let registers = Registers(Arc::clone(&front));
        let balloon = VirtioBalloon::bring_up(registers, memory, policy, &mut NoDelay)
            .map_err(|refused| anyhow!("{}", refused.error))?;
        let range = FrameRange::new(Pfn::new(KERNEL.get()), FrameCount::new(usable));
        let range = range.context("memory")?;
        let words = usize::try_from(BitmapLedger::words(range.count()))?;
        let source = Timed {
            zone,
            taking: Duration::ZERO,
            ram,
            poison: policy.poison(),
        };
        source.fill(range);
        Ok(Self {
            balloon,
            engine: Box::new(Engine::new(shared, Policy::DEFAULT)),
            shared,
            front,
            source,
            statistics: Statistics::new(&[Tag::FREE, Tag::TOTAL]),
            hinting: Hinting::new(FrameCount::new(256)),
            unused: UnusedPages::new(FrameCount::new(256)),
            held: BitmapLedger::new(vec![0; words], &[range]).map_err(|e| anyhow!("{e}"))?,
            reporting: Reporting::new(ReportPace::DEFAULT),
            look_at: None,
            begin: Instant::now(),
            steps: 0,
        })
    }

    fn now(&self) -> Nanos {
        Nanos::new(u64::try_from(self.begin.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// One step of the engine.
    pub fn step(&mut self, budget: Budget) -> Step {
        self.steps += 1;
        let now = self.now();
        let (balloon, source) = (&mut self.balloon, &mut self.source);
        self.engine.step(balloon, source, now, budget)
    }

    /// One step of each service the device has; whether there is more to do, now or soon.
    ///
    /// # Errors
    /// If the device broke a queue.
    pub fn serve(&mut self) -> Result<bool> {
        let now = self.now();
        let (balloon, shared) = (&mut self.balloon, self.shared);
        let source = &mut self.source;
        let mut more = false;
        self.look_at = None;
        let negotiated = balloon.negotiated();
        if negotiated.contains(Features::STATS_VQ) {
            let stats = source.zone.stats();
            let value = |tag| match tag {
                Tag::FREE => stats.free.get() << 12,
                _ => stats.managed.get() << 12,
            };
            let step = self.statistics.step(balloon, shared, now, value)?;
            self.look_at = step.wake_at;
        }
        if balloon.hint_limits().is_some() {
            let held = &mut self.held;
            let step = self.hinting.step(balloon, shared, source, held, now)?;
            self.look_at = [self.look_at, step.wake_at].into_iter().flatten().min();
            more |= step.more;
        }
        if balloon.report_limits().is_some() {
            let step = self.reporting.step(balloon, shared, source, now)?;
            self.look_at = [self.look_at, step.wake_at].into_iter().flatten().min();
            more |= step.more;
        }
        if balloon.takes_host_requests() {
            let held = &mut self.held;
            let step = self.unused.step(balloon, shared, source, held, now)?;
            self.look_at = [self.look_at, step.wake_at].into_iter().flatten().min();
            more |= step.more;
        }
        Ok(more)
    }

    /// Steps and sleeps until `done` says so, or time is up.
    ///
    /// # Errors
    /// If it took longer than `limit`, or the device broke a queue.
    pub fn run(&mut self, limit: Duration, mut done: impl FnMut(&Self) -> bool) -> Result<()> {
        let begin = Instant::now();
        loop {
            let step = self.step(Budget::LARGE);
            let more = self.serve()? || step.more;
            if done(self) {
                return Ok(());
            }
            ensure!(
                begin.elapsed() < limit,
                "no end within {limit:?}: {:?}",
                self.status()
            );
            if !more && !self.shared.signal().take() {
                let wake_at = [step.wake_at, self.look_at].into_iter().flatten().min();
                let rest = wake_at.map(|at| at.saturating_sub(self.now()));
                let rest = rest.map_or(limit, |rest| Duration::from_nanos(rest.get()));
                self.front.interrupt.wait(Some(rest.min(limit)));
            }
        }
    }

    /// Whether the balloon has the size the device wants.
    #[must_use]
    pub fn settled(&self) -> bool {
        self.status().progress == Progress::Reached
            && self.front.config(transport_virtio::protocol::ACTUAL) == self.front.target()
    }

    /// The engine's own view.
    #[must_use]
    pub fn status(&self) -> Status {
        self.engine.status(&self.source)
    }

    /// Time spent in taking frames from the allocator.
    #[must_use]
    pub const fn taking(&self) -> Duration {
        self.source.taking
    }

    /// Steps of the engine so far.
    #[must_use]
    pub const fn steps(&self) -> u64 {
        self.steps
    }

    /// Frames that are free.
    #[must_use]
    pub fn free(&self) -> FrameCount {
        FrameCount::new(self.source.zone.stats().free.get())
    }

    /// The driver.
    #[must_use]
    pub const fn balloon(&self) -> &VirtioBalloon<Rings<Registers, RamDma, S>> {
        &self.balloon
    }

    /// What was reported so far.
    #[must_use]
    pub const fn reporting(&self) -> &Reporting {
        &self.reporting
    }

    /// Requests for unused pages answered so far.
    #[must_use]
    pub const fn unused(&self) -> &UnusedPages {
        &self.unused
    }
}
