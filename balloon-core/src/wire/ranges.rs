//! (Address, length) pairs: descriptors of the virtio reporting queue.
//!
//! Source: virtio 1.3, sections 5.5.6.6 and 5.5.6.7, and 2.7.5 for the
//! descriptor, whose length has 32 bits. Both fields count bytes; address and
//! length *are* the message, the memory is never touched.
//!
//! A range of 4 GiB or more is cut where a superpage ends, so that no piece
//! makes the host break one.

use core::fmt;

use super::Pieces;
use crate::units::{FRAME_SHIFT, FrameCount, FrameRange, Order, Pfn};

/// The longest range of one descriptor: 4 GiB less a frame.
pub const LONGEST: FrameCount = FrameCount::new((1 << (u32::BITS - FRAME_SHIFT)) - 1);

/// Frames whose size in bytes fits 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct AddressRange(FrameRange);

/// The pair names no whole frames that exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum DecodeError {
    /// Address or length is no multiple of the frame size.
    Unaligned,
    /// The length is zero, or the range ends beyond [`Pfn::LIMIT`].
    NoFrames,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unaligned => "address or length is no multiple of the frame size",
            Self::NoFrames => "the range is empty or beyond all frames",
        })
    }
}

impl core::error::Error for DecodeError {}

impl AddressRange {
    /// The frames behind a descriptor's address and length, both in bytes.
    ///
    /// # Errors
    /// If they are not whole frames that exist.
    pub const fn decode(address: u64, length: u32) -> Result<Self, DecodeError> {
        const OFFSET: u64 = (1 << FRAME_SHIFT) - 1;
        if address & OFFSET != 0 || length as u64 & OFFSET != 0 {
            return Err(DecodeError::Unaligned);
        }
        let count = FrameCount::new((length >> FRAME_SHIFT) as u64);
        match FrameRange::new(Pfn::containing(address), count) {
            Some(frames) => Ok(Self(frames)),
            None => Err(DecodeError::NoFrames),
        }
    }

    /// The descriptor's address: guest-physical, in bytes.
    #[must_use]
    pub const fn address(self) -> u64 {
        self.0.start().address()
    }

    /// The descriptor's length in bytes, never zero.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::len_without_is_empty,
        reason = "at most LONGEST frames, which fit 32 bits, and at least one"
    )]
    pub const fn len(self) -> u32 {
        self.0.count().bytes().get() as u32
    }

    /// The frames.
    #[must_use]
    pub const fn frames(self) -> FrameRange {
        self.0
    }
}

impl From<AddressRange> for FrameRange {
    fn from(range: AddressRange) -> Self {
        range.0
    }
}

/// Frames as descriptors.
#[derive(Clone, Debug)]
pub struct AddressRanges<I>(Pieces<I>);

impl<I: Iterator<Item: Into<FrameRange>>> AddressRanges<I> {
    /// The frames of these ranges, in their order; neighbours are not merged.
    pub fn new(ranges: impl IntoIterator<IntoIter = I>) -> Self {
        Self(Pieces::new(ranges.into_iter()))
    }
}

impl<I: Iterator<Item: Into<FrameRange>>> Iterator for AddressRanges<I> {
    type Item = AddressRange;

    fn next(&mut self) -> Option<AddressRange> {
        let range = self.0.peek()?;
        let count = if range.count() <= LONGEST {
            range.count()
        } else {
            let end = range.start().get() + LONGEST.get();
            let cut = FrameCount::new(end).round_down(Order::SUPERPAGE);
            cut.saturating_sub(FrameCount::new(range.start().get()))
        };
        self.0.take(count).map(AddressRange)
    }
}
