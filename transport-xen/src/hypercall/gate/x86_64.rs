//! x86-64: the hypercall page, or the instruction of the CPU's vendor.

use core::arch::asm;

use super::Gate;

/// Calls through the page that Xen has filled with one stub for each number.
///
/// The only way for a PV guest, and the one way that fits every vendor.
#[derive(Clone, Copy, Debug)]
pub struct HypercallPage(*const u8);

// SAFETY: the page is code, never written after it was installed.
unsafe impl Send for HypercallPage {}
// SAFETY: as above.
unsafe impl Sync for HypercallPage {}

/// Length of one stub.
const STUB: usize = 32;

impl HypercallPage {
    /// The page at `page`.
    ///
    /// # Safety
    /// It is 4096 bytes, executable for as long as the value is used, and
    /// filled by Xen: by the domain builder for the ELF note
    /// `HYPERCALL_PAGE`, or by [`Cpuid::install`].
    #[must_use]
    pub const unsafe fn new(page: *const u8) -> Self {
        Self(page)
    }
}

// SAFETY: the stub of a number performs that hypercall and returns.
unsafe impl Gate for HypercallPage {
    unsafe fn call(&mut self, number: u32, args: [*mut (); 4]) -> isize {
        let stub = self.0.wrapping_add(number as usize * STUB);
        let [a, b, c, d] = args;
        let result: isize;
        // SAFETY: the constructor's caller vouches for the page, this call's
        // for the arguments. Xen keeps every register but those named.
        unsafe {
            asm!(
                "call {stub}",
                stub = in(reg) stub,
                lateout("rax") result,
                inlateout("rdi") a => _,
                inlateout("rsi") b => _,
                inlateout("rdx") c => _,
                inlateout("r10") d => _,
                lateout("rcx") _,
                lateout("r11") _,
            );
        }
        result
    }
}

/// Calls by `vmcall`: translated guests on Intel.
#[derive(Clone, Copy, Debug, Default)]
pub struct Vmcall;

/// Calls by `vmmcall`: translated guests on AMD.
#[derive(Clone, Copy, Debug, Default)]
pub struct Vmmcall;

macro_rules! direct {
    ($gate:ident, $instruction:literal) => {
        // SAFETY: the instruction enters Xen with the number in rax.
        unsafe impl Gate for $gate {
            unsafe fn call(&mut self, number: u32, args: [*mut (); 4]) -> isize {
                let [a, b, c, d] = args;
                let result: isize;
                // SAFETY: the caller vouches for the arguments.
                unsafe {
                    asm!(
                        $instruction,
                        inlateout("rax") number as usize => result,
                        inlateout("rdi") a => _,
                        inlateout("rsi") b => _,
                        inlateout("rdx") c => _,
                        inlateout("r10") d => _,
                        options(nostack),
                    );
                }
                result
            }
        }
    };
}

direct!(Vmcall, "vmcall");
direct!(Vmmcall, "vmmcall");

/// Xen's leaves of the CPUID instruction: only translated guests see them.
#[derive(Clone, Copy, Debug)]
pub struct Cpuid {
    base: u32,
}

impl Cpuid {
    /// Looks for Xen's signature.
    #[must_use]
    pub fn find() -> Option<Self> {
        let leaves = (0x4000_0000..0x4001_0000u32).step_by(0x100);
        leaves
            .into_iter()
            .find(|&base| {
                let leaf = cpuid(base);
                let signature = [leaf.ebx, leaf.ecx, leaf.edx].map(u32::to_le_bytes);
                signature.as_flattened() == b"XenVMMXenVMM"
            })
            .map(|base| Self { base })
    }

    /// Whether the CPU wants [`Vmmcall`]; [`Vmcall`] otherwise.
    #[must_use]
    pub fn is_amd(self) -> bool {
        let leaf = cpuid(0);
        let vendor = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes);
        vendor == [*b"Auth", *b"enti", *b"cAMD"] || vendor == [*b"Hygo", *b"nGen", *b"uine"]
    }

    /// Makes Xen fill the page at physical address `page` with its stubs.
    ///
    /// # Safety
    /// The CPU is in ring 0. The page is 4 KiB aligned RAM that nothing else
    /// uses.
    pub unsafe fn install(self, page: u64) {
        let leaf = cpuid(self.base + 2);
        #[expect(clippy::cast_possible_truncation, reason = "the two halves")]
        let (low, high) = (page as u32, (page >> 32) as u32);
        // SAFETY: the leaf names the register that takes the page's address.
        unsafe {
            asm!("wrmsr", in("ecx") leaf.ebx, in("eax") low, in("edx") high, options(nostack));
        }
    }
}

struct Leaf {
    ebx: u32,
    ecx: u32,
    edx: u32,
}

/// The standard library's function is unsafe or not depending on its release.
fn cpuid(leaf: u32) -> Leaf {
    let (ebx, ecx, edx): (u64, u32, u32);
    // SAFETY: reads the CPU's identity and nothing else; rbx is restored.
    unsafe {
        asm!(
            "mov {ebx}, rbx",
            "cpuid",
            "xchg {ebx}, rbx",
            ebx = out(reg) ebx,
            inlateout("eax") leaf => _,
            inlateout("ecx") 0 => ecx,
            lateout("edx") edx,
            options(nostack, preserves_flags),
        );
    }
    #[expect(
        clippy::cast_possible_truncation,
        reason = "cpuid clears the upper half"
    )]
    let ebx = ebx as u32;
    Leaf { ebx, ecx, edx }
}
