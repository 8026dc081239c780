//! Unit types: frame numbers, counts, ranges and block orders.
//!
//! A *frame* is 4 KiB of physical memory, named by its number (address / 4096). Nothing in this
//! crate ever turns a frame number into a pointer.

use core::fmt;

/// Number of the first frame that cannot be managed: frame numbers have 40 bits.
pub(crate) const FRAME_LIMIT: u64 = 1 << 40;

/// Number of a physical page frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(transparent)]
pub struct Frame(u64);

impl Frame {
    /// log2 of the frame size in bytes.
    pub const SHIFT: u32 = 12;

    /// Wraps a frame number.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The frame number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The frame that contains a physical address.
    #[must_use]
    pub const fn containing(address: u64) -> Self {
        Self(address >> Self::SHIFT)
    }

    /// Physical address of the first byte; saturates beyond 2^64.
    #[must_use]
    pub const fn address(self) -> u64 {
        self.0.saturating_mul(1 << Self::SHIFT)
    }
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A number of frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(transparent)]
pub struct FrameCount(u64);

impl FrameCount {
    /// No frames.
    pub const ZERO: Self = Self(0);

    /// Wraps a number of frames.
    #[must_use]
    pub const fn new(frames: u64) -> Self {
        Self(frames)
    }

    /// The number of frames.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// How many whole frames fit in so many bytes.
    #[must_use]
    pub const fn in_bytes(bytes: u64) -> Self {
        Self(bytes >> Frame::SHIFT)
    }

    /// The size in bytes; saturates beyond 2^64.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0.saturating_mul(1 << Frame::SHIFT)
    }
}

impl fmt::Display for FrameCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} frames", self.0)
    }
}

/// A contiguous run of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct FrameRange {
    start: Frame,
    count: FrameCount,
}

impl FrameRange {
    /// `count` frames from `start` on, cut off where frame numbers would overflow.
    ///
    /// What is cut is in no zone, which ends at 2^40. It is never cut to nothing, which
    /// would be granted: the last number counts as the one before it.
    #[must_use]
    pub const fn new(start: Frame, count: FrameCount) -> Self {
        let start = match start.0 {
            u64::MAX if count.0 > 0 => Frame(u64::MAX - 1),
            _ => start,
        };
        let room = u64::MAX - start.0;
        let count = if count.0 < room {
            count
        } else {
            FrameCount(room)
        };
        Self { start, count }
    }

    /// The frames from `start` up to, not including, `end`; empty if `end` lies before `start`.
    #[must_use]
    pub const fn between(start: Frame, end: Frame) -> Self {
        Self {
            start,
            count: FrameCount(end.0.saturating_sub(start.0)),
        }
    }

    /// The whole frames inside a byte range of a boot memory map: the start is rounded up, the
    /// end down.
    ///
    /// ```
    /// use buddy_alloc::{Frame, FrameRange};
    /// let ram = FrameRange::inside_bytes(0x1800, 0x5000);
    /// assert_eq!(ram.start(), Frame::new(2));
    /// assert_eq!(ram.end(), Frame::new(6));
    /// ```
    #[must_use]
    pub const fn inside_bytes(address: u64, length: u64) -> Self {
        let first = address.div_ceil(1 << Frame::SHIFT);
        let end = address.saturating_add(length) >> Frame::SHIFT;
        Self::between(Frame(first), Frame(end))
    }

    /// An aligned block of `2^order` frames that contains `frame`.
    #[must_use]
    pub const fn block(frame: Frame, order: Order) -> Self {
        Self::new(
            Frame(frame.0 & !(order.frames() - 1)),
            FrameCount(order.frames()),
        )
    }

    pub(crate) const fn raw(start: u64, end: u64) -> Self {
        Self::between(Frame(start), Frame(end))
    }

    /// First frame.
    #[must_use]
    pub const fn start(self) -> Frame {
        self.start
    }

    /// First frame after the range.
    #[must_use]
    pub const fn end(self) -> Frame {
        Frame(self.start.0 + self.count.0)
    }

    /// Number of frames.
    #[must_use]
    pub const fn count(self) -> FrameCount {
        self.count
    }

    /// Whether the range has no frames.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.count.0 == 0
    }

    /// Whether `frame` is inside.
    #[must_use]
    pub const fn contains(self, frame: Frame) -> bool {
        frame.0 >= self.start.0 && frame.0 < self.end().0
    }

    /// Whether all of `other` is inside.
    #[must_use]
    pub const fn covers(self, other: Self) -> bool {
        other.start.0 >= self.start.0 && other.end().0 <= self.end().0
    }
}

impl fmt::Display for FrameRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:#x}, {:#x})", self.start.0, self.end().0)
    }
}

/// log2 of a block size in frames: 0 (4 KiB) to 18 (1 GiB).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(transparent)]
pub struct Order(u8);

impl Order {
    /// One frame, 4 KiB.
    pub const FRAME: Self = Self(0);
    /// 512 frames, 2 MiB.
    pub const MIB_2: Self = Self(9);
    /// The largest block, 2^18 frames or 1 GiB.
    pub const MAX: Self = Self(18);
    /// Number of different orders.
    pub const COUNT: usize = 19;

    /// An order, if it is at most [`Order::MAX`].
    #[must_use]
    pub const fn new(order: u8) -> Option<Self> {
        if order <= Self::MAX.0 {
            Some(Self(order))
        } else {
            None
        }
    }

    pub(crate) const fn raw(order: u32) -> Self {
        debug_assert!(order <= 18, "orders come from blocks");
        #[expect(clippy::cast_possible_truncation, reason = "at most 18")]
        Self(order as u8)
    }

    /// The smallest order whose blocks hold `count` frames, if there is one.
    #[must_use]
    pub const fn holding(count: FrameCount) -> Option<Self> {
        if count.0 > Self::MAX.frames() {
            return None;
        }
        let frames = if count.0 == 0 { 1 } else { count.0 };
        Some(Self::raw(frames.next_power_of_two().trailing_zeros()))
    }

    /// log2 of the number of frames.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }

    /// Frames in a block of this order.
    #[must_use]
    pub const fn frames(self) -> u64 {
        1 << self.0
    }

    /// All orders, smallest first.
    pub fn all() -> impl DoubleEndedIterator<Item = Self> + ExactSizeIterator {
        (0..=Self::MAX.0).map(Self)
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "order {}", self.0)
    }
}
