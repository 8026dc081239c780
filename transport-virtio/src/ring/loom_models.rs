//! Models: every interleaving of a ring's two ends on two CPUs.
//!
//! Run by `RUSTFLAGS="--cfg loom" cargo test -p transport-virtio --profile loom --lib loom`.
//! The driver's end is the code that ships; the device's is written here as the
//! specification has it (virtio 1.2, 2.7.7 to 2.7.10). What the two use to find
//! out about each other are atomics, all else is memory that loom guards: an
//! access that nothing orders fails the model. Each fence is left out in turn
//! and must be missed.

use std::string::String;
use std::vec::Vec;

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU16, fence};
use loom::thread;

use balloon_core::{Kind, SlotId};

use super::{Access, Areas, Ring, Segment, passed};
use crate::dma::Dma;
use crate::queues::{QueueCounters, RequestId};
use crate::sync::{Ordering, Site, weakened};

const SIZE: u16 = 2;
const AREAS: Areas = Areas::place(0, SIZE as usize).0;
const AVAILABLE_INDEX: usize = AREAS.available + 2;
const USED_EVENT: usize = AREAS.available + 4 + 2 * SIZE as usize;
const USED_INDEX: usize = AREAS.used + 2;
const AVAIL_EVENT: usize = AREAS.used + 4 + 8 * SIZE as usize;

/// A half-word of shared memory.
enum Half {
    Signal(AtomicU16),
    Content(UnsafeCell<u16>),
}

struct Memory(Vec<Half>);

// SAFETY: loom checks that no two threads touch a cell at once.
unsafe impl Sync for Memory {}
// SAFETY: it is numbers.
unsafe impl Send for Memory {}

impl Memory {
    fn new() -> Arc<Self> {
        let signals = [
            AREAS.available,
            AVAILABLE_INDEX,
            USED_EVENT,
            AREAS.used,
            USED_INDEX,
            AVAIL_EVENT,
        ];
        let half = |place| {
            if signals.contains(&place) {
                Half::Signal(AtomicU16::new(0))
            } else {
                Half::Content(UnsafeCell::new(0))
            }
        };
        let end = Areas::place(0, SIZE.into()).1;
        Arc::new(Self((0..end).step_by(2).map(half).collect()))
    }
}

impl Dma for Memory {
    fn address(&self) -> u64 {
        0
    }

    fn len(&self) -> usize {
        self.0.len() * 2
    }

    fn load16(&self, offset: usize) -> u16 {
        match &self.0[offset / 2] {
            Half::Signal(half) => half.load(Ordering::Relaxed),
            Half::Content(cell) => cell.with(|place| {
                // SAFETY: the cell hands out a valid pointer, and fails the
                // model if any other access is not ordered against this one.
                unsafe { *place }
            }),
        }
    }

    fn store16(&self, offset: usize, value: u16) {
        match &self.0[offset / 2] {
            Half::Signal(half) => half.store(value, Ordering::Relaxed),
            Half::Content(cell) => cell.with_mut(|place| {
                // SAFETY: as above.
                unsafe { *place = value }
            }),
        }
    }
}

/// The device's end.
struct Device {
    memory: Arc<Memory>,
    seen: u16,
    used: u16,
    interrupts: u32,
}

impl Device {
    fn new(memory: &Arc<Memory>) -> Self {
        Self {
            memory: Arc::clone(memory),
            seen: 0,
            used: 0,
            interrupts: 0,
        }
    }

    /// Reads the next request, if there is one.
    fn take(&mut self) -> Option<u16> {
        if self.memory.load16(AVAILABLE_INDEX) == self.seen {
            return None;
        }
        fence(Ordering::Acquire);
        let entry = usize::from(self.seen % SIZE);
        let head = self.memory.load16(AREAS.available + 4 + 2 * entry);
        let place = AREAS.descriptors + 16 * usize::from(head);
        assert_eq!(self.memory.load32(place + 8), 4096);
        self.seen += 1;
        Some(head)
    }

    /// Asks for a notification of further requests; whether one came meanwhile.
    fn sleep(&mut self) -> bool {
        self.memory.store16(AVAIL_EVENT, self.seen);
        fence(Ordering::SeqCst);
        self.memory.load16(AVAILABLE_INDEX) == self.seen
    }

    fn answer(&mut self, id: u16) {
        let place = AREAS.used + 4 + 8 * usize::from(self.used % SIZE);
        self.memory.store32(place, id.into());
        self.memory.store32(place + 4, 0);
        let before = self.used;
        self.used += 1;
        fence(Ordering::Release);
        self.memory.store16(USED_INDEX, self.used);
        fence(Ordering::SeqCst);
        if passed(self.memory.load16(USED_EVENT), self.used, before) {
            self.interrupts += 1;
        }
    }
}

