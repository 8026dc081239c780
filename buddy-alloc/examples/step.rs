//! The work of `cargo xtask bench step`: balloon steps with the smallest budget, one after the
//! other, each within [`measured_step`], where an instruction counter looks.

#![expect(
    clippy::expect_used,
    clippy::cast_possible_truncation,
    reason = "a bench, on 64-bit hosts"
)]

use core::hint::black_box;

use balloon_core::{
    Budget, Capabilities, Compactor, Completer, Engine, FrameCount, Granularity, Kind, Ledger,
    Limits, Migrate, MigrateRequest, Migration, Nanos, Need, Order, Outcome, Pfn, Policy, Request,
    Run, Shared, SlotId, Transport, TransportErrorKind, compactor_words,
};
use buddy_alloc::{Backing, Config, Frame, FrameRange, Zone};

/// Frames of the guest: 1 GiB.
const FRAMES: u64 = 1 << 18;
/// Steps of one path at most: each is a record of its own.
const STEPS: usize = 400;

static SHARED: Shared = Shared::new();

/// What the counter looks at.
#[inline(never)]
fn measured_step(step: &mut dyn FnMut()) {
    step();
}

/// A host that has what it is told copied to it, as by a ring, and answers between steps.
struct Host {
    capabilities: Capabilities,
    target: u64,
    words: Vec<u64>,
    waiting: Vec<(Kind, SlotId)>,
}

impl Host {
    fn new(bulk: bool) -> Self {
        let array = Limits {
            frames: FrameCount::new(256),
            runs: 256,
            run: FrameCount::new(256),
            in_flight: 16,
            below: Pfn::new(1 << 32),
        };
        let ranges = Limits {
            frames: FrameCount::MAX,
            runs: 32,
            run: FrameCount::new((1 << 20) - 1),
            in_flight: 1,
            below: Pfn::LIMIT,
        };
        let mut capabilities = Capabilities::new(array, array);
        capabilities.bulk = bulk.then_some(ranges);
        capabilities.must_tell_host = false;
        capabilities.deflate_on_oom = true;
        Self {
            capabilities,
            target: 0,
            words: Vec::with_capacity(1 << 10),
            waiting: Vec::with_capacity(64),
        }
    }

    fn tell(&mut self, runs: &[Run]) {
        self.words.clear();
        for range in runs.iter().map(|run| run.range()) {
            let numbers = range.start().get()..range.end().get();
            self.words.extend(numbers.take(256));
        }
        black_box(&self.words);
    }
}

impl Transport for Host {
    type Error = TransportErrorKind;

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn read_target(&mut self) -> Result<FrameCount, Self::Error> {
        Ok(FrameCount::new(self.target))
    }

    fn write_actual(&mut self, _: FrameCount) -> Result<(), Self::Error> {
        Ok(())
    }

    fn submit(&mut self, request: Request<'_>, _: Completer<'_>) -> Result<(), Self::Error> {
        self.tell(request.runs);
        self.waiting.push((request.kind, request.slot));
        Ok(())
    }

    fn kick(&mut self, _: usize) -> Result<bool, Self::Error> {
        Ok(false)
    }

    fn reap(&mut self, done: Completer<'_>) -> Result<usize, Self::Error> {
        let answers = self.waiting.len();
        for (kind, slot) in self.waiting.drain(..) {
            let known = done.complete(kind, slot, Outcome::Whole);
            known.map_err(|_| TransportErrorKind::Refused)?;
        }
        Ok(answers)
    }
}

impl Migrate for Host {
    fn migration(&self) -> Migration {
        Migration::Exchange
    }

    fn submit_migrate(
        &mut self,
        request: MigrateRequest<'_>,
        _: Completer<'_>,
    ) -> Result<(), Self::Error> {
        self.tell(request.from);
        self.tell(request.to);
        self.waiting.push((Kind::Migrate, request.slot));
        Ok(())
    }
}

struct Guest {
    engine: Box<Engine>,
    host: Host,
    zone: Zone<'static>,
    now: u64,
}

const fn frames(start: u64, count: u64) -> FrameRange {
    FrameRange::new(Frame::new(start), buddy_alloc::FrameCount::new(count))
}

