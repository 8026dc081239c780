//! What an interrupt handler may touch.

use crate::sync::{AtomicBool, Ordering, Site, at};

/// Two wait-free flags between interrupt handlers and the stepping CPU.
///
/// Put it in a `static` (it is part of [`Shared`](crate::Shared)); the handler
/// acknowledges the device, sets the flag that fits, and wakes whoever steps.
/// A kernel without interrupts never touches it.
#[derive(Debug, Default)]
pub struct Signal {
    config: AtomicBool,
    used: AtomicBool,
}

impl Signal {
    #[cfg(not(loom))]
    pub(crate) const fn new() -> Self {
        Self {
            config: AtomicBool::new(false),
            used: AtomicBool::new(false),
        }
    }

    #[cfg(loom)]
    pub(crate) fn new() -> Self {
        Self {
            config: AtomicBool::new(false),
            used: AtomicBool::new(false),
        }
    }

    /// The host changed its wishes: the target is to be read again.
    #[doc(alias = "config_changed_interrupt")]
    pub fn config_changed(&self) {
        raise(&self.config);
    }

    /// The host has answered requests.
    pub fn used(&self) {
        raise(&self.used);
    }

    /// Whether a step has something to look at.
    ///
    /// It orders nothing: the step that takes the flag sees what it was set for.
    #[must_use]
    pub fn pending(&self) -> bool {
        self.config.load(Ordering::Relaxed) || self.used.load(Ordering::Relaxed)
    }

    /// Clears the flag, to be called *before* looking at the host: a change that
    /// comes later sets it again and is seen by the next step.
    pub(crate) fn take_config(&self) -> bool {
        take(&self.config)
    }

    pub(crate) fn take_used(&self) -> bool {
        take(&self.used)
    }
}

fn raise(flag: &AtomicBool) {
    // A swap, not a store: of two handlers that raise the same flag at once both
    // must be seen by the one step that takes it, and a store would cut the first
    // off. Release: the step sees what the handler has seen.
    flag.swap(true, at(Site::Raise, Ordering::Release));
}

fn take(flag: &AtomicBool) -> bool {
    flag.swap(false, at(Site::Take, Ordering::Acquire))
}
