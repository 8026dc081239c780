//! What an embedder can choose.

use crate::backoff::Delays;
use crate::units::{Bytes, FrameCount, Nanos, Order};

/// How the engine behaves where the protocols leave a choice.
///
/// Start from [`Policy::DEFAULT`] or [`Policy::for_memory`] and change fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Policy {
    /// In which blocks frames are given.
    pub unit: Unit,
    /// Targets are rounded down to whole blocks of this order.
    pub round_to: Order,
    /// The balloon never grows beyond this, whatever the host asks.
    pub max_size: FrameCount,
    /// Frames that stay free in the allocator, for page tables above all: see
    /// [`page_table_reserve`].
    pub keep: FrameCount,
    /// A target missed by no more than this counts as reached.
    pub tolerance: FrameCount,
    /// Retry delays while a target cannot be reached.
    pub retry: Delays,
    /// No inflation for so long after memory ran short.
    pub cool_down: Nanos,
    /// The target is read no more often than this.
    pub min_read_interval: Nanos,
    /// How often to look at the host where it sends no interrupts.
    pub poll: Nanos,
    /// A host that leaves a request unanswered for so long counts as silent.
    pub silent_after: Nanos,
    /// Which frames may be taken back against the target when memory is short
    /// and the host did not offer deflate-on-OOM.
    pub oom_rule: OomRule,
    /// Frames set aside for [`Shared::take_reserve`](crate::Shared::take_reserve),
    /// at most [`RESERVE_FRAMES`](crate::RESERVE_FRAMES).
    pub reserve: FrameCount,
}

/// In which blocks frames are given to the host, and taken back while there are whole
/// ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Unit {
    /// 4 KiB, with neighbours merged: for hosts that map guests in small pages.
    Frames,
    /// Only whole blocks of this order; what is left over stays the guest's.
    Whole(Order),
    /// The host's unit, and 4 KiB once there is no whole block left: an
    /// announced downgrade, undone when all given blocks are whole again.
    Adaptive,
}

impl Unit {
    /// The smallest block that may be given.
    pub(crate) const fn smallest(self) -> Order {
        match self {
            Self::Whole(order) => order,
            Self::Frames | Self::Adaptive => Order::FRAME,
        }
    }
}

/// Readings of the specification's rule on deflating against the target
/// without `VIRTIO_BALLOON_F_DEFLATE_ON_OOM`.
///
/// The text (virtio 1.3, 5.5.6.1) forbids it while the target is *at or below*
/// the size, which would forbid ordinary deflation; every driver reads it the
/// other way round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OomRule {
    /// Only the surplus above the target may return.
    Surplus,
    /// As written: nothing may return while the target is at or below the size.
    Literal,
}

impl Policy {
    /// 4 KiB units, no clamp, retries from 250 ms to 64 s, 100 ms polls, silent
    /// after 10 s, 5 s of cool-down, at most 100 target reads a second.
    pub const DEFAULT: Self = Self {
        unit: Unit::Frames,
        round_to: Order::FRAME,
        max_size: FrameCount::MAX,
        keep: FrameCount::ZERO,
        tolerance: FrameCount::ZERO,
        retry: Delays {
            first: Nanos::from_millis(250),
            cap: Nanos::from_secs(64),
        },
        cool_down: Nanos::from_secs(5),
        min_read_interval: Nanos::from_millis(10),
        poll: Nanos::from_millis(100),
        silent_after: Nanos::from_secs(10),
        oom_rule: OomRule::Surplus,
        reserve: FrameCount::ZERO,
    };

    /// The default for a guest of `total` memory: a target that would leave it
    /// less than [`floor`] is clamped.
    #[must_use]
    pub const fn for_memory(total: FrameCount) -> Self {
        Self {
            max_size: total.saturating_sub(floor(total)),
            ..Self::DEFAULT
        }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// What a guest of `total` memory should keep whatever its host asks.
///
/// Piecewise linear through 128 → 72, 512 → 168, 2048 → 360, 8192 → 744 and
/// 32768 → 1512 MiB, the curve Hyper-V's and FreeBSD's balloons use; below the
/// first point all of it, above the last 1/32 more of each further byte.
#[must_use]
pub const fn floor(total: FrameCount) -> FrameCount {
    const POINTS: [(u64, u64); 5] = [
        (128, 72),
        (512, 168),
        (2048, 360),
        (8192, 744),
        (32768, 1512),
    ];
    const MIB: u64 = Bytes::new(1 << 20).frames().get();
    let total = total.get();
    let mut rest: &[(u64, u64)] = &POINTS;
    let mut at = (0, 0);
    while let [point, tail @ ..] = rest {
        let point = (point.0 * MIB, point.1 * MIB);
        if total < point.0 {
            // Within the first stretch a guest keeps what it has.
            if at.0 == 0 {
                return FrameCount::new(if total < point.1 { total } else { point.1 });
            }
            let rise = (total - at.0) * (point.1 - at.1) / (point.0 - at.0);
            return FrameCount::new(at.1 + rise);
        }
        at = point;
        rest = tail;
    }
    FrameCount::new(at.1 + (total - at.0) / 32)
}

/// L1 page-table frames a kernel needs to fall back from 2 MiB to 4 KiB
/// mappings of `mapped` memory: one table for each 512 frames, rounded up.
///
/// A kernel that maps with large pages puts this into [`Policy::keep`], less the
/// tables it has already: when a large page has to be split, the table must not be
/// in the balloon. The engine leaves so many frames free whatever the target, and
/// so do migrations.
///
/// ```
/// use balloon_core::{Bytes, Policy, page_table_reserve};
///
/// let memory = Bytes::new(8 << 30).frames();
/// let mut policy = Policy::for_memory(memory);
/// policy.keep = page_table_reserve(memory); // 16 MiB for 8 GiB
/// assert_eq!(policy.keep.bytes(), Bytes::new(16 << 20));
/// ```
#[must_use]
pub const fn page_table_reserve(mapped: FrameCount) -> FrameCount {
    FrameCount::new(mapped.get().div_ceil(Order::SUPERPAGE.frames().get()))
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

    /// This budget, or `requests` if it is smaller.
    pub(crate) const fn at_least(self, requests: usize) -> Self {
        if self.0 < requests {
            Self(requests)
        } else {
            self
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_passes_through_its_points_and_never_exceeds_memory() {
        let mib = |m: u64| Bytes::new(m << 20).frames();
        for (total, kept) in [
            (128, 72),
            (512, 168),
            (2048, 360),
            (8192, 744),
            (32768, 1512),
        ] {
            assert_eq!(floor(mib(total)), mib(kept));
        }
        assert_eq!(floor(mib(32)), mib(32));
        assert_eq!(floor(mib(100)), mib(72));
        assert_eq!(floor(mib(32768 + 3200)), mib(1512 + 100));
        assert_eq!(floor(FrameCount::ZERO), FrameCount::ZERO);
        let mut before = FrameCount::ZERO;
        for total in 0..40_000 {
            let kept = floor(mib(total));
            assert!(kept >= before && kept <= mib(total), "at {total} MiB");
            before = kept;
        }
        assert_eq!(Policy::for_memory(mib(8192)).max_size, mib(8192 - 744));
    }

    #[test]
    fn one_table_maps_a_superpage() {
        assert_eq!(page_table_reserve(FrameCount::new(512)).get(), 1);
        assert_eq!(page_table_reserve(FrameCount::new(513)).get(), 2);
        assert_eq!(page_table_reserve(FrameCount::ZERO).get(), 0);
    }
}
