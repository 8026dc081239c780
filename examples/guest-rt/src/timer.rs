//! The one-shot timer. There is no tick: an idle guest sleeps.

use core::sync::atomic::{AtomicBool, Ordering};

use crate::arch;
use crate::time::Instant;

static WENT_OFF: AtomicBool = AtomicBool::new(false);

/// Goes off once at `at`, or at once if that has passed. There is one timer: an
/// earlier setting is void.
pub fn arm(at: Instant) {
    arch::arm_timer(at);
}

/// Stops the timer.
pub fn disarm() {
    arch::disarm_timer();
}

/// Whether the timer went off since the last call.
pub fn take_went_off() -> bool {
    WENT_OFF.swap(false, Ordering::Relaxed)
}

/// Whether the timer went off and nobody has taken note.
pub fn went_off() -> bool {
    WENT_OFF.load(Ordering::Relaxed)
}

/// Called by the timer's driver.
pub fn go_off() {
    WENT_OFF.store(true, Ordering::Relaxed);
}
