//! The peers from the registry, through the same trait.

use std::alloc::Layout;
use std::cell::UnsafeCell;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use bitmap_allocator::{BitAlloc, BitAlloc16M};
use buddy_system_allocator::{FrameAllocator, Heap};
use frame_alloc::{
    CpuId, DepotAllocator, PageSize, PhysicalAllocator, Provenance, RegionInit,
    SummaryBuddyAllocator,
};
use free_list::{FreeList, PageLayout, PageRange};
use jjyr_buddy_alloc::buddy_alloc::{BuddyAlloc, BuddyAllocParam};

use crate::pool::{GIB, Pool};
use crate::{Candidate, Frames, cpu, heap};

pub(crate) fn candidates() -> Vec<Candidate> {
    let candidate = |name, shared, in_page, make| Candidate {
        name,
        shared,
        in_page,
        // The others assert in debug builds or not at all.
        refuses: if name.starts_with("bitmap") || name.starts_with("free-list") {
            "double frees"
        } else {
            "none"
        },
        make,
    };
    vec![
        candidate("frame-alloc SummaryBuddy", true, false, |frames| {
            Box::new(InPool::<Summary>::new(
                frames,
                SummaryBuddyAllocator::new(BASE),
            ))
        }),
        candidate("frame-alloc Depot", true, false, |frames| {
            let backend = SummaryBuddyAllocator::new(BASE);
            Box::new(InPool::<Depot>::new(
                frames,
                DepotAllocator::new(BASE, backend),
            ))
        }),
        candidate(
            "buddy_system_allocator Frame (lock)",
            true,
            false,
            |frames| Box::new(Spin::<BuddySystem>::new(frames)),
        ),
        candidate(
            "buddy_system_allocator Frame (no lock)",
            false,
            false,
            |frames| Box::new(Alone::<BuddySystem>::new(frames)),
        ),
        candidate("bitmap-allocator (lock)", true, false, |frames| {
            Box::new(Spin::<Bitmap>::new(frames))
        }),
        candidate("bitmap-allocator (no lock)", false, false, |frames| {
            Box::new(Alone::<Bitmap>::new(frames))
        }),
        candidate("free-list (lock)", true, false, |frames| {
            Box::new(Spin::<Ranges>::new(frames))
        }),
        candidate("free-list (no lock)", false, false, |frames| {
            Box::new(Alone::<Ranges>::new(frames))
        }),
        candidate("buddy-alloc by jjyr (lock)", true, true, |frames| {
            Box::new(Spin::<Jjyr>::new(frames))
        }),
        candidate("buddy-alloc by jjyr (no lock)", false, true, |frames| {
            Box::new(Alone::<Jjyr>::new(frames))
        }),
        candidate("buddy_system_allocator Heap (lock)", true, true, |frames| {
            Box::new(Spin::<InFrames>::new(frames))
        }),
        candidate(
            "buddy_system_allocator Heap (no lock)",
            false,
            true,
            |frames| Box::new(Alone::<InFrames>::new(frames)),
        ),
    ]
}

// frame-alloc keeps its bitmap in the pool and needs pointers to it.

const BASE: PageSize = PageSize::from_log2(12);
const ORDERS: usize = 11;

struct Identity;

unsafe impl Provenance for Identity {
    unsafe fn create(phys: usize) -> NonNull<u8> {
        unsafe { NonNull::new_unchecked(std::ptr::with_exposed_provenance_mut(phys)) }
    }

    unsafe fn destroy<T>(place: NonNull<T>) -> usize {
        place.addr().get()
    }
}

struct Thread;

impl CpuId for Thread {
    fn current_cpu() -> usize {
        cpu::current() as usize
    }
}

type Summary = SummaryBuddyAllocator<ORDERS, Identity>;
type Depot = DepotAllocator<Summary, Thread, 2>;

struct InPool<A> {
    allocator: A,
    pool: Pool,
}

