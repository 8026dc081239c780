//! Nothing the engine does touches the heap: an allocator that counts while it
//! is armed, under a source and a host of fixed arrays.

// Whole programs: hours in an interpreter.
#![cfg(not(miri))]
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use core::alloc::{GlobalAlloc, Layout};
use core::cell::Cell;
use std::alloc::System;

use balloon_core::{
    Backing, BitmapLedger, Budget, Capabilities, Compactor, Completer, Engine, FrameCount,
    FrameRange, FrameSource, Granularity, Kind, Ledgered, Limits, Migrate, MigrateRequest,
    Migration, Nanos, Need, Order, Outcome, Pfn, Policy, Progress, RangeSink, Request, Resume,
    Shared, Shortage, SlotId, Step, TakeRequest, Transport, TransportErrorKind,
};

/// Counts what an armed thread allocates or frees.
struct Counting;

thread_local! {
    static ARMED: Cell<bool> = const { Cell::new(false) };
    static TOUCHES: Cell<u64> = const { Cell::new(0) };
}

fn note() {
    // A thread that is ending has no such variable any more, and is not armed.
    let armed = ARMED.try_with(Cell::get).unwrap_or(false);
    if armed {
        TOUCHES.with(|touches| touches.set(touches.get() + 1));
    }
}

// SAFETY: the system's allocator, asked the same.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        note();
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static HEAP: Counting = Counting;

/// How often `work` touches the heap, and what it returns.
fn touches<R>(work: impl FnOnce() -> R) -> (u64, R) {
    TOUCHES.with(|touches| touches.set(0));
    ARMED.with(|armed| armed.set(true));
    let result = work();
    ARMED.with(|armed| armed.set(false));
    (TOUCHES.with(Cell::get), result)
}

/// `work` without the heap.
#[track_caller]
fn unallocated<R>(work: impl FnOnce() -> R) -> R {
    let (touches, result) = touches(work);
    assert_eq!(touches, 0, "the heap was touched");
    result
}

const SIZE: usize = 4 * 512;
const FRAMES: u64 = SIZE as u64;

/// Whether each frame is free.
struct Frames {
    free: [bool; SIZE],
    left: u64,
    /// Where to look next: frames far from each other.
    at: u64,
}

impl Frames {
    const fn new() -> Self {
        Self {
            free: [true; SIZE],
            left: FRAMES,
            at: 0,
        }
    }

    fn flag(&mut self, pfn: Pfn) -> Option<&mut bool> {
        self.free.get_mut(usize::try_from(pfn.get()).ok()?)
    }

    fn set(&mut self, range: FrameRange, free: bool) -> bool {
        if !range
            .frames()
            .all(|pfn| self.flag(pfn).is_some_and(|flag| *flag != free))
        {
            return false;
        }
        for pfn in range.frames() {
            *self.flag(pfn).unwrap() = free;
            self.left = if free { self.left + 1 } else { self.left - 1 };
        }
        true
    }
}

impl FrameSource for Frames {
    fn take(&mut self, request: TakeRequest, out: &mut RangeSink<'_>) -> Shortage {
        for _ in 0..FRAMES {
            if out.is_full() {
                return Shortage::None;
            }
            if self.left <= request.min_free.get() {
                return Shortage::Floor;
            }
            // Odd, so that every frame has its turn.
            self.at = (self.at + 387) % FRAMES;
            let count = request.order.frames();
            let block = FrameRange::new(Pfn::new(self.at).min(request.below), count);
            let Some(block) = block.filter(|block| block.start().is_aligned(request.order)) else {
                continue;
            };
            if count <= out.wanted() && self.set(block, false) {
                out.push(block, Backing::Populated).unwrap();
            }
        }
        if self.left == 0 {
            Shortage::Empty
        } else {
            Shortage::Fragmented
        }
    }

    fn put(&mut self, range: FrameRange, _: Backing) -> Result<(), FrameRange> {
        if self.set(range, true) {
            Ok(())
        } else {
            Err(range)
        }
    }

    fn take_at(&mut self, range: FrameRange) -> Result<Backing, FrameRange> {
        if self.set(range, false) {
            Ok(Backing::Populated)
        } else {
            Err(range)
        }
    }

