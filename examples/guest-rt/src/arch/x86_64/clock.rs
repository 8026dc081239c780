//! The clock: the time-stamp counter, measured against the 8254.

use core::arch::x86_64::_rdtsc;

use spin::Once;
use thiserror::Error;

use super::{hypervisor, pit};
use crate::platform;
use crate::time::{Instant, Steady};

static TICKS: Steady = Steady::new();
/// Nanoseconds per tick, in units of 2^-32.
static SCALE: Once<u64> = Once::new();

/// Why there is no clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum ClockError {
    #[error("no 8254 timer counts that the time-stamp counter could be measured against")]
    NoReference,
}

fn ticks() -> u64 {
    // SAFETY: every CPU with long mode has the counter, and we run in ring 0.
    unsafe { _rdtsc() }
}

/// Learns the counter's rate from the hypervisor or by measuring; the clock stands at zero before.
pub(super) fn start() -> Result<(), ClockError> {
    let hz = match hypervisor::tick_rate() {
        Some(hz) => hz,
        None => measure()?,
    };
    let hz = hz.max(1);
    let scale = (u128::from(1_000_000_000_u64) << 32) / u128::from(hz);
    let scale = u64::try_from(scale).unwrap_or(u64::MAX);
    TICKS.start(ticks());
    SCALE.call_once(|| scale);
    Ok(())
}

/// The time since boot.
#[must_use]
pub fn now() -> Instant {
    if let Some(cpu) = platform::cpu() {
        return (cpu.now)();
    }
    let Some(&scale) = SCALE.get() else {
        return Instant::from_nanos(0);
    };
    let passed = critical_section::with(|_| TICKS.count(ticks()));
    let nanos = (u128::from(passed) * u128::from(scale)) >> 32;
    Instant::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// Ticks of the counter per second.
fn measure() -> Result<u64, ClockError> {
    /// About 10 ms.
    const SPAN: u16 = 11_932;
    /// Looks at the timer before it counts as absent; it takes about 10 000.
    const PATIENCE: u32 = 1 << 20;
    let countdown = pit::Countdown::start();
    let (first_tick, first_count) = sample(&countdown);
    let reached = (0..PATIENCE).any(|_| countdown.elapsed() >= SPAN);
    if !reached {
        return Err(ClockError::NoReference);
    }
    let (last_tick, last_count) = sample(&countdown);
    let ticks = u128::from(last_tick.saturating_sub(first_tick));
    let counts = u128::from(last_count.wrapping_sub(first_count)).max(1);
    Ok(u64::try_from(ticks * u128::from(pit::HZ) / counts).unwrap_or(u64::MAX))
}

/// Both counters at one time: of several tries the one least disturbed, for a
/// host may stop us between two reads.
fn sample(countdown: &pit::Countdown) -> (u64, u16) {
    const TRIES: u32 = 16;
    let mut best = (u64::MAX, 0, 0);
    for _ in 0..TRIES {
        let before = ticks();
        let count = countdown.elapsed();
        let width = ticks().saturating_sub(before);
        if width < best.0 {
            best = (width, before + width / 2, count);
        }
    }
    (best.1, best.2)
}
