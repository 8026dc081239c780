//! The public answer to "why am I not at the target?".

use core::fmt;

use crate::units::{FrameCount, Nanos, Order};

/// What a step leaves to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Step {
    /// There is more to do at once: step again soon.
    pub more: bool,
    /// Step again at this moment even if nothing happens; `None` at rest.
    pub wake_at: Option<Nanos>,
}

impl Step {
    /// Nothing to do.
    pub(crate) const REST: Self = Self {
        more: false,
        wake_at: None,
    };
}

/// Where the balloon stands; see [`Engine::status`](crate::Engine::status).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub struct Status {
    /// The size the host wants, as it said it, once it was read.
    pub target: Option<FrameCount>,
    /// The size the engine goes for: the target, clamped and rounded as the
    /// [`Policy`](crate::Policy) says.
    pub goal: Option<FrameCount>,
    /// Frames the host has, acknowledged.
    pub size: FrameCount,
    /// Frames on their way to the host.
    pub inflating: FrameCount,
    /// Frames on their way back.
    pub deflating: FrameCount,
    /// The unit frames are given in.
    pub unit: Order,
    /// How it is going.
    pub progress: Progress,
    /// Speed and outlook while working.
    pub pace: Option<Pace>,
    /// What happened since the start.
    pub counters: Counters,
}

/// How the way to the goal is going.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
// `Idle` is zero: see `Balloon::new`.
#[repr(u8)]
pub enum Progress {
    /// The host has not said what it wants.
    Idle,
    /// The size is the goal.
    Reached,
    /// The goal is missed by no more than the policy's tolerance.
    WithinTolerance,
    /// Frames are moving.
    Working,
    /// Nothing moves on request of the kernel.
    Quiesced,
    /// Nothing moves, for this reason.
    Blocked(Blocked),
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Idle => f.write_str("idle: no target yet"),
            Self::Reached => f.write_str("at its target"),
            Self::WithinTolerance => f.write_str("near its target, within tolerance"),
            Self::Working => f.write_str("on its way"),
            Self::Quiesced => f.write_str("quiesced"),
            Self::Blocked(reason) => write!(f, "blocked: {reason}"),
        }
    }
}

/// Why nothing moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
// `None` is zero: see `Balloon::new`.
#[repr(u8)]
pub enum Blocked {
    /// Free frames are left, but none that fits what the host can be given.
    Fragmented = 1,
    /// Free frames are left, but their numbers are higher than the host can be told:
    /// 32-bit ones end at 16 TiB.
    OutOfReach,
    /// The kernel keeps the frames that are left, or the target is beyond
    /// [`Policy::max_size`](crate::Policy::max_size).
    Floor,
    /// The frames that are left are set aside:
    /// [`Policy::min_free`](crate::Policy::min_free).
    Reserve,
    /// The frames that are left are not the kernel's to give now.
    Pinned,
    /// No free frame is left.
    AllocatorEmpty,
    /// Memory ran short not long ago.
    CoolDown,
    /// The allocator or the ledger would not take frames back.
    SourceRefused,
    /// The host refuses requests.
    HostRefused,
    /// No request of this transport holds what is to be moved: a path without
    /// room, or blocks larger than a request.
    Unsupported,
    /// The host does not answer.
    DeviceSilent,
    /// The device broke the protocol.
    DeviceBroken,
    /// The device has failed and asks for a reset: frames it was told of stay with it
    /// until then.
    DeviceNeedsReset,
    /// The device is gone: its frames come home, and nothing more is given.
    DeviceGone,
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fragmented => "free memory is too fragmented for this host",
            Self::OutOfReach => "the host cannot be told of the memory that is left",
            Self::Floor => "the kernel keeps the memory that is left",
            Self::Reserve => "the memory that is left is set aside",
            Self::Pinned => "the memory that is left is pinned",
            Self::AllocatorEmpty => "no memory is free",
            Self::CoolDown => "memory ran short not long ago",
            Self::SourceRefused => "the allocator does not take frames back",
            Self::HostRefused => "the host refuses requests",
            Self::Unsupported => "no request of this transport can move it",
            Self::DeviceSilent => "the host does not answer",
            Self::DeviceBroken => "the device broke the protocol",
            Self::DeviceNeedsReset => "the device asks for a reset",
            Self::DeviceGone => "the device is gone",
        })
    }
}

/// Speed since the balloon began to move, and what is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Pace {
    /// Frames moved each second; zero within the first moments.
    pub per_second: FrameCount,
    /// Frames between the size and the goal.
    pub left: FrameCount,
    /// Time left at this speed, if it is known.
    pub remaining: Option<Nanos>,
}

impl Pace {
    pub(crate) fn new(moved: FrameCount, elapsed: Nanos, left: FrameCount) -> Self {
        const SECOND: u128 = 1_000_000_000;
        let clip = |value: u128| u64::try_from(value).unwrap_or(u64::MAX);
        let rate = u128::from(moved.get()) * SECOND / u128::from(elapsed.get().max(1));
        let known = moved.get() > 0 && elapsed.get() > 0 && rate > 0;
        let remaining = known.then(|| Nanos::new(clip(u128::from(left.get()) * SECOND / rate)));
        let per_second = FrameCount::new(if known { clip(rate) } else { 0 });
        Self {
            per_second,
            left,
            remaining,
        }
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
    ///
    /// As exact as the source's [`Backing`](crate::Backing), with one exception:
    /// which frames of a request the host left undone is not looked at. It is
    /// taken to have done the populated ones, so a partial answer may count too
    /// many, but no more than it left undone.
    pub useful: FrameCount,
    /// Frames that came back from the host.
    pub deflated: FrameCount,
    /// Frames that came back because memory ran short.
    pub relieved: FrameCount,
    /// Requests submitted.
    pub requests: u32,
    /// Times the engine gave up for a while.
    pub back_offs: u32,
    /// Failed calls into the transport.
    pub transport_errors: u32,
    /// New targets read.
    pub target_changes: u32,
    /// Fall-backs from larger blocks to 4 KiB.
    pub downgrades: u32,
    /// Returns to larger blocks.
    pub upgrades: u32,
}

impl Counters {
    /// Frames that changed sides, either way.
    pub(crate) const fn moved(&self) -> FrameCount {
        self.inflated.saturating_add(self.deflated)
    }

    pub(crate) const ZERO: Self = Self {
        inflated: FrameCount::ZERO,
        useful: FrameCount::ZERO,
        deflated: FrameCount::ZERO,
        relieved: FrameCount::ZERO,
        requests: 0,
        back_offs: 0,
        transport_errors: 0,
        target_changes: 0,
        downgrades: 0,
        upgrades: 0,
    };
}
