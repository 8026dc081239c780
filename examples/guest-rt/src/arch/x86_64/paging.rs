//! Page tables: all RAM and every mapped device, one to one.
//!
//! The image is mapped with the rights of its sections and the first page not
//! at all. Tables come from a pool carved before the allocator sees any memory;
//! it keeps enough for devices mapped later.

use core::cell::RefCell;

use critical_section::Mutex;
use thiserror::Error;
use x86_64::registers::control::{Cr3, Cr3Flags};
use x86_64::structures::paging::mapper::{MapToError, MapperFlush};
use x86_64::structures::paging::{
    FrameAllocator, Mapper, OffsetPageTable, PageSize, PageTable, PageTableFlags, PhysFrame,
    Size1GiB, Size2MiB, Size4KiB,
};
use x86_64::{PhysAddr as CpuAddr, VirtAddr};

use super::boot::Image;
use crate::memory::{MapFull, MemoryMap, PhysAddr, PhysRange};
use crate::mmio::MapError;

const GIB: u64 = 1 << 30;
/// Frames of the pool beside one per GiB of RAM: page tables of the edges of
/// RAM, of the image, and of devices, which may each lie far from all others.
const SPARE_TABLES: u64 = 64;

const RAM: PageTableFlags = PageTableFlags::PRESENT
    .union(PageTableFlags::WRITABLE)
    .union(PageTableFlags::NO_EXECUTE);
const TEXT: PageTableFlags = PageTableFlags::PRESENT;
const RODATA: PageTableFlags = TEXT.union(PageTableFlags::NO_EXECUTE);
const DEVICE: PageTableFlags = RAM
    .union(PageTableFlags::NO_CACHE)
    .union(PageTableFlags::WRITE_THROUGH);

