//! What frames look like on their way to a host: encoders and decoders.
//!
//! Each encoder takes ranges one by one from an iterator (the
//! [`Run`](crate::Run)s of a [`Request`](crate::Request), for instance) and
//! writes what fits into the caller's buffer, again and again until nothing is
//! left: no heap, a few words of state, and no limit on how many ranges come.
//!
//! | module | one item | unit | spoken by |
//! |---|---|---|---|
//! | [`pfn_array`] | 4 bytes, little-endian | frame number | virtio inflate and deflate queues (virtio 1.3, 5.5.6) |
//! | [`chunks_v8`] | 16 bytes after an 8-byte header, little-endian | frames, shifted by 12 | the proposed `VIRTIO_BALLOON_F_CHUNK_TRANSFER`, version 8 of March 2017 |
//!
//! Encoders and decoders of a shape are exact opposites; both directions are
//! fuzzed (`core_wire`). Nothing here looks at memory or talks to a host.

pub mod chunks_v8;
pub mod pfn_array;

use crate::units::{FrameCount, FrameRange};

/// Ranges taken piece by piece, whatever a piece is to a shape.
#[derive(Clone, Debug)]
struct Pieces<I> {
    ranges: I,
    rest: Option<FrameRange>,
}

impl<I: Iterator<Item: Into<FrameRange>>> Pieces<I> {
    const fn new(ranges: I) -> Self {
        Self { ranges, rest: None }
    }

    /// What comes next.
    fn peek(&mut self) -> Option<FrameRange> {
        if self.rest.is_none() {
            self.rest = self.ranges.next().map(Into::into);
        }
        self.rest
    }

    /// Takes at most `count` frames of what comes next.
    fn take(&mut self, count: FrameCount) -> Option<FrameRange> {
        let (head, rest) = self.peek()?.split_at(count);
        self.rest = rest;
        head
    }
}

#[cfg(test)]
mod tests;
