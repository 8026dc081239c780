//! What requests look like in memory.

use core::fmt;

use balloon_core::{FrameCount, FrameRange, Pfn, Run};
use zerocopy::{FromZeros, Immutable, IntoBytes, LE, U16, U32, U64, Unaligned};

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

/// What a statistic counts (virtio 1.2 section 5.5.6.3.2 and Linux).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Tag(u16);

impl Tag {
    /// Bytes swapped in.
    pub const SWAP_IN: Self = Self(0);
    /// Bytes swapped out.
    pub const SWAP_OUT: Self = Self(1);
    /// Page faults that needed I/O.
    pub const MAJOR_FAULTS: Self = Self(2);
    /// Page faults that did not.
    pub const MINOR_FAULTS: Self = Self(3);
    /// Bytes not used for anything.
    pub const FREE: Self = Self(4);
    /// Bytes of memory in all.
    pub const TOTAL: Self = Self(5);
    /// Bytes that new programs could get without swapping.
    pub const AVAILABLE: Self = Self(6);
    /// Bytes of caches that could be dropped.
    pub const CACHES: Self = Self(7);
    /// Huge pages allocated.
    pub const HUGE_PAGES: Self = Self(8);
    /// Huge pages that could not be allocated.
    pub const HUGE_PAGE_FAILURES: Self = Self(9);
    /// Programs killed for lack of memory.
    pub const OOM_KILLS: Self = Self(10);
    /// Allocations that had to wait.
    pub const STALLS: Self = Self(11);
    /// Pages scanned in the background.
    pub const SCANNED_ASYNC: Self = Self(12);
    /// Pages scanned while an allocation waited.
    pub const SCANNED_DIRECT: Self = Self(13);
    /// Pages reclaimed in the background.
    pub const RECLAIMED_ASYNC: Self = Self(14);
    /// Pages reclaimed while an allocation waited.
    pub const RECLAIMED_DIRECT: Self = Self(15);

    /// A tag by number; devices ignore those they do not know.
    #[must_use]
    pub const fn new(tag: u16) -> Self {
        Self(tag)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }
}

/// One statistic: ten bytes, though the specification once says six.
#[derive(Clone, Copy, Debug, FromZeros, IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct Entry {
    tag: U16<LE>,
    value: U64<LE>,
}

/// One buffer of the statistics queue.
#[derive(Clone, Debug)]
pub struct StatisticsBuffer {
    entries: [Entry; Self::MAX],
    len: usize,
}

impl StatisticsBuffer {
    /// Entries a buffer can hold.
    pub const MAX: usize = 32;

    /// A buffer with an entry for each tag, up to [`MAX`](Self::MAX) of them.
    #[must_use]
    pub fn collect(tags: &[Tag], mut value: impl FnMut(Tag) -> u64) -> Self {
        let mut buffer = Self {
            entries: FromZeros::new_zeroed(),
            len: 0,
        };
        for (entry, &tag) in buffer.entries.iter_mut().zip(tags) {
            *entry = Entry {
                tag: U16::new(tag.0),
                value: U64::new(value(tag)),
            };
            buffer.len += 1;
        }
        buffer
    }

    /// The bytes as the device reads them.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.entries.get(..self.len).unwrap_or_default().as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_packed_entries_of_ten_bytes() {
        let tags = [Tag::FREE, Tag::RECLAIMED_DIRECT];
        let buffer = StatisticsBuffer::collect(&tags, |tag| u64::from(tag.get()) << 8);
        let bytes = [4, 0, 0, 4, 0, 0, 0, 0, 0, 0, 15, 0, 0, 15, 0, 0, 0, 0, 0, 0];
        assert_eq!(buffer.as_bytes(), bytes);
        assert_eq!(
            StatisticsBuffer::collect(&[Tag::FREE; 40], |_| 0)
                .as_bytes()
                .len(),
            320
        );
    }

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
