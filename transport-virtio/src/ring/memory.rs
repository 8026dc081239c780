//! What lies where in the shared memory: areas, descriptors, bytes.

use crate::dma::{Dma, halves, words};

const FLAG_NEXT: u16 = 1;

/// Where the three areas of one queue start, in bytes of the shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Areas {
    pub(crate) descriptors: usize,
    pub(crate) available: usize,
    pub(crate) used: usize,
}

impl Areas {
    /// Places a queue of `size` at or after `from`; also where it ends.
    pub(crate) const fn place(from: usize, size: usize) -> (Self, usize) {
        let descriptors = from.next_multiple_of(16);
        let available = descriptors + 16 * size;
        // Flags, index, ring, used_event.
        let used = (available + 6 + 2 * size).next_multiple_of(4);
        // Flags, index, ring, avail_event.
        (
            Self {
                descriptors,
                available,
                used,
            },
            used + 6 + 8 * size,
        )
    }
}

/// What the device may do with a segment, as descriptors have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Access {
    Read = 0,
    Write = 2,
    /// Follow the descriptors it finds there.
    Table = 4,
}

/// A piece of memory for the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) address: u64,
    pub(crate) len: u32,
    pub(crate) access: Access,
}

impl Segment {
    pub(crate) const EMPTY: Self = Self {
        address: 0,
        len: 0,
        access: Access::Read,
    };
}

/// Bytes of a descriptor.
pub(crate) const DESCRIPTOR: usize = 16;

pub(super) fn write_descriptor(
    memory: &impl Dma,
    place: usize,
    segment: Segment,
    next: Option<u16>,
) {
    let chained = if next.is_some() { FLAG_NEXT } else { 0 };
    let [low, high] = words(segment.address);
    memory.store32(place, low);
    memory.store32(place + 4, high);
    memory.store32(place + 8, segment.len);
    memory.store16(place + 12, segment.access as u16 | chained);
    memory.store16(place + 14, next.unwrap_or(0));
}

/// Copies bytes to shared memory before their descriptor is published.
pub(crate) fn store_bytes(memory: &impl Dma, offset: usize, bytes: &[u8]) {
    let (chunks, tail) = bytes.as_chunks::<4>();
    for (place, chunk) in (offset..).step_by(4).zip(chunks) {
        memory.store32(place, u32::from_le_bytes(*chunk));
    }
    if !tail.is_empty() {
        let mut last = [0; 4];
        for (byte, value) in last.iter_mut().zip(tail) {
            *byte = *value;
        }
        let place = offset + 4 * chunks.len();
        for (place, half) in [place, place + 2]
            .into_iter()
            .zip(halves(u32::from_le_bytes(last)))
        {
            memory.store16(place, half);
        }
    }
}
