//! The hand-over between CPU caches in every interleaving:
//! `RUSTFLAGS="--cfg loom" cargo test --profile loom -p balloon-buddy-alloc --test loom`.
#![cfg(loom)]

use core::sync::atomic::{AtomicU32, Ordering};

use buddy_alloc::{
    Backing, CachedZone, Config, Cpu, Frame, FrameCount, FrameRange, FreeError, Lock, Order,
    Preference, Zone,
};
use loom::sync::{Arc, Mutex};

struct LoomLock<T>(Mutex<T>);

impl<T> Lock<T> for LoomLock<T> {
    fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        f(&mut self.0.lock().unwrap())
    }
}

type Caches = CachedZone<'static, LoomLock<Zone<'static>>, 2>;

const CPUS: [Cpu; 2] = [Cpu::new(0), Cpu::new(1)];
const ONE: Order = Order::FRAME;

fn cached(frames: u64) -> Arc<Caches> {
    let span = FrameRange::new(Frame::new(0), FrameCount::new(frames));
    let config = Config::new();
    let mut zone = Zone::new(span, config, vec![0; config.metadata_words(span)].leak()).unwrap();
    zone.add_range(span, Backing::Unpopulated).unwrap();
    let bits = vec![0; CachedZone::words(span)].leak();
    Arc::new(CachedZone::new(LoomLock(Mutex::new(zone)), bits).unwrap())
}

fn model(f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(3));
    builder.check(f);
}

/// One block waits in CPU 0's cache. Its owner pops it while CPU 1 drains that cache: whoever
/// loses gets nothing or another block, never the same one.
#[test]
fn loom_pop_against_remote_drain() {
    model(|| {
        let cached = cached(2);
        let waiting = cached.allocate(CPUS[0], ONE, Preference::Any).unwrap();
        cached.free(CPUS[0], waiting, ONE).unwrap();
        let other = Arc::clone(&cached);
        let drainer = loom::thread::spawn(move || {
            other.drain(CPUS[0]);
            other.allocate(CPUS[1], ONE, Preference::Any)
        });
        let mine = cached.allocate(CPUS[0], ONE, Preference::Any);
        let theirs = drainer.join().unwrap();
        if let (Ok(mine), Ok(theirs)) = (mine, theirs) {
            assert_ne!(mine, theirs);
        }
        for frame in [mine, theirs].into_iter().flatten() {
            cached.free(CPUS[0], frame, ONE).unwrap();
        }
        cached.drain_all();
        cached.with(|zone| assert_eq!(zone.free_frames(), FrameCount::new(2)));
    });
}

/// Two frees of one block: one wins, the other is told.
#[test]
fn loom_double_free_on_two_cpus() {
    model(|| {
        let cached = cached(2);
        let frame = cached.allocate(CPUS[0], ONE, Preference::Any).unwrap();
        let other = Arc::clone(&cached);
        let thread = loom::thread::spawn(move || other.free(CPUS[1], frame, ONE));
        let mine = cached.free(CPUS[0], frame, ONE);
        let theirs = thread.join().unwrap();
        let lost = [mine, theirs]
            .iter()
            .filter(|r| **r == Err(FreeError::DoubleFree))
            .count();
        assert_eq!(lost, 1, "{mine:?} and {theirs:?}");
        cached.drain_all();
        cached.with(|zone| assert_eq!(zone.free_frames(), FrameCount::new(2)));
    });
}

/// Both threads claim to be CPU 0. Entries may be lost to each other, blocks are not shared, and
/// what was stranded comes back.
#[test]
fn loom_the_wrong_cpu_number_shares_no_block() {
    model(|| {
        let cached = cached(2);
        let waiting = cached.allocate(CPUS[0], ONE, Preference::Any).unwrap();
        cached.free(CPUS[0], waiting, ONE).unwrap();
        let other = Arc::clone(&cached);
        let thread = loom::thread::spawn(move || other.allocate(CPUS[0], ONE, Preference::Any));
        let mine = cached.allocate(CPUS[0], ONE, Preference::Any);
        let theirs = thread.join().unwrap();
        if let (Ok(mine), Ok(theirs)) = (mine, theirs) {
            assert_ne!(mine, theirs);
        }
        for frame in [mine, theirs].into_iter().flatten() {
            cached.free(CPUS[1], frame, ONE).unwrap();
        }
        cached.recover();
        cached.with(|zone| assert_eq!(zone.free_frames(), FrameCount::new(2)));
    });
}

