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
    pub granularity: Granularity,
    /// Targets are rounded down to whole blocks of this order.
    pub round_to: Order,
    /// The balloon never grows beyond this, whatever the host asks.
    pub max_size: FrameCount,
    /// Frames that stay free in the allocator, for page tables above all: see
    /// [`page_table_reserve`].
    pub min_free: FrameCount,
    /// A target missed by no more than this counts as reached.
    pub tolerance: FrameCount,
    /// Retry delays while a target cannot be reached.
    pub retry: Delays,
    /// No inflation for so long after memory ran short.
    pub cool_down: Nanos,
    /// The target is read no more often than this.
    pub min_read_interval: Nanos,
    /// How often to look at the host where it sends no interrupts; at most once a
    /// millisecond.
    pub poll: Nanos,
    /// A host that leaves a request unanswered for so long counts as silent.
    pub silent_after: Nanos,
    /// Frames set aside for [`Shared::take_emergency`](crate::Shared::take_emergency),
    /// at most [`EMERGENCY_FRAMES`](crate::EMERGENCY_FRAMES).
    pub emergency_pool: FrameCount,
}

/// In which blocks frames are given to the host, and taken back while there are whole
/// ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Granularity {
    /// 4 KiB, with neighbours merged: for hosts that map guests in small pages.
    Frames,
    /// Only whole blocks of this order; what is left over stays the guest's.
    Whole(Order),
    /// The host's unit, and 4 KiB once there is no whole block left: an
    /// announced downgrade, undone when all given blocks are whole again.
    Adaptive,
}

impl Granularity {
    /// The smallest block that may be given.
    pub(crate) const fn smallest(self) -> Order {
        match self {
            Self::Whole(order) => order,
            Self::Frames | Self::Adaptive => Order::FRAME,
        }
    }
}

impl Policy {
    /// 4 KiB units, no clamp, retries from 250 ms to 64 s, 100 ms polls, silent
    /// after 10 s, 5 s of cool-down, at most 100 target reads a second.
    pub const DEFAULT: Self = Self {
        granularity: Granularity::Frames,
        round_to: Order::FRAME,
        max_size: FrameCount::MAX,
        min_free: FrameCount::ZERO,
        tolerance: FrameCount::ZERO,
        retry: Delays {
            first: Nanos::from_millis(250),
            cap: Nanos::from_secs(64),
        },
        cool_down: Nanos::from_secs(5),
        min_read_interval: Nanos::from_millis(10),
        poll: Nanos::from_millis(100),
        silent_after: Nanos::from_secs(10),
        emergency_pool: FrameCount::ZERO,
    };

    /// All zeros, for an engine that was not started.
    pub(crate) const ZERO: Self = Self {
        granularity: Granularity::Frames,
        round_to: Order::FRAME,
        max_size: FrameCount::ZERO,
        min_free: FrameCount::ZERO,
        tolerance: FrameCount::ZERO,
        retry: Delays {
            first: Nanos::ZERO,
            cap: Nanos::ZERO,
        },
        cool_down: Nanos::ZERO,
        min_read_interval: Nanos::ZERO,
        poll: Nanos::ZERO,
        silent_after: Nanos::ZERO,
        emergency_pool: FrameCount::ZERO,
    };

