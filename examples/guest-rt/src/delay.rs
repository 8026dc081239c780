//! Waiting by the clock.

use embedded_hal::delay::DelayNs;

use crate::arch::now;
use crate::time::Span;

/// Waits busily, for drivers that must give a device a moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Delay;

impl DelayNs for Delay {
    fn delay_ns(&mut self, ns: u32) {
        let from = now();
        while (now() - from) < Span::from_nanos(u64::from(ns)) {
            core::hint::spin_loop();
        }
    }
}
