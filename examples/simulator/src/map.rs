//! One flag for each frame of the guest.

use balloon_core::{FrameRange, Pfn};

/// A set of frames.
///
/// A byte a frame: after each event the oracle looks at thousands of short
/// spans, and in bytes that is several times faster than in bits.
#[derive(Debug)]
pub(crate) struct FrameMap {
    first: u64,
    flags: Vec<bool>,
}

impl FrameMap {
    pub(crate) fn new(all: FrameRange) -> Self {
        let frames = usize::try_from(all.count().get()).unwrap_or(0);
        Self {
            first: all.start().get(),
            flags: vec![false; frames],
        }
    }

    fn index(&self, frame: u64) -> usize {
        usize::try_from(frame.saturating_sub(self.first)).unwrap_or(usize::MAX)
    }

    pub(crate) fn contains(&self, pfn: Pfn) -> bool {
        self.flags
            .get(self.index(pfn.get()))
            .is_some_and(|&flag| flag)
    }

    /// Adds or removes a frame; whether it was there.
    pub(crate) fn set(&mut self, pfn: Pfn, value: bool) -> bool {
        let index = self.index(pfn.get());
        let flag = self.flags.get_mut(index);
        flag.is_some_and(|flag| core::mem::replace(flag, value))
    }

    /// Adds the frames from `start` up to `end`; false if one was there.
    pub(crate) fn add(&mut self, start: u64, end: u64) -> bool {
        let (start, end) = (self.index(start), self.index(end));
        let Some(flags) = self.flags.get_mut(start..end) else {
            return false;
        };
        let fresh = !any(flags, true);
        flags.fill(true);
        fresh
    }

    /// Whether any of the frames from `start` up to `end` is there, or is not.
    pub(crate) fn any(&self, start: u64, end: u64, value: bool) -> bool {
        let (start, end) = (self.index(start), self.index(end));
        any(self.flags.get(start..end).unwrap_or_default(), value)
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u64 {
        self.flags.iter().map(|&flag| u64::from(flag)).sum()
    }

    pub(crate) fn clear(&mut self) {
        self.flags.fill(false);
    }
}

/// Without a branch for each flag, unlike `contains`: the oracle's time is here.
fn any(flags: &[bool], value: bool) -> bool {
    flags.iter().fold(false, |any, &flag| any | (flag == value))
}
