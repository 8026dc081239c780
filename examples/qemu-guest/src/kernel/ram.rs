//! The workload's hands on physical memory.

use buddy_alloc::Frame;
use guest_rt::{PhysAddr, ram};
use qemu_guest::Ram;

/// All memory that the allocator manages.
#[derive(Debug)]
pub(super) struct PhysicalRam(());

impl PhysicalRam {
    /// Access to every frame the allocator hands out.
    ///
    /// # Safety
    /// Whoever gets the value names only frames of RAM that the allocator gave
    /// to it and to nobody else.
    pub(super) const unsafe fn new() -> Self {
        Self(())
    }
}

impl Ram for PhysicalRam {
    fn fill(&mut self, frame: Frame, word: u64) {
        // SAFETY: the caller's alone, as whoever made this value vouched.
        unsafe { ram::fill_frame(PhysAddr::new(frame.address()), word) }
    }

    fn holds(&self, frame: Frame, word: u64) -> bool {
        // SAFETY: as above; one CPU runs one thread.
        unsafe { ram::frame_holds(PhysAddr::new(frame.address()), word) }
    }
}