    /// The default for a guest of `total` memory: a target that would leave it
    /// less than [`floor`] is clamped, and what is free is never taken below the
    /// [`low_watermark`].
    #[must_use]
    pub const fn for_memory(total: FrameCount) -> Self {
        Self {
            max_size: total.saturating_sub(floor(total)),
            min_free: low_watermark(total),
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

/// Free frames below which a guest of `total` memory counts as short of it: where Linux
/// wakes its reclaim.
///
/// Linux keeps `4 * sqrt(total in KiB)` KiB, between 128 KiB and 256 MiB, for who cannot
/// wait, and a quarter of that above, or a thousandth of memory if that is more.
///
/// ```
/// use balloon_core::{Bytes, low_watermark};
///
/// let kib = |mib: u64| low_watermark(Bytes::new(mib << 20).frames()).bytes().get() >> 10;
/// assert_eq!([128, 8192].map(kib), [1808, 19972]);
/// ```
#[must_use]
pub const fn low_watermark(total: FrameCount) -> FrameCount {
    let total = total.get();
    // The square of 4 * sqrt(KiB), in frames of 4 KiB.
    let kib = total.saturating_mul(64).isqrt();
    let kib = if kib < 128 {
        128
    } else if kib > 256 << 10 {
        256 << 10
    } else {
        kib
    };
    let min = kib / 4;
    let (quarter, thousandth) = (min / 4, total / 1000);
    let gap = if quarter > thousandth {
        quarter
    } else {
        thousandth
    };
    FrameCount::new(min.saturating_add(gap))
}

/// L1 page-table frames a kernel needs to fall back from 2 MiB to 4 KiB
/// mappings of `mapped` memory: one table for each 512 frames, rounded up.
///
/// A kernel that maps with large pages puts this into [`Policy::min_free`], less the
/// tables it has already: when a large page has to be split, the table must not be
/// in the balloon. The engine leaves so many frames free whatever the target, and
/// so do migrations.
///
/// ```
/// use balloon_core::{Bytes, Policy, page_table_reserve};
///
/// let memory = Bytes::new(8 << 30).frames();
/// let mut policy = Policy::for_memory(memory);
/// policy.min_free = page_table_reserve(memory); // 16 MiB for 8 GiB
/// assert_eq!(policy.min_free.bytes(), Bytes::new(16 << 20));
/// ```
#[must_use]
pub const fn page_table_reserve(mapped: FrameCount) -> FrameCount {
    FrameCount::new(mapped.get().div_ceil(Order::SUPERPAGE.frames().get()))
}

/// How much one step may do at most: so many requests of so many frames.
///
/// A unit is one request, taken, submitted, or settled, or 64 looks at which frames are
/// free or ballooned. What one request costs is bounded by
/// [`MAX_RUNS`](crate::MAX_RUNS) and, in [`SMALL`](Self::SMALL), by the frames it moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    requests: usize,
    /// What each request may cost a source, see [`RangeSink::with_effort`](crate::RangeSink).
    effort: u32,
    /// Looks paid for.
    looks: u32,
}

/// Looks for one unit.
const LOOKS: u32 = 64;

impl Budget {
    /// For interrupt context: one request, of about 72 scattered frames or 128 MiB in one
    /// piece. `cargo xtask bench step` counts what it comes to in instructions.
    pub const SMALL: Self = Self {
        effort: 72,
        ..Self::requests(1)
    };
    /// For a thread of its own.
    pub const LARGE: Self = Self::requests(256);

    /// This many requests, at least one, as large as the transport takes them.
    #[must_use]
    pub const fn requests(requests: usize) -> Self {
        Self {
            requests: if requests == 0 { 1 } else { requests },
            effort: u32::MAX,
            looks: 0,
        }
    }

    /// This budget, with `requests` if it has fewer.
    pub(crate) const fn at_least(mut self, requests: usize) -> Self {
        if self.requests < requests {
            self.requests = requests;
        }
        self
    }

    /// Takes one unit; false when the budget is spent.
    pub(crate) fn spend(&mut self) -> bool {
        let left = self.requests > 0;
        self.requests -= usize::from(left);
        left
    }

    /// Takes one look; false when the budget is spent.
    pub(crate) fn spend_look(&mut self) -> bool {
        if self.looks == 0 {
            if !self.spend() {
                return false;
            }
            self.looks = LOOKS;
        }
        self.looks -= 1;
        true
    }

    pub(crate) const fn is_spent(self) -> bool {
        self.requests == 0
    }

    /// What one request may cost a source.
    pub(crate) const fn effort(self) -> u32 {
        self.effort
    }

    /// What either side of a batch of pairs may cost one: the frames of both are taken and put in
    /// their places one by one, and those of two batches in one step.
    pub(crate) const fn effort_for_pairs(self) -> u32 {
        if self.effort == u32::MAX {
            self.effort
        } else {
            self.effort / 8
        }
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
