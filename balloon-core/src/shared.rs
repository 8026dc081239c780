//! Everything of a balloon that more than one CPU touches.

use crate::signal::Signal;
use crate::slots::Slots;

/// The signal and the response slots: one `static` beside each engine.
///
/// ```
/// use balloon_core::{Engine, Policy, Shared};
///
/// static SHARED: Shared<16> = Shared::new();
/// static ENGINE: std::sync::Mutex<Engine<16>> =
///     std::sync::Mutex::new(Engine::new(&SHARED, Policy::DEFAULT));
///
/// fn config_interrupt() {
///     SHARED.signal().config_changed();
/// }
/// # config_interrupt();
/// # assert!(SHARED.signal().pending());
/// ```
#[derive(Debug)]
pub struct Shared<const N: usize = 16> {
    signal: Signal,
    slots: Slots<N>,
}

impl<const N: usize> Shared<N> {
    /// Nothing signalled, all slots free.
    #[cfg(not(loom))]
    #[must_use]
    pub const fn new() -> Self {
        Self {
            signal: Signal::new(),
            slots: Slots::new(),
        }
    }

    /// Nothing signalled, all slots free.
    #[cfg(loom)]
    #[must_use]
    pub fn new() -> Self {
        Self {
            signal: Signal::new(),
            slots: Slots::new(),
        }
    }

    /// What interrupt handlers set.
    pub const fn signal(&self) -> &Signal {
        &self.signal
    }

    /// The response slots; [`Slots::completer`] is for whoever sees answers.
    pub const fn slots(&self) -> &Slots<N> {
        &self.slots
    }
}

impl<const N: usize> Default for Shared<N> {
    fn default() -> Self {
        Self::new()
    }
}
