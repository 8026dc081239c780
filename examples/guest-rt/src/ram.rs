//! Whole frames of RAM, filled and compared at the speed of the machine.

use crate::arch;
use crate::memory::PhysAddr;

/// Size of a frame.
pub const FRAME_BYTES: u64 = 4096;

/// Fills a frame with copies of `word`.
///
/// # Safety
/// `frame` is the start of a frame of RAM that is the caller's alone.
pub unsafe fn fill_frame(frame: PhysAddr, word: u64) {
    // SAFETY: as the caller vouches.
    unsafe { arch::fill_frame(frame, word) }
}

/// Copies a frame.
///
/// # Safety
/// Both are the starts of frames of RAM that nobody writes meanwhile; `to` is
/// the caller's alone, and another one than `from`.
pub unsafe fn copy_frame(from: PhysAddr, to: PhysAddr) {
    // SAFETY: two different frames, mapped one to one.
    unsafe { core::ptr::copy_nonoverlapping(from.as_ptr::<[u64; 512]>(), to.as_mut_ptr(), 1) }
}

/// Whether a frame holds nothing but copies of `word`.
///
/// # Safety
/// `frame` is the start of a frame of RAM that nobody writes meanwhile.
#[must_use]
pub unsafe fn frame_holds(frame: PhysAddr, word: u64) -> bool {
    // SAFETY: as the caller vouches.
    unsafe { arch::frame_holds(frame, word) }
}
