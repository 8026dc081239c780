use alloc::boxed::Box;
use alloc::vec::Vec;

use super::*;
use crate::DriverOptions;
use crate::protocol::features::Features;
use crate::testing::{self, Chain, FakeBalloon, FakeDevice, Profile};
use balloon_core::Transport as _;
use balloon_core::testing::FakeSource;
use balloon_core::wire::chunks_v8::decode_strict;
use balloon_core::{BitmapLedger, Budget, Engine, FrameRange, Policy, Shortage};

const FIRST: u64 = 0x100;
const FRAMES: u64 = 1024;

struct Guest {
    balloon: FakeBalloon<16>,
    shared: &'static Shared<16>,
    source: FakeSource,
    held: BitmapLedger<Vec<u64>>,
    unused: UnusedPages,
    engine: Engine<16>,
    now: u64,
    /// The buffer for a request that the device found among the responses.
    buffer: Option<Chain>,
}

impl Guest {
    fn new() -> Self {
        Self::on(Profile::chunk_transfer(Features::empty()))
    }

    fn on(profile: Profile) -> Self {
        let options = DriverOptions::new().with_chunk_transfer();
        let shared: &'static Shared<16> = Box::leak(Box::default());
        let memory = FrameRange::new(Pfn::new(FIRST), FrameCount::new(FRAMES)).unwrap();
        let words = usize::try_from(BitmapLedger::words(memory.count())).unwrap();
        Self {
            balloon: testing::bring_up(profile, &options).unwrap(),
            shared,
            source: FakeSource::new(memory),
            held: BitmapLedger::new(alloc::vec![0; words], &[memory]).unwrap(),
            unused: UnusedPages::new(FrameCount::ZERO),
            engine: Engine::new(shared, Policy::DEFAULT),
            now: 0,
            buffer: None,
        }
    }

    fn device(&mut self) -> &mut FakeDevice {
        self.balloon.queues_mut().device_mut()
    }

    fn step(&mut self) -> UnusedStep {
        let shared = self.shared;
        let (source, held) = (&mut self.source, &mut self.held);
        self.unused
            .step(&mut self.balloon, shared, source, held, Nanos::ZERO)
            .unwrap()
    }

    fn step_engine(&mut self) {
        self.now += 1;
        self.shared.signal().used();
        let now = Nanos::from_millis(self.now);
        self.engine
            .step(&mut self.balloon, &mut self.source, now, Budget::SMALL);
    }

    /// The host asks; whether there was a buffer for it.
    fn ask(&mut self, id: u16) -> bool {
        let Some(chain) = self.buffer.take() else {
            return self.device().request_unused_pages(id);
        };
        self.device().fill_request(&chain, id);
        true
    }

    fn broken(&mut self) -> Vec<&'static str> {
        let violations = self.device().checker().violations();
        violations.iter().map(|v| v.what).collect()
    }

    /// What the device finds in the responses that are there now, answered.
    fn responses(&mut self) -> Vec<(u16, bool, u64)> {
        let mut found = Vec::new();
        let device = self.balloon.queues_mut().device_mut();
        while let Some(chain) = device.take(QueueId::Hint) {
            if chain.descriptors[0].writable {
                self.buffer = Some(chain);
                continue;
            }
            let content = device.content(chain.descriptors[0]);
            let response = decode_strict(&content).unwrap();
            assert_eq!(response.label().command, Command::Unused as u8);
            let frames = response.chunks().map(|chunk| chunk.count().get()).sum();
            found.push((response.label().id, response.is_last(), frames));
            device.answer(QueueId::Hint, chain.head.into(), 0);
        }
        found
    }
}

#[test]
fn frames_are_told_in_chunks_and_told_back() {
    let mut guest = Guest::new();
    for target in [900, 100, 1000, 0] {
        guest.device().set_target(target);
        guest.shared.signal().config_changed();
        for _ in 0..50 {
            guest.step_engine();
            guest.device().serve(QueueId::Inflate);
            guest.device().serve(QueueId::Deflate);
        }
        assert_eq!(guest.device().actual(), target);
    }
    assert_eq!(guest.broken(), [""; 0]);
    assert_eq!(guest.device().checker().told(), 0);
    guest.source.check(FrameCount::ZERO);
}

