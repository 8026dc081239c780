use super::*;
use crate::protocol::features::Features;
use crate::protocol::options::DriverOptions;
use crate::testing::{self, FakeBalloon, Profile};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use balloon_core::testing::FakeSource;
use balloon_core::{FrameRange, Pfn, Shortage};

/// Free frames, and whether the host is believed to back each.
struct Memory {
    free: BTreeMap<u64, bool>,
    refuses: bool,
    /// Hands out the highest first.
    falling: bool,
}

impl Memory {
    fn new(frames: core::ops::Range<u64>) -> Self {
        Self {
            free: frames.map(|pfn| (pfn, true)).collect(),
            refuses: false,
            falling: false,
        }
    }

    /// Sixteen blocks of sixteen frames, no two of them neighbours.
    fn blocks() -> Self {
        let mut memory = Self::new(0x100..0x300);
        memory.free.retain(|pfn, _| pfn % 32 < 16);
        memory
    }

    fn populated(&self) -> usize {
        self.free.values().filter(|&&populated| populated).count()
    }
}

impl FrameSource for Memory {
    fn take(&mut self, ask: TakeRequest, out: &mut RangeSink<'_>) -> Shortage {
        let size = ask.order.frames().get();
        let mut blocks: Vec<(usize, u64)> = Vec::new();
        for &start in self.free.keys().filter(|start| *start % size == 0) {
            let block = start..start + size;
            let populated = block
                .clone()
                .filter_map(|pfn| self.free.get(&pfn))
                .filter(|p| **p);
            let populated = populated.count();
            if block.clone().all(|pfn| self.free.contains_key(&pfn)) {
                blocks.push((populated, start));
            }
        }
        let order = |start: u64| if self.falling { !start } else { start };
        blocks.sort_by_key(|&(populated, start)| (core::cmp::Reverse(populated), order(start)));
        for (populated, start) in blocks {
            let left = self.free.len() as u64 - size;
            if out.wanted().get() < size || left < ask.min_free.get() {
                return Shortage::None;
            }
            let range = FrameRange::new(Pfn::new(start), FrameCount::new(size)).unwrap();
            let backing = Backing::Partly(FrameCount::new(populated as u64));
            out.push(range, backing).unwrap();
            range.frames().for_each(|pfn| {
                self.free.remove(&pfn.get());
            });
        }
        Shortage::Fragmented
    }

    fn available(&mut self) -> Option<FrameCount> {
        Some(FrameCount::new(self.free.len() as u64))
    }

    fn put(&mut self, range: FrameRange, backing: Backing) -> Result<(), FrameRange> {
        if self.refuses {
            return Err(range);
        }
        let populated = backing != Backing::Unpopulated;
        for pfn in range.frames() {
            assert_eq!(self.free.insert(pfn.get(), populated), None, "free twice");
        }
        Ok(())
    }
}

fn pace(order: u8) -> ReportPace {
    ReportPace {
        order: Order::new(order).unwrap(),
        share: 1,
        ..ReportPace::DEFAULT
    }
}

struct Guest {
    balloon: FakeBalloon<16>,
    reporting: Reporting,
    shared: &'static Shared<16>,
    memory: Memory,
}

impl Guest {
    fn new(offered: Features, options: DriverOptions, pace: ReportPace) -> Self {
        Self {
            balloon: testing::bring_up(Profile::qemu(offered), &options).unwrap(),
            reporting: Reporting::new(pace),
            shared: Box::leak(Box::default()),
            memory: Memory::blocks(),
        }
    }

    fn step(&mut self, now: u64) -> Result<ReportStep, VirtioError> {
        let shared = self.shared;
        self.reporting.step(
            &mut self.balloon,
            shared,
            &mut self.memory,
            Nanos::from_millis(now),
        )
    }

    /// Lets the device answer: the ranges, in frames.
    fn serve(&mut self) -> Vec<(u64, u64)> {
        let chains = self
            .balloon
            .queues_mut()
            .device_mut()
            .serve(QueueId::Reporting);
        let descriptors = chains.iter().flat_map(|chain| &chain.descriptors);
        descriptors
            .map(|d| (d.address >> 12, u64::from(d.len) >> 12))
            .collect()
    }
}

