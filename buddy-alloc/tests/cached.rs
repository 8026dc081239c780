//! The locked front with per-CPU caches.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::Mutex;

use buddy_alloc::{
    AllocError, Backing, CachedZone, Config, ConfigError, Cpu, Frame, FrameCount, FrameRange,
    FreeError, Lock, Order, Preference, RangeBuf, Shortage, Zone,
};

mod common;
use common::Random;

struct StdLock<T>(Mutex<T>);

impl<T> Lock<T> for StdLock<T> {
    fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        f(&mut self.0.lock().unwrap())
    }
}

type Caches<'m> = CachedZone<'m, StdLock<Zone<'m>>, 2>;

const CPUS: [Cpu; 2] = [Cpu::new(0), Cpu::new(1)];

fn with_cached(frames: u64, test: impl FnOnce(&Caches<'_>)) {
    // A start that is neither even nor aligned to a word of any table.
    let span = FrameRange::new(Frame::new(77_777), FrameCount::new(frames));
    let config = Config::new();
    let mut memory = vec![0; config.metadata_words(span)];
    let mut bits = vec![0; CachedZone::words(span)];
    let mut zone = Zone::new(span, config, &mut memory).unwrap();
    zone.add_range(span, Backing::Unpopulated).unwrap();
    let cached = CachedZone::new(StdLock(Mutex::new(zone)), &mut bits).unwrap();
    test(&cached);
}

fn used(cached: &Caches<'_>) -> u64 {
    cached.with(|zone| zone.stats().used.get()) - cached.cached().get()
}

#[test]
fn last_in_first_out_on_the_same_cpu() {
    with_cached(4096, |cached| {
        let frames = [(); 64].map(|()| cached.allocate(CPUS[0], Order::FRAME, Preference::Any));
        for frame in frames {
            cached.free(CPUS[0], frame.unwrap(), Order::FRAME).unwrap();
        }
        for frame in frames.iter().rev() {
            assert_eq!(
                cached.allocate(CPUS[0], Order::FRAME, Preference::Any),
                *frame
            );
        }
        assert_eq!(used(cached), 64);
    });
}

#[test]
fn misuse_of_cached_frames_is_an_error_everywhere() {
    with_cached(4096, |cached| {
        let order = Order::new(2).unwrap();
        let block = cached.allocate(CPUS[0], order, Preference::Any).unwrap();
        cached.free(CPUS[0], block, order).unwrap();
        for cpu in [CPUS[0], CPUS[1], Cpu::new(99)] {
            assert_eq!(cached.free(cpu, block, order), Err(FreeError::DoubleFree));
        }
        let range = FrameRange::new(block, FrameCount::new(4));
        let inside = FrameRange::new(Frame::new(block.get() + 1), FrameCount::new(1));
        cached.with(|zone| {
            assert_eq!(zone.free(block, order), Err(FreeError::DoubleFree));
            assert_eq!(zone.free_range(range), Err(FreeError::DoubleFree));
            assert_eq!(zone.free_range(inside), Err(FreeError::DoubleFree));
            assert_eq!(zone.free_unpopulated(range), Err(FreeError::DoubleFree));
            assert_eq!(
                zone.split_block(block, order, Order::FRAME),
                Err(FreeError::DoubleFree)
            );
        });
        let block = cached.allocate(CPUS[0], order, Preference::Any).unwrap();
        assert_eq!(
            cached.free(CPUS[0], block, Order::FRAME),
            Err(FreeError::WrongOrder)
        );
        let inside = Frame::new(block.get() + 1);
        assert_eq!(
            cached.free(CPUS[0], inside, Order::FRAME),
            Err(FreeError::Interior)
        );
        assert_eq!(
            cached.free(CPUS[0], Frame::new(3), Order::FRAME),
            Err(FreeError::Foreign)
        );
        assert_eq!(cached.free(CPUS[1], block, order), Ok(()));
    });
}

/// Two fronts would each have bits of their own, and a block in the caches of both.
#[test]
fn a_zone_has_one_set_of_caches() {
    struct Shared<'a, T>(&'a Mutex<T>);

    impl<T> Lock<T> for Shared<'_, T> {
        fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
            f(&mut self.0.lock().unwrap())
        }
    }

    let span = FrameRange::new(Frame::new(0), FrameCount::new(4096));
    let mut memory = vec![0; Config::new().metadata_words(span)];
    let mut bits = [0; 3].map(|_| vec![0; CachedZone::words(span)]);
    let [short, first, second] = &mut bits;
    let mut zone = Zone::new(span, Config::new(), &mut memory).unwrap();
    zone.add_range(span, Backing::Unpopulated).unwrap();
    let zone = Mutex::new(zone);
    let refused = CachedZone::<_, 1>::new(Shared(&zone), &mut short[1..]);
    assert_eq!(refused.err(), Some(ConfigError::Metadata));
    let cached = CachedZone::<_, 1>::new(Shared(&zone), first).unwrap();
    let frame = cached
        .allocate(CPUS[0], Order::FRAME, Preference::Any)
        .unwrap();
    cached.free(CPUS[0], frame, Order::FRAME).unwrap();
    let other = CachedZone::<_, 1>::new(Shared(&zone), second);
    assert_eq!(other.err(), Some(ConfigError::Cached));
    assert_eq!(
        cached.free(CPUS[0], frame, Order::FRAME),
        Err(FreeError::DoubleFree),
        "the first front goes on"
    );
}

