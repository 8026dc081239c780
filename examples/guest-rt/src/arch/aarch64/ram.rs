//! Filling and comparing whole frames, two words at a time.

use core::arch::asm;

use crate::memory::PhysAddr;
use crate::ram::FRAME_BYTES;

const BLOCKS: u64 = FRAME_BYTES / 64;

/// Fills a frame with copies of `word`.
///
/// # Safety
/// `frame` is the start of a frame of RAM that is the caller's alone.
pub(crate) unsafe fn fill_frame(frame: PhysAddr, word: u64) {
    let to = frame.as_mut_ptr::<u64>();
    // SAFETY: writes exactly the caller's frame.
    unsafe {
        asm!(
            "2:",
            "stp {word}, {word}, [{to}]",
            "stp {word}, {word}, [{to}, #16]",
            "stp {word}, {word}, [{to}, #32]",
            "stp {word}, {word}, [{to}, #48]",
            "add {to}, {to}, #64",
            "subs {blocks}, {blocks}, #1",
            "b.ne 2b",
            word = in(reg) word,
            to = inout(reg) to => _,
            blocks = inout(reg) BLOCKS => _,
            options(nostack),
        );
    }
}

/// Whether a frame holds nothing but copies of `word`.
///
/// # Safety
/// `frame` is the start of a frame of RAM that nobody writes meanwhile.
pub(crate) unsafe fn frame_holds(frame: PhysAddr, word: u64) -> bool {
    let from = frame.as_ptr::<u64>();
    let differing: u64;
    // SAFETY: reads exactly the frame.
    unsafe {
        asm!(
            "2:",
            "ldp {a}, {b}, [{from}]",
            "ldp {c}, {d}, [{from}, #16]",
            "eor {a}, {a}, {word}",
            "eor {b}, {b}, {word}",
            "eor {c}, {c}, {word}",
            "eor {d}, {d}, {word}",
            "orr {a}, {a}, {b}",
            "orr {c}, {c}, {d}",
            "orr {differing}, {differing}, {a}",
            "orr {differing}, {differing}, {c}",
            "add {from}, {from}, #32",
            "subs {blocks}, {blocks}, #1",
            "b.ne 2b",
            word = in(reg) word,
            from = inout(reg) from => _,
            blocks = inout(reg) 2 * BLOCKS => _,
            differing = inout(reg) 0_u64 => differing,
            a = out(reg) _,
            b = out(reg) _,
            c = out(reg) _,
            d = out(reg) _,
            options(nostack, readonly),
        );
    }
    differing == 0
}