/// What the last user wrote into a frame happens before what the next one does.
#[test]
fn loom_the_content_is_handed_over() {
    static HANDED_OVER: AtomicU32 = AtomicU32::new(0);
    model(|| {
        let cached = cached(2);
        let content = Arc::new(loom::cell::UnsafeCell::new(0));
        let frame = cached.allocate(CPUS[0], ONE, Preference::Any).unwrap();
        let (other, theirs) = (Arc::clone(&cached), Arc::clone(&content));
        let thread = loom::thread::spawn(move || {
            theirs.with_mut(|content| {
                // SAFETY: this thread owns the frame until the free below; loom checks that.
                unsafe { *content = 1 }
            });
            other.free(CPUS[0], frame, ONE).unwrap();
        });
        // The length of the cache orders nothing by itself.
        while cached.cached() == FrameCount::ZERO {
            loom::thread::yield_now();
        }
        cached.drain(CPUS[0]);
        if cached.allocate_at(frame, ONE).is_ok() {
            // SAFETY: the frame is ours now; loom checks that the write happened before.
            content.with(|content| assert_eq!(unsafe { *content }, 1));
            HANDED_OVER.fetch_add(1, Ordering::Relaxed);
        }
        thread.join().unwrap();
    });
    assert_ne!(HANDED_OVER.load(Ordering::Relaxed), 0, "the model is empty");
}

/// A front of two frames, both used: one to free, its neighbour to keep it from merging.
fn cached_in_use() -> (Arc<Caches>, Frame) {
    let cached = cached(2);
    let frame = Frame::new(0);
    for number in 0..2 {
        cached.allocate_at(Frame::new(number), ONE).unwrap();
    }
    (cached, frame)
}

/// One thread frees a used frame on its CPU, the other by `other_free`, and allocates a frame
/// afterwards if `again`. However they meet, the frame has one owner at the end; and one of the
/// frees is refused, unless the frame was allocated in between.
fn two_frees(
    again: bool,
    other_free: impl Fn(&Caches, Frame) -> Result<(), FreeError> + Copy + Send + Sync + 'static,
) {
    model(move || {
        let (cached, frame) = cached_in_use();
        let other = Arc::clone(&cached);
        let thread = loom::thread::spawn(move || {
            let freed = other_free(&other, frame);
            let found = again.then(|| other.allocate(CPUS[1], ONE, Preference::Any));
            (freed, found.and_then(Result::ok))
        });
        let mine = cached.free(CPUS[0], frame, ONE);
        let (theirs, found) = thread.join().unwrap();
        let told = [mine, theirs].contains(&Err(FreeError::DoubleFree));
        assert!(told || found.is_some(), "{mine:?} and {theirs:?}");
        assert!(mine.is_ok() || theirs.is_ok());
        assert!(found.is_none_or(|found| found == frame));
        cached.drain_all();
        let free = cached.with(|zone| zone.free_frames().get());
        assert_eq!(cached.with(|zone| zone.stats().used.get()), 2 - free);
        // A free that was not refused may have come after the allocation.
        assert!(!told || free == u64::from(found.is_none()));
        let mut last = cached.free(CPUS[0], frame, ONE);
        assert_eq!(
            last.is_ok(),
            free == 0,
            "the owner can free it, nobody else"
        );
        last = cached.free(CPUS[1], frame, ONE);
        assert_eq!(last, Err(FreeError::DoubleFree));
    });
}

#[test]
fn loom_free_against_free_and_drain() {
    let free = |cached: &Caches, frame| {
        let answer = cached.free(CPUS[1], frame, ONE);
        cached.drain(CPUS[1]);
        answer
    };
    two_frees(false, free);
    two_frees(true, free);
}

