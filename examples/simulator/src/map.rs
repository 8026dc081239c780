//! One bit for each frame of the guest.

use balloon_core::{FrameRange, Pfn};
use bitvec::prelude::{BitBox, BitSlice, bitbox};

/// A set of frames.
#[derive(Debug)]
pub(crate) struct FrameMap {
    first: u64,
    bits: BitBox,
}

impl FrameMap {
    pub(crate) fn new(all: FrameRange) -> Self {
        let frames = usize::try_from(all.count().get()).unwrap_or(0);
        Self {
            first: all.start().get(),
            bits: bitbox![0; frames],
        }
    }

    fn index(&self, frame: u64) -> usize {
        usize::try_from(frame.saturating_sub(self.first)).unwrap_or(usize::MAX)
    }

    pub(crate) fn contains(&self, pfn: Pfn) -> bool {
        self.bits.get(self.index(pfn.get())).is_some_and(|bit| *bit)
    }

    /// Adds or removes a frame; whether it was there.
    pub(crate) fn set(&mut self, pfn: Pfn, value: bool) -> bool {
        let index = self.index(pfn.get());
        if index < self.bits.len() {
            self.bits.replace(index, value)
        } else {
            false
        }
    }

    /// Adds the frames from `start` up to `end`; false if one was there.
    pub(crate) fn add(&mut self, start: u64, end: u64) -> bool {
        let (start, end) = (self.index(start), self.index(end));
        let Some(bits) = self.bits.get_mut(start..end) else {
            return false;
        };
        let fresh = bits.not_any();
        bits.fill(true);
        fresh
    }

    /// The bits of the frames from `start` up to `end`.
    pub(crate) fn span(&self, start: u64, end: u64) -> &BitSlice {
        let (start, end) = (self.index(start), self.index(end));
        self.bits.get(start..end).unwrap_or_default()
    }

    pub(crate) fn clear(&mut self) {
        self.bits.fill(false);
    }
}
