//! Stand-in of the kernel: a heap that owns all memory and calls a hook with
//! itself when it is empty, tasks polled with interrupts off, a timer.

use core::pin::Pin;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::{Context, Waker};
use std::sync::Arc;
use std::task::Wake;

use balloon_core::{FrameRange, Nanos};

use crate::machine::{Lock, PageBits};

/// Ready registers: in a kernel, those that `PciLayout::connect` maps.
pub use crate::machine::Registers;
/// Memory shared with devices.
pub use transport_virtio::testing::FakeMemory as DmaMemory;

const PAGES: usize = 4096;
const FIRST: u64 = 0x1000;

/// What to do when the heap is empty; it is handed the locked heap.
pub type OutOfMemory = fn(&mut Heap) -> Option<()>;

/// The heap.
pub static HEAP: Lock<Heap> = Lock::new(Heap::EMPTY);
static CLOCK: Lock<Nanos> = Lock::new(Nanos::ZERO);
static TIMER: Lock<Option<Nanos>> = Lock::new(None);
static TASK: Lock<Option<Pin<Box<dyn Future<Output = ()> + Send>>>> = Lock::new(None);
static WAKER: Lock<Option<Waker>> = Lock::new(None);

/// An allocator of bytes: what is freed must be what was allocated.
#[derive(Debug)]
pub struct Heap {
    pages: Option<PageBits>,
    /// Start and pages of each allocation.
    live: Vec<(u64, usize)>,
    hook: Option<OutOfMemory>,
}

impl Heap {
    const EMPTY: Self = Self {
        pages: None,
        live: Vec::new(),
        hook: None,
    };

    fn pages(&mut self) -> &mut PageBits {
        self.pages
            .get_or_insert_with(|| PageBits::new(FIRST, PAGES))
    }

    /// All memory of the heap.
    pub fn memory(&mut self) -> FrameRange {
        self.pages().memory()
    }

    /// Free pages.
    pub fn left(&mut self) -> usize {
        self.pages().left()
    }

    /// Calls this when there is no memory.
    pub fn on_out_of_memory(&mut self, hook: OutOfMemory) {
        self.hook = Some(hook);
    }

    /// Allocates aligned pages; calls no hook.
    pub fn allocate_quietly(&mut self, pages: usize, align: u64) -> Option<u64> {
        let first = self.pages().take(pages, align)?;
        self.live.push((first, pages));
        Some(first * 4096)
    }

    /// Allocates aligned pages.
    pub fn allocate(&mut self, pages: usize, align: u64) -> Option<u64> {
        self.allocate_quietly(pages, align).or_else(|| {
            self.hook?(self)?;
            self.allocate_quietly(pages, align)
        })
    }

    /// Frees an allocation.
    ///
    /// # Panics
    /// If it is none: the heap is corrupt.
    pub fn deallocate(&mut self, address: u64, pages: usize) {
        let freed = (address / 4096, pages);
        let live = self.live.iter().position(|live| *live == freed);
        self.live
            .swap_remove(live.expect("freed as it was allocated"));
        assert!(self.pages().free(address / 4096, pages));
    }
}

/// Time since the start.
#[must_use]
pub fn now() -> Nanos {
    *CLOCK.lock()
}

/// Time passes; the timer interrupt comes if it is due.
pub fn pass(time: Nanos) {
    let now = now().saturating_add(time);
    *CLOCK.lock() = now;
    if TIMER.lock().take_if(|at| *at <= now).is_some() {
        wake();
    }
}

/// Wakes the waker at this time, or not at all.
pub fn create_timer(at: Option<Nanos>) {
    *TIMER.lock() = at;
}

/// Keeps whom the handlers and the timer wake.
pub fn register_waker(waker: &Waker) {
    WAKER.lock().replace(waker.clone());
}

/// Wakes the waker.
pub fn wake() {
    if let Some(waker) = WAKER.lock().take() {
        waker.wake();
    }
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Adds the one task of this kernel and polls it for the first time.
pub fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    *TASK.lock() = Some(Box::pin(task));
    poll_once();
}

/// An interrupt: its handler, then the executor, as long as a task is woken.
pub fn interrupt(handler: fn()) {
    handler();
    // Whether the task was woken, its waker tells by being gone.
    for _ in 0..100 {
        if WAKER.lock().is_some() {
            return;
        }
        poll_once();
    }
    panic!("a task that never rests in an interrupt handler");
}

fn poll_once() {
    let woken = Arc::new(Woken(AtomicBool::new(false)));
    let waker = Waker::from(woken.clone());
    if let Some(task) = TASK.lock().as_mut() {
        let polled = task.as_mut().poll(&mut Context::from_waker(&waker));
        assert!(polled.is_pending(), "the task ends never");
    }
    if woken.0.load(Ordering::Relaxed) {
        WAKER.lock().take();
    }
}
