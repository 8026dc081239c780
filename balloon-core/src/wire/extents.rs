//! Extents: naturally aligned blocks of 2^order frames, as Xen wants them.
//!
//! Source: Xen's public `memory.h`, `xen_memory_reservation`: a list of frame
//! numbers, one order for the whole list. The unit of a number is a frame of
//! 4 KiB at every order; the number of a block is that of its first frame.
//!
//! A run is cut into the largest blocks of the orders the caller can use, with
//! what is left at both ends in smaller ones. One memory operation takes one
//! order: filter by it, or keep a list for each.
//!
//! ```
//! use balloon_core::wire::extents::Extents;
//! use balloon_core::{FrameCount, FrameRange, Order, Pfn};
//!
//! let run = FrameRange::new(Pfn::new(511), FrameCount::new(514)).unwrap();
//! let extents = Extents::new([run], &[Order::SUPERPAGE]);
//! let found = extents.map(|extent| (extent.start().get(), extent.order().get()));
//! assert!(found.eq([(511, 0), (512, 9), (1024, 0)]));
//! ```

use super::Pieces;
use crate::units::{FrameRange, Order, Pfn};

/// A naturally aligned block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Extent {
    start: Pfn,
    order: Order,
}

impl Extent {
    /// The block of this order at this frame.
    ///
    /// `None` if it is not aligned or ends beyond [`Pfn::LIMIT`].
    #[must_use]
    pub const fn new(start: Pfn, order: Order) -> Option<Self> {
        if start.is_aligned(order) && FrameRange::new(start, order.frames()).is_some() {
            Some(Self { start, order })
        } else {
            None
        }
    }

    /// Its first frame, which is its number.
    #[must_use]
    pub const fn start(self) -> Pfn {
        self.start
    }

    /// Its size.
    #[must_use]
    pub const fn order(self) -> Order {
        self.order
    }

    /// Its frames.
    #[must_use]
    pub const fn frames(self) -> FrameRange {
        match FrameRange::new(self.start, self.order.frames()) {
            Some(range) => range,
            None => unreachable!(),
        }
    }
}

impl From<Extent> for FrameRange {
    fn from(extent: Extent) -> Self {
        extent.frames()
    }
}

/// Frames as extents.
#[derive(Clone, Debug)]
pub struct Extents<I> {
    pieces: Pieces<I>,
    /// Bit n: order n may be used.
    orders: u64,
}

impl<I: Iterator<Item: Into<FrameRange>>> Extents<I> {
    /// The frames of these ranges, in their order, in blocks of these orders
    /// and single frames.
    pub fn new(ranges: impl IntoIterator<IntoIter = I>, orders: &[Order]) -> Self {
        let set = |set, order: &Order| set | 1u64 << order.get();
        Self {
            pieces: Pieces::new(ranges.into_iter()),
            orders: orders.iter().fold(1 << Order::FRAME.get(), set),
        }
    }
}

impl<I: Iterator<Item: Into<FrameRange>>> Iterator for Extents<I> {
    type Item = Extent;

    fn next(&mut self) -> Option<Extent> {
        let range = self.pieces.peek()?;
        let aligned = range.start().get().trailing_zeros();
        let largest = aligned.min(range.count().get().ilog2());
        // Orders up to `largest`, which is below 41: a range ends below 2^40.
        let usable = self.orders & ((2 << largest) - 1);
        let order = u8::try_from(usable.ilog2()).ok().and_then(Order::new)?;
        let piece = self.pieces.take(order.frames())?;
        Extent::new(piece.start(), order)
    }
}
