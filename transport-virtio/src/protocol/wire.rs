//! What statistics look like in memory, and how long a range may be.
//!
//! Page numbers and chunks: [`balloon_core::wire`].

use balloon_core::FrameCount;
use balloon_core::wire::pfn_array::{NUMBER_SIZE, PER_BUFFER};
use zerocopy::{FromZeros, Immutable, IntoBytes, LE, U16, U64, Unaligned};

/// The longest descriptor of [`Body::Bytes`](crate::Body::Bytes): 256 page numbers.
///
/// Firecracker loses longer ones, cloud-hypervisor ignores them.
pub const MAX_BYTES: usize = PER_BUFFER * NUMBER_SIZE;

/// The longest range of one descriptor: 4 GiB - 2 MiB, since lengths are 32
/// bits wide and the next range should start aligned again.
pub const BULK_RUN: FrameCount = FrameCount::new((1 << 20) - (1 << 9));

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
}