fn guest(pace: ReportPace) -> Guest {
    Guest::new(
        Features::PAGE_REPORTING,
        DriverOptions::new().with_reporting().without_indirect(),
        pace,
    )
}

#[test]
fn what_is_free_and_populated_is_reported_once_and_stays_free() {
    let mut guest = guest(pace(4));
    let mut frames = 0;
    for now in 0..50 {
        guest.step(now).unwrap();
        frames += guest.serve().iter().map(|range| range.1).sum::<u64>();
    }
    assert_eq!(frames, 0x100, "each once");
    assert_eq!(guest.reporting.reported(), FrameCount::new(0x100));
    assert!(guest.reporting.is_idle());
    assert_eq!(
        (guest.memory.free.len(), guest.memory.populated()),
        (0x100, 0)
    );
    // At rest: nothing to wake up for, and no notification.
    let step = guest.step(60).unwrap();
    assert!(!step.more && step.wake_at.is_none());
    // What was used meanwhile is reported again, after the pause.
    guest.memory.free.insert(0x125, true);
    guest.step(100).unwrap();
    assert_eq!(guest.serve(), []);
    guest.step(10_000).unwrap();
    assert_eq!(guest.serve()[0], (0x120, 0x10));
}

#[test]
fn frames_are_out_of_reach_while_the_device_has_them() {
    let mut guest = guest(pace(4));
    guest.step(0).unwrap();
    guest.step(1).unwrap();
    let out = 0x100 - guest.memory.free.len();
    assert!(out > 0);
    assert!(!guest.reporting.is_idle());
    // Both requests are out: nothing more, however often we step.
    for now in 2..20 {
        let silent = Some(Nanos::from_secs(10));
        assert_eq!(guest.step(now).unwrap().wake_at, silent);
    }
    assert_eq!(0x100 - guest.memory.free.len(), out);
    let (device, _) = guest.balloon.reset(&mut testing::NoDelay).unwrap();
    assert_eq!(device.queue_size(QueueId::Reporting), 0);
    guest.reporting.reset(&mut guest.memory);
    assert!(guest.reporting.is_idle());
    assert_eq!(
        (guest.memory.free.len(), guest.memory.populated()),
        (0x100, 0x100)
    );
}

#[test]
fn only_whole_blocks_and_never_what_is_to_be_kept() {
    let mut whole = guest(pace(4));
    whole.memory.free.remove(&0x105).unwrap();
    let kept = ReportPace {
        min_free: FrameCount::new(0x80),
        ..pace(4)
    };
    let mut keeping = guest(kept);
    for now in 0..50 {
        whole.step(now).unwrap();
        assert!(whole.serve().iter().all(|&(start, _)| start != 0x100));
        keeping.step(now).unwrap();
        assert!(keeping.memory.free.len() >= 0x80);
        keeping.serve();
    }
    assert_eq!(whole.reporting.reported(), FrameCount::new(0xf0));
    assert!(keeping.reporting.reported() >= FrameCount::new(0x80));
}

#[test]
fn the_gap_paces() {
    let slow = ReportPace {
        gap: Nanos::from_millis(100),
        ..pace(4)
    };
    let mut guest = guest(slow);
    for now in 0..500 {
        guest.step(now).unwrap();
        guest.serve();
    }
    let notified = guest.balloon.queues().device().notified(QueueId::Reporting);
    assert_eq!(notified, 4, "sixteen blocks, four in a report");
    assert_eq!(guest.reporting.reported(), FrameCount::new(0x100));
}

#[test]
fn moments_of_the_clock_before_a_restore_are_waited_for_by_nobody() {
    const DAY: u64 = 86_400_000;
    // In a gap between two reports, and at rest.
    for reports in [1, 50] {
        let gap = Nanos::from_secs(2);
        let mut guest = guest(ReportPace { gap, ..pace(4) });
        let mut now = DAY;
        for _ in 0..reports {
            guest.step(now).unwrap();
            guest.serve();
            now += 2000;
        }
        if guest.reporting.is_idle() {
            guest.memory.free.insert(0x125, true);
        }
        let step = guest.step(1).unwrap();
        assert!(
            step.wake_at.is_none_or(|at| at < Nanos::from_secs(3)),
            "{step:?}"
        );
        assert_ne!(guest.serve(), [], "reported by the new clock");
    }
}

