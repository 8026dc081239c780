//! `buddy-alloc` in its three forms: bare, behind a lock, with CPU caches.

use std::cell::UnsafeCell;

use buddy_alloc::{
    Backing, CachedZone, Config, Cpu, Frame, FrameCount, FrameRange, Order, Preference, RangeBuf,
    TakeRequest, Via, Zone,
};

use crate::{Candidate, Frames, cpu};

const BATCH: usize = 256;

pub(crate) fn candidates() -> Vec<Candidate> {
    let candidate = |name, shared, make| Candidate {
        name,
        shared,
        in_page: false,
        refuses: "all",
        make,
    };
    vec![
        candidate("ours (cached)", true, |frames| {
            Box::new(Cached::new(frames))
        }),
        candidate("ours (lock)", true, |frames| Box::new(Locked::new(frames))),
        candidate("ours (no lock)", false, |frames| {
            Box::new(Bare::new(frames))
        }),
    ]
}

fn leak(words: usize) -> (&'static mut [u64], *mut [u64]) {
    let place = Box::into_raw(vec![0; words].into_boxed_slice());
    (unsafe { &mut *place }, place)
}

pub(crate) fn zone(frames: u64) -> (Zone<'static>, *mut [u64]) {
    let span = FrameRange::new(Frame::new(0), FrameCount::new(frames));
    let config = Config::new();
    let (memory, place) = leak(config.metadata_words(span));
    // Clears the tables, which has the host back them before the clock starts; the peers' are
    // filled by then too.
    let mut zone = Zone::new(span, config, memory).unwrap();
    zone.add_range(span, Backing::Unpopulated).unwrap();
    (zone, place)
}

#[inline]
fn allocate(zone: &mut Zone<'_>, order: u32) -> Option<u64> {
    let order = Order::new(order as u8)?;
    zone.allocate(order, Preference::Populated)
        .ok()
        .map(Frame::get)
}

#[inline]
fn free(zone: &mut Zone<'_>, frame: u64, order: u32) {
    let order = Order::new(order as u8).unwrap();
    zone.free(Frame::new(frame), order).unwrap();
}

