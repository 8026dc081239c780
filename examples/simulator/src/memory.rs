//! What every frame holds, and who may change it.
//!
//! The guest writes a tag into each frame it uses. A host that is given a frame
//! wipes it. So a frame given while in use, or used while given, shows as a tag
//! that is not there any more.

use balloon_core::{FrameRange, Pfn};

/// Content of a frame nobody wrote since the host had it.
const WIPED: u64 = 0;

/// All frames of the guest.
#[derive(Debug)]
pub(crate) struct Memory {
    first: u64,
    tags: Vec<u64>,
}

impl Memory {
    pub(crate) fn new(all: FrameRange) -> Self {
        let frames = usize::try_from(all.count().get()).unwrap_or(0);
        Self {
            first: all.start().get(),
            tags: vec![WIPED; frames],
        }
    }

    fn tag(&mut self, pfn: Pfn) -> Option<&mut u64> {
        let index = pfn.get().checked_sub(self.first)?;
        self.tags.get_mut(usize::try_from(index).ok()?)
    }

    /// The guest writes.
    pub(crate) fn write(&mut self, pfn: Pfn, tag: u64) {
        if let Some(place) = self.tag(pfn) {
            *place = tag;
        }
    }

    /// The host takes the memory behind a frame, or puts other memory there.
    pub(crate) fn wipe(&mut self, pfn: Pfn) {
        self.write(pfn, WIPED);
    }

    /// The host moves what is behind one frame behind another.
    pub(crate) fn relocate(&mut self, from: Pfn, to: Pfn) {
        let tag = self.read(from);
        self.write(to, tag);
        self.wipe(from);
    }

    pub(crate) fn read(&mut self, pfn: Pfn) -> u64 {
        self.tag(pfn).map_or(WIPED, |tag| *tag)
    }
}