#[test]
fn a_request_is_answered_to_its_end_and_frames_come_home() {
    let mut guest = Guest::new();
    // No two free frames are neighbours: many chunks, several responses.
    guest.source = guest.source.scattered();
    let free = guest.source.free();
    assert!(!guest.step().more);
    assert!(guest.device().request_unused_pages(77));
    let mut responses = Vec::new();
    for _ in 0..60 {
        guest.step();
        let held = guest.source.in_hand();
        responses.extend(guest.responses());
        // Nothing comes home before all of it is answered.
        assert!(responses.iter().any(|&(_, last, _)| last) || guest.source.in_hand() >= held);
    }
    assert!(responses.len() > 1, "{responses:?}");
    let (last, before) = responses.split_last().unwrap();
    assert!(last.1 && before.iter().all(|&(id, last, _)| id == 77 && !last));
    let told: u64 = responses.iter().map(|&(_, _, frames)| frames).sum();
    assert_eq!(FrameCount::new(told), free);
    assert_eq!((guest.unused.told(), guest.unused.answers()), (free, 1));
    assert!(guest.unused.is_drained() && guest.source.in_hand().is_zero());
    assert_eq!(guest.source.free(), free);
    assert_eq!(guest.broken(), [""; 0]);
}

#[test]
fn an_inflation_in_flight_does_not_hold_up_the_answer() {
    let mut guest = Guest::new();
    guest.step();
    // The device leaves the inflation unanswered.
    guest.device().set_target(500);
    guest.shared.signal().config_changed();
    guest.step_engine();
    assert!(guest.balloon.in_flight(QueueId::Inflate) > 0);
    let left = guest.source.free().get();
    assert!(guest.device().request_unused_pages(1));
    guest.step();
    guest.step();
    let frames: u64 = guest.responses().iter().map(|&(_, _, frames)| frames).sum();
    // Of the frames the inflation left.
    assert_eq!(frames, left);
    assert_eq!(guest.broken(), [""; 0]);
}

#[test]
fn requests_nobody_knows_and_short_ones_are_dropped() {
    let mut guest = Guest::new();
    guest.step();
    // Read as zeros, it would ask for unused pages.
    for (count, written) in (1..).zip([0, 2, 15, 17, u32::MAX]) {
        let chain = guest.device().take(QueueId::Hint).unwrap();
        let head = chain.head.into();
        guest.device().answer(QueueId::Hint, head, written);
        assert!(!guest.step().more);
        assert_eq!(guest.balloon.counters().queues.odd_lengths, count);
    }
    assert!(guest.source.in_hand().is_zero());
    // The next one is heard.
    assert!(guest.device().request_unused_pages(5));
    guest.step();
    guest.step();
    let responses = guest.responses();
    assert_eq!(responses.first().map(|&(id, ..)| id), Some(5));
}

#[test]
fn a_reset_brings_everything_home() {
    let mut guest = Guest::new();
    guest.source = guest.source.scattered();
    guest.step();
    assert!(guest.device().request_unused_pages(5));
    guest.step();
    guest.step();
    assert!(!guest.source.in_hand().is_zero());
    guest.unused.reset(&mut guest.source, &mut guest.held);
    while !release(&mut guest.source, &mut guest.held, FrameCount::MAX).is_zero() {}
    assert!(guest.source.in_hand().is_zero());
    assert_eq!(guest.source.free(), FrameCount::new(FRAMES));
}

#[test]
fn the_bare_feature_bits_are_hints_and_poison() {
    let profile = Profile::chunk_transfer(Features::empty());
    let options = DriverOptions::new().with_hints();
    let refused = testing::bring_up::<16>(profile, &options).unwrap_err();
    // Eight bytes of configuration have no hinting command.
    assert!(matches!(
        refused.error,
        crate::BringUpError::Attach(crate::AttachError::ConfigTooSmall(8))
    ));
    let standard = Profile::qemu(Features::FREE_PAGE_HINT | Features::PAGE_POISON);
    let plain = testing::bring_up::<16>(standard, &DriverOptions::new()).unwrap();
    assert!(!plain.takes_host_requests());
    assert_eq!(plain.capabilities().inflate.runs, 256);
}