    fn next_free(&mut self, within: FrameRange) -> Option<FrameRange> {
        let mut frames = within.frames().take_while(|pfn| pfn.get() < FRAMES);
        let free = frames.find(|&pfn| self.flag(pfn).is_some_and(|flag| *flag))?;
        FrameRange::single(free)
    }
}

/// A host that answers at once, or later from a queue of fixed length.
struct Host {
    target: FrameCount,
    bulk: bool,
    late: bool,
    refuses: bool,
    way: Migration,
    queue: [Option<(Kind, SlotId)>; 32],
    actual: FrameCount,
}

impl Host {
    const fn new() -> Self {
        Self {
            target: FrameCount::ZERO,
            bulk: false,
            late: false,
            refuses: false,
            way: Migration::Move,
            queue: [None; 32],
            actual: FrameCount::ZERO,
        }
    }

    fn accept(
        &mut self,
        kind: Kind,
        slot: SlotId,
        done: Completer<'_>,
    ) -> Result<(), TransportErrorKind> {
        if self.refuses {
            return Err(TransportErrorKind::Refused);
        }
        if self.late {
            let place = self.queue.iter_mut().find(|place| place.is_none());
            *place.ok_or(TransportErrorKind::Full)? = Some((kind, slot));
        } else {
            done.complete(kind, slot, Outcome::Whole).unwrap();
        }
        Ok(())
    }
}

impl Transport for Host {
    type Error = TransportErrorKind;

    fn capabilities(&self) -> Capabilities {
        let limits = Limits {
            frames: FrameCount::new(256),
            runs: 256,
            run: FrameCount::new(256),
            in_flight: 8,
            below: Pfn::LIMIT,
        };
        let mut capabilities = Capabilities::new(limits, limits);
        capabilities.bulk = self.bulk.then_some(limits);
        capabilities.deflate_on_oom = true;
        capabilities.must_tell_host = self.late;
        capabilities
    }

    fn read_target(&mut self) -> Result<FrameCount, TransportErrorKind> {
        Ok(self.target)
    }

    fn write_actual(&mut self, size: FrameCount) -> Result<(), TransportErrorKind> {
        self.actual = size;
        Ok(())
    }

    fn submit(
        &mut self,
        request: Request<'_>,
        done: Completer<'_>,
    ) -> Result<(), TransportErrorKind> {
        self.accept(request.kind, request.slot, done)
    }

    fn kick(&mut self, _: usize) -> Result<bool, TransportErrorKind> {
        Ok(false)
    }

    fn reap(&mut self, done: Completer<'_>) -> Result<usize, TransportErrorKind> {
        let mut answers = 0;
        for (kind, slot) in self.queue.iter_mut().filter_map(Option::take) {
            done.complete(kind, slot, Outcome::Whole).unwrap();
            answers += 1;
        }
        Ok(answers)
    }
}

impl Migrate for Host {
    fn migration(&self) -> Migration {
        self.way
    }

    fn submit_migrate(
        &mut self,
        request: MigrateRequest<'_>,
        done: Completer<'_>,
    ) -> Result<(), TransportErrorKind> {
        self.accept(Kind::Migrate, request.slot, done)
    }
}

struct Guest {
    shared: &'static Shared<16>,
    engine: Engine<16>,
    host: Host,
    source: Ledgered<Frames, BitmapLedger<Vec<u64>>>,
    now: Nanos,
}

impl Guest {
    fn new(policy: Policy) -> Self {
        let shared: &'static Shared<16> = Box::leak(Box::default());
        let memory = FrameRange::new(Pfn::new(0), FrameCount::new(FRAMES)).unwrap();
        let words = usize::try_from(BitmapLedger::words(memory.count())).unwrap();
        let ledger = BitmapLedger::new(vec![0; words], &[memory]).unwrap();
        Self {
            shared,
            engine: Engine::new(shared, policy),
            host: Host::new(),
            source: Ledgered {
                source: Frames::new(),
                ledger,
            },
            now: Nanos::ZERO,
        }
    }

    fn step(&mut self, budget: Budget) -> Step {
        self.now = self.now.saturating_add(Nanos::from_millis(500));
        unallocated(|| {
            let step = self
                .engine
                .step(&mut self.host, &mut self.source, self.now, budget);
            let _ = self.engine.take_events();
            step
        })
    }