impl<A: RegionInit> InPool<A> {
    fn new(frames: u64, allocator: A) -> Self {
        let pool = Pool::new(frames);
        unsafe { allocator.init_region(pool.base, (frames as usize) << 12) };
        Self { allocator, pool }
    }
}

impl<A: PhysicalAllocator + Sync> Frames for InPool<A> {
    fn alloc(&self, order: u32) -> Option<u64> {
        let count = NonZeroUsize::MIN.checked_mul(NonZeroUsize::new(1 << order)?)?;
        let address = self.allocator.allocate_physical(BASE, count).ok()?;
        Some((address - self.pool.base) as u64 >> 12)
    }

    fn free(&self, frame: u64, order: u32) {
        let Some(count) = NonZeroUsize::new(1 << order) else {
            return;
        };
        let address = self.pool.base + ((frame as usize) << 12);
        unsafe { self.allocator.deallocate_physical(BASE, count, address) };
    }

    fn metadata(&self) -> u64 {
        // Nothing writes to frames in this program, so what is resident is the bitmap.
        size_of::<A>() as u64 + self.pool.resident() * 4096
    }
}

/// An allocator that is used through `&mut`.
trait Exclusive: Send {
    fn new(frames: u64) -> Self;
    fn alloc(&mut self, order: u32) -> Option<u64>;
    fn free(&mut self, frame: u64, order: u32);
    /// Metadata outside the heap, in bytes.
    fn metadata(&self) -> u64;
}

struct Spin<A> {
    allocator: spin::Mutex<A>,
    heap: u64,
}

impl<A: Exclusive> Spin<A> {
    fn new(frames: u64) -> Self {
        let (allocator, heap) = heap::peak_during(|| A::new(frames));
        Self {
            allocator: spin::Mutex::new(allocator),
            heap,
        }
    }
}

impl<A: Exclusive> Frames for Spin<A> {
    fn alloc(&self, order: u32) -> Option<u64> {
        self.allocator.lock().alloc(order)
    }

    fn free(&self, frame: u64, order: u32) {
        self.allocator.lock().free(frame, order);
    }

    fn metadata(&self) -> u64 {
        self.heap + self.allocator.lock().metadata()
    }
}

struct Alone<A> {
    allocator: UnsafeCell<A>,
    heap: u64,
}

/// Used by one thread at a time.
unsafe impl<A: Send> Sync for Alone<A> {}

impl<A: Exclusive> Alone<A> {
    fn new(frames: u64) -> Self {
        let (allocator, heap) = heap::peak_during(|| A::new(frames));
        Self {
            allocator: UnsafeCell::new(allocator),
            heap,
        }
    }
}

impl<A: Exclusive> Frames for Alone<A> {
    fn alloc(&self, order: u32) -> Option<u64> {
        unsafe { &mut *self.allocator.get() }.alloc(order)
    }

    fn free(&self, frame: u64, order: u32) {
        unsafe { &mut *self.allocator.get() }.free(frame, order);
    }

    fn metadata(&self) -> u64 {
        self.heap + unsafe { &*self.allocator.get() }.metadata()
    }
}

struct BuddySystem(FrameAllocator<19>);

impl Exclusive for BuddySystem {
    fn new(frames: u64) -> Self {
        let mut allocator = FrameAllocator::new();
        allocator.add_frame(0, frames as usize);
        Self(allocator)
    }

    fn alloc(&mut self, order: u32) -> Option<u64> {
        self.0.alloc(1 << order).map(|frame| frame as u64)
    }

    fn free(&mut self, frame: u64, order: u32) {
        self.0.dealloc(frame as usize, 1 << order);
    }

    fn metadata(&self) -> u64 {
        size_of::<FrameAllocator<19>>() as u64
    }
}

struct Bitmap(Box<BitAlloc16M>);

impl Exclusive for Bitmap {
    fn new(frames: u64) -> Self {
        let mut bits = Box::<BitAlloc16M>::default();
        bits.insert(0..frames as usize);
        Self(bits)
    }

