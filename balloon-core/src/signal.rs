//! What an interrupt handler may touch.

use crate::sync::{AtomicBool, Ordering};

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
        self.config.store(true, Ordering::Release);
    }

    /// The host has answered requests.
    pub fn used(&self) {
        self.used.store(true, Ordering::Release);
    }

    /// Whether a step has something to look at.
    #[must_use]
    pub fn pending(&self) -> bool {
        self.config.load(Ordering::Acquire) || self.used.load(Ordering::Acquire)
    }

    /// Clears the flag, to be called *before* looking at the host: a change that
    /// comes later sets it again and is seen by the next step.
    pub(crate) fn take_config(&self) -> bool {
        self.config.swap(false, Ordering::AcqRel)
    }

    pub(crate) fn take_used(&self) -> bool {
        self.used.swap(false, Ordering::AcqRel)
    }
}