#[test]
fn every_request_is_heard_by_who_goes_by_interrupts() {
    let mut guest = Guest::new();
    while guest.step().more {}
    for id in 1..=4 {
        let before = guest.device().interrupts();
        assert!(guest.ask(id));
        assert!(guest.device().interrupts() > before, "request {id}");
        while guest.step().more {}
        while guest.unused.answers() < id.into() {
            let before = guest.device().interrupts();
            assert!(!guest.responses().is_empty());
            assert!(guest.device().interrupts() > before, "answer {id}");
            while guest.step().more {}
        }
    }
    assert!(guest.source.in_hand().is_zero());
    assert_eq!(guest.broken(), [""; 0]);
}

#[test]
fn short_queues_cost_no_frames_and_no_error() {
    for size in [1, 2] {
        let profile = Profile::chunk_transfer(Features::empty()).with_size(QueueId::Hint, size);
        let mut guest = Guest::on(profile);
        guest.source = guest.source.scattered();
        let free = guest.source.free();
        guest.step();
        for id in 1..3 {
            assert!(guest.ask(id), "size {size}");
            let mut told = 0;
            while guest.unused.answers() < id.into() {
                guest.step();
                told += guest.responses().iter().map(|&(.., n)| n).sum::<u64>();
            }
            assert_eq!(FrameCount::new(told), free);
            guest.step();
            guest.step();
        }
        assert_eq!(guest.source.free(), free);
    }
}

#[test]
fn responses_are_drained_in_the_middle_of_an_answer() {
    let mut guest = Guest::new();
    guest.source = guest.source.scattered();
    guest.step();
    assert!(guest.ask(5));
    guest.step();
    guest.step();
    let told = guest.unused.told();
    let mut drain = |balloon: &mut FakeBalloon<16>| {
        let (source, held) = (&mut guest.source, &mut guest.held);
        let shared = guest.shared;
        guest.unused.drain(balloon, shared, source, held)
    };
    assert_eq!(drain(&mut guest.balloon), Ok(false));
    guest.balloon.queues_mut().device_mut().serve(QueueId::Hint);
    assert_eq!(drain(&mut guest.balloon), Ok(true));
    assert_eq!(guest.unused.told(), told, "nothing more is named");
}

#[test]
fn an_allocator_that_refuses_does_not_keep_the_guest_busy() {
    let mut guest = Guest::new();
    guest.step();
    assert!(guest.ask(5));
    while guest.step().more {}
    guest.responses();
    let memory = guest.source.free().saturating_add(guest.source.in_hand());
    let shared = guest.shared;
    let step = |unused: &mut UnusedPages, balloon: &mut FakeBalloon<16>, held: &mut _| {
        unused
            .step(balloon, shared, &mut Refusing, held, Nanos::ZERO)
            .unwrap()
    };
    let mut last = None;
    for _ in 0..50 {
        last = Some(step(&mut guest.unused, &mut guest.balloon, &mut guest.held));
    }
    let last = last.unwrap();
    let again = last.wake_at.is_some_and(|at| at < Nanos::from_secs(1));
    assert!(!last.more && again, "but offers it the frames again");
    for _ in 0..50 {
        guest.step();
    }
    assert_eq!(guest.source.free(), memory);
}

/// An allocator with room for nothing.
struct Refusing;

impl FrameSource for Refusing {
    fn take(&mut self, _: TakeRequest, _: &mut RangeSink<'_>) -> Shortage {
        Shortage::None
    }

    fn put(&mut self, range: FrameRange, _: Backing) -> Result<(), FrameRange> {
        Err(range)
    }
}

#[test]
fn a_reset_is_no_answer() {
    let mut guest = Guest::new();
    guest.unused.reset(&mut guest.source, &mut guest.held);
    while guest.step().more {}
    assert_eq!(guest.unused.answers(), 0);
}
