//! Clearing what the balloon gives.

use balloon_core::FrameRange;
use guest_rt::{PhysAddr, ram};
use transport_xen::Clear;

/// Zeros over all of a run, unless the command line asks for none.
#[derive(Debug)]
pub(super) struct Scrub {
    on: bool,
}

impl Scrub {
    /// # Safety
    /// Whoever gets it names only frames of RAM that are its own, mapped one to one.
    pub(super) const unsafe fn new(on: bool) -> Self {
        Self { on }
    }
}

impl Clear for Scrub {
    fn clear(&mut self, frames: FrameRange) {
        if self.on {
            let first = PhysAddr::new(frames.start().address());
            let count = usize::try_from(frames.count().get()).unwrap_or(0);
            // SAFETY: the balloon's alone, as whoever made this value vouched.
            unsafe { ram::clear_frames(first, count) }
        }
    }
}
