//! A domain without a store, as the first one is: nobody tells it a target, so
//! it sets its own.

use balloon_core::{FrameCount, Progress};
use guest_rt::{interrupts, timer};
use transport_xen::FrameMap;

use super::Kernel;
use super::balloon;

impl<F: FrameMap> Kernel<F> {
    /// Gives half of the memory, migrates a part of that, and takes it all back;
    /// the data is checked after each.
    pub(super) fn alone(&mut self) {
        self.reach(FrameCount::new(self.zone.free_frames().get() / 2));
        self.move_holes(false);
        self.reach(FrameCount::ZERO);
        self.stats();
    }

    fn reach(&mut self, size: FrameCount) {
        self.balloon.aim(size);
        loop {
            if self.step_balloon() {
                continue;
            }
            match self.balloon.status(&self.zone).progress {
                Progress::Reached => return,
                Progress::Blocked(reason) => panic!("the balloon is blocked: {reason}"),
                _ => interrupts::idle_unless(|| balloon::called() || timer::went_off()),
            };
        }
    }
}
