//! This crate's driver, with its services and the engine, in the suite.

use balloon_core::testing::FakeSource;
use balloon_core::{
    Backing, BitmapLedger, Budget, Engine, FrameCount, FrameRange, FrameSource, Granularity,
    Ledger, Nanos, Need, Order, Pfn, Policy, RangeSink, Shared, Shortage, TakeRequest, Via,
};
use transport_virtio::pci::PciId;
use transport_virtio::testing::conformance::{Driver, Kernel};
use transport_virtio::testing::{FakeBalloon, FakeDevice, FakeMemory, NoDelay};
use transport_virtio::{
    DriverOptions, Features, Hinting, QueueId, ReportPace, Reporting, Rings, Statistics, Tag,
};

/// The kernel's frames; what comes back is filled, if it relies on that.
struct Frames {
    inner: FakeSource,
    fills: bool,
    filled: Vec<Pfn>,
}

impl FrameSource for Frames {
    fn take(&mut self, ask: TakeRequest, out: &mut RangeSink<'_>) -> Shortage {
        self.inner.take(ask, out)
    }

    fn put(&mut self, range: FrameRange, backing: Backing) -> Result<(), FrameRange> {
        self.inner.put(range, backing)?;
        if self.fills {
            self.filled.extend(range.frames());
        }
        Ok(())
    }

    fn available(&mut self) -> Option<FrameCount> {
        self.inner.available()
    }
}

impl Ledger for Frames {
    fn store(&mut self, range: FrameRange, via: Via) -> Result<(), FrameRange> {
        self.inner.store(range, via)
    }

    fn recall(&mut self, via: Via, unit: Order, out: &mut RangeSink<'_>) -> Shortage {
        self.inner.recall(via, unit, out)
    }

    fn held(&self, via: Via) -> FrameCount {
        self.inner.held(via)
    }
}

/// With the bulk path, where the device has one, or without.
pub(crate) struct Ours<const BULK: bool> {
    balloon: FakeBalloon<16>,
    engine: Engine<16>,
    shared: &'static Shared<16>,
    frames: Frames,
    statistics: Statistics,
    hinting: Hinting<4>,
    hinted: BitmapLedger<Vec<u64>>,
    reporting: Reporting,
    now: u64,
}

fn options(kernel: &Kernel, bulk: bool) -> DriverOptions {
    let mut options = DriverOptions::new();
    if !bulk {
        options = options.without_bulk();
    }
    if kernel.services.contains(Features::STATS_VQ) {
        options = options.with_statistics();
    }
    if kernel.services.contains(Features::FREE_PAGE_HINT) {
        options = options.with_hints();
    }
    if kernel.services.contains(Features::PAGE_REPORTING) {
        options = options.with_reporting();
    }
    if let Some(value) = kernel.poison {
        options = options.with_poison(value);
    }
    if kernel.superpages {
        options = options.with_host_superpages();
    }
    options
}

impl<const BULK: bool> Driver for Ours<BULK> {
    const DMA_BYTES: usize = Rings::<FakeDevice, FakeMemory, 16>::DMA_BYTES;

    fn binds_to(device_type: u16) -> bool {
        let modern = PciId {
            vendor: 0x1af4,
            device: 0x1040 + device_type,
        };
        modern.is_balloon()
    }

    fn bring_up(device: FakeDevice, memory: FakeMemory, kernel: &Kernel) -> Option<Self> {
        let options = options(kernel, BULK);
        let balloon = FakeBalloon::bring_up(device, memory, &options, &mut NoDelay).ok()?;
        let shared: &'static Shared<16> = Box::leak(Box::default());
        let words = usize::try_from(BitmapLedger::words(kernel.frames.count())).unwrap();
        let mut inner = FakeSource::new(kernel.frames);
        if kernel.scattered {
            inner = inner.scattered();
        }
        inner.floor = kernel.floor;
        let mut policy = Policy::DEFAULT;
        if kernel.superpages {
            policy.granularity = Granularity::Adaptive;
        }
        Some(Self {
            balloon,
            engine: Engine::new(shared, policy),
            shared,
            frames: Frames {
                inner,
                fills: kernel.poison.is_some(),
                filled: Vec::new(),
            },
            statistics: Statistics::new(&[Tag::FREE, Tag::TOTAL, Tag::OOM_KILLS]),
            hinting: Hinting::new(kernel.floor),
            hinted: BitmapLedger::new(vec![0; words], &[kernel.frames]).unwrap(),
            reporting: Reporting::new(ReportPace {
                order: Order::FRAME,
                gap: Nanos::from_millis(3),
                min_free: kernel.floor,
                ..ReportPace::DEFAULT
            }),
            now: 0,
        })
    }

    fn device(&mut self) -> &mut FakeDevice {
        self.balloon.queues_mut().device_mut()
    }

    fn step(&mut self) {
        self.now += 1;
        let now = Nanos::from_millis(self.now);
        let signal = self.shared.signal();
        signal.used();
        signal.config_changed();
        let (balloon, frames) = (&mut self.balloon, &mut self.frames);
        self.engine.step(balloon, frames, now, Budget::SMALL);
        // A device may offer none of them, or change too often to be read.
        let shared = self.shared;
        let _ = self
            .statistics
            .step(balloon, shared, now, |tag| tag.get().into());
        let _ = self
            .hinting
            .step(balloon, shared, frames, &mut self.hinted, now);
        let _ = self.reporting.step(balloon, shared, frames, now);
    }

    fn allocate(&mut self) -> Option<Pfn> {
        self.frames.inner.allocate()
    }

    fn free(&mut self, frame: Pfn) {
        self.frames.inner.free_allocated(frame);
        if self.frames.fills {
            self.frames.filled.push(frame);
        }
    }

    fn relieve(&mut self) {
        let (balloon, frames) = (&mut self.balloon, &mut self.frames);
        let (now, wanted) = (Nanos::from_millis(self.now), FrameCount::new(64));
        self.engine
            .relieve(balloon, frames, Need::frames(wanted), now)
            .wake(|| self.shared.signal().used());
        self.hinting.relieve(frames, &mut self.hinted, wanted);
    }

    fn restart(&mut self) {
        if self.balloon.lost().is_some() {
            let (balloon, engine) = (&mut self.balloon, &mut self.engine);
            balloon.restart(engine, &mut NoDelay).unwrap();
        }
    }

    fn is_waiting(&self) -> bool {
        let out = |queue| self.balloon.in_flight(queue);
        out(QueueId::Inflate) + out(QueueId::Reporting) > 0
            && !self.engine.status(&self.frames).inflating.is_zero()
    }

    fn take_filled(&mut self) -> Vec<Pfn> {
        core::mem::take(&mut self.frames.filled)
    }
}
