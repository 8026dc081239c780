//! Arrays of 32-bit frame numbers: virtio inflate and deflate buffers.
//!
//! Source: virtio 1.3, section 5.5.6. The unit is a frame of 4 KiB, whatever
//! page size the guest uses; the numbers are little-endian (on a legacy device
//! of a big-endian guest they are not: no such guest is supported). Devices
//! read up to [`PER_BUFFER`] numbers from one buffer.
//!
//! ```
//! use balloon_core::wire::pfn_array::{PfnArrays, decode};
//! use balloon_core::{FrameCount, FrameRange, Pfn};
//!
//! let ranges = [FrameRange::new(Pfn::new(0x100), FrameCount::new(3)).unwrap()];
//! let mut arrays = PfnArrays::new(ranges);
//! let mut buffer = [0; 8];
//! assert_eq!(arrays.fill(&mut buffer), Ok(FrameCount::new(2)));
//! assert_eq!(buffer, [0x00, 0x01, 0, 0, 0x01, 0x01, 0, 0]);
//! assert_eq!(arrays.fill(&mut buffer), Ok(FrameCount::ONE));
//! assert!(decode(&buffer[..4])?.eq([Pfn::new(0x102)]));
//! assert_eq!(arrays.fill(&mut buffer), Ok(FrameCount::ZERO));
//! # Ok::<(), balloon_core::wire::pfn_array::TornNumber>(())
//! ```

use core::fmt;

use super::Pieces;
use crate::units::{FrameCount, FrameRange, Pfn};

/// One past the largest frame number the array can name: 16 TiB.
pub const LIMIT: Pfn = Pfn::new(1 << 32);

/// Frame numbers of one buffer, as every known device and driver has it.
#[doc(alias = "VIRTIO_BALLOON_ARRAY_PFNS_MAX")]
pub const PER_BUFFER: usize = 256;

/// Bytes of one frame number.
pub const NUMBER_SIZE: usize = 4;

/// These frames have no 32-bit number: they were not written and are handed
/// back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct TooHigh(pub FrameRange);

impl fmt::Display for TooHigh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the frames {} have no 32-bit number", self.0)
    }
}

impl core::error::Error for TooHigh {}

/// The buffer ends inside a frame number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct TornNumber;

impl fmt::Display for TornNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the buffer ends inside a frame number")
    }
}

impl core::error::Error for TornNumber {}

/// Frames as a sequence of arrays.
#[derive(Clone, Debug)]
pub struct PfnArrays<I>(Pieces<I>);

impl<I: Iterator<Item: Into<FrameRange>>> PfnArrays<I> {
    /// The frames of these ranges, in their order.
    pub fn new(ranges: impl IntoIterator<IntoIter = I>) -> Self {
        Self(Pieces::new(ranges.into_iter()))
    }

    /// Writes as many frame numbers as fit; how many, zero at the end.
    ///
    /// # Errors
    /// [`TooHigh`] for frames from [`LIMIT`] up, before a byte is written: what
    /// comes before them has gone into an array of its own, and the next call
    /// goes on behind them.
    pub fn fill(&mut self, buffer: &mut [u8]) -> Result<FrameCount, TooHigh> {
        let mut written = 0;
        let (numbers, _) = buffer.as_chunks_mut::<NUMBER_SIZE>();
        let mut numbers = numbers.iter_mut();
        while let Some(range) = self.0.peek() {
            let below = LIMIT.get().saturating_sub(range.start().get());
            if below == 0 && written > 0 {
                break;
            }
            if below == 0 {
                self.0.take(range.count());
                return Err(TooHigh(range));
            }
            let room = below.min(numbers.len() as u64);
            let Some(piece) = self.0.take(FrameCount::new(room)) else {
                break;
            };
            // In this order: the other would lose a place at the end of each piece.
            for (pfn, number) in piece.frames().zip(numbers.by_ref()) {
                let pfn = u32::try_from(pfn.get()).map_err(|_| TooHigh(piece))?;
                *number = pfn.to_le_bytes();
            }
            written += piece.count().get();
        }
        Ok(FrameCount::new(written))
    }

    /// What the next array starts with, if anything is left.
    pub fn peek(&mut self) -> Option<FrameRange> {
        self.0.peek()
    }
}

/// The frame numbers of a buffer.
///
/// # Errors
/// [`TornNumber`] if its size is no multiple of [`NUMBER_SIZE`].
pub fn decode(buffer: &[u8]) -> Result<impl ExactSizeIterator<Item = Pfn>, TornNumber> {
    match buffer.as_chunks::<NUMBER_SIZE>() {
        (numbers, []) => Ok(numbers
            .iter()
            .map(|&number| Pfn::new(u32::from_le_bytes(number).into()))),
        _ => Err(TornNumber),
    }
}
