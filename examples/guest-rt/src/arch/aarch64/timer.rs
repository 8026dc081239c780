//! The generic timer: clock and one-shot alarm.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use super::gic;
use crate::interrupts::Trigger;
use crate::time::Instant;
use crate::timer;

/// Interrupt of the virtual timer, the same on every machine that follows
/// Arm's base system architecture.
pub(super) const INTERRUPT: u8 = 27;
const NANOS: u128 = 1_000_000_000;

/// The counter at boot; the clock stands at zero before.
static BASE: AtomicU64 = AtomicU64::new(u64::MAX);

fn count() -> u64 {
    let count: u64;
    // SAFETY: reads the counter, not ahead of what comes before.
    unsafe { asm!("isb", "mrs {}, cntvct_el0", out(reg) count, options(nostack, preserves_flags)) };
    count
}

/// Counts per second, as firmware or the emulator noted.
fn rate() -> u64 {
    let rate: u64;
    // SAFETY: reads a constant.
    unsafe { asm!("mrs {}, cntfrq_el0", out(reg) rate, options(nomem, nostack, preserves_flags)) };
    rate.max(1)
}

/// Starts the clock and listens for the alarm.
pub(super) fn start() {
    BASE.store(count(), Ordering::Relaxed);
    gic::unmask_number(INTERRUPT, Trigger::Level);
}

/// The time since boot.
#[must_use]
pub fn now() -> Instant {
    let base = BASE.load(Ordering::Relaxed);
    let passed = u128::from(count().saturating_sub(base));
    let nanos = passed * NANOS / u128::from(rate());
    Instant::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// Sets the one timer there is; an earlier setting is void.
pub(crate) fn arm_timer(at: Instant) {
    let counts = u128::from(at.as_nanos()) * u128::from(rate()) / NANOS;
    let counts = u64::try_from(counts).unwrap_or(u64::MAX);
    // One more: the clock is rounded down, and is not to be early.
    let due = BASE
        .load(Ordering::Relaxed)
        .saturating_add(counts)
        .saturating_add(1);
    // SAFETY: the alarm raises an interrupt that has a handler.
    unsafe {
        asm!("msr cntv_cval_el0, {}", "msr cntv_ctl_el0, {}", "isb", in(reg) due, in(reg) 1_u64,
             options(nostack, preserves_flags));
    }
}

/// Stops the timer.
pub(crate) fn disarm_timer() {
    // SAFETY: no alarm, no interrupt.
    unsafe {
        asm!(
            "msr cntv_ctl_el0, xzr",
            "isb",
            options(nostack, preserves_flags)
        )
    };
}

/// The timer's interrupt: its line stays up until it is stopped.
pub(super) fn handle() {
    disarm_timer();
    timer::go_off();
}