#[test]
fn exhaustion_drains_other_caches() {
    with_cached(64, |cached| {
        let mut frames = Vec::new();
        while let Ok(frame) = cached.allocate(CPUS[0], Order::FRAME, Preference::Populated) {
            frames.push(frame);
        }
        assert_eq!(frames.len(), 64);
        for frame in frames {
            cached.free(CPUS[0], frame, Order::FRAME).unwrap();
        }
        assert_eq!(
            cached.with(|zone| zone.free_frames()),
            FrameCount::ZERO,
            "all in the cache"
        );
        let four = Order::new(4).unwrap();
        assert!(cached.allocate(CPUS[1], four, Preference::Any).is_ok());
        assert_eq!(
            cached.allocate(CPUS[1], Order::new(6).unwrap(), Preference::Any),
            Err(AllocError::Exhausted)
        );
    });
}

/// Else another CPU could take what was drained, and a demand fail that had enough.
#[test]
fn what_is_drained_is_not_let_go_before_the_next_try() {
    struct Counting<T>(Mutex<T>, AtomicU32);

    impl<T> Lock<T> for &Counting<T> {
        fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
            self.1.fetch_add(1, Ordering::Relaxed);
            f(&mut self.0.lock().unwrap())
        }
    }

    let span = FrameRange::new(Frame::new(0), FrameCount::new(64));
    let mut memory = vec![0; Config::new().metadata_words(span)];
    let mut bits = vec![0; CachedZone::words(span)];
    let mut zone = Zone::new(span, Config::new(), &mut memory).unwrap();
    zone.add_range(span, Backing::Unpopulated).unwrap();
    let lock = Counting(Mutex::new(zone), AtomicU32::new(0));
    let cached = CachedZone::<_, 2>::new(&lock, &mut bits).unwrap();
    let (four, whole) = (Order::new(4).unwrap(), Order::new(6).unwrap());
    // Fills the cache with all of the zone, so that only a drain helps.
    let fill = || {
        let frames = [(); 64].map(|()| cached.allocate(CPUS[0], Order::FRAME, Preference::Any));
        for frame in frames {
            cached.free(CPUS[0], frame.unwrap(), Order::FRAME).unwrap();
        }
        assert_eq!(cached.with(|zone| zone.free_frames()), FrameCount::ZERO);
        lock.1.store(0, Ordering::Relaxed);
    };
    fill();
    assert!(cached.allocate(CPUS[1], whole, Preference::Any).is_ok());
    assert_eq!(lock.1.load(Ordering::Relaxed), 1, "a block past the caches");
    cached.free(CPUS[1], Frame::new(0), whole).unwrap();
    fill();
    assert_eq!(cached.allocate_at(Frame::new(16), four), Ok(()));
    assert_eq!(lock.1.load(Ordering::Relaxed), 1, "a block by address");
    cached.free(CPUS[1], Frame::new(16), four).unwrap();
    fill();
    let two = Order::new(2).unwrap();
    assert!(cached.allocate(CPUS[1], two, Preference::Any).is_ok());
    assert_eq!(
        lock.1.load(Ordering::Relaxed),
        2,
        "for the cache, then with a drain"
    );
}

#[test]
fn an_order_above_the_largest_drains_nothing() {
    let span = FrameRange::new(Frame::new(0), FrameCount::new(1024));
    let config = Config::new()
        .with_max_order(Order::new(8).unwrap())
        .with_granule(Order::new(8).unwrap());
    let mut memory = vec![0; config.metadata_words(span)];
    let mut bits = vec![0; CachedZone::words(span)];
    let mut zone = Zone::new(span, config, &mut memory).unwrap();
    zone.add_range(span, Backing::Unpopulated).unwrap();
    let cached = Caches::new(StdLock(Mutex::new(zone)), &mut bits).unwrap();
    let frame = cached.allocate(CPUS[0], Order::FRAME, Preference::Any);
    cached.free(CPUS[0], frame.unwrap(), Order::FRAME).unwrap();
    let free = cached.with(|zone| zone.free_frames());
    for preference in [Preference::Any, Preference::Unpopulated] {
        for cpu in [CPUS[1], Cpu::new(99)] {
            assert_eq!(
                cached.allocate(cpu, Order::MIB_2, preference),
                Err(AllocError::TooLarge)
            );
        }
    }
    assert_eq!(cached.with(|zone| zone.free_frames()), free);
}

#[test]
fn allocate_at_finds_a_block_that_waits_in_a_cache() {
    with_cached(1024, |cached| {
        let frame = cached
            .allocate(CPUS[0], Order::FRAME, Preference::Any)
            .unwrap();
        cached.free(CPUS[0], frame, Order::FRAME).unwrap();
        cached.allocate_at(frame, Order::FRAME).unwrap();
        let other = cached
            .allocate(CPUS[0], Order::FRAME, Preference::Any)
            .unwrap();
        assert_ne!(frame, other, "the entry left behind in the cache is void");
    });
}

