//! Units: frame numbers, counts and orders as types.
//!
//! Guest and machine frame numbers never mix by accident, and arithmetic that could leave the
//! number space is checked (32-bit page counters that wrapped were a real fault of the past).

use core::fmt;

macro_rules! frame_number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// The frame with this number.
            #[must_use]
            pub const fn new(number: u64) -> Self {
                Self(number)
            }

            /// The plain number.
            #[must_use]
            pub const fn get(self) -> u64 {
                self.0
            }

            /// The frame `count` further up, if the number exists.
            #[must_use]
            pub const fn checked_add(self, count: FrameCount) -> Option<Self> {
                match self.0.checked_add(count.0) {
                    Some(n) => Some(Self(n)),
                    None => None,
                }
            }

            /// Whether the frame may start a run of this order.
            #[must_use]
            pub const fn is_aligned(self, order: Order) -> bool {
                self.0 & (order.frames().0 - 1) == 0
            }

            /// The start of the run of this order that holds the frame.
            #[must_use]
            pub const fn align_down(self, order: Order) -> Self {
                Self(self.0 & !(order.frames().0 - 1))
            }

            /// `count` further up inside a run that is known to exist.
            pub(crate) const fn plus(self, count: u64) -> Self {
                Self(self.0.wrapping_add(count))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

frame_number! {
    /// Guest frame number: what the guest believes to be a physical frame.
    #[doc(alias = "gpfn")]
    Gfn
}
frame_number! {
    /// Machine frame number: a frame of the host (or any token that stands for one).
    #[doc(alias = "pfn")]
    Mfn
}

/// A number of 4 KiB frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct FrameCount(u64);

impl FrameCount {
    /// No frame.
    pub const ZERO: Self = Self(0);

    /// This many frames.
    #[must_use]
    pub const fn new(frames: u64) -> Self {
        Self(frames)
    }

    /// The plain number of frames.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// As many frames as fill this many MiB.
    #[must_use]
    pub const fn from_mib(mib: u64) -> Self {
        Self(mib.saturating_mul(256))
    }
}

impl fmt::Display for FrameCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Size of an aligned run: order k is 2^k frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Order(u8);

impl Order {
    /// One 4 KiB frame.
    pub const FRAME: Self = Self(0);
    /// 2 MiB on the usual tables.
    pub const SUPERPAGE: Self = Self(9);
    /// 1 GiB on the usual tables; no order is larger.
    pub const MAX: Self = Self(18);

    /// The order, if it is one the engine knows (0 to 18).
    #[must_use]
    pub const fn new(order: u8) -> Option<Self> {
        if order <= Self::MAX.0 {
            Some(Self(order))
        } else {
            None
        }
    }

    /// For orders computed inside the crate, which are in range by construction.
    pub(crate) const fn clamped(order: u8) -> Self {
        if order <= Self::MAX.0 {
            Self(order)
        } else {
            Self::MAX
        }
    }

    /// The plain exponent.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }

    /// How many frames a run of this order has.
    #[must_use]
    pub const fn frames(self) -> FrameCount {
        FrameCount(1 << self.0)
    }

    /// The largest order that starts at `at` and is no longer than `room` frames.
    pub(crate) const fn fitting(at: u64, room: u64, cap: Self) -> Self {
        let mut order = cap.0;
        while order > 0 && (at & ((1 << order) - 1) != 0 || (1 << order) > room) {
            order -= 1;
        }
        Self(order)
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A memory node of the host; `Node::default()` where there is only one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Node(u8);

impl Node {
    /// The engine keeps one set of lists for each of this many nodes.
    pub const LIMIT: u8 = 8;

    /// The node with this number; numbers at or above [`Node::LIMIT`] share the last set.
    #[must_use]
    pub const fn new(number: u8) -> Self {
        if number < Self::LIMIT {
            Self(number)
        } else {
            Self(Self::LIMIT - 1)
        }
    }

    /// The plain number.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }
}

/// A virtual CPU, by index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Vcpu(u16);

impl Vcpu {
    /// The virtual CPU with this index.
    #[must_use]
    pub const fn new(index: u16) -> Self {
        Self(index)
    }

    /// The plain index.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }
}

/// How much one call may do, in page looks: a lookup, a peek, a scan, a fill or a copy of one page.
///
/// The host passes a fresh budget for each time slice. A call that runs out stops at a
/// consistent point and says that there is more; what it used can be read here.
#[derive(Debug, PartialEq, Eq)]
pub struct Budget {
    left: u32,
    used: u32,
}

impl Budget {
    /// May do this many page looks.
    #[must_use]
    pub const fn new(looks: u32) -> Self {
        Self {
            left: looks,
            used: 0,
        }
    }

    /// Page looks done so far with this budget.
    #[must_use]
    pub const fn used(&self) -> u32 {
        self.used
    }

    /// Page looks still allowed.
    #[must_use]
    pub const fn left(&self) -> u32 {
        self.left
    }

    pub(crate) const fn spend(&mut self, looks: u32) {
        self.left = self.left.saturating_sub(looks);
        self.used = self.used.saturating_add(looks);
    }

    /// One look for each of these pages.
    pub(crate) fn spend_on(&mut self, pages: FrameCount) {
        self.spend(u32::try_from(pages.get()).unwrap_or(u32::MAX));
    }

    /// Whether there are looks left for so many pages.
    pub(crate) const fn covers(&self, pages: u64) -> bool {
        self.left as u64 >= pages
    }
}

impl Default for Budget {
    /// 4,096 page looks, the largest single step the engine is specified for.
    fn default() -> Self {
        Self::new(4096)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_stops_at_the_edge_of_the_number_space() {
        assert_eq!(Gfn::new(u64::MAX).checked_add(FrameCount::new(1)), None);
        assert_eq!(
            Gfn::new(5).checked_add(FrameCount::new(1)),
            Some(Gfn::new(6))
        );
        assert_eq!(Order::new(19), None);
    }

    #[test]
    fn fitting_respects_alignment_room_and_cap() {
        assert_eq!(Order::fitting(512, 4096, Order::MAX).get(), 9);
        assert_eq!(Order::fitting(0, 4096, Order::MAX).get(), 12);
        assert_eq!(Order::fitting(0, 4096, Order::SUPERPAGE).get(), 9);
        assert_eq!(Order::fitting(3, 4096, Order::MAX).get(), 0);
        assert_eq!(Order::fitting(8, 7, Order::MAX).get(), 2);
    }
}
