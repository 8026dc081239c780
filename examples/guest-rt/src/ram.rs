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

/// Overwrites so many frames with zeros.
///
/// # Safety
/// They are RAM from the frame at `first` on, and nobody's.
pub unsafe fn clear_frames(first: PhysAddr, frames: usize) {
    // SAFETY: the caller's alone, mapped one to one.
    unsafe { first.as_mut_ptr::<[u64; 512]>().write_bytes(0, frames) }
}

/// Whether a word of a frame is one of those.
///
/// # Safety
/// `frame` is the start of a frame of RAM that nobody writes meanwhile.
#[must_use]
pub unsafe fn frame_has(frame: PhysAddr, mut is_one: impl FnMut(u64) -> bool) -> bool {
    (0..FRAME_BYTES).step_by(8).any(|offset| {
        let word = PhysAddr::new(frame.get() + offset).as_ptr::<u64>();
        // SAFETY: a word of the frame; volatile, since it may never have been written.
        is_one(unsafe { word.read_volatile() })
    })
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
