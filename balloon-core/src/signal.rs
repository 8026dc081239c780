//! What an interrupt handler may touch.
//!
//! # One signal, one sleeper
//!
//! Engine, compactor, and the services of a transport wait for the same host, and
//! whoever looks at its answers may take up those to somebody else. So news belong to
//! none of them. One worker steps them all, in any order, and three rules keep it
//! from sleeping over news:
//!
//! 1. Nobody but the worker clears the signal ([`Signal::take`]), before it steps the
//!    first of them: what comes later, between any two calls, is there when it asks
//!    again.
//! 2. Whoever takes up an answer to somebody else, or changes what somebody else waits
//!    for, sets the signal.
//! 3. Whoever takes up answers renews the wish to be told of the rest
//!    ([`Transport::reap`](crate::Transport::reap)): an interrupt comes once for each
//!    wish.

use crate::sync::{AtomicBool, Ordering, Site, at};

/// Two wait-free flags between interrupt handlers and the worker that steps.
///
/// Put it in a `static` (it is part of [`Shared`](crate::Shared)); the handler
/// acknowledges the device, sets the flag that fits, and wakes the worker. A kernel
/// without interrupts never touches it.
///
/// ```
/// use balloon_core::Shared;
///
/// static SHARED: Shared = Shared::new();
/// # let (mut rounds, mut step_all) = (0, |_: i32| false);
/// # SHARED.signal().used();
/// let mut more = false;
/// loop {
///     if !(SHARED.signal().take() || more) {
/// #       break;
///         // sleep, but not if `SHARED.signal().is_set()`; then step all the same
///     }
///     more = step_all(rounds); // engine, compactor, services: did any request for more?
/// #   rounds += 1;
/// }
/// # assert_eq!(rounds, 1);
/// ```
#[derive(Debug, Default)]
pub struct Signal {
    /// For the worker, which clears it.
    to: AtomicBool,
    /// For the engine: the target is another one.
    config: AtomicBool,
}

impl Signal {
    #[cfg(not(loom))]
    pub(crate) const fn new() -> Self {
        Self {
            to: AtomicBool::new(false),
            config: AtomicBool::new(false),
        }
    }

    #[cfg(loom)]
    pub(crate) fn new() -> Self {
        Self {
            to: AtomicBool::new(false),
            config: AtomicBool::new(false),
        }
    }

    /// The host changed its wishes: the target is to be read again.
    #[doc(alias = "config_changed_interrupt")]
    pub fn config_changed(&self) {
        raise(&self.config);
        raise(&self.to);
    }

    /// The host has answered requests.
    pub fn used(&self) {
        raise(&self.to);
    }

    /// Whether there are news; they are the caller's to look at from here on.
    ///
    /// For the worker alone, before it steps: news that come while it does are there
    /// when it asks again.
    #[must_use = "news that are taken are to be looked at"]
    pub fn take(&self) -> bool {
        take(&self.to)
    }

    /// Whether there are news that the worker has not taken.
    ///
    /// It orders nothing: whoever takes them sees what they were raised for.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.to.load(Ordering::Relaxed)
    }

    /// Whether the target may have changed; cleared *before* it is read, so that a
    /// change that comes later is read again.
    pub(crate) fn take_config(&self) -> bool {
        take(&self.config)
    }

    pub(crate) fn is_config_set(&self) -> bool {
        self.config.load(Ordering::Relaxed)
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