#[test]
fn a_leftover_entry_never_yields_a_block_of_another_order() {
    with_cached(1024, |cached| {
        let frame = cached
            .allocate(CPUS[0], Order::FRAME, Preference::Any)
            .unwrap();
        cached.free(CPUS[0], frame, Order::FRAME).unwrap();
        // CPU 1 empties CPU 0's cache behind its back and gets the frame as part of a block,
        // which it frees into its own cache of that order.
        cached.drain(CPUS[0]);
        let order = Order::new(1).unwrap();
        let head = Frame::new(frame.get() & !1);
        if cached.with(|zone| zone.allocate_at(head, order)).is_ok() {
            cached.free(CPUS[1], head, order).unwrap();
        }
        let found = cached
            .allocate(CPUS[0], Order::FRAME, Preference::Any)
            .unwrap();
        assert_eq!(cached.free(CPUS[0], found, Order::FRAME), Ok(()));
        cached.drain_all();
        cached.with(|zone| assert_eq!(zone.stats().used, FrameCount::ZERO));
    });
}

#[test]
fn a_batch_reaches_what_waits_in_caches() {
    with_cached(64, |cached| {
        let mut places = [FrameRange::block(Frame::new(0), Order::FRAME); 64];
        let frames = [(); 40].map(|()| cached.allocate(CPUS[0], Order::FRAME, Preference::Any));
        for frame in frames {
            cached.free(CPUS[0], frame.unwrap(), Order::FRAME).unwrap();
        }
        let mut sink = RangeBuf::new(&mut places, FrameCount::new(64));
        let stop = cached.allocate_batch(Order::FRAME, Preference::Populated, &mut sink);
        assert_eq!(stop, Shortage::None);
        assert_eq!(
            sink.populated(),
            FrameCount::new(64),
            "the cache was filled from all of it"
        );
        cached.free_batch(sink.ranges()).unwrap();
        let again = cached.free_batch(sink.ranges()).unwrap_err();
        assert_eq!((again.freed, again.reason), (0, FreeError::DoubleFree));
        assert_eq!(cached.with(|zone| zone.free_frames()), FrameCount::new(64));
    });
}

#[test]
fn stranded_blocks_are_recovered() {
    with_cached(1024, |cached| {
        let frames = [(); 8].map(|()| cached.allocate(CPUS[0], Order::FRAME, Preference::Any));
        for frame in frames {
            cached.free(CPUS[1], frame.unwrap(), Order::FRAME).unwrap();
        }
        cached.recover();
        cached.with(|zone| assert_eq!(zone.stats().used, FrameCount::ZERO));
        assert!(
            cached
                .allocate(CPUS[1], Order::FRAME, Preference::Any)
                .is_ok()
        );
    });
}

/// Two threads on their CPUs, drains from either side, every block owned once.
#[test]
fn threads_never_share_a_block() {
    let frames = 2048;
    let steps = if cfg!(miri) { 200 } else { 100_000 };
    with_cached(frames, |cached| {
        let owned: Vec<AtomicBool> = (0..frames).map(|_| AtomicBool::new(false)).collect();
        let own = |start: Frame, order: Order, value: bool| {
            for at in 0..order.frames() {
                let place = usize::try_from(start.get() - 77_777 + at).unwrap();
                assert_ne!(
                    owned[place].swap(value, Ordering::Relaxed),
                    value,
                    "{start}"
                );
            }
        };
        std::thread::scope(|scope| {
            for (seed, cpu) in CPUS.into_iter().enumerate() {
                let own = &own;
                scope.spawn(move || {
                    let mut random = Random::new(seed as u64 + 3);
                    let mut blocks = Vec::new();
                    for _ in 0..steps {
                        match random.below(100) {
                            0 => cached.drain(CPUS[1 - seed]),
                            1 => cached.drain_all(),
                            2..=50 => {
                                let order = Order::new(u8::try_from(random.below(20) / 4).unwrap())
                                    .unwrap();
                                if let Ok(start) = cached.allocate(cpu, order, Preference::Any) {
                                    own(start, order, true);
                                    blocks.push((start, order));
                                }
                            }
                            _ if !blocks.is_empty() => {
                                let nth = random.below(blocks.len() as u64);
                                let nth = usize::try_from(nth).unwrap();
                                let (start, order) = blocks.swap_remove(nth);
                                own(start, order, false);
                                cached.free(cpu, start, order).unwrap();
                            }
                            _ => {}
                        }
                    }
                    for (start, order) in blocks {
                        own(start, order, false);
                        cached.free(cpu, start, order).unwrap();
                    }
                });
            }
        });
        cached.drain_all();
        cached.with(|zone| {
            assert_eq!(zone.stats().used, FrameCount::ZERO);
            assert_eq!(zone.stats().free, FrameCount::new(frames));
        });
    });
}