#[test]
fn a_source_that_does_not_take_frames_back_loses_none() {
    let mut guest = guest(pace(4));
    guest.step(0).unwrap();
    guest.serve();
    guest.memory.refuses = true;
    for now in 1..10 {
        guest.step(now).unwrap();
        guest.serve();
    }
    guest.memory.refuses = false;
    for now in 10..100 {
        guest.step(now).unwrap();
        guest.serve();
    }
    assert_eq!(
        (guest.memory.free.len(), guest.memory.populated()),
        (0x100, 0)
    );
}

#[test]
fn the_queue_is_shared_with_the_bulk_path_in_halves() {
    let limits = |options: DriverOptions| {
        let balloon = Guest::new(Features::PAGE_REPORTING, options, pace(4)).balloon;
        let of = |limits: Limits| (limits.runs, limits.in_flight);
        (
            balloon.capabilities().bulk.map(of),
            balloon.report_limits().map(of),
        )
    };
    let options = DriverOptions::new().with_reporting();
    assert_eq!(limits(options), (Some((16, 8)), Some((16, 8))));
    assert_eq!(limits(options.without_bulk()), (None, Some((16, 16))));
    let options = options.without_indirect();
    assert_eq!(limits(options), (Some((4, 2)), Some((4, 2))));
    assert_eq!(limits(options.without_bulk()), (None, Some((8, 2))));
}

#[test]
fn no_reports_where_they_would_break_an_expectation() {
    let refused = |offered, options| {
        let mut guest = Guest::new(offered, options, pace(4));
        assert_eq!(guest.step(0).err(), Some(VirtioError::Unsupported));
        assert_eq!(guest.memory.free.len(), 0x100);
    };
    let options = DriverOptions::new().with_reporting();
    refused(Features::empty(), options);
    refused(Features::PAGE_REPORTING, DriverOptions::new());
    // The guest relies on what free frames hold, and the device cannot know.
    refused(Features::PAGE_REPORTING, options.with_poison(7));
    let known = Features::PAGE_REPORTING | Features::PAGE_POISON;
    let mut guest = Guest::new(known, options.with_poison(7), pace(4));
    assert!(guest.step(0).is_ok());
    assert_eq!(guest.balloon.queues().device().poison(), 7);
}

#[test]
fn neighbours_travel_as_one_range_without_what_is_unpopulated() {
    for falling in [false, true] {
        let mut guest = guest(pace(4));
        guest.memory = Memory::new(0x100..0x200);
        guest.memory.falling = falling;
        guest
            .memory
            .free
            .range_mut(0x1c0..)
            .for_each(|(_, populated)| *populated = false);
        let mut ranges: Vec<_> = (0..10)
            .flat_map(|now| {
                guest.step(now).unwrap();
                guest.serve()
            })
            .collect();
        ranges.sort_unstable();
        // Four blocks at a time, each time merged.
        assert_eq!(ranges, [(0x100, 0x40), (0x140, 0x40), (0x180, 0x40)]);
        assert_eq!(
            (guest.memory.free.len(), guest.memory.populated()),
            (0x100, 0)
        );
    }
}

#[test]
fn neither_party_takes_the_other_ones_half_of_the_queue() {
    let options = DriverOptions::new().with_reporting();
    let mut guest = Guest::new(Features::PAGE_REPORTING, options, pace(4));
    let shared = guest.shared;
    let run = FrameRange::single(Pfn::new(9)).and_then(Run::new).unwrap();
    let give = |balloon: &mut FakeBalloon<16>| {
        let slot = shared.slots().claim(Kind::Inflate).unwrap().launch();
        let runs = [run];
        balloon.submit(slot.request(Via::Bulk, &runs), shared.slots().completer())
    };
    for _ in 0..8 {
        give(&mut guest.balloon).unwrap();
    }
    assert!(give(&mut guest.balloon).is_err());
    // The device answers nothing; reports leave all the same.
    guest.step(0).unwrap();
    assert!(!guest.reporting.is_idle());
    assert_eq!(guest.balloon.in_flight(QueueId::Reporting), 9);
}

