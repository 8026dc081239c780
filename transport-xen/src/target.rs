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
//! maximum: the first `static-max` and `videoram` stand for the guest's life. They
//! may be about another map from the first, though: the first domain's are what the
//! machine has, and a kernel can start anew after they were raised. Where the map
//! has more, or is short of them by more than any firmware takes, it is the base.

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
    /// toolstack names none, or another's.
    managed: FrameCount,
}

/// What special pages and firmware take of a domain at the most: this part of it, a
/// mebibyte of a small one, and 8 MiB however large it is. The least that covers
/// UEFI: under populate-on-demand what is left out and not counted is never given,
/// and Xen kills the guest.
const LEFT_OUT_PART: u64 = 32;
const LEFT_OUT_SMALL: FrameCount = FrameCount::new(256);
const LEFT_OUT_LARGE: FrameCount = FrameCount::new(2048);

impl Target {
    /// For a guest whose memory map holds `managed` frames of RAM, those that its
    /// kernel lies in or sets aside among them.
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
        self.target.map_or(size, |target| {
            let short = self.usable().saturating_sub(target.frames());
            short.min(self.managed)
        })
    }

    /// The part of the wish that this guest cannot have: its memory map ends before.
    /// For the status: a balloon of nothing is all that can be done about it.
    #[must_use]
    pub fn beyond(&self) -> FrameCount {
        let target = self.target.map_or(FrameCount::ZERO, Bytes::frames);
        target.saturating_sub(self.usable())
    }

    /// What the domain is charged for when the balloon is empty.
    fn usable(&self) -> FrameCount {
        let part = FrameCount::new(self.managed.get() / LEFT_OUT_PART);
        let left_out = part.clamp(LEFT_OUT_SMALL, LEFT_OUT_LARGE);
        let most = self.managed.saturating_add(left_out);
        let video = self.video_ram.map_or(FrameCount::ZERO, Bytes::frames);
        self.static_max
            .map(|max| max.frames().saturating_sub(video))
            .filter(|usable| (self.managed..=most).contains(usable))
            .unwrap_or(self.managed)
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
        target.set_static_max(mib(36));
        target.set_video_ram(mib(4));
        assert_eq!(target.balloon(FrameCount::ZERO), frames(8));
        // Firmware takes more of a large one.
        let mut target = Target::new(frames(1017));
        target.set_static_max(mib(1024));
        target.set_target(mib(512));
        assert_eq!(target.balloon(FrameCount::ZERO), frames(512));
    }

    #[test]
    fn a_maximum_of_another_map_asks_for_nothing() {
        // Above the map: raised while the kernel started, or the whole machine's.
        // Below: the toolstack says so, and the guest has more all the same.
        for static_max in [64, 18, 8] {
            let mut target = Target::new(frames(16));
            target.set_static_max(mib(static_max));
            target.set_target(mib(16));
            assert_eq!(target.balloon(FrameCount::ZERO), FrameCount::ZERO);
            target.set_target(mib(12));
            assert_eq!(target.balloon(FrameCount::ZERO), frames(4), "{static_max}");
        }
    }

    #[test]
    fn what_is_left_out_does_not_grow_with_the_map() {
        // Raised by a thirty-second part; and a first domain, which has what Xen left
        // of a machine.
        for (managed, static_max) in [(16_384, 16_896), (16_032, 16_384), (1140, 1150)] {
            let mut target = Target::new(frames(managed));
            target.set_static_max(mib(static_max));
            target.set_target(mib(managed));
            assert_eq!(target.balloon(FrameCount::ZERO), FrameCount::ZERO);
            target.set_target(mib(managed - 100));
            assert_eq!(target.balloon(FrameCount::ZERO), frames(100));
        }
    }

    #[test]
    fn a_wish_beyond_the_map_is_told() {
        let mut target = Target::new(frames(31));
        assert_eq!(target.beyond(), FrameCount::ZERO);
        target.set_static_max(mib(32));
        target.set_target(mib(32));
        assert_eq!(target.beyond(), FrameCount::ZERO);
        // Raised while the guest runs.
        target.set_static_max(mib(64));
        target.set_target(mib(48));
        assert_eq!(target.beyond(), frames(16));
        assert_eq!(target.balloon(frames(3)), FrameCount::ZERO);
        target.set_target(Bytes::new(u64::MAX));
        assert!(target.beyond() > frames(1 << 20));
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
        assert_eq!(target.balloon(frames(3)), frames(32));
    }
}
