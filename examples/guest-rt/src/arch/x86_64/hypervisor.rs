//! What a hypervisor tells by the CPUID instruction.

use core::arch::asm;

/// Ticks of the time-stamp counter per second, where Xen tells it: a domain of
/// type PVH has no 8254 to measure by.
pub(super) fn tick_rate() -> Option<u64> {
    const TIME: u32 = 3;
    let base = (0x4000_0000..0x4001_0000)
        .step_by(0x100)
        .find(|&base| is_xen(cpuid(base)))?;
    let [_, _, khz, _] = cpuid(base + TIME);
    (khz != 0).then(|| u64::from(khz) * 1000)
}

fn is_xen([_, b, c, d]: [u32; 4]) -> bool {
    [b, c, d].map(u32::to_le_bytes) == [*b"XenV", *b"MMXe", *b"nVMM"]
}

/// Registers a to d of leaf `leaf`, sub-leaf 0.
fn cpuid(leaf: u32) -> [u32; 4] {
    let (a, b, c, d): (u32, u64, u32, u32);
    // SAFETY: reads the CPU's identity and nothing else; rbx is restored.
    unsafe {
        asm!(
            "mov {b}, rbx",
            "cpuid",
            "xchg {b}, rbx",
            b = out(reg) b,
            inlateout("eax") leaf => a,
            inlateout("ecx") 0 => c,
            lateout("edx") d,
            options(nostack, preserves_flags),
        );
    }
    [a, u32::try_from(b).unwrap_or(0), c, d]
}
