//! What an embedder can choose.

use crate::backoff::Delays;
use crate::units::Nanos;

/// How the engine behaves where the protocols leave a choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Retry delays while a target cannot be reached.
    pub retry: Delays,
    /// How often to look at the host where it sends no interrupts.
    pub poll: Nanos,
    /// A host that leaves a request unanswered for so long counts as silent.
    pub silent_after: Nanos,
}

impl Policy {
    /// 250 ms doubling to 64 s, 100 ms polls, silent after 10 s.
    pub const DEFAULT: Self = Self {
        retry: Delays {
            first: Nanos::from_millis(250),
            cap: Nanos::from_secs(64),
        },
        poll: Nanos::from_millis(100),
        silent_after: Nanos::from_secs(10),
    };
}

impl Default for Policy {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// How much one step may do at most.
///
/// A unit is one request: up to [`MAX_RUNS`](crate::MAX_RUNS) runs taken,
/// submitted, or settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget(usize);

impl Budget {
    /// For interrupt context: about a megabyte of scattered frames.
    pub const SMALL: Self = Self(1);
    /// For a thread of its own.
    pub const LARGE: Self = Self(256);

    /// This many requests, at least one.
    #[must_use]
    pub const fn requests(requests: usize) -> Self {
        Self(if requests == 0 { 1 } else { requests })
    }

    /// Takes one unit; false when the budget is spent.
    pub(crate) fn spend(&mut self) -> bool {
        let left = self.0 > 0;
        self.0 -= usize::from(left);
        left
    }

    pub(crate) const fn is_spent(self) -> bool {
        self.0 == 0
    }
}
