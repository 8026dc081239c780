//! What requests look like in memory.

use core::fmt;

use balloon_core::{FrameCount, FrameRange, Pfn, Run};
use zerocopy::{FromZeros, IntoBytes, LE, U32};

/// Page numbers in one buffer: Firecracker loses longer ones, cloud-hypervisor
/// ignores them.
pub const PFNS_PER_BUFFER: usize = 256;

/// Page numbers are 32 bits wide: frames from here on (16 TiB) have none.
pub const PFN_LIMIT: Pfn = Pfn::new(1 << 32);

/// The longest range of one descriptor: 4 GiB - 2 MiB, since lengths are 32
/// bits wide and the next range should start aligned again.
pub const BULK_RUN: FrameCount = FrameCount::new((1 << 20) - (1 << 9));

/// The frames cannot be written as page numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EncodeError {
    /// The range reaches frames without a 32-bit page number.
    TooHigh(FrameRange),
    /// More frames than a buffer holds.
    TooMany,
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooHigh(range) => write!(f, "frames {range} have no 32-bit page number"),
            Self::TooMany => write!(f, "more than {PFNS_PER_BUFFER} frames for one buffer"),
        }
    }
}

impl core::error::Error for EncodeError {}

/// One buffer of page numbers for the inflate or deflate queue.
#[derive(Clone, Debug)]
pub struct PfnArray {
    words: [U32<LE>; PFNS_PER_BUFFER],
    len: usize,
}

impl PfnArray {
    /// No page number at all.
    #[must_use]
    pub fn new() -> Self {
        Self {
            words: FromZeros::new_zeroed(),
            len: 0,
        }
    }

    /// Replaces the content by the frames of `runs`, in their order.
    ///
    /// # Errors
    /// Leaves the array empty if a frame cannot be expressed; nothing is ever
    /// truncated.
    pub fn encode(&mut self, runs: &[Run]) -> Result<&[u8], EncodeError> {
        self.len = 0;
        let mut len = 0;
        for range in runs.iter().map(|run| run.range()) {
            let too_high = EncodeError::TooHigh(range);
            let first = u32::try_from(range.start().get()).map_err(|_| too_high)?;
            if range.end() > PFN_LIMIT {
                return Err(too_high);
            }
            let count = usize::try_from(range.count().get()).map_err(|_| EncodeError::TooMany)?;
            let words = self
                .words
                .get_mut(len..)
                .and_then(|free| free.get_mut(..count));
            for (word, pfn) in words
                .ok_or(EncodeError::TooMany)?
                .iter_mut()
                .zip(first..=u32::MAX)
            {
                *word = U32::new(pfn);
            }
            len += count;
        }
        self.len = len;
        Ok(self.as_bytes())
    }

    /// The bytes as the device reads them.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.words.get(..self.len).unwrap_or_default().as_bytes()
    }
}

impl Default for PfnArray {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(start: u64, count: u64) -> Run {
        FrameRange::new(Pfn::new(start), FrameCount::new(count))
            .and_then(Run::new)
            .unwrap()
    }

    #[test]
    fn page_numbers_are_little_endian_words() {
        let mut array = PfnArray::new();
        let bytes = array
            .encode(&[run(0x0102_0304, 1), run(0xffff_fffe, 2)])
            .unwrap();
        assert_eq!(
            bytes,
            [4, 3, 2, 1, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]
        );
    }

    #[test]
    fn frames_above_16_tib_are_refused_not_truncated() {
        let mut array = PfnArray::new();
        let high = run(0xffff_ffff, 2);
        assert_eq!(
            array.encode(&[run(1, 1), high]),
            Err(EncodeError::TooHigh(high.range()))
        );
        assert!(array.as_bytes().is_empty());
        let higher = run(1 << 32, 1);
        assert_eq!(
            array.encode(&[higher]),
            Err(EncodeError::TooHigh(higher.range()))
        );
    }

    #[test]
    fn a_buffer_holds_256() {
        let mut array = PfnArray::new();
        assert_eq!(
            array.encode(&[run(0, 255), run(300, 1)]).unwrap().len(),
            1024
        );
        assert_eq!(
            array.encode(&[run(0, 255), run(300, 2)]),
            Err(EncodeError::TooMany)
        );
        assert_eq!(array.encode(&[run(0, 257)]), Err(EncodeError::TooMany));
    }
}
