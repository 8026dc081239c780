//! When to try again what did not work.
//!
//! A balloon that polls for memory it cannot get burns a CPU for nothing; one
//! that sleeps for ever misses the moment. Delays double from the first
//! failure up to a cap, success or a new target resets them, a word of the host
//! ends the wait for it, and nothing is due at rest.

use crate::status::Blocked;
use crate::units::Nanos;

/// The delays of a [`Policy`](crate::Policy).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delays {
    /// After the first failure.
    pub first: Nanos,
    /// Never longer than this.
    pub cap: Nanos,
}

/// One activity that may have to wait, and why.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Backoff {
    Ready,
    Waiting {
        until: Nanos,
        delay: Nanos,
        reason: Blocked,
    },
}

impl Backoff {
    pub(crate) fn is_waiting(self, now: Nanos) -> bool {
        matches!(self, Self::Waiting { until, .. } if now < until)
    }

    /// When to step again for this.
    pub(crate) const fn deadline(self) -> Option<Nanos> {
        match self {
            Self::Ready => None,
            Self::Waiting { until, .. } => Some(until),
        }
    }

    pub(crate) const fn reason(self) -> Option<Blocked> {
        match self {
            Self::Ready => None,
            Self::Waiting { reason, .. } => Some(reason),
        }
    }

    pub(crate) fn fail(&mut self, now: Nanos, delays: Delays, reason: Blocked) {
        let delay = match *self {
            Self::Ready => delays.first,
            Self::Waiting { delay, .. } => delay.saturating_add(delay),
        };
        let delay = delay.min(delays.cap);
        *self = Self::Waiting {
            until: now.saturating_add(delay),
            delay,
            reason,
        };
    }

    /// Lets it be tried now; if that fails too, the delay goes on growing.
    pub(crate) const fn hasten(&mut self, now: Nanos) {
        if let Self::Waiting { until, .. } = self {
            *until = now;
        }
    }

    pub(crate) const fn reset(&mut self) {
        *self = Self::Ready;
    }
}
