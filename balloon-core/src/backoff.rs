//! When to try again what did not work.
//!
//! A balloon that polls for memory it cannot get burns a CPU for nothing; one
//! that sleeps for ever misses the moment. Delays double from the first
//! failure up to a cap, success or a new target resets them, a word of the host
//! ends the wait for it, and nothing is due at rest.
//!
//! Moments belong to a clock, and a guest that is restored may find another one. So
//! one that is further away than its delay allows is no moment of this clock, and
//! nobody waits for it ([`is_to_come`]).

use crate::status::Blocked;
use crate::units::Nanos;

/// The shortest delay: one of zero would be over before anybody could wait for it.
pub(crate) const SHORTEST: Nanos = Nanos::from_millis(1);

/// By so much the clocks of two processors may differ.
const JITTER: Nanos = Nanos::from_secs(1);

/// Whether `until`, which was set `delay` ahead by this clock, is still to come.
///
/// For services that a transport has beside the engine: a moment that is further ahead is
/// one of the clock before a restore.
#[must_use]
pub fn is_to_come(until: Nanos, delay: Nanos, now: Nanos) -> bool {
    now < until && until.saturating_sub(now) <= delay.saturating_add(JITTER)
}

/// The delays of a [`Policy`](crate::Policy); none is shorter than a millisecond.
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
        self.deadline(now).is_some()
    }

    /// When to step again for this.
    pub(crate) fn deadline(self, now: Nanos) -> Option<Nanos> {
        match self {
            Self::Waiting { until, delay, .. } if is_to_come(until, delay, now) => Some(until),
            Self::Ready | Self::Waiting { .. } => None,
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
            Self::Waiting { delay, .. } => delay.saturating_add(delay).max(delays.first),
        };
        let delay = delay.min(delays.cap).max(SHORTEST);
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

    /// Things are not as they were at the last failure: the delay after it is the first one
    /// again.
    pub(crate) fn start_over(&mut self, delays: Delays) {
        if let Self::Waiting { until, delay, .. } = self {
            let failed = until.saturating_sub(*delay);
            *delay = delays.first.min(*delay).max(SHORTEST);
            *until = failed.saturating_add(*delay);
        }
    }

    pub(crate) const fn reset(&mut self) {
        *self = Self::Ready;
    }
}
