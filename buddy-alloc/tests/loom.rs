//! The hand-over between CPU caches in every interleaving:
//! `RUSTFLAGS="--cfg loom" cargo test --profile loom -p buddy-alloc --test loom`.
#![cfg(loom)]

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

type Front = CachedZone<'static, LoomLock<Zone<'static>>, 2>;

const CPUS: [Cpu; 2] = [Cpu::new(0), Cpu::new(1)];
const ONE: Order = Order::FRAME;

fn front(frames: u64) -> Arc<Front> {
    let span = FrameRange::new(Frame::new(0), FrameCount::new(frames));
    let config = Config::new();
    let mut zone = Zone::new(span, config, vec![0; config.metadata_words(span)].leak()).unwrap();
    zone.add_range(span, Backing::Untouched).unwrap();
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
        let front = front(2);
        let waiting = front.allocate(CPUS[0], ONE, Preference::Any).unwrap();
        front.free(CPUS[0], waiting, ONE).unwrap();
        let other = Arc::clone(&front);
        let drainer = loom::thread::spawn(move || {
            other.drain(CPUS[0]);
            other.allocate(CPUS[1], ONE, Preference::Any)
        });
        let mine = front.allocate(CPUS[0], ONE, Preference::Any);
        let theirs = drainer.join().unwrap();
        if let (Ok(mine), Ok(theirs)) = (mine, theirs) {
            assert_ne!(mine, theirs);
        }
        for frame in [mine, theirs].into_iter().flatten() {
            front.free(CPUS[0], frame, ONE).unwrap();
        }
        front.drain_all();
        front.with(|zone| assert_eq!(zone.free_frames(), FrameCount::new(2)));
    });
}

/// Two frees of one block: one wins, the other is told.
#[test]
fn loom_double_free_on_two_cpus() {
    model(|| {
        let front = front(2);
        let frame = front.allocate(CPUS[0], ONE, Preference::Any).unwrap();
        let other = Arc::clone(&front);
        let thread = loom::thread::spawn(move || other.free(CPUS[1], frame, ONE));
        let mine = front.free(CPUS[0], frame, ONE);
        let theirs = thread.join().unwrap();
        let lost = [mine, theirs]
            .iter()
            .filter(|r| **r == Err(FreeError::DoubleFree))
            .count();
        assert_eq!(lost, 1, "{mine:?} and {theirs:?}");
        front.drain_all();
        front.with(|zone| assert_eq!(zone.free_frames(), FrameCount::new(2)));
    });
}

/// Both threads claim to be CPU 0. Entries may be lost to each other, blocks are not shared, and
/// what was stranded comes back.
#[test]
fn loom_the_wrong_cpu_number_shares_no_block() {
    model(|| {
        let front = front(2);
        let waiting = front.allocate(CPUS[0], ONE, Preference::Any).unwrap();
        front.free(CPUS[0], waiting, ONE).unwrap();
        let other = Arc::clone(&front);
        let thread = loom::thread::spawn(move || other.allocate(CPUS[0], ONE, Preference::Any));
        let mine = front.allocate(CPUS[0], ONE, Preference::Any);
        let theirs = thread.join().unwrap();
        if let (Ok(mine), Ok(theirs)) = (mine, theirs) {
            assert_ne!(mine, theirs);
        }
        for frame in [mine, theirs].into_iter().flatten() {
            front.free(CPUS[1], frame, ONE).unwrap();
        }
        front.recover();
        front.with(|zone| assert_eq!(zone.free_frames(), FrameCount::new(2)));
    });
}

/// What the last user wrote into a frame happens before what the next one does.
#[test]
fn loom_the_content_is_handed_over() {
    model(|| {
        let front = front(2);
        let content = Arc::new(loom::cell::UnsafeCell::new(0));
        let frame = front.allocate(CPUS[0], ONE, Preference::Any).unwrap();
        let (other, theirs) = (Arc::clone(&front), Arc::clone(&content));
        let thread = loom::thread::spawn(move || {
            theirs.with_mut(|content| {
                // SAFETY: this thread owns the frame until the free below; loom checks that.
                unsafe { *content = 1 }
            });
            other.free(CPUS[0], frame, ONE).unwrap();
        });
        front.drain(CPUS[0]);
        if front.allocate_at(frame, ONE).is_ok() {
            // SAFETY: the frame is ours now; loom checks that the write happened before.
            content.with(|content| assert_eq!(unsafe { *content }, 1));
        }
        thread.join().unwrap();
    });
}