    fn alloc(&mut self, order: u32) -> Option<u64> {
        let found = if order == 0 {
            self.0.alloc()
        } else {
            self.0.alloc_contiguous(None, 1 << order, order as usize)
        };
        found.map(|frame| frame as u64)
    }

    fn free(&mut self, frame: u64, order: u32) {
        let done = if order == 0 {
            self.0.dealloc(frame as usize)
        } else {
            self.0.dealloc_contiguous(frame as usize, 1 << order)
        };
        assert!(done);
    }

    fn metadata(&self) -> u64 {
        0 // The box is on the heap.
    }
}

/// The list refuses page 0, and blocks shall be aligned to their size.
const LIST_BASE: usize = GIB;

struct Ranges(FreeList<16>);

impl Exclusive for Ranges {
    fn new(frames: u64) -> Self {
        let mut list = FreeList::new();
        let all = PageRange::new(LIST_BASE, LIST_BASE + ((frames as usize) << 12)).unwrap();
        unsafe { list.deallocate(all) }.unwrap();
        Self(list)
    }

    fn alloc(&mut self, order: u32) -> Option<u64> {
        let size = 4096 << order;
        let layout = PageLayout::from_size_align(size, size).ok()?;
        self.0
            .allocate(layout)
            .ok()
            .map(|range| (range.start() - LIST_BASE) as u64 >> 12)
    }

    fn free(&mut self, frame: u64, order: u32) {
        let start = LIST_BASE + ((frame as usize) << 12);
        let range = PageRange::from_start_len(start, 4096 << order).unwrap();
        unsafe { self.0.deallocate(range) }.unwrap();
    }

    fn metadata(&self) -> u64 {
        size_of::<FreeList<16>>() as u64
    }
}

struct Jjyr {
    allocator: BuddyAlloc,
    pool: Pool,
}

unsafe impl Send for Jjyr {}

impl Exclusive for Jjyr {
    fn new(frames: u64) -> Self {
        let pool = Pool::new(frames);
        let base = std::ptr::with_exposed_provenance::<u8>(pool.base);
        let param = BuddyAllocParam::new_with_zero_filled(base, (frames as usize) << 12, 4096);
        Self {
            allocator: unsafe { BuddyAlloc::new(param) },
            pool,
        }
    }

    fn alloc(&mut self, order: u32) -> Option<u64> {
        let place = self.allocator.malloc(4096 << order);
        (!place.is_null()).then(|| (place.addr() - self.pool.base) as u64 >> 12)
    }

    fn free(&mut self, frame: u64, _order: u32) {
        let address = self.pool.base + ((frame as usize) << 12);
        // Blocks start where its head ends, which is not page-aligned by itself.
        self.allocator
            .free(std::ptr::with_exposed_provenance_mut(address));
    }

    fn metadata(&self) -> u64 {
        (self.pool.frames << 12) - self.allocator.available_bytes() as u64
    }
}

struct InFrames {
    heap: Heap<32>,
    pool: Pool,
}

unsafe impl Send for InFrames {}

impl Exclusive for InFrames {
    fn new(frames: u64) -> Self {
        let pool = Pool::new(frames);
        let mut heap = Heap::new();
        unsafe { heap.init(pool.base, (frames as usize) << 12) };
        Self { heap, pool }
    }

    fn alloc(&mut self, order: u32) -> Option<u64> {
        let layout = Layout::from_size_align(4096 << order, 4096 << order).ok()?;
        let place = self.heap.alloc(layout).ok()?;
        Some((place.addr().get() - self.pool.base) as u64 >> 12)
    }

    fn free(&mut self, frame: u64, order: u32) {
        let layout = Layout::from_size_align(4096 << order, 4096 << order).unwrap();
        let address = self.pool.base + ((frame as usize) << 12);
        let place = std::ptr::with_exposed_provenance_mut(address);
        let Some(place) = NonNull::new(place) else {
            return;
        };
        unsafe { self.heap.dealloc(place, layout) };
    }

    fn metadata(&self) -> u64 {
        size_of::<Heap<32>>() as u64
    }
}
