//! Points in time, the distance between them, and the counter they are read off.

use core::ops::{Add, Sub};
use core::sync::atomic::{AtomicU64, Ordering};

/// Nanoseconds since the clock was started at boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Instant(u64);

impl Instant {
    /// So many nanoseconds after boot.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since boot.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }
}

/// A length of time in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Span(u64);

impl Span {
    /// So many nanoseconds.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// So many milliseconds.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1_000_000))
    }

    /// Whole nanoseconds.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }
}

impl Add<Span> for Instant {
    type Output = Self;

    fn add(self, span: Span) -> Self {
        Self(self.0.saturating_add(span.0))
    }
}

/// Zero if the right side is later.
impl Sub for Instant {
    type Output = Span;

    fn sub(self, earlier: Self) -> Span {
        Span(self.0.saturating_sub(earlier.0))
    }
}

/// Counts since boot, by a counter that may begin anew.
///
/// A guest that is restored or migrated finds the counter of another host, which
/// may be lower. Its own count goes on from where it was: nobody sees time run
/// backwards, and what was to happen later does not wait for the difference. The
/// time in between is not counted.
///
/// Readers come one at a time: interrupts off, on one CPU.
#[derive(Debug, Default)]
pub struct Steady {
    /// The counter when the count was zero, modulo 2^64.
    base: AtomicU64,
    /// The counter when it was read last.
    last: AtomicU64,
}

impl Steady {
    /// A count that begins when the counter stands at zero.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            base: AtomicU64::new(0),
            last: AtomicU64::new(0),
        }
    }

    /// The count is zero now.
    pub fn start(&self, counter: u64) {
        self.base.store(counter, Ordering::Relaxed);
        self.last.store(counter, Ordering::Relaxed);
    }

    /// The count now.
    pub fn count(&self, counter: u64) -> u64 {
        let last = self.last.swap(counter, Ordering::Relaxed);
        let mut base = self.base.load(Ordering::Relaxed);
        if counter < last {
            base = base.wrapping_sub(last - counter);
            self.base.store(base, Ordering::Relaxed);
        }
        counter.wrapping_sub(base)
    }

    /// What the counter shows when the count is `count`, as long as it does not
    /// begin anew.
    #[must_use]
    pub fn counter_at(&self, count: u64) -> u64 {
        let last = self.last.load(Ordering::Relaxed);
        let passed = last.wrapping_sub(self.base.load(Ordering::Relaxed));
        last.saturating_add(count.saturating_sub(passed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_that_begins_anew_does_not_turn_the_clock_back() {
        let clock = Steady::new();
        clock.start(1000);
        assert_eq!(clock.count(1000), 0);
        assert_eq!(clock.count(1500), 500);
        assert_eq!(clock.counter_at(700), 1700);
        // Another host, just started; and a third.
        assert_eq!(clock.count(20), 500);
        assert_eq!(clock.count(120), 600);
        assert_eq!(clock.counter_at(700), 220);
        assert_eq!(clock.count(0), 600);
        assert_eq!(clock.count(1), 601);
        // One that is ahead is believed: time passed there, too.
        assert_eq!(clock.count(10_001), 10_601);
        // What is due is due now; what never comes does not come at once.
        assert_eq!(clock.counter_at(5), 10_001);
        assert!(clock.counter_at(u64::MAX) > u64::MAX / 2);
    }

    #[test]
    fn arithmetic_saturates() {
        let early = Instant::from_nanos(5);
        let late = early + Span::from_millis(2);
        assert_eq!((late - early).as_nanos(), 2_000_000);
        assert_eq!((early - late).as_nanos(), 0);
        assert_eq!((late + Span::from_nanos(u64::MAX)).as_nanos(), u64::MAX);
    }
}