#[test]
fn what_was_freed_need_not_wait_for_the_end_of_the_rest() {
    let mut guest = guest(pace(4));
    guest.memory = Memory::new(0x100..0x110);
    guest.step(0).unwrap();
    assert_eq!(guest.reporting.held(), FrameCount::new(16));
    assert_eq!(guest.serve(), [(0x100, 0x10)]);
    guest.step(1).unwrap();
    assert_eq!(guest.reporting.held(), FrameCount::ZERO);
    // Used and freed during the rest.
    guest.memory = Memory::new(0x100..0x110);
    guest.step(2).unwrap();
    assert_eq!(guest.serve(), []);
    guest.reporting.look_again();
    guest.step(3).unwrap();
    assert_eq!(guest.serve(), [(0x100, 0x10)]);
}

#[test]
fn each_answer_interrupts_while_reports_are_out() {
    let mut guest = guest(pace(4));
    guest.memory = Memory::new(0x100..0x180);
    while guest.step(0).unwrap().more {}
    assert_eq!(guest.balloon.in_flight(QueueId::Reporting), 2);
    // Answered one by one; the guest steps when it is interrupted.
    for left in [1, 0] {
        let device = guest.balloon.queues_mut().device_mut();
        let before = device.interrupts();
        let chain = device.take(QueueId::Reporting).unwrap();
        device.answer(QueueId::Reporting, chain.head.into(), 0);
        assert!(device.interrupts() > before, "{left} left");
        while guest.step(1).unwrap().more {}
        assert_eq!(guest.balloon.in_flight(QueueId::Reporting), left);
    }
    assert!(guest.reporting.is_idle());
}

#[test]
fn bulk_inflations_behind_reports_are_heard_of() {
    let options = DriverOptions::new().with_reporting();
    let mut guest = Guest::new(Features::PAGE_REPORTING, options, pace(4));
    guest.memory = Memory::new(0x100..0x140);
    guest.step(0).unwrap();
    assert_eq!(guest.balloon.in_flight(QueueId::Reporting), 1);
    // As the engine gives: one request, an interrupt for its answer.
    let shared = guest.shared;
    let slot = shared.slots().claim(Kind::Inflate).unwrap().launch();
    let runs = [FrameRange::single(Pfn::new(9)).and_then(Run::new).unwrap()];
    let request = slot.request(Via::Bulk, &runs);
    guest
        .balloon
        .submit(request, shared.slots().completer())
        .unwrap();
    guest.balloon.kick(1).unwrap();
    // The report's answer uses that up, whoever takes it.
    for left in [1, 0] {
        let device = guest.balloon.queues_mut().device_mut();
        let before = device.interrupts();
        let chain = device.take(QueueId::Reporting).unwrap();
        device.answer(QueueId::Reporting, chain.head.into(), 0);
        assert!(device.interrupts() > before, "{left} left");
        guest.balloon.reap(shared.slots().completer()).unwrap();
        while guest.step(1).unwrap().more {}
        assert_eq!(guest.balloon.in_flight(QueueId::Reporting), left);
    }
    assert!(slot.answer().is_ok());
}

#[test]
fn after_a_reset_everything_is_reported_again() {
    let options = DriverOptions::new().with_reporting();
    let mut guest = Guest::new(Features::PAGE_REPORTING, options, pace(4));
    guest.memory = Memory::new(0x100..0x110);
    // All there is, and then at rest while the device has it.
    while guest.step(0).unwrap().more {}
    assert_eq!(guest.reporting.held(), FrameCount::new(0x10));
    guest.balloon = testing::bring_up(Profile::qemu(Features::PAGE_REPORTING), &options).unwrap();
    guest.reporting.reset(&mut guest.memory);
    guest.step(1).unwrap();
    assert_eq!(guest.serve(), [(0x100, 0x10)]);
}

