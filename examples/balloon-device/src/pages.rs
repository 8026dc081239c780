//! What requests say, and the discards it takes.

use std::time::{Duration, Instant};

use balloon_core::wire::chunks_v8::{self, Response};
use balloon_core::wire::pfn_array;
use balloon_core::{Bytes, FrameCount, FrameRange, Pfn};
use virtio_queue::DescriptorChain;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes as _, GuestMemoryMmap};

use crate::ram::Ram;

/// The longest readable buffer that is looked at.
const LONGEST: u32 = 1 << 16;

/// The descriptors of a chain, as many as the queue may have.
pub(crate) fn descriptors(chain: DescriptorChain<&GuestMemoryMmap>) -> Vec<Descriptor> {
    chain.collect()
}

/// What the device may read of a request.
pub(crate) fn content(memory: &GuestMemoryMmap, descriptors: &[Descriptor]) -> Vec<u8> {
    let mut content = Vec::new();
    for descriptor in descriptors.iter().filter(|d| !d.is_write_only()) {
        let mut piece = vec![0; descriptor.len().min(LONGEST) as usize];
        if memory.read_slice(&mut piece, descriptor.addr()).is_ok() {
            content.extend(piece);
        }
    }
    content
}

/// Frames named by number, one range each.
pub(crate) fn page_numbers(content: &[u8]) -> Vec<FrameRange> {
    let pfns = pfn_array::decode(content).into_iter().flatten();
    pfns.filter_map(FrameRange::single).collect()
}

/// A response of `CHUNK_TRANSFER`, as far as it makes sense.
pub(crate) fn response(content: &[u8]) -> Option<Response<'_>> {
    chunks_v8::decode_lenient(content).ok()
}

/// Ranges named by address and length; what is no whole frames is passed over.
pub(crate) fn writable(descriptors: &[Descriptor]) -> Vec<FrameRange> {
    let range = |d: &Descriptor| {
        let (start, len) = (Pfn::containing(d.addr().0), Bytes::new(d.len().into()));
        let whole = start.address() == d.addr().0 && len.frames().bytes() == len;
        FrameRange::new(start, len.frames()).filter(|_| whole)
    };
    let writable = descriptors.iter().filter(|d| d.is_write_only());
    writable.filter_map(range).collect()
}

/// Sorts ranges and joins neighbours.
pub fn merge(ranges: &mut Vec<FrameRange>) {
    ranges.sort_unstable_by_key(|range| range.start());
    ranges.dedup_by(|next, range| {
        if next.start() > range.end() {
            return false;
        }
        let end = range.end().max(next.end());
        let count = FrameCount::new(end.get() - range.start().get());
        FrameRange::new(range.start(), count)
            .map(|both| *range = both)
            .is_some()
    });
}

/// Where the time of the device went, and what for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stages {
    /// Guest addresses to host addresses.
    pub translate: Duration,
    /// Memory given back to the host.
    pub discard: Duration,
    /// Discards made.
    pub discards: u64,
    /// Frames discarded.
    pub frames: FrameCount,
    /// Ranges that are not the guest's, that the host refused, or that were told away
    /// twice or back without having been away.
    pub refused: u64,
    /// Frames that were reported and stay, for what they hold.
    pub kept: FrameCount,
}

impl Stages {
    /// Reported, and not to be discarded.
    pub(crate) fn keep(&mut self, ranges: &[FrameRange]) {
        for range in ranges {
            self.kept = self.kept.saturating_add(range.count());
        }
    }

    /// Gives the memory of `ranges` back to the host.
    pub(crate) fn give_back(&mut self, ram: &Ram, ranges: &[FrameRange]) {
        let begin = Instant::now();
        let pieces: Vec<_> = ranges.iter().map(|&range| ram.translate(range)).collect();
        let translated = Instant::now();
        for (range, piece) in ranges.iter().zip(pieces) {
            if piece.is_some_and(|piece| ram.discard(piece).is_ok()) {
                self.discards += 1;
                self.frames = self.frames.saturating_add(range.count());
            } else {
                self.refused += 1;
            }
        }
        self.translate += translated - begin;
        self.discard += translated.elapsed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, count: u64) -> FrameRange {
        FrameRange::new(Pfn::new(start), FrameCount::new(count)).unwrap()
    }

    #[test]
    fn neighbours_and_overlaps_are_joined() {
        let mut ranges = vec![
            range(7, 1),
            range(1, 2),
            range(3, 2),
            range(8, 4),
            range(2, 1),
        ];
        merge(&mut ranges);
        assert_eq!(ranges, [range(1, 4), range(7, 5)]);
    }
}
