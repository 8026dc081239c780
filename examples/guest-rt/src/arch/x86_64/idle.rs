//! Waiting for interrupts, and keeping them out.

use core::arch::asm;

use critical_section::RawRestoreState;
use x86_64::instructions::interrupts;

use crate::platform;

fn are_on() -> bool {
    match platform::cpu() {
        Some(cpu) => (cpu.interrupts_on)(),
        None => interrupts::are_enabled(),
    }
}

fn turn_on() {
    match platform::cpu() {
        Some(cpu) => (cpu.set_interrupts)(true),
        None => interrupts::enable(),
    }
}

/// Lets interrupts wait.
pub(super) fn turn_off() {
    match platform::cpu() {
        Some(cpu) => (cpu.set_interrupts)(false),
        None => interrupts::disable(),
    }
}

/// Halts until the next interrupt unless `ready` says there is work.
///
/// `ready` runs with interrupts off and `sti` takes effect after the `hlt`
/// behind it, so an interrupt that makes work either shows in `ready` or ends
/// the halt. Returns whether the CPU halted; interrupts are on then as before.
pub(crate) fn halt_unless(ready: impl FnOnce() -> bool) -> bool {
    turn_off();
    if ready() {
        turn_on();
        return false;
    }
    if let Some(cpu) = platform::cpu() {
        (cpu.wait)();
        return true;
    }
    // SAFETY: changes no memory itself; the handlers that run here are ordinary
    // Rust, which is why the compiler is not told `nomem`.
    unsafe { asm!("sti", "hlt", options(nostack)) };
    true
}

struct InterruptsOff;

critical_section::set_impl!(InterruptsOff);

// SAFETY: one CPU enters critical sections, and with its interrupts off nothing
// else of them runs; both calls keep memory accesses on their side.
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