    fn aim(&mut self, target: u64) -> Progress {
        self.host.target = FrameCount::new(target);
        self.shared.signal().config_changed();
        for _ in 0..200 {
            self.step(Budget::requests(3));
        }
        unallocated(|| self.engine.status(&self.source).progress)
    }
}

#[test]
fn the_counter_counts() {
    let (count, boxed) = touches(|| Box::new(1));
    assert_eq!((count, *boxed), (1, 1));
    assert_eq!(touches(|| drop(boxed)).0, 1);
    assert_eq!(touches(|| 1), (0, 1));
}

#[test]
fn steps_allocate_nothing() {
    for (bulk, late, unit) in [
        (false, false, Granularity::Frames),
        (false, true, Granularity::Frames),
        (true, true, Granularity::Frames),
        (true, false, Granularity::Whole(Order::new(3).unwrap())),
    ] {
        let mut policy = Policy::DEFAULT;
        policy.granularity = unit;
        policy.emergency_pool = FrameCount::new(8);
        policy.min_free = FrameCount::new(64);
        let mut guest = Guest::new(policy);
        (guest.host.bulk, guest.host.late) = (bulk, late);
        for target in [1496, 104, 800, 0] {
            assert_eq!(guest.aim(target), Progress::Reached, "{target}");
            assert_eq!(guest.host.actual, FrameCount::new(target));
        }
        // Out of reach, refused, and at rest again.
        assert!(matches!(guest.aim(FRAMES), Progress::Blocked(_)));
        guest.host.refuses = true;
        guest.aim(16);
        guest.host.refuses = false;
        guest.now = guest.now.saturating_add(Nanos::from_secs(1000));
        assert_eq!(guest.aim(16), Progress::Reached);
        unallocated(|| guest.engine.quiesce());
        guest.step(Budget::LARGE);
        assert!(guest.engine.is_drained());
        unallocated(|| guest.engine.resume(Resume::Reset));
        assert_eq!(guest.aim(16), Progress::Reached);
    }
}

#[test]
fn relief_allocates_nothing() {
    for (bulk, late) in [(false, false), (true, false), (false, true)] {
        let mut guest = Guest::new(Policy::DEFAULT);
        (guest.host.bulk, guest.host.late) = (bulk, late);
        assert_eq!(guest.aim(1900), Progress::Reached);
        for need in [
            Need::frames(FrameCount::new(100)),
            Need::run(FrameCount::new(16), Order::new(4).unwrap()),
            Need::run(FrameCount::new(FRAMES), Order::FRAME),
            Need::frames(FrameCount::MAX),
        ] {
            let relieved = unallocated(|| {
                let Guest {
                    engine,
                    host,
                    source,
                    now,
                    ..
                } = &mut guest;
                engine
                    .relieve(host, source, need, *now)
                    .wake(|| guest.shared.signal().used())
            });
            if need.frames.get() <= 100 {
                let all = relieved.usable.saturating_add(relieved.coming);
                assert!(all >= need.frames, "{need:?}: {relieved:?}");
            }
        }
        unallocated(|| guest.shared.request_relief(FrameCount::new(50)));
        guest.step(Budget::SMALL);
        unallocated(|| guest.shared.take_emergency());
    }
}

#[test]
fn compaction_allocates_nothing() {
    for (way, late) in [
        (Migration::Move, false),
        (Migration::Exchange, true),
        (Migration::InflateFirst, true),
    ] {
        let mut guest = Guest::new(Policy::DEFAULT);
        (guest.host.way, guest.host.late) = (way, late);
        assert_eq!(guest.aim(FRAMES / 2), Progress::Reached);
        let zone = FrameRange::new(Pfn::new(0), FrameCount::new(FRAMES)).unwrap();
        let mut words = [0u32; 4];
        let mut compactor = Compactor::<_, 2>::new(&mut words[..], zone).unwrap();
        assert!(unallocated(|| compactor.start()));
        for _ in 0..2000 {
            guest.step(Budget::SMALL);
            unallocated(|| {
                let Guest {
                    engine,
                    host,
                    source,
                    now,
                    ..
                } = &mut guest;
                compactor.step(engine, host, source, *now, Budget::requests(4));
            });
        }
        assert!(
            !compactor.is_running(),
            "{way:?} {:?} {:?}",
            compactor.report(),
            compactor.counters()
        );
        let report = compactor.report();
        assert_eq!(report.after.blocks(), 2, "{way:?}: {report:?}");
    }
}
