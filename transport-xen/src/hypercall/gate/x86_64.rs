//! x86-64: the instruction of the guest's kind and the CPU's vendor, or the
//! hypercall page.

use core::arch::asm;

use super::Gate;

/// Calls through the page that Xen has filled with one stub for each number: one
/// way for every kind of guest and every vendor.
///
/// Not for a kernel that hardens its returns and indirect branches: the stubs begin
/// with no `endbr` and end in a plain `ret`, and Xen's own guide advises against the
/// page for that. [`Instruction`] needs no code of Xen's.
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

/// Calls by the instruction that enters Xen from this kind of guest. Another one
/// is an invalid operation, or, of a PV guest, a call of whoever takes its system
/// calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Instruction {
    /// `vmcall`, of translated guests on Intel: see [`Cpuid::instruction`].
    Vmcall,
    /// `vmmcall`, of translated guests on AMD.
    Vmmcall,
    /// `syscall`, of PV guests.
    Syscall,
}

macro_rules! enter {
    ($instruction:literal, $number:ident, $args:ident $(, $lost:tt)*) => {{
        let [a, b, c, d] = $args;
        let result: isize;
        // SAFETY: the instruction enters Xen with the number in rax; the caller
        // vouches for the arguments. Xen keeps every register but those named.
        unsafe {
            asm!(
                $instruction,
                inlateout("rax") $number as usize => result,
                inlateout("rdi") a => _,
                inlateout("rsi") b => _,
                inlateout("rdx") c => _,
                inlateout("r10") d => _,
                $(lateout($lost) _,)*
                options(nostack),
            );
        }
        result
    }};
}

// SAFETY: each instruction enters Xen with the number in rax, and nothing else.
unsafe impl Gate for Instruction {
    unsafe fn call(&mut self, number: u32, args: [*mut (); 4]) -> isize {
        match self {
            Self::Vmcall => enter!("vmcall", number, args),
            Self::Vmmcall => enter!("vmmcall", number, args),
            // The CPU keeps the way back in these two.
            Self::Syscall => enter!("syscall", number, args, "rcx", "r11"),
        }
    }
}

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

    /// The instruction that this CPU enters Xen by.
    #[must_use]
    pub fn instruction(self) -> Instruction {
        let leaf = cpuid(0);
        let vendor = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes);
        match vendor.as_flattened() {
            b"AuthenticAMD" | b"HygonGenuine" => Instruction::Vmmcall,
            _ => Instruction::Vmcall,
        }
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
