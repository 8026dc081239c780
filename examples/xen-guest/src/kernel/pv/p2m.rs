//! The list of machine frames, kept together with the page tables.

use balloon_core::{Migration, Pfn};
use heapless::Vec;
use transport_xen::hypercall::EntryUpdate;
use transport_xen::{FrameMap, Gmfn};
use xen_guest::StartInfo;

use super::pointer;
use super::tables::{MEMORY, Tables};
use crate::kernel::xen::Xen;

const FRAME: u64 = 4096;
/// No machine frame.
const HOLE: u64 = u64::MAX;
/// Entries of one hypercall.
const BATCH: usize = 256;

/// What is behind each frame, and the changes that are to come.
#[derive(Debug)]
pub(crate) struct P2m {
    list: &'static mut [u64],
    tables: Tables,
    xen: Xen,
    changes: Vec<EntryUpdate, BATCH>,
}

/// The list that the builder made.
///
/// # Safety
/// `told` is what the builder told. This is called once.
pub(super) unsafe fn list(told: &StartInfo) -> &'static mut [u64] {
    let start = pointer(told.p2m);
    // SAFETY: as the caller vouches: mapped, one word for each frame.
    unsafe { core::slice::from_raw_parts_mut(start, usize::try_from(told.frames).unwrap_or(0)) }
}

impl P2m {
    pub(super) const fn new(list: &'static mut [u64], tables: Tables, xen: Xen) -> Self {
        Self {
            list,
            tables,
            xen,
            changes: Vec::new(),
        }
    }

    fn entry(&mut self, pfn: Pfn) -> Option<&mut u64> {
        self.list.get_mut(usize::try_from(pfn.get()).ok()?)
    }

    fn change(&mut self, pfn: Pfn, entry: u64) {
        // Every frame there is was mapped at boot; others are not the balloon's.
        let Some(place) = self.tables.place(pfn.get()) else {
            return;
        };
        if self.changes.is_full() {
            self.write();
        }
        // There is room: it is made above.
        let _ = self.changes.push(EntryUpdate::new(place, entry));
    }

    /// Hands the changes to Xen. A refusal is the end of this kernel: frames
    /// Hands the changes to Xen. A refusal is the end of this kernel: it would give
    /// frames that its page tables still map.
    fn write(&mut self) {
        // SAFETY: frames that leave are free, those that come have no other use.
        if let Err(error) = unsafe { self.xen.update_entries(&self.changes) } {
            panic!("page tables: {error}");
        }
        self.changes.clear();
    }
}

impl FrameMap for P2m {
    const TRANSLATED: bool = false;
    const MIGRATION: Migration = Migration::Exchange;

    fn unmap(&mut self, pfn: Pfn) -> Option<Gmfn> {
        let entry = self.entry(pfn).filter(|entry| **entry != HOLE)?;
        let machine = core::mem::replace(entry, HOLE);
        self.change(pfn, 0);
        Some(Gmfn::new(machine))
    }

    fn map(&mut self, pfn: Pfn, gmfn: Gmfn) {
        if let Some(entry) = self.entry(pfn) {
            *entry = gmfn.get();
            self.change(pfn, (gmfn.get() * FRAME) | MEMORY);
        }
    }

    fn commit(&mut self) {
        // The last change since the last commit is always still here.
        if self.changes.is_empty() {
            return;
        }
        self.write();
        if let Err(error) = self.xen.flush_tlb() {
            panic!("page tables: {error}");
        }
    }
}