#[test]
fn a_short_queue_costs_no_frames_and_no_error() {
    let profile = Profile::qemu(Features::PAGE_REPORTING).with_size(QueueId::Reporting, 1);
    let mut guest = guest(pace(4));
    let options = DriverOptions::new().with_reporting().without_bulk();
    guest.balloon = testing::bring_up(profile, &options).unwrap();
    assert_eq!(guest.balloon.report_limits().unwrap().in_flight, 1);
    guest.step(0).unwrap();
    let held = guest.reporting.held();
    for now in 1..5 {
        guest.step(now).unwrap();
        assert_eq!(guest.reporting.held(), held);
    }
    for now in 5..100 {
        guest.serve();
        guest.step(now).unwrap();
    }
    assert_eq!(guest.reporting.reported(), FrameCount::new(0x100));
}

#[test]
fn a_polled_kernel_is_told_when_to_look() {
    let options = DriverOptions::new()
        .with_reporting()
        .without_bulk()
        .polled();
    let mut guest = Guest::new(Features::PAGE_REPORTING, options, pace(4));
    guest.memory = Memory::new(0x100..0x300);
    // All places are taken, or there is nothing more to report.
    for now in 0..5 {
        let step = guest.step(now).unwrap();
        assert!(!guest.reporting.is_idle());
        assert!(step.wake_at.unwrap() <= Nanos::from_millis(now).saturating_add(POLL));
    }
    guest.serve();
    for now in 5..20 {
        guest.step(now).unwrap();
        guest.serve();
    }
    assert!(guest.reporting.is_idle());
    assert_eq!(guest.step(20).unwrap().wake_at, None);
}

#[test]
fn what_the_allocator_refused_is_offered_again() {
    let mut guest = guest(pace(4));
    guest.step(0).unwrap();
    guest.step(0).unwrap();
    guest.serve();
    guest.memory.refuses = true;
    let step = guest.step(1).unwrap();
    assert!(!step.more && step.wake_at.is_some());
}

#[test]
fn reports_come_home_whatever_became_of_other_queues() {
    let mut guest = guest(pace(4));
    guest.step(0).unwrap();
    guest.serve();
    guest
        .balloon
        .queues_mut()
        .device_mut()
        .jump(QueueId::Inflate, 1000);
    let shared = guest.shared;
    let run = FrameRange::single(Pfn::new(9)).and_then(Run::new).unwrap();
    let runs = [run];
    let slot = shared.slots().claim(Kind::Inflate).unwrap().launch();
    let request = slot.request(Via::Inflate, &runs);
    guest
        .balloon
        .submit(request, shared.slots().completer())
        .unwrap();
    let drained = guest
        .reporting
        .drain(&mut guest.balloon, shared, &mut guest.memory);
    assert_eq!(drained, Ok(true));
}

/// A device with all of 32 MiB free to report, at the default pace.
struct Plain {
    balloon: FakeBalloon<16>,
    reporting: Reporting,
    shared: &'static Shared<16>,
    source: FakeSource,
}

impl Plain {
    fn new(pace: ReportPace) -> Self {
        let memory = FrameRange::new(Pfn::new(0x2000), FrameCount::new(8192)).unwrap();
        let options = DriverOptions::new().with_reporting();
        Self {
            balloon: testing::bring_up(Profile::qemu(Features::PAGE_REPORTING), &options).unwrap(),
            reporting: Reporting::new(pace),
            shared: Box::leak(Box::default()),
            source: FakeSource::new(memory),
        }
    }

    fn step(&mut self, now: Nanos) -> ReportStep {
        let (balloon, source) = (&mut self.balloon, &mut self.source);
        self.reporting
            .step(balloon, self.shared, source, now)
            .unwrap()
    }

    fn relieve(&mut self) -> Relieved {
        let (balloon, source) = (&mut self.balloon, &mut self.source);
        self.reporting
            .relieve(balloon, self.shared, source, Nanos::ZERO)
    }
}

#[test]
fn most_of_what_is_free_stays_free() {
    let mut plain = Plain::new(ReportPace::DEFAULT);
    let mut step = plain.step(Nanos::ZERO);
    for _ in 0..100 {
        step = plain.step(Nanos::ZERO);
    }
    assert!(
        !step.more && step.wake_at == Some(Nanos::from_secs(10)),
        "an answer wakes, or silence: {step:?}"
    );
    let held = plain.reporting.held();
    assert_eq!((held.get(), plain.source.free().get()), (1024, 7168));
    // Memory is short: what is out is coming.
    let relieved = plain.relieve();
    assert_eq!((relieved.usable.get(), relieved.coming), (0, held));
    let device = plain.balloon.queues_mut().device_mut();
    device.serve(QueueId::Reporting);
    let relieved = plain.relieve();
    assert_eq!((relieved.usable, relieved.coming.get()), (held, 0));
    assert_eq!(plain.source.free().get(), 8192);
    // And stays home for a while.
    plain.step(Nanos::from_millis(1));
    assert!(plain.reporting.is_idle());
}

