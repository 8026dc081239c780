//! The public answer to "why am I not at the target?".

use core::fmt;

use crate::units::{FrameCount, Nanos};

/// What a step leaves to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Step {
    /// The budget ran out before the work did: step again soon.
    pub more: bool,
    /// Step again at this moment even if nothing happens; `None` at rest.
    pub wake_at: Option<Nanos>,
}

/// Where the balloon stands; see [`Engine::status`](crate::Engine::status).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Status {
    /// The balloon size the host wants, once it was read.
    pub target: Option<FrameCount>,
    /// Frames the host has, acknowledged.
    pub size: FrameCount,
    /// Frames on their way to the host.
    pub inflating: FrameCount,
    /// Frames on their way back.
    pub deflating: FrameCount,
    /// How it is going.
    pub progress: Progress,
    /// What happened since the start.
    pub counters: Counters,
}

/// How the way to the target is going.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Progress {
    /// The host has not said what it wants.
    Idle,
    /// The size is the target.
    Reached,
    /// Frames are moving.
    Working,
    /// Nothing moves, for this reason.
    Blocked(Blocked),
}

/// Why nothing moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Blocked {
    /// Free frames are left, but none that fits what the host can be given.
    Fragmented,
    /// The kernel keeps the frames that are left.
    Floor,
    /// No free frame is left.
    AllocatorEmpty,
    /// The allocator or the ledger would not take frames back.
    SourceRefused,
    /// The host refuses requests.
    HostRefused,
    /// The host does not answer.
    DeviceSilent,
    /// The device broke the protocol.
    DeviceBroken,
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fragmented => "free memory is too fragmented for this host",
            Self::Floor => "the kernel keeps the memory that is left",
            Self::AllocatorEmpty => "no memory is free",
            Self::SourceRefused => "the allocator does not take frames back",
            Self::HostRefused => "the host refuses requests",
            Self::DeviceSilent => "the host does not answer",
            Self::DeviceBroken => "the device broke the protocol",
        })
    }
}

/// Events since the engine was made; 32-bit ones wrap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub struct Counters {
    /// Frames the host acknowledged as given.
    pub inflated: FrameCount,
    /// Of those, frames the host is believed to have backed with memory: what
    /// it really gained.
    pub useful: FrameCount,
    /// Frames that came back from the host.
    pub deflated: FrameCount,
    /// Requests submitted.
    pub requests: u32,
    /// Times the engine gave up for a while.
    pub back_offs: u32,
    /// Failed calls into the transport.
    pub transport_errors: u32,
    /// New targets read.
    pub target_changes: u32,
}

impl Counters {
    pub(crate) const ZERO: Self = Self {
        inflated: FrameCount::ZERO,
        useful: FrameCount::ZERO,
        deflated: FrameCount::ZERO,
        requests: 0,
        back_offs: 0,
        transport_errors: 0,
        target_changes: 0,
    };
}
