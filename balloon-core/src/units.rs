//! The quantities the crates speak in: frames, ranges, orders, bytes, time.
//!
//! One frame is 4 KiB, the unit of both the virtio-balloon wire format and of
//! Xen's reservations, whatever page size the guest maps with. A bare integer
//! never crosses a public signature: a page count handed over as a byte count
//! is how a balloon takes 4096 times too much.

use core::fmt;

/// log2 of the frame size in bytes.
pub const FRAME_SHIFT: u32 = 12;

/// A guest-physical frame number: physical address / 4096.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(transparent)]
pub struct Pfn(u64);

impl Pfn {
    /// One past the largest frame number the balloon handles (4 PiB of address).
    pub const LIMIT: Self = Self(1 << 40);

    /// The frame with this number.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The frame that holds this physical address.
    #[must_use]
    pub const fn containing(address: u64) -> Self {
        Self(address >> FRAME_SHIFT)
    }

    /// The frame number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Physical address of the frame's first byte; wraps above 2^52 frames.
    #[must_use]
    pub const fn address(self) -> u64 {
        self.0 << FRAME_SHIFT
    }

    /// Whether a naturally aligned block of `order` may start here.
    #[must_use]
    pub const fn is_aligned(self, order: Order) -> bool {
        self.0 & (order.frames().get() - 1) == 0
    }
}

/// A number of frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(transparent)]
pub struct FrameCount(u64);

impl FrameCount {
    /// No frame at all.
    pub const ZERO: Self = Self(0);
    /// Exactly one frame.
    pub const ONE: Self = Self(1);
    /// More than any machine has.
    pub const MAX: Self = Self(u64::MAX);

    /// This many frames.
    #[must_use]
    pub const fn new(frames: u64) -> Self {
        Self(frames)
    }

    /// How many frames.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// This many frames, from a kernel that counts them in a `usize`.
    #[must_use]
    pub const fn from_usize(frames: usize) -> Self {
        Self(frames as u64)
    }

    /// How many frames, for a kernel that counts them in a `usize`; stops at its largest.
    #[must_use]
    pub const fn to_usize(self) -> usize {
        if self.0 > usize::MAX as u64 {
            return usize::MAX;
        }
        #[expect(clippy::cast_possible_truncation, reason = "just compared")]
        {
            self.0 as usize
        }
    }

    /// Whether this is no frame at all.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// The size in bytes, saturating.
    #[must_use]
    pub const fn bytes(self) -> Bytes {
        Bytes(self.0.saturating_mul(1 << FRAME_SHIFT))
    }

    /// Sum, stopping at [`FrameCount::MAX`].
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// Difference, stopping at zero.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// Rounded down to whole blocks of `order`.
    #[must_use]
    pub const fn round_down(self, order: Order) -> Self {
        Self(self.0 & !(order.frames().0 - 1))
    }
}

impl fmt::Display for FrameCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} frames", self.0)
    }
}

/// A size in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(transparent)]
pub struct Bytes(u64);

impl Bytes {
    /// This many bytes.
    #[must_use]
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// How many bytes.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// This many bytes, from a kernel that counts them in a `usize`.
    #[must_use]
    pub const fn from_usize(bytes: usize) -> Self {
        Self(bytes as u64)
    }

    /// How many bytes, for a kernel that counts them in a `usize`; stops at its largest.
    #[must_use]
    pub const fn to_usize(self) -> usize {
        if self.0 > usize::MAX as u64 {
            return usize::MAX;
        }
        #[expect(clippy::cast_possible_truncation, reason = "just compared")]
        {
            self.0 as usize
        }
    }

    /// The whole frames that fit.
    #[must_use]
    pub const fn frames(self) -> FrameCount {
        FrameCount(self.0 >> FRAME_SHIFT)
    }
}

/// log2 of a block size in frames: 0 is 4 KiB, 9 is 2 MiB, 18 is 1 GiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(transparent)]
pub struct Order(u8);

impl Order {
    /// 4 KiB.
    pub const FRAME: Self = Self(0);
    /// 2 MiB, the superpage of x86-64 and of arm64 with 4 KiB pages.
    pub const SUPERPAGE: Self = Self(9);
    /// The largest order that makes sense for a frame number below 2^40.
    pub const MAX: Self = Self(39);

    /// This order; `None` above [`Order::MAX`].
    #[must_use]
    pub const fn new(order: u8) -> Option<Self> {
        if order <= Self::MAX.0 {
            Some(Self(order))
        } else {
            None
        }
    }

    /// The smallest order whose blocks hold `count` frames: of an alignment in bytes, that of
    /// [`Bytes::frames`]. `None` if there is none.
    #[expect(clippy::cast_possible_truncation, reason = "at most `MAX`")]
    #[must_use]
    pub const fn holding(count: FrameCount) -> Option<Self> {
        let frames = count.get();
        let order = match frames {
            0 => 0,
            _ => u64::BITS - (frames - 1).leading_zeros(),
        };
        if order <= Self::MAX.0 as u32 {
            Some(Self(order as u8))
        } else {
            None
        }
    }

    /// log2 of the number of frames.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }

