//! What the host has behind frames.

use crate::units::FrameCount;

/// What the host is believed to have behind a range.
///
/// An over-estimate is fine (allocated but never written), an under-estimate is
/// not. It costs a virtio host memory: a frame called unpopulated is given last. To
/// Xen, where all memory may be populated from the start, it goes uncleared: there a
/// frame counts as unpopulated as long as the guest has not written it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Backing {
    /// Every frame has memory behind it.
    Populated,
    /// This many frames of the range have.
    Partly(FrameCount),
    /// None has, or nothing of the guest's is in it: giving it frees nothing and
    /// needs no clearing, touching it may cost a page fault.
    Unpopulated,
    /// Nobody knows, as after a reset or a restore.
    Unknown,
}

impl Backing {
    /// How many of `count` frames count as populated; unknown ones do.
    #[must_use]
    pub const fn populated(self, count: FrameCount) -> FrameCount {
        match self {
            Self::Populated | Self::Unknown => count,
            Self::Partly(some) if some.get() < count.get() => some,
            Self::Partly(_) => count,
            Self::Unpopulated => FrameCount::ZERO,
        }
    }
}