impl Guest {
    /// A guest of whose memory runs of `run` frames are free, each followed by one in use.
    fn new(bulk: bool, unit: Granularity, run: u64) -> Self {
        let span = frames(0, FRAMES);
        let memory = vec![0; Config::new().metadata_words(span)].leak();
        let mut zone = Zone::new(span, Config::new(), memory).expect("metadata");
        zone.add_range(span, Backing::Populated).expect("a span");
        if run < FRAMES {
            for used in (run..FRAMES).step_by(run as usize + 1) {
                let used = Frame::new(used);
                let one = buddy_alloc::Order::FRAME;
                zone.allocate_at(used, one).expect("a free frame");
            }
        }
        let mut policy = Policy::DEFAULT;
        policy.granularity = unit;
        let mut host = Host::new(bulk);
        if unit == Granularity::Adaptive {
            host.capabilities.unit = Order::SUPERPAGE;
        }
        Self {
            engine: Box::new(Engine::new(&SHARED, policy)),
            host,
            zone,
            now: 0,
        }
    }

    fn free(&self) -> u64 {
        self.zone.free_frames().get()
    }

    fn set_target(&mut self, target: u64) {
        self.host.target = target;
        self.now += 1_000_000_000;
        SHARED.signal().config_changed();
    }

    /// Steps to a target, unseen.
    fn reach(&mut self, target: u64) {
        self.set_target(target);
        let mut more = true;
        while more || !self.host.waiting.is_empty() {
            let now = Nanos::new(self.now);
            let step = self
                .engine
                .step(&mut self.host, &mut self.zone, now, Budget::LARGE);
            more = step.more;
        }
        let size = self.engine.status(&self.zone).size;
        assert_eq!(size.get(), target, "the target is reached");
    }

    /// Steps to a target, each step measured.
    fn measure(&mut self, target: u64) {
        self.set_target(target);
        for _ in 0..STEPS {
            let now = Nanos::new(self.now);
            let mut more = true;
            measured_step(&mut || {
                let step = self
                    .engine
                    .step(&mut self.host, &mut self.zone, now, Budget::SMALL);
                more = step.more;
            });
            if !more && self.host.waiting.is_empty() {
                return;
            }
        }
    }

    fn relieve(&mut self, need: Need) {
        for _ in 0..20 {
            let now = Nanos::new(self.now);
            measured_step(&mut || {
                let relieved = self
                    .engine
                    .relieve(&mut self.host, &mut self.zone, need, now);
                black_box(&relieved);
            });
        }
    }
}

fn main() {
    let path = std::env::args().nth(1).expect("the name of a path");
    // Runs of 12 frames are ranges to a host that takes them, and three blocks each.
    let (bulk, run) = match path.as_str() {
        "bulk-inflate" | "bulk-deflate" | "bulk-relief" => (true, FRAMES),
        "short-inflate" | "short-deflate" => (true, 12),
        _ => (false, 1),
    };
    let unit = match path.as_str() {
        "upgrade" => Granularity::Adaptive,
        _ => Granularity::Frames,
    };
    let mut guest = Guest::new(bulk, unit, run);
    let all = guest.free();
    match path.as_str() {
        "pfn-inflate" | "bulk-inflate" | "short-inflate" => guest.measure(all),
        "pfn-deflate" | "bulk-deflate" | "short-deflate" => {
            guest.reach(all);
            guest.measure(0);
        }
        "upgrade" => {
            guest.reach(all);
            // What was used is freed and given, too: all blocks are whole again, of single frames.
            for used in (1..FRAMES).step_by(2) {
                guest
                    .zone
                    .free_range(frames(used, 1))
                    .expect("a used frame");
            }
            guest.reach(FRAMES - 1);
            guest.measure(FRAMES);
        }
        "pfn-relief" | "bulk-relief" => {
            guest.reach(all);
            guest.relieve(Need::frames(FrameCount::new(64)));
            guest.relieve(Need::run(Order::SUPERPAGE.frames(), Order::SUPERPAGE));
            guest.relieve(Need::run(FrameCount::new(700), Order::FRAME));
        }
        "compaction" => {
            guest.reach(all / 2);
            let zone = balloon_core::FrameRange::new(Pfn::new(0), FrameCount::new(FRAMES));
            let zone = zone.expect("a range");
            // Frames in use are freed: blocks can become whole.
            for used in (1..FRAMES).step_by(2) {
                guest
                    .zone
                    .free_range(frames(used, 1))
                    .expect("a used frame");
            }
            let words = vec![0; compactor_words(zone) as usize];
            let mut compactor = Compactor::<_>::new(words, zone).expect("words");
            compactor.start();
            for _ in 0..10 * STEPS {
                let now = Nanos::new(guest.now);
                measured_step(&mut || {
                    compactor.step(
                        &mut guest.engine,
                        &mut guest.host,
                        &mut guest.zone,
                        now,
                        Budget::SMALL,
                    );
                });
                if !compactor.is_running() {
                    break;
                }
            }
            assert!(guest.zone.held(balloon_core::Via::Inflate).get() > 0);
        }
        other => panic!("no path {other}"),
    }
}