/// An allocator that knows nothing of the host.
struct Forgetful(FakeSource);

impl FrameSource for Forgetful {
    fn take(&mut self, ask: TakeRequest, out: &mut RangeSink<'_>) -> Shortage {
        let mut run = [Run::default()];
        let mut sink = RangeSink::new(&mut run, out.wanted());
        let stop = self.0.take(ask, &mut sink);
        for run in sink.runs() {
            out.push(run.range(), Backing::Unknown).unwrap();
        }
        stop
    }

    fn put(&mut self, range: FrameRange, _: Backing) -> Result<(), FrameRange> {
        self.0.put(range, Backing::Unknown)
    }

    fn available(&mut self) -> Option<FrameCount> {
        self.0.available()
    }
}

#[test]
fn an_allocator_that_forgets_is_gone_through_once() {
    let plain = Plain::new(ReportPace::DEFAULT);
    let (mut balloon, mut reporting) = (plain.balloon, plain.reporting);
    let mut source = Forgetful(plain.source);
    for pass in 1..3 {
        let now = Nanos::from_secs(10 * pass);
        let mut steps = 0;
        loop {
            let step = reporting.step(&mut balloon, plain.shared, &mut source, now);
            let step = step.unwrap();
            balloon.queues_mut().device_mut().serve(QueueId::Reporting);
            steps += 1;
            if !step.more && reporting.is_idle() {
                assert_eq!(step.wake_at, None, "at rest");
                break;
            }
            assert!(steps < 100, "it never rests");
        }
        assert_eq!(reporting.reported().get(), pass * 8192);
    }
}

#[test]
fn a_report_is_no_longer_than_it_may_be() {
    let pace = ReportPace {
        order: Order::FRAME,
        most: FrameCount::new(100),
        ..ReportPace::DEFAULT
    };
    let plain = Plain::new(pace);
    let (mut balloon, mut reporting) = (plain.balloon, plain.reporting);
    let mut source = Forgetful(plain.source);
    for _ in 0..1000 {
        let step = reporting.step(&mut balloon, plain.shared, &mut source, Nanos::ZERO);
        step.unwrap();
        assert!(reporting.held().get() <= 200);
        let chains = balloon.queues_mut().device_mut().serve(QueueId::Reporting);
        for chain in chains {
            let bytes: u32 = chain.descriptors.iter().map(|range| range.len).sum();
            assert!(bytes <= 100 * 4096);
        }
    }
    assert_eq!(reporting.reported().get(), 8192, "all of it, by pieces");
}

#[test]
fn answers_to_others_are_news_for_whoever_has_looked_already() {
    let options = DriverOptions::new().with_reporting();
    let mut guest = Guest::new(Features::PAGE_REPORTING, options, pace(4));
    guest.memory = Memory::new(0x100..0x110);
    let shared = guest.shared;
    let _ = shared.signal().take();
    let slot = shared.slots().claim(Kind::Inflate).unwrap().launch();
    let runs = [FrameRange::single(Pfn::new(9)).and_then(Run::new).unwrap()];
    let request = slot.request(Via::Bulk, &runs);
    let done = shared.slots().completer();
    guest.balloon.submit(request, done).unwrap();
    guest.balloon.kick(1).unwrap();
    guest.step(0).unwrap();
    assert!(!shared.signal().is_set());
    let device = guest.balloon.queues_mut().device_mut();
    assert_eq!(device.serve(QueueId::Reporting).len(), 2);
    // The service takes up the answer to the balloon's own request.
    guest.step(1).unwrap();
    assert!(guest.reporting.is_idle() && slot.is_answered());
    assert!(shared.signal().take());
    assert!(slot.answer().is_ok());
}