    /// The number of frames of one block.
    #[must_use]
    pub const fn frames(self) -> FrameCount {
        FrameCount(1 << self.0)
    }
}

/// Frames in a row: `start`, `start + 1`, … Never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct FrameRange {
    start: Pfn,
    count: FrameCount,
}

impl FrameRange {
    /// `count` frames from `start`.
    ///
    /// `None` if the range is empty or reaches beyond [`Pfn::LIMIT`].
    #[must_use]
    pub const fn new(start: Pfn, count: FrameCount) -> Option<Self> {
        let Some(end) = start.0.checked_add(count.0) else {
            return None;
        };
        if count.0 == 0 || end > Pfn::LIMIT.0 {
            None
        } else {
            Some(Self { start, count })
        }
    }

    /// The one frame `pfn`; `None` beyond [`Pfn::LIMIT`].
    #[must_use]
    pub const fn single(pfn: Pfn) -> Option<Self> {
        Self::new(pfn, FrameCount::ONE)
    }

    /// The whole frames inside a piece of a memory map: its start is rounded up, its end down.
    ///
    /// `None` if no whole frame lies inside, or one beyond [`Pfn::LIMIT`].
    ///
    /// ```
    /// use balloon_core::{Bytes, FrameRange};
    /// let ram = FrameRange::within(0x1800, Bytes::new(0x5000)).unwrap();
    /// assert_eq!((ram.start().get(), ram.end().get()), (2, 6));
    /// assert_eq!(FrameRange::within(0x1800, Bytes::new(0x1000)), None);
    /// ```
    #[must_use]
    pub const fn within(address: u64, bytes: Bytes) -> Option<Self> {
        let start = address.div_ceil(1 << FRAME_SHIFT);
        let end = address.saturating_add(bytes.get()) >> FRAME_SHIFT;
        Self::new(Pfn(start), FrameCount(end.saturating_sub(start)))
    }

    /// First frame.
    #[must_use]
    pub const fn start(self) -> Pfn {
        self.start
    }

    /// One past the last frame.
    #[must_use]
    pub const fn end(self) -> Pfn {
        Pfn(self.start.0 + self.count.0)
    }

    /// Number of frames, at least one.
    #[must_use]
    pub const fn count(self) -> FrameCount {
        self.count
    }

    /// Every frame in rising order.
    #[must_use]
    pub fn frames(self) -> impl ExactSizeIterator<Item = Pfn> {
        Frames {
            next: self.start.0,
            end: self.end().0,
        }
    }

    /// The frames both ranges have.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Option<Self> {
        let start = if self.start.0 > other.start.0 {
            self.start.0
        } else {
            other.start.0
        };
        let end = if self.end().0 < other.end().0 {
            self.end().0
        } else {
            other.end().0
        };
        Self::new(Pfn(start), FrameCount(end.saturating_sub(start)))
    }

    /// This range and the one that follows it without a gap.
    #[must_use]
    pub const fn joined(self, next: Self) -> Option<Self> {
        if self.end().get() == next.start.get() {
            Self::new(self.start, FrameCount(self.count.0 + next.count.0))
        } else {
            None
        }
    }

    /// Cuts after `count` frames: the head, and what is left of the range.
    ///
    /// `count` of zero gives no head, a `count` of the whole range no tail.
    #[must_use]
    pub const fn split_at(self, count: FrameCount) -> (Option<Self>, Option<Self>) {
        if count.0 >= self.count.0 {
            return (Some(self), None);
        }
        let tail = Self {
            start: Pfn(self.start.0 + count.0),
            count: FrameCount(self.count.0 - count.0),
        };
        if count.0 == 0 {
            (None, Some(tail))
        } else {
            (
                Some(Self {
                    start: self.start,
                    count,
                }),
                Some(tail),
            )
        }
    }
}

impl fmt::Display for FrameRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}+{}", self.start.0, self.count.0)
    }
}

/// Iterator behind [`FrameRange::frames`]: `Range<u64>` is no `ExactSizeIterator`.
struct Frames {
    next: u64,
    end: u64,
}

impl Iterator for Frames {
    type Item = Pfn;

    fn next(&mut self) -> Option<Pfn> {
        if self.next == self.end {
            return None;
        }
        let pfn = Pfn(self.next);
        self.next += 1;
        Some(pfn)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = usize::try_from(self.end - self.next).unwrap_or(usize::MAX);
        (left, Some(left))
    }
}

impl ExactSizeIterator for Frames {}

/// A moment or a span in nanoseconds of the kernel's monotonic clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(transparent)]
pub struct Nanos(u64);

impl Nanos {
    /// The clock's zero, or no time at all.
    pub const ZERO: Self = Self(0);

    /// This many nanoseconds.
    #[must_use]
    pub const fn new(nanos: u64) -> Self {
        Self(nanos)
    }

    /// This many milliseconds, saturating.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1_000_000))
    }

    /// This many seconds, saturating.
    #[must_use]
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs.saturating_mul(1_000_000_000))
    }

    /// The nanoseconds.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Sum, stopping at the end of time.
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// Difference, stopping at zero.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

#[cfg(test)]
mod tests;
