//! Filling and comparing whole frames.
//!
//! With 16-byte accesses: under software emulation they cost half the time of
//! `rep stosq` and `repe scasq`. The boot code turned SSE on for this file; all
//! other code is compiled without, so no register has to be kept for anybody,
//! nor could the compiler be told about them.

use core::arch::asm;

use crate::memory::PhysAddr;
use crate::ram::FRAME_BYTES;

const BLOCKS: u64 = FRAME_BYTES / 128;

/// Fills a frame with copies of `word`.
///
/// # Safety
/// `frame` is the start of a frame of RAM that is the caller's alone.
pub(crate) unsafe fn fill_frame(frame: PhysAddr, word: u64) {
    let to = frame.as_mut_ptr::<u64>();
    // SAFETY: writes exactly the caller's frame.
    unsafe {
        asm!(
            "movq xmm0, {word}",
            "punpcklqdq xmm0, xmm0",
            "2:",
            "movaps [{to}], xmm0",
            "movaps [{to} + 16], xmm0",
            "movaps [{to} + 32], xmm0",
            "movaps [{to} + 48], xmm0",
            "movaps [{to} + 64], xmm0",
            "movaps [{to} + 80], xmm0",
            "movaps [{to} + 96], xmm0",
            "movaps [{to} + 112], xmm0",
            "sub {to}, -128",
            "dec {blocks}",
            "jnz 2b",
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
    let equal: u32;
    // SAFETY: reads exactly the frame.
    unsafe {
        asm!(
            "movq xmm0, {word}",
            "punpcklqdq xmm0, xmm0",
            // All ones as long as everything was equal.
            "pcmpeqd xmm1, xmm1",
            "2:",
            "movdqa xmm2, [{from}]",
            "movdqa xmm3, [{from} + 16]",
            "movdqa xmm4, [{from} + 32]",
            "movdqa xmm5, [{from} + 48]",
            "pcmpeqd xmm2, xmm0",
            "pcmpeqd xmm3, xmm0",
            "pcmpeqd xmm4, xmm0",
            "pcmpeqd xmm5, xmm0",
            "pand xmm1, xmm2",
            "pand xmm1, xmm3",
            "pand xmm1, xmm4",
            "pand xmm1, xmm5",
            "movdqa xmm2, [{from} + 64]",
            "movdqa xmm3, [{from} + 80]",
            "movdqa xmm4, [{from} + 96]",
            "movdqa xmm5, [{from} + 112]",
            "pcmpeqd xmm2, xmm0",
            "pcmpeqd xmm3, xmm0",
            "pcmpeqd xmm4, xmm0",
            "pcmpeqd xmm5, xmm0",
            "pand xmm1, xmm2",
            "pand xmm1, xmm3",
            "pand xmm1, xmm4",
            "pand xmm1, xmm5",
            "sub {from}, -128",
            "dec {blocks}",
            "jnz 2b",
            "pmovmskb {equal:e}, xmm1",
            word = in(reg) word,
            from = inout(reg) from => _,
            blocks = inout(reg) BLOCKS => _,
            equal = out(reg) equal,
            options(nostack, readonly),
        );
    }
    equal == 0xffff
}
