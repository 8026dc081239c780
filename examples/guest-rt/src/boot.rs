//! What the guest's main function is handed, and how it is found.

use crate::command_line::CommandLine;
use crate::memory::{MemoryMap, PhysAddr, PhysRange};
use crate::virtio_mmio::{Places, VirtioMmio};

/// The machine as found at boot, and the memory nobody owns yet.
#[derive(Debug)]
pub struct BootInfo {
    ram: MemoryMap,
    free: MemoryMap,
    command_line: CommandLine,
    virtio_mmio: Places,
}

impl BootInfo {
    /// All RAM the firmware reported, used or not.
    #[must_use]
    pub const fn ram(&self) -> &MemoryMap {
        &self.ram
    }

    /// RAM that neither the firmware, the image, page tables nor anything
    /// carved so far uses: the allocator's, once nothing more is to be carved.
    #[must_use]
    pub const fn free(&self) -> &MemoryMap {
        &self.free
    }

    /// What the boot loader passed.
    #[must_use]
    pub const fn command_line(&self) -> &CommandLine {
        &self.command_line
    }

    /// Where virtio devices without a bus are, or could be: not every place has
    /// a device.
    #[must_use]
    pub fn virtio_mmio(&self) -> &[VirtioMmio] {
        &self.virtio_mmio
    }

    /// Takes memory out of [`free`](Self::free) for good: `words` zeroed words,
    /// in whole pages of their own.
    ///
    /// `None` if no free range is long enough.
    #[must_use]
    pub fn carve_words(&mut self, words: usize) -> Option<&'static mut [u64]> {
        let bytes = (words as u64)
            .checked_mul(8)?
            .checked_next_multiple_of(PAGE)?;
        let range = self.carve(bytes, PAGE)?;
        let start = range.start().as_mut_ptr::<u64>();
        // SAFETY: mapped RAM that belongs to nobody, and to the caller now.
        unsafe { start.write_bytes(0, words) };
        // SAFETY: as above; zero is a valid word.
        Some(unsafe { core::slice::from_raw_parts_mut(start, words) })
    }

    /// Takes memory out of [`free`](Self::free) for good: `bytes` at a multiple
    /// of `align`, as they were found.
    #[must_use]
    pub fn carve(&mut self, bytes: u64, align: u64) -> Option<PhysRange> {
        self.free.carve(bytes, align)
    }
}

const PAGE: u64 = 4096;

unsafe extern "Rust" {
    /// Defined by [`entry!`](crate::entry).
    safe fn guest_main(boot: BootInfo) -> !;
}

/// Goes on in the guest's own code: the end of every way of starting.
///
/// `ram` is mapped one to one, and nobody uses what is `free`.
pub fn enter(ram: MemoryMap, free: MemoryMap, command_line: CommandLine) -> ! {
    let virtio_mmio = command_line.virtio_mmio();
    enter_with(ram, free, command_line, virtio_mmio)
}

/// The same, for a machine that names its devices elsewhere.
pub(crate) fn enter_with(
    ram: MemoryMap,
    free: MemoryMap,
    command_line: CommandLine,
    virtio_mmio: Places,
) -> ! {
    // The firmware's word for the first byte of RAM is not to be trusted with
    // the null page: it is not mapped.
    debug_assert!(free.iter().all(|range| range.start() > PhysAddr::new(0)));
    guest_main(BootInfo {
        ram,
        free,
        command_line,
        virtio_mmio,
    })
}

/// Names the function the guest starts with, of type `fn(BootInfo) -> !`.
///
/// ```ignore
/// guest_rt::entry!(main);
///
/// fn main(boot: BootInfo) -> ! { ... }
/// ```
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        #[unsafe(no_mangle)]
        fn guest_main(boot: $crate::BootInfo) -> ! {
            const MAIN: fn($crate::BootInfo) -> ! = $main;
            MAIN(boot)
        }
    };
}
