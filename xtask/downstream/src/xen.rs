//! The balloon of a Xen domain, polled: the store's ring and the hypercalls are all it needs.

use balloon_core::{FrameCount, Nanos, Pfn, Transport};
use transport_xen::hypercall::gate::{Cpuid, Vmmcall};
use transport_xen::hypercall::{Domain as _, Events as _, Guest, Param};
use transport_xen::store::{Client, Desk, DeskPolicy};
use transport_xen::{MappedPage, Port, Reservation, Target, Translated, XenBalloon};

/// A domain's balloon, and where its targets come from.
pub(crate) struct Domain {
    balloon: XenBalloon<Guest<Vmmcall>, Translated>,
    desk: Desk<MappedPage>,
    port: Port,
}

impl Domain {
    /// `None` if this machine is no Xen domain, or one without a store.
    pub(crate) fn find(managed: FrameCount) -> Option<Self> {
        Cpuid::find().filter(|xen| xen.is_amd())?;
        // SAFETY: on Xen, ring 0, an AMD processor, memory mapped one to one.
        let mut xen = unsafe { Guest::new(Vmmcall) };
        let port = Port::new(u32::try_from(xen.param(Param::StorePort).ok()?).ok()?)?;
        let ring = Pfn::new(xen.param(Param::StoreFrame).ok()?).address();
        let ring = core::ptr::with_exposed_provenance_mut(usize::try_from(ring).ok()?);
        // SAFETY: Xen says that the ring lies there; nobody else gets it.
        let ring = unsafe { MappedPage::new(ring) };
        Some(Self {
            balloon: XenBalloon::new(Reservation::new(xen, Translated), Target::new(managed)),
            desk: Desk::new(Client::new(ring), DeskPolicy::DEFAULT),
            port,
        })
    }

    /// Reads what the toolstack wrote; whether the balloon's target may have changed.
    pub(crate) fn read_store(&mut self, now: Nanos) -> Option<bool> {
        let notice = self.desk.step(now).ok()?;
        if self.desk.take_notify() {
            let xen = self.balloon.reservation_mut().memory_mut();
            xen.notify(self.port).ok()?;
        }
        Some(notice.is_some_and(|notice| self.balloon.hear(notice)))
    }

    /// For the engine.
    pub(crate) fn transport(&mut self) -> &mut impl Transport {
        &mut self.balloon
    }
}