/// Why the tables could not be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum PagingError {
    #[error("no room for page tables")]
    NoRoom,
    #[error("{0}")]
    Split(#[from] MapFull),
    #[error("{0}")]
    Map(#[from] MapError),
}

/// The tables in force, where their frames come from, and what is not a device.
struct Paging {
    tables: OffsetPageTable<'static>,
    pool: Pool,
    ram: MemoryMap,
}

static PAGING: Mutex<RefCell<Option<Paging>>> = Mutex::new(RefCell::new(None));

/// Builds the tables, switches to them, and returns the memory left over.
pub(super) fn start(
    ram: &MemoryMap,
    mut free: MemoryMap,
    image: Image,
) -> Result<MemoryMap, PagingError> {
    let frames = SPARE_TABLES + ram.bytes().div_ceil(GIB);
    let bytes = frames * Size4KiB::SIZE;
    let pool = free
        .carve(bytes, Size4KiB::SIZE)
        .ok_or(PagingError::NoRoom)?;
    if pool.end().get() > 4 * GIB {
        // The boot tables end there.
        return Err(PagingError::NoRoom);
    }
    let mut pool = Pool { left: pool };
    let root = pool.allocate_frame().ok_or(PagingError::NoRoom)?;
    let table = PhysAddr::new(root.start_address().as_u64()).as_mut_ptr::<PageTable>();
    // SAFETY: a zeroed frame of the pool, mapped one to one, nobody else's.
    let table = unsafe { &mut *table };
    // SAFETY: all tables lie in RAM, which is mapped with offset 0.
    let tables = unsafe { OffsetPageTable::new(table, VirtAddr::zero()) };
    let mut paging = Paging {
        tables,
        pool,
        ram: ram.clone(),
    };

    let mut plain = ram.clone();
    plain.exclude(image.whole)?;
    plain.exclude(PhysRange::sized(PhysAddr::new(0), Size4KiB::SIZE))?;
    for range in plain.iter() {
        paging.map(range.shrink_to(Size4KiB::SIZE), RAM)?;
    }
    let mut data = MemoryMap::new();
    data.add(image.whole)?;
    data.exclude(image.text)?;
    data.exclude(image.rodata)?;
    for range in data.iter() {
        paging.map(range, RAM)?;
    }
    paging.map(image.text, TEXT)?;
    paging.map(image.rodata, RODATA)?;

    // SAFETY: the tables map the image, its stack and all RAM as before.
    unsafe { Cr3::write(root, Cr3Flags::empty()) };
    critical_section::with(|cs| PAGING.borrow(cs).replace(Some(paging)));
    Ok(free)
}

/// Maps a device's registers, uncached, at their physical address.
pub(crate) fn map_device(range: PhysRange) -> Result<(), MapError> {
    map_outside_ram(range, DEVICE)
}

/// Maps memory that is not RAM of ours at its physical address.
pub(crate) fn map_shared(range: PhysRange) -> Result<(), MapError> {
    map_outside_ram(range, RAM)
}

/// Where the tables in force begin, for another CPU to use them, too.
#[must_use]
pub fn page_tables() -> Option<PhysAddr> {
    critical_section::with(|cs| {
        let paging = PAGING.borrow_ref(cs);
        let root = paging.as_ref()?.tables.level_4_table();
        // All memory is mapped one to one.
        Some(PhysAddr::of(root))
    })
}

fn map_outside_ram(range: PhysRange, flags: PageTableFlags) -> Result<(), MapError> {
    critical_section::with(|cs| {
        let mut paging = PAGING.borrow_ref_mut(cs);
        let paging = paging.as_mut().ok_or(MapError::NoTables)?;
        let start = range.start().align_down(Size4KiB::SIZE);
        let end = range
            .end()
            .align_up(Size4KiB::SIZE)
            .ok_or(MapError::NotAddressable)?;
        let pages = PhysRange::new(start, end);
        if paging.ram.overlaps(pages) {
            return Err(MapError::IsRam);
        }
        paging.map(pages, flags)
    })
}

impl Paging {
    /// Maps page-aligned memory in the largest pages that fit.
    fn map(&mut self, range: PhysRange, flags: PageTableFlags) -> Result<(), MapError> {
        let huge = has_1gib_pages();
        let mut at = range.start().get();
        while at < range.end().get() {
            let left = range.end().get() - at;
            let fits = |size: u64| at.is_multiple_of(size) && left >= size;
            at += if huge && fits(Size1GiB::SIZE) {
                self.map_page::<Size1GiB>(at, flags)?
            } else if fits(Size2MiB::SIZE) {
                self.map_page::<Size2MiB>(at, flags)?
            } else {
                self.map_page::<Size4KiB>(at, flags)?
            };
        }
        Ok(())
    }

    fn map_page<S>(&mut self, at: u64, flags: PageTableFlags) -> Result<u64, MapError>
    where
        S: PageSize + core::fmt::Debug,
        for<'a> OffsetPageTable<'a>: Mapper<S>,
    {
        // One to one reaches as far as the lower half of virtual addresses.
        if at >= 1 << 47 {
            return Err(MapError::NotAddressable);
        }
        let frame = PhysFrame::<S>::containing_address(CpuAddr::new(at));
        // SAFETY: RAM and image ranges are mapped once, before anybody can hold
        // references; device ranges hold no Rust objects.
        match unsafe { self.tables.identity_map(frame, flags, &mut self.pool) } {
            Ok(flush) => MapperFlush::flush(flush),
            // Two devices in one page: all of it is registers.
            Err(MapToError::PageAlreadyMapped(known)) if known == frame => {}
            Err(MapToError::PageAlreadyMapped(_) | MapToError::ParentEntryHugePage) => {
                return Err(MapError::Overlaps);
            }
            Err(MapToError::FrameAllocationFailed) => return Err(MapError::NoTables),
        }
        Ok(S::SIZE)
    }
}

fn has_1gib_pages() -> bool {
    const EXTENDED_FEATURES: u32 = 0x8000_0001;
    core::arch::x86_64::__cpuid(EXTENDED_FEATURES).edx & 1 << 26 != 0
}

/// Frames for page tables, handed out once and never returned.
struct Pool {
    left: PhysRange,
}

// SAFETY: frames come from a range carved out of the free map, each once.
unsafe impl FrameAllocator<Size4KiB> for Pool {
    fn allocate_frame(&mut self) -> Option<PhysFrame> {
        let frame = PhysRange::sized(self.left.start(), Size4KiB::SIZE);
        if self.left.is_empty() {
            return None;
        }
        self.left = PhysRange::new(frame.end(), self.left.end());
        let words = frame.start().as_mut_ptr::<[u8; 4096]>();
        // SAFETY: a frame of the pool, mapped and nobody else's.
        unsafe { words.write_bytes(0, 1) };
        Some(PhysFrame::containing_address(CpuAddr::new(
            frame.start().get(),
        )))
    }
}
