//! The guest's own table between its frame numbers and Xen's names for them.

use balloon_core::{Migration, Pfn};

use crate::units::Gmfn;

/// What a kernel keeps about the memory behind its frames.
///
/// For auto-translated guests Xen keeps it all: [`Translated`]. A PV kernel
/// implements this over its p2m table and its page tables.
pub trait FrameMap {
    /// Whether Xen names frames by the guest's own numbers.
    const TRANSLATED: bool;

    /// How frames can be migrated.
    const MIGRATION: Migration;

    /// Removes every mapping of a frame that is about to leave, and tells what
    /// Xen calls it; `None` if nothing is behind it.
    fn unmap(&mut self, pfn: Pfn) -> Option<Gmfn>;

    /// Notes what is behind a frame now, and maps it as the kernel maps free
    /// memory.
    fn map(&mut self, pfn: Pfn, gmfn: Gmfn);

    /// Brings what was unmapped and mapped since the last time into the page
    /// tables, and what was before out of the CPU: called before frames leave
    /// and before frames that came are used.
    ///
    /// A kernel gathers what it can until then: a page-table entry changed by
    /// itself costs a hypercall.
    fn commit(&mut self);
}

/// Auto-translated guests: nothing to keep.
///
/// `MOVES` says whether the hypervisor can move a guest's frames, which Xen can
/// on x86 and not on Arm.
#[derive(Clone, Copy, Debug, Default)]
pub struct Translated<const MOVES: bool = { cfg!(target_arch = "x86_64") }>;

impl<const MOVES: bool> FrameMap for Translated<MOVES> {
    const TRANSLATED: bool = true;
    const MIGRATION: Migration = if MOVES {
        Migration::Move
    } else {
        Migration::InflateFirst
    };

    fn unmap(&mut self, pfn: Pfn) -> Option<Gmfn> {
        Some(Gmfn::of_guest(pfn))
    }

    fn map(&mut self, _: Pfn, _: Gmfn) {}

    fn commit(&mut self) {}
}

impl<F: FrameMap + ?Sized> FrameMap for &mut F {
    const TRANSLATED: bool = F::TRANSLATED;
    const MIGRATION: Migration = F::MIGRATION;

    fn unmap(&mut self, pfn: Pfn) -> Option<Gmfn> {
        (**self).unmap(pfn)
    }

    fn map(&mut self, pfn: Pfn, gmfn: Gmfn) {
        (**self).map(pfn, gmfn);
    }

    fn commit(&mut self) {
        (**self).commit();
    }
}
