//! Page tables: all RAM and every mapped device, one to one.
//!
//! The image is mapped with the rights of its sections and the page under the
//! stack not at all. Tables come from a pool carved before the allocator sees
//! any memory; it keeps enough for devices mapped later.

use core::arch::asm;
use core::cell::RefCell;

use critical_section::Mutex;
use thiserror::Error;

use super::boot::Image;
use crate::memory::{MapFull, MemoryMap, PhysAddr, PhysRange};
use crate::mmio::MapError;

pub(super) const PAGE: u64 = 4096;
const GIB: u64 = 1 << 30;
/// Frames of the pool beside one per GiB of RAM: page tables of the edges of
/// RAM, of the image, and of devices, which may each lie far from all others.
const SPARE_TABLES: u64 = 64;
/// The boot tables end there.
const BOOT_END: u64 = 4 * GIB;

const ENTRIES: u64 = 512;
/// Bytes an entry of each level maps, top to bottom.
const SPANS: [u64; 4] = [1 << 39, GIB, 2 << 20, PAGE];

const VALID: u64 = 1;
/// A table, or at the bottom a page; other entries are blocks.
const TABLE: u64 = 1 << 1;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;

/// Rights and kind of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Attributes(u64);

impl Attributes {
    const ACCESSED: u64 = 1 << 10;
    const SHAREABLE: u64 = 3 << 8;
    const READ_ONLY: u64 = 1 << 7;
    const NEVER_EXECUTED: u64 = 1 << 53 | 1 << 54;
    const NOT_BY_USERS: u64 = 1 << 54;
    /// The second entry of the list of kinds: the boot code set it.
    const MEMORY: u64 = 1 << 2 | Self::SHAREABLE | Self::ACCESSED;

    const RAM: Self = Self(Self::MEMORY | Self::NEVER_EXECUTED);
    const TEXT: Self = Self(Self::MEMORY | Self::READ_ONLY | Self::NOT_BY_USERS);
    const RODATA: Self = Self(Self::RAM.0 | Self::READ_ONLY);
    const DEVICE: Self = Self(Self::ACCESSED | Self::NEVER_EXECUTED);
}

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
    root: PhysAddr,
    pool: PhysRange,
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
    let pool = free.carve(frames * PAGE, PAGE).ok_or(PagingError::NoRoom)?;
    if pool.end().get() > BOOT_END {
        return Err(PagingError::NoRoom);
    }
    let mut paging = Paging {
        root: pool.start(),
        pool,
        ram: ram.clone(),
    };
    paging.root = paging.new_table()?;

    let mut plain = ram.clone();
    plain.exclude(image.whole)?;
    for range in plain.iter() {
        paging.map(range.shrink_to(PAGE), Attributes::RAM)?;
    }
    let mut data = MemoryMap::new();
    data.add(image.whole)?;
    for part in [image.guard, image.text, image.rodata] {
        data.exclude(part)?;
    }
    for range in data.iter() {
        paging.map(range, Attributes::RAM)?;
    }
    paging.map(image.text, Attributes::TEXT)?;
    paging.map(image.rodata, Attributes::RODATA)?;

    // SAFETY: the tables map the image, its stack and all RAM as before.
    unsafe {
        asm!("dsb sy", "msr ttbr0_el1, {}", "isb", "tlbi vmalle1", "dsb sy", "isb",
             in(reg) paging.root.get(), options(nostack, preserves_flags));
    }
    critical_section::with(|cs| PAGING.borrow(cs).replace(Some(paging)));
    Ok(free)
}

/// Maps a device's registers, uncached, at their physical address.
pub(crate) fn map_device(range: PhysRange) -> Result<(), MapError> {
    map_outside_ram(range, Attributes::DEVICE)
}

/// Maps memory that is not RAM of ours at its physical address.
pub(crate) fn map_shared(range: PhysRange) -> Result<(), MapError> {
    map_outside_ram(range, Attributes::RAM)
}

fn map_outside_ram(range: PhysRange, attributes: Attributes) -> Result<(), MapError> {
    critical_section::with(|cs| {
        let mut paging = PAGING.borrow_ref_mut(cs);
        let paging = paging.as_mut().ok_or(MapError::NoTables)?;
        let start = range.start().align_down(PAGE);
        let end = range.end().align_up(PAGE).ok_or(MapError::NotAddressable)?;
        let pages = PhysRange::new(start, end);
        if paging.ram.overlaps(pages) {
            return Err(MapError::IsRam);
        }
        paging.map(pages, attributes)?;
        // SAFETY: waits until the walks of the MMU see the new entries.
        unsafe { asm!("dsb sy", "isb", options(nostack, preserves_flags)) };
        Ok(())
    })
}

impl Paging {
    /// Maps page-aligned memory in the largest pages that fit.
    fn map(&mut self, range: PhysRange, attributes: Attributes) -> Result<(), MapError> {
        let mut at = range.start().get();
        while at < range.end().get() {
            let left = range.end().get() - at;
            // The top level has no blocks.
            let level = (1..SPANS.len())
                .find(|level| {
                    let span = span(*level);
                    at.is_multiple_of(span) && left >= span
                })
                .unwrap_or(SPANS.len() - 1);
            self.map_one(at, level, attributes)?;
            at += span(level);
        }
        Ok(())
    }

    /// Maps one page or block by an entry of `level`.
    fn map_one(&mut self, at: u64, level: usize, attributes: Attributes) -> Result<(), MapError> {
        if at >= 1 << 48 {
            return Err(MapError::NotAddressable);
        }
        let mut table = self.root;
        for above in 0..level {
            let entry = entry(table, at, above);
            // SAFETY: an entry of a table of ours; so for the three below.
            let value = unsafe { entry.read() };
            table = match value & (VALID | TABLE) {
                0 => {
                    let new = self.new_table()?;
                    // SAFETY: as above.
                    unsafe { entry.write(new.get() | VALID | TABLE) };
                    new
                }
                VALID => return Err(MapError::Overlaps),
                _ => PhysAddr::new(value & ADDRESS),
            };
        }
        let kind = if level == SPANS.len() - 1 { TABLE } else { 0 };
        let wanted = at | attributes.0 | kind | VALID;
        let entry = entry(table, at, level);
        // SAFETY: as above.
        match unsafe { entry.read() } {
            // SAFETY: as above; what was not mapped needs no invalidation.
            0 => unsafe { entry.write(wanted) },
            // Two devices in one page: all of it is registers.
            found if found == wanted => {}
            _ => return Err(MapError::Overlaps),
        }
        Ok(())
    }

    /// A zeroed frame of the pool, each handed out once.
    fn new_table(&mut self) -> Result<PhysAddr, MapError> {
        let frame = self.pool.start();
        if self.pool.is_empty() {
            return Err(MapError::NoTables);
        }
        let next = PhysAddr::new(frame.get() + PAGE);
        self.pool = PhysRange::new(next, self.pool.end());
        // SAFETY: a frame of the pool, mapped and nobody else's.
        unsafe { frame.as_mut_ptr::<[u8; 4096]>().write_bytes(0, 1) };
        Ok(frame)
    }
}

fn span(level: usize) -> u64 {
    SPANS.get(level).copied().unwrap_or(PAGE)
}

/// The entry for an address in a table of `level`.
fn entry(table: PhysAddr, at: u64, level: usize) -> *mut u64 {
    let index = at / span(level) % ENTRIES;
    PhysAddr::new(table.get() + index * 8).as_mut_ptr()
}
