//! Waiting for interrupts, and keeping them out.

use core::arch::asm;

use critical_section::RawRestoreState;

/// Interrupts wait if this bit of the state is set.
const MASKED: u64 = 1 << 7;

fn are_on() -> bool {
    let state: u64;
    // SAFETY: reads the state.
    unsafe { asm!("mrs {}, daif", out(reg) state, options(nomem, nostack, preserves_flags)) };
    state & MASKED == 0
}

/// Takes interrupts from now on.
pub(super) fn turn_on() {
    // SAFETY: the vectors are in place before anybody calls this. Memory
    // accesses stay on their side.
    unsafe { asm!("msr daifclr, #2", options(nostack, preserves_flags)) };
}

/// Lets interrupts wait.
pub(super) fn turn_off() {
    // SAFETY: as above.
    unsafe { asm!("msr daifset, #2", options(nostack, preserves_flags)) };
}

/// Halts until the next interrupt unless `ready` says there is work.
///
/// `ready` runs with interrupts off, and an interrupt that waits ends the halt,
/// so one that makes work either shows in `ready` or is not slept through.
/// Returns whether the CPU halted; interrupts are on then as before.
pub(crate) fn halt_unless(ready: impl FnOnce() -> bool) -> bool {
    turn_off();
    if ready() {
        turn_on();
        return false;
    }
    // SAFETY: waits; writes to memory are done before.
    unsafe { asm!("dsb sy", "wfi", options(nostack, preserves_flags)) };
    turn_on();
    // SAFETY: what waits is taken here, before anybody looks at what it did.
    unsafe { asm!("isb", options(nostack, preserves_flags)) };
    true
}

struct InterruptsOff;

critical_section::set_impl!(InterruptsOff);

// SAFETY: there is one CPU, and with its interrupts off nothing else runs; both
// calls keep memory accesses on their side.
unsafe impl critical_section::Impl for InterruptsOff {
    unsafe fn acquire() -> RawRestoreState {
        let were_on = are_on();
        turn_off();
        were_on
    }

    unsafe fn release(were_on: RawRestoreState) {
        if were_on {
            turn_on();
        }
    }
}
