//! What a guest has in its memory, and how it is cleared.

use alloc::collections::BTreeSet;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;

use balloon_core::{FrameRange, Pfn};

use super::FakeXen;
use crate::clear::Clear;

/// What a guest has in its memory.
#[derive(Debug, Default)]
pub(super) struct Content {
    /// Frames with something of the guest's.
    pub(super) written: BTreeSet<u64>,
    /// Frames that memory is promised for.
    pub(super) promises: BTreeSet<u64>,
    /// Promises that were cleared.
    pub(super) touched: Vec<u64>,
}

/// Clears what the guest [wrote](FakeXen::write).
#[derive(Clone, Debug)]
pub struct FakeClear(Rc<RefCell<Content>>);

impl FakeClear {
    /// For the memory of this domain.
    #[must_use]
    pub fn of(xen: &FakeXen) -> Self {
        Self(xen.content.clone())
    }
}

impl Clear for FakeClear {
    fn clear(&mut self, frames: FrameRange) {
        let mut content = self.0.borrow_mut();
        for pfn in frames.frames().map(Pfn::get) {
            content.written.remove(&pfn);
            if content.promises.contains(&pfn) {
                content.touched.push(pfn);
            }
        }
    }
}
