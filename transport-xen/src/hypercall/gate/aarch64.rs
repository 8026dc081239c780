//! aarch64: `hvc` with Xen's tag.

use core::arch::asm;

use super::Gate;

/// Calls by `hvc #0xea1`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hvc;

// SAFETY: the instruction enters Xen with the number in x16.
unsafe impl Gate for Hvc {
    unsafe fn call(&mut self, number: u32, args: [*mut (); 4]) -> isize {
        let [a, b, c, d] = args;
        let result: isize;
        // SAFETY: the caller vouches for the arguments.
        unsafe {
            asm!(
                "hvc #0xea1",
                inlateout("x0") a => result,
                inlateout("x1") b => _,
                inlateout("x2") c => _,
                inlateout("x3") d => _,
                inlateout("x16") number as usize => _,
                options(nostack),
            );
        }
        result
    }
}
