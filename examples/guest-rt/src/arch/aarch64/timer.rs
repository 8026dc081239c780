//! The generic timer: clock and one-shot alarm.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use super::gic;
use crate::interrupts::Trigger;
use crate::time::{Instant, Span, Steady};
use crate::timer;

/// Interrupt of the virtual timer, the same on every machine that follows
/// Arm's base system architecture.
pub(super) const INTERRUPT: u8 = 27;
const NANOS: u128 = 1_000_000_000;

/// The alarm is set no further ahead than this: it names what the counter is to
/// show, and on another host that may be far.
const FAR: Span = Span::from_millis(10_000);

static COUNT: Steady = Steady::new();
/// When the alarm is to go off.
static DEADLINE: AtomicU64 = AtomicU64::new(u64::MAX);

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
    COUNT.start(count());
    gic::unmask_number(INTERRUPT, Trigger::Level);
}

/// The time since boot.
#[must_use]
pub fn now() -> Instant {
    let passed = critical_section::with(|_| COUNT.count(count()));
    let nanos = u128::from(passed) * NANOS / u128::from(rate());
    Instant::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// Sets the one timer there is; an earlier setting is void.
pub(crate) fn arm_timer(at: Instant) {
    critical_section::with(|_| {
        DEADLINE.store(at.as_nanos(), Ordering::Relaxed);
        set_alarm(at.min(now() + FAR));
    });
}

fn set_alarm(at: Instant) {
    let counts = u128::from(at.as_nanos()) * u128::from(rate()) / NANOS;
    let counts = u64::try_from(counts).unwrap_or(u64::MAX);
    // One more: the clock is rounded down, and is not to be early.
    let due = COUNT.counter_at(counts.saturating_add(1));
    // SAFETY: the alarm raises an interrupt that has a handler.
    unsafe {
        asm!("msr cntv_cval_el0, {}", "msr cntv_ctl_el0, {}", "isb", in(reg) due, in(reg) 1_u64,
             options(nostack, preserves_flags));
    }
}

/// Stops the timer.
pub(crate) fn disarm_timer() {
    DEADLINE.store(u64::MAX, Ordering::Relaxed);
    stop_alarm();
}

fn stop_alarm() {
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
    stop_alarm();
    let deadline = Instant::from_nanos(DEADLINE.load(Ordering::Relaxed));
    if deadline <= now() {
        DEADLINE.store(u64::MAX, Ordering::Relaxed);
        timer::go_off();
    } else if deadline.as_nanos() != u64::MAX {
        arm_timer(deadline);
    }
}
