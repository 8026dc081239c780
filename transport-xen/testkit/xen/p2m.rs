//! A PV guest's own table of frames.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;

use balloon_core::{Migration, Pfn};

use super::FakeXen;
use crate::frame_map::FrameMap;
use crate::units::Gmfn;

/// A PV guest's table and mappings: what a kernel keeps for itself.
#[derive(Debug)]
pub struct FakeP2m {
    table: BTreeMap<u64, u64>,
    mapped: Rc<RefCell<BTreeSet<u64>>>,
    /// Machine frames whose mappings are to come or go.
    queue: Vec<(u64, bool)>,
}

impl FakeP2m {
    /// The table a PV guest finds at boot.
    #[must_use]
    pub fn of(xen: &FakeXen) -> Self {
        Self {
            table: xen.frames.clone(),
            mapped: xen.mapped.clone(),
            queue: Vec::new(),
        }
    }

    /// Whether it agrees with the hypervisor's, and maps just that.
    #[must_use]
    pub fn agrees_with(&self, xen: &FakeXen) -> bool {
        let mapped = self.mapped.borrow();
        self.table == xen.frames && self.table.values().all(|machine| mapped.contains(machine))
    }
}

impl FrameMap for FakeP2m {
    const TRANSLATED: bool = false;
    const MIGRATION: Migration = Migration::Exchange;

    fn unmap(&mut self, pfn: Pfn) -> Option<Gmfn> {
        let machine = self.table.remove(&pfn.get())?;
        self.queue.push((machine, false));
        Some(Gmfn::new(machine))
    }

    fn map(&mut self, pfn: Pfn, gmfn: Gmfn) {
        self.table.insert(pfn.get(), gmfn.get());
        self.queue.push((gmfn.get(), true));
    }

    fn commit(&mut self) {
        let mut mapped = self.mapped.borrow_mut();
        for (machine, maps) in self.queue.drain(..) {
            if maps {
                mapped.insert(machine);
            } else {
                mapped.remove(&machine);
            }
        }
    }
}