/// Calls until there are `count` frames, 256 ranges each time.
fn collect(mut count: u64, taken: &mut Vec<(u64, u64)>, mut call: impl FnMut(&mut RangeBuf<'_>)) {
    let mut places = [FrameRange::block(Frame::new(0), Order::FRAME); BATCH];
    while count > 0 {
        let mut sink = RangeBuf::new(&mut places, FrameCount::new(count));
        call(&mut sink);
        if sink.ranges().is_empty() {
            return;
        }
        for range in sink.ranges() {
            taken.push((range.start().get(), range.count().get()));
            count -= range.count().get();
        }
    }
}

fn take(zone: &mut Zone<'_>, count: u64, taken: &mut Vec<(u64, u64)>) {
    collect(count, taken, |sink| {
        zone.take(TakeRequest::default(), sink);
    });
}

fn inflate(zone: &mut Zone<'_>, count: u64, taken: &mut Vec<(u64, u64)>) {
    let first = taken.len();
    take(zone, count, taken);
    for &(start, count) in &taken[first..] {
        let range = FrameRange::new(Frame::new(start), FrameCount::new(count));
        zone.store(range, Via::Bulk).unwrap();
    }
}

fn deflate(zone: &mut Zone<'_>, taken: &[(u64, u64)]) {
    for &(start, count) in taken {
        let range = FrameRange::new(Frame::new(start), FrameCount::new(count));
        // In hand from a bare batch, ballooned after an inflation.
        let _ = zone.recall_at(range, Via::Bulk);
        zone.put(range, Backing::Unpopulated).unwrap();
    }
}

fn allocate_batch(zone: &mut Zone<'_>, count: u64, taken: &mut Vec<(u64, u64)>) {
    collect(count, taken, |sink| {
        zone.allocate_batch(Order::FRAME, Preference::Populated, sink);
    });
}

fn free_batch(zone: &mut Zone<'_>, taken: &[(u64, u64)]) {
    for batch in taken.chunks(BATCH) {
        let mut places = [FrameRange::block(Frame::new(0), Order::FRAME); BATCH];
        for (place, &(start, count)) in places.iter_mut().zip(batch) {
            *place = FrameRange::new(Frame::new(start), FrameCount::new(count));
        }
        zone.free_batch(&places[..batch.len()]).unwrap();
    }
}

macro_rules! balloon {
    ($with:ident) => {
        fn inflate(&self, count: u64, taken: &mut Vec<(u64, u64)>) {
            self.$with(|zone| inflate(zone, count, taken));
        }

        fn deflate(&self, taken: &[(u64, u64)]) {
            self.$with(|zone| deflate(zone, taken));
        }

        fn inflate_batch(&self, count: u64, taken: &mut Vec<(u64, u64)>) -> bool {
            self.$with(|zone| take(zone, count, taken));
            true
        }

        fn allocate_batch(&self, count: u64, taken: &mut Vec<(u64, u64)>) -> bool {
            self.$with(|zone| allocate_batch(zone, count, taken));
            true
        }

        fn free_batch(&self, taken: &[(u64, u64)]) {
            self.$with(|zone| free_batch(zone, taken));
        }
    };
}

struct Bare {
    zone: UnsafeCell<Zone<'static>>,
    memory: *mut [u64],
}

/// Used by one thread at a time.
unsafe impl Sync for Bare {}

impl Bare {
    fn new(frames: u64) -> Self {
        let (zone, memory) = zone(frames);
        Self {
            zone: UnsafeCell::new(zone),
            memory,
        }
    }

    #[inline]
    fn with<R>(&self, f: impl FnOnce(&mut Zone<'static>) -> R) -> R {
        f(unsafe { &mut *self.zone.get() })
    }
}

impl Frames for Bare {
    fn alloc(&self, order: u32) -> Option<u64> {
        self.with(|zone| allocate(zone, order))
    }

    fn free(&self, frame: u64, order: u32) {
        self.with(|zone| free(zone, frame, order));
    }

    balloon!(with);

    fn metadata(&self) -> u64 {
        size_of::<Zone<'_>>() as u64 + self.memory.len() as u64 * 8
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        drop(unsafe { Box::from_raw(self.memory) });
    }
}

struct Locked {
    zone: spin::Mutex<Zone<'static>>,
    memory: *mut [u64],
}

unsafe impl Sync for Locked {}

impl Locked {
    fn new(frames: u64) -> Self {
        let (zone, memory) = zone(frames);
        Self {
            zone: spin::Mutex::new(zone),
            memory,
        }
    }

    #[inline]
    fn with<R>(&self, f: impl FnOnce(&mut Zone<'static>) -> R) -> R {
        f(&mut self.zone.lock())
    }
}

impl Frames for Locked {
    fn alloc(&self, order: u32) -> Option<u64> {
        self.with(|zone| allocate(zone, order))
    }

    fn free(&self, frame: u64, order: u32) {
        self.with(|zone| free(zone, frame, order));
    }

    balloon!(with);

    fn metadata(&self) -> u64 {
        size_of::<Zone<'_>>() as u64 + self.memory.len() as u64 * 8
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        drop(unsafe { Box::from_raw(self.memory) });
    }
}

type Caches = CachedZone<'static, spin::Mutex<Zone<'static>>, 2>;

struct Cached {
    front: Caches,
    memory: [*mut [u64]; 2],
}

unsafe impl Sync for Cached {}

impl Cached {
    fn new(frames: u64) -> Self {
        let (zone, memory) = zone(frames);
        let span = zone.span();
        let (bits, bits_place) = leak(CachedZone::words(span));
        let front = CachedZone::new(spin::Mutex::new(zone), bits).unwrap();
        Self {
            front,
            memory: [memory, bits_place],
        }
    }

    fn drained<R>(&self, f: impl FnOnce(&mut Zone<'static>) -> R) -> R {
        self.front.drain_all();
        self.front.with(f)
    }
}

impl Frames for Cached {
    fn alloc(&self, order: u32) -> Option<u64> {
        let (cpu, order) = (Cpu::new(cpu::current()), Order::new(order as u8)?);
        self.front
            .allocate(cpu, order, Preference::Populated)
            .ok()
            .map(Frame::get)
    }

    fn free(&self, frame: u64, order: u32) {
        let (cpu, order) = (Cpu::new(cpu::current()), Order::new(order as u8).unwrap());
        self.front.free(cpu, Frame::new(frame), order).unwrap();
    }

    balloon!(drained);

    fn metadata(&self) -> u64 {
        let words: u64 = self.memory.iter().map(|memory| memory.len() as u64).sum();
        size_of::<Caches>() as u64 + words * 8
    }
}

impl Drop for Cached {
    fn drop(&mut self) {
        for memory in self.memory {
            drop(unsafe { Box::from_raw(memory) });
        }
    }
}
