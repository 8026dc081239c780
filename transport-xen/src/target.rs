//! From the numbers of the toolstack to the size of the balloon.
//!
//! ```text
//!  static-max ─┬─ videoram ─┬──────── what the guest may use ─────────┐
//!              └────────────┴── target ──────────┬──── balloon ───────┘
//! ```
//!
//! All numbers are about the domain, so what the guest's own memory map leaves
//! out (special pages, firmware) cancels: the balloon is what the target is
//! short of `static-max - videoram`. The current reservation does not enter:
//! under populate-on-demand it is the target, not the guest's size.
//!
//! The memory map is that of the boot, and a domain can be restored with another
//! maximum: the first `static-max` and `videoram` stand for the guest's life.

use balloon_core::{Bytes, FrameCount};

/// What the toolstack said.
///
/// Rounding and tolerance are the engine's (`Policy::round_to`,
/// `Policy::tolerance`).
#[derive(Clone, Copy, Debug)]
pub struct Target {
    static_max: Option<Bytes>,
    video_ram: Option<Bytes>,
    target: Option<Bytes>,
    /// The guest's own frames: what there is to give, and the base where the
    /// toolstack names none.
    managed: FrameCount,
}

impl Target {
    /// For a guest whose memory map holds `managed` frames.
    #[must_use]
    pub const fn new(managed: FrameCount) -> Self {
        Self {
            static_max: None,
            video_ram: None,
            target: None,
            managed,
        }
    }

    /// The toolstack's limit (`memory/static-max`), of which the first stands.
    pub const fn set_static_max(&mut self, static_max: Bytes) {
        if self.static_max.is_none() {
            self.static_max = Some(static_max);
        }
    }

    /// The part of it that is video memory (`memory/videoram`), of which the
    /// first stands.
    pub const fn set_video_ram(&mut self, video_ram: Bytes) {
        if self.video_ram.is_none() {
            self.video_ram = Some(video_ram);
        }
    }

    /// The toolstack's wish (`memory/target`).
    pub const fn set_target(&mut self, target: Bytes) {
        self.target = Some(target);
    }

    /// The balloon that fulfils the wish, given the one of `size` now.
    ///
    /// Without a wish, the one there is; never more than the guest has.
    #[must_use]
    pub fn balloon(&self, size: FrameCount) -> FrameCount {
        let Some(target) = self.target else {
            return size;
        };
        let usable = match self.static_max {
            Some(max) => {
                let video = self.video_ram.map_or(FrameCount::ZERO, Bytes::frames);
                max.frames().saturating_sub(video)
            }
            None => self.managed,
        };
        usable.saturating_sub(target.frames()).min(self.managed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 256;

    fn mib(mib: u64) -> Bytes {
        Bytes::new(mib << 20)
    }

    fn frames(mib: u64) -> FrameCount {
        FrameCount::new(mib * MIB)
    }

    #[test]
    fn no_wish_no_change() {
        let target = Target::new(frames(32));
        assert_eq!(target.balloon(frames(5)), frames(5));
    }

    #[test]
    fn static_max_is_the_base() {
        // The guest's own map is one MiB short of static-max.
        let mut target = Target::new(frames(31));
        target.set_target(mib(24));
        assert_eq!(target.balloon(FrameCount::ZERO), frames(7));
        target.set_static_max(mib(32));
        assert_eq!(target.balloon(FrameCount::ZERO), frames(8));
        target.set_video_ram(mib(4));
        assert_eq!(target.balloon(FrameCount::ZERO), frames(4));
    }

    #[test]
    fn out_of_range_wishes_are_clamped() {
        let mut target = Target::new(frames(32));
        target.set_static_max(mib(32));
        target.set_target(mib(1000));
        assert_eq!(target.balloon(frames(3)), FrameCount::ZERO);
        target.set_target(Bytes::new(u64::MAX));
        assert_eq!(target.balloon(frames(3)), FrameCount::ZERO);
        let mut target = Target::new(frames(32));
        target.set_target(Bytes::new(0));
        target.set_static_max(mib(4096));
        assert_eq!(target.balloon(frames(3)), frames(32), "all there is");
        target.set_video_ram(Bytes::new(u64::MAX));
        assert_eq!(target.balloon(frames(3)), FrameCount::ZERO);
    }
}
