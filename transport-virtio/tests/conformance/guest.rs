//! A guest that allocates and frees beside its balloon, on a checked device.

use balloon_core::testing::FakeSource;
use balloon_core::{
    BitmapLedger, Budget, Engine, FrameCount, FrameRange, Ledger, Nanos, Order, Pfn, Policy,
    Progress, Shared, Signal, Via,
};
use transport_virtio::testing::{self, FakeBalloon, FakeDevice, Profile};
use transport_virtio::{
    DriverOptions, Features, Hinting, QueueId, ReportPace, Reporting, Statistics, Tag,
};

pub(crate) const QUEUES: [QueueId; 5] = QueueId::ALL;
pub(crate) const FIRST: u64 = 0x100;
pub(crate) const FRAMES: u64 = 2048;

/// A guest that allocates and frees beside its balloon, and its device.
pub(crate) struct Guest {
    pub(crate) balloon: FakeBalloon<16>,
    pub(crate) engine: Engine<16>,
    pub(crate) shared: &'static Shared<16>,
    pub(crate) source: FakeSource,
    pub(crate) statistics: Statistics,
    pub(crate) hinting: Hinting<4>,
    pub(crate) hinted: BitmapLedger<Vec<u64>>,
    pub(crate) reporting: Reporting,
    pub(crate) used: Vec<Pfn>,
    pub(crate) now: u64,
    pub(crate) budget: Budget,
    pub(crate) random: u64,
}

impl Guest {
    /// A guest whose free memory is in one piece.
    pub(crate) fn new(profile: Profile, options: DriverOptions) -> Self {
        let shared: &'static Shared<16> = Box::leak(Box::default());
        let mut balloon = testing::bring_up::<16>(profile, &options).unwrap();
        let memory = FrameRange::new(Pfn::new(FIRST), FrameCount::new(FRAMES)).unwrap();
        let words = usize::try_from(BitmapLedger::words(memory.count())).unwrap();
        let device = balloon.queues_mut().device_mut();
        device
            .checker_mut()
            .set_memory(memory.start()..memory.end());
        Self {
            balloon,
            engine: Engine::new(shared, Policy::DEFAULT),
            shared,
            source: FakeSource::new(memory),
            statistics: Statistics::new(&[Tag::FREE, Tag::TOTAL, Tag::OOM_KILLS]),
            hinting: Hinting::new(FrameCount::new(32)),
            hinted: BitmapLedger::new(vec![0; words], &[memory]).unwrap(),
            reporting: Reporting::new(ReportPace {
                order: Order::FRAME,
                gap: Nanos::from_millis(3),
                min_free: FrameCount::new(64),
                ..ReportPace::DEFAULT
            }),
            used: Vec::new(),
            now: 0,
            budget: Budget::SMALL,
            random: 0x9e37_79b9_7f4a_7c15,
        }
    }

    pub(crate) fn device(&mut self) -> &mut FakeDevice {
        self.balloon.queues_mut().device_mut()
    }

    pub(crate) fn signal(&self) -> &Signal {
        self.shared.signal()
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % bound
    }

    pub(crate) fn step(&mut self) {
        self.now += 1;
        let now = Nanos::from_millis(self.now);
        self.signal().used();
        self.engine
            .step(&mut self.balloon, &mut self.source, now, self.budget);
    }

    /// Steps what the policy asked for beside the balloon.
    pub(crate) fn serve_host(&mut self) {
        self.now += 1;
        let now = Nanos::from_millis(self.now);
        let (balloon, shared) = (&mut self.balloon, self.shared);
        let source = &mut self.source;
        let negotiated = balloon.negotiated();
        if negotiated.contains(Features::STATS_VQ) {
            self.statistics
                .step(balloon, shared, now, |tag| u64::from(tag.get()))
                .unwrap();
        }
        if balloon.hint_limits().is_some() {
            self.hinting
                .step(balloon, shared, source, &mut self.hinted, now)
                .unwrap();
        }
        if balloon.report_limits().is_some() {
            self.reporting.step(balloon, shared, source, now).unwrap();
        }
    }

    /// The guest program takes a few frames and gives others back.
    pub(crate) fn churn(&mut self) {
        for _ in 0..self.below(8) {
            if let Some(pfn) = self.source.allocate() {
                self.device().checker_mut().uses(pfn);
                self.used.push(pfn);
            }
        }
        let min_free = 64 + usize::try_from(self.below(64)).unwrap();
        while self.used.len() > min_free {
            let pfn = self.used.swap_remove(0);
            self.source.free_allocated(pfn);
        }
    }

    /// The device answers some of what it has, in order.
    pub(crate) fn serve(&mut self) {
        for queue in QUEUES {
            for _ in 0..self.below(4) {
                if let Some(chain) = self.device().take(queue) {
                    self.device().answer(queue, chain.head.into(), 0);
                }
            }
        }
    }

    pub(crate) fn settle(&mut self, target: u32) {
        self.device().set_target(target);
        self.signal().config_changed();
        let reached = (0..2000).any(|_| {
            self.step();
            self.serve();
            self.device().actual() == target
                && self.engine.status(&self.source).progress == Progress::Reached
        });
        assert!(reached, "{target}: {:?}", self.engine.status(&self.source));
        self.source.check(FrameCount::new(self.used.len() as u64));
    }

    pub(crate) fn held(&self) -> u64 {
        Via::ALL.map(|via| self.source.held(via).get()).iter().sum()
    }

    /// Rules broken so far, each once.
    pub(crate) fn broken(&self) -> Vec<&'static str> {
        broken(self.balloon.queues().device())
    }
}

pub(crate) fn broken(device: &FakeDevice) -> Vec<&'static str> {
    let mut rules: Vec<_> = device
        .checker()
        .violations()
        .iter()
        .map(|v| v.rule)
        .collect();
    rules.sort_unstable();
    rules.dedup();
    rules
}

pub(crate) fn profiles() -> [Profile; 9] {
    let all = Features::STATS_VQ | Features::FREE_PAGE_HINT | Features::PAGE_REPORTING;
    [
        Profile::specification(Features::PAGE_REPORTING),
        Profile::specification(Features::MUST_TELL_HOST | all),
        Profile::qemu(Features::PAGE_REPORTING | Features::PAGE_POISON),
        Profile::qemu(all | Features::PAGE_POISON),
        Profile::firecracker(Features::FREE_PAGE_HINT | Features::PAGE_REPORTING),
        Profile::cloud_hypervisor(Features::PAGE_REPORTING | Features::DEFLATE_ON_OOM),
        Profile::cloud_hypervisor(Features::empty()),
        Profile::crosvm(Features::STATS_VQ | Features::PAGE_REPORTING),
        Profile::libkrun(all),
    ]
}

/// Every service, and frames by their numbers.
pub(crate) fn serving() -> DriverOptions {
    DriverOptions::new()
        .with_statistics()
        .with_hints()
        .with_reporting()
        .without_bulk()
}