fn driver(memory: &Arc<Memory>) -> Ring<2> {
    Ring::new(memory.as_ref(), AREAS, SIZE, true, true)
}

fn submit(ring: &mut Ring<2>, memory: &Arc<Memory>, slot: u16) {
    let request = RequestId {
        kind: Kind::Inflate,
        slot: SlotId::new(slot),
    };
    let segment = Segment {
        address: 0,
        len: 4096,
        access: Access::Write,
    };
    let chain = core::iter::once(segment);
    ring.submit(memory.as_ref(), request, chain).unwrap();
}

fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

/// How some interleaving fails the model without a fence; empty if none does.
fn failure_without(site: Site, model: fn()) -> String {
    // A thread of its own: a model that failed leaves loom's state behind.
    let run = std::thread::spawn(move || {
        weakened::weaken(site);
        explore(model);
    });
    let Err(panic) = run.join() else {
        return String::new();
    };
    match panic.downcast::<String>() {
        Ok(message) => *message,
        Err(panic) => (*panic.downcast::<&str>().unwrap()).into(),
    }
}

const UNSEEN: &str = "a request that the device was not told of";
const UNHEARD: &str = "an answer that nobody was told of";
/// What loom says of two accesses that nothing orders.
const UNORDERED: &str = "Causality violation";

/// A device that goes to sleep sees the request made meanwhile, or is notified.
fn no_request_is_left() {
    let memory = Memory::new();
    let mut ring = driver(&memory);
    let mut device = Device::new(&memory);
    // As after the request before: the device asks for this one.
    submit(&mut ring, &memory, 0);
    assert!(ring.kick(memory.as_ref(), 1).notify);
    let device = thread::spawn(move || {
        while device.take().is_some() || !device.sleep() {}
        device.seen
    });
    submit(&mut ring, &memory, 1);
    let notify = ring.kick(memory.as_ref(), 1).notify;
    let seen = device.join().unwrap();
    assert!(notify || seen == 2, "{UNSEEN}");
}

/// An answer that comes while the interrupt is asked for is seen, or interrupts.
fn no_answer_is_left() {
    let memory = Memory::new();
    let mut ring = driver(&memory);
    let mut device = Device::new(&memory);
    submit(&mut ring, &memory, 0);
    submit(&mut ring, &memory, 1);
    // One interrupt for both, so far.
    ring.kick(memory.as_ref(), 2);
    let device = thread::spawn(move || {
        let head = device.take().unwrap();
        device.answer(head);
        device.interrupts
    });
    let answered = ring.kick(memory.as_ref(), 1).answered;
    let interrupts = device.join().unwrap();
    assert!(answered || interrupts > 0, "{UNHEARD}");
}

/// An answer to nothing has used the interrupt up; the real one comes while it
/// is dropped.
fn no_answer_is_left_behind_a_dropped_one() {
    let memory = Memory::new();
    let mut ring = driver(&memory);
    let mut device = Device::new(&memory);
    submit(&mut ring, &memory, 0);
    ring.kick(memory.as_ref(), 1);
    let head = device.take().unwrap();
    device.answer(head + 1);
    assert_eq!(device.interrupts, 1);
    let device = thread::spawn(move || {
        device.answer(head);
        device.interrupts
    });
    let found = ring.pop(memory.as_ref(), &mut QueueCounters::default());
    let interrupts = device.join().unwrap();
    assert!(found.unwrap().is_some() || interrupts > 1, "{UNHEARD}");
}

#[test]
fn a_notification_is_never_missed() {
    explore(no_request_is_left);
}

#[test]
fn an_interrupt_is_never_missed() {
    explore(no_answer_is_left);
}

#[test]
fn an_interrupt_is_never_used_up_by_an_answer_to_nothing() {
    explore(no_answer_is_left_behind_a_dropped_one);
}

#[test]
fn every_fence_is_needed() {
    let cases: [(Site, fn(), &str); 5] = [
        (Site::Publish, no_request_is_left, UNORDERED),
        (Site::Kick, no_request_is_left, UNSEEN),
        (Site::Kick, no_answer_is_left, UNHEARD),
        (
            Site::Take,
            no_answer_is_left_behind_a_dropped_one,
            UNORDERED,
        ),
        (
            Site::Postpone,
            no_answer_is_left_behind_a_dropped_one,
            UNHEARD,
        ),
    ];
    for (site, model, expected) in cases {
        let failure = failure_without(site, model);
        assert!(failure.contains(expected), "{site:?}: {failure:?}");
    }
}
