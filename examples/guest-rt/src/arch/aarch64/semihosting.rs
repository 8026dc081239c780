//! Calls to the emulator: the log's channel, and the way out.

use core::arch::asm;

/// Writes one byte to the character device that the emulator connected.
pub(super) fn write_byte(byte: u8) {
    const WRITE_CHARACTER: u64 = 3;
    // SAFETY: the emulator reads the byte behind the pointer.
    unsafe {
        asm!(
            "hlt #0xf000",
            inlateout("x0") WRITE_CHARACTER => _,
            in("x1") &raw const byte,
            options(nostack, readonly),
        );
    }
}
