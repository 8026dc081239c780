//! The heap of this program: counts bytes, for allocators that keep their metadata there, and backs
//! large blocks by huge pages, as a kernel's direct map would be. That goes for everybody's tables.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// Size and alignment of a huge page; blocks from here on are mapped.
const HUGE: usize = 2 << 20;

static COUNTING: AtomicBool = AtomicBool::new(false);
static NOW: AtomicU64 = AtomicU64::new(0);
static PEAK: AtomicU64 = AtomicU64::new(0);

pub(crate) struct Counting;

unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if COUNTING.load(Relaxed) {
            let now = NOW.fetch_add(layout.size() as u64, Relaxed) + layout.size() as u64;
            PEAK.fetch_max(now, Relaxed);
        }
        if layout.size() >= HUGE {
            return map(layout.size());
        }
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if COUNTING.load(Relaxed) {
            let now = NOW.fetch_add(layout.size() as u64, Relaxed) + layout.size() as u64;
            PEAK.fetch_max(now, Relaxed);
        }
        if layout.size() >= HUGE {
            return map(layout.size());
        }
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        if COUNTING.load(Relaxed) {
            // A block from before the counting began takes nothing below zero.
            let less = |now: u64| Some(now.saturating_sub(layout.size() as u64));
            let _ = NOW.fetch_update(Relaxed, Relaxed, less);
        }
        if layout.size() >= HUGE {
            let len = layout.size().next_multiple_of(HUGE);
            let done = unsafe { munmap(place.cast(), len) };
            debug_assert!(done.is_ok());
            return;
        }
        unsafe { System.dealloc(place, layout) }
    }
}

/// Zeroed memory in huge pages, backed by the host as it is touched; null if there is none.
fn map(size: usize) -> *mut u8 {
    let len = size.next_multiple_of(HUGE);
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    let Ok(raw) = (unsafe { mmap_anonymous(std::ptr::null_mut(), len + HUGE, protection, flags) })
    else {
        return std::ptr::null_mut();
    };
    // What lies before the first huge page and behind the last goes back.
    let before = raw.addr().next_multiple_of(HUGE) - raw.addr();
    let start = raw.wrapping_byte_add(before);
    if before > 0 {
        let _ = unsafe { munmap(raw, before) };
    }
    let _ = unsafe { munmap(start.wrapping_byte_add(len), HUGE - before) };
    let _ = unsafe { madvise(start, len, Advice::LinuxHugepage) };
    start.cast()
}

/// Most heap bytes in use at once during `f`, beyond those in use before.
pub(crate) fn peak_during<R>(f: impl FnOnce() -> R) -> (R, u64) {
    NOW.store(0, Relaxed);
    PEAK.store(0, Relaxed);
    COUNTING.store(true, Relaxed);
    let result = f();
    COUNTING.store(false, Relaxed);
    (result, PEAK.load(Relaxed))
}