#[test]
fn loom_free_against_a_free_under_the_lock() {
    let free = |cached: &Caches, frame| cached.with(|zone| zone.free(frame, ONE));
    two_frees(false, free);
    two_frees(true, free);
}

#[test]
fn loom_free_against_a_free_of_the_range() {
    let range = |frame| FrameRange::new(frame, FrameCount::new(1));
    let free = move |cached: &Caches, frame| cached.with(|zone| zone.free_range(range(frame)));
    two_frees(false, free);
    two_frees(true, free);
}

/// A second free that is refused leaves no trace: who was given the frame meanwhile can free it.
#[test]
fn loom_a_refused_free_does_not_harm_the_new_owner() {
    for at_once in [false, true] {
        model(move || {
            let (cached, frame) = cached_in_use();
            let other = Arc::clone(&cached);
            let thread = loom::thread::spawn(move || {
                let freed = other.with(|zone| zone.free(frame, ONE));
                let found = if at_once {
                    other.with(|zone| zone.allocate_at(frame, ONE)).is_ok()
                } else {
                    other.allocate(CPUS[1], ONE, Preference::Any).is_ok()
                };
                (freed, found.then(|| other.free(CPUS[1], frame, ONE)))
            });
            let mine = cached.free(CPUS[0], frame, ONE);
            let (theirs, again) = thread.join().unwrap();
            if mine.is_err() {
                assert_eq!((theirs, again), (Ok(()), Some(Ok(()))));
            }
            cached.drain_all();
            cached.with(|zone| assert_eq!(zone.free_frames(), FrameCount::new(1)));
        });
    }
}

/// The range has a frame that is not in use: its free is refused as a whole, and the free of the
/// good frame counts whenever it comes.
#[test]
fn loom_free_against_a_range_that_is_refused() {
    model(|| {
        let (cached, frame) = cached_in_use();
        cached.free(CPUS[0], Frame::new(1), ONE).unwrap();
        let other = Arc::clone(&cached);
        let thread = loom::thread::spawn(move || {
            let both = FrameRange::new(frame, FrameCount::new(2));
            other.with(|zone| zone.free_range(both))
        });
        let mine = cached.free(CPUS[1], frame, ONE);
        assert_eq!(mine, Ok(()));
        assert_eq!(thread.join().unwrap(), Err(FreeError::DoubleFree));
        cached.drain_all();
        cached.with(|zone| assert_eq!(zone.free_frames(), FrameCount::new(2)));
    });
}

/// A block is split under the lock while another CPU frees it whole: one of the two is told.
#[test]
fn loom_free_against_split() {
    model(|| {
        let cached = cached(2);
        let pair = Order::new(1).unwrap();
        let block = cached
            .with(|zone| zone.allocate(pair, Preference::Any))
            .unwrap();
        let other = Arc::clone(&cached);
        let thread =
            loom::thread::spawn(move || other.with(|zone| zone.split_block(block, pair, ONE)));
        let freed = cached.free(CPUS[0], block, pair);
        let split = thread.join().unwrap();
        assert_ne!(freed.is_ok(), split.is_ok(), "{freed:?} and {split:?}");
        cached.drain_all();
        let free = if freed.is_ok() { 2 } else { 0 };
        cached.with(|zone| assert_eq!(zone.free_frames(), FrameCount::new(free)));
    });
}

/// The owner of a frame frees it while another CPU still drains the cache it came from.
#[test]
fn loom_a_late_drain_refuses_nobody() {
    model(|| {
        let (cached, frame) = cached_in_use();
        cached.free(CPUS[0], frame, ONE).unwrap();
        let other = Arc::clone(&cached);
        let thread = loom::thread::spawn(move || other.drain(CPUS[0]));
        if cached.allocate(CPUS[0], ONE, Preference::Any).is_ok() {
            cached.free(CPUS[0], frame, ONE).unwrap();
        }
        thread.join().unwrap();
        cached.drain_all();
        cached.with(|zone| assert_eq!(zone.free_frames(), FrameCount::new(1)));
    });
}
