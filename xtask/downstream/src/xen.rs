//! The balloon of a Xen domain, polled: the store's ring and the hypercalls are all it needs.

use balloon_core::{FrameCount, FrameRange, Nanos, Pfn, Transport};
use transport_xen::hypercall::gate::{Cpuid, Instruction};
use transport_xen::hypercall::{Domain as _, Events as _, Guest, Param};
use transport_xen::store::{Client, BalloonNodes, NodesConfig};
use transport_xen::{Clear, MappedPage, Port, Reservation, Target, Translated, XenBalloon};

/// Memory that goes to Xen goes without what was in it.
struct Zeros;

impl Clear for Zeros {
    fn clear(&mut self, frames: FrameRange) {
        let start = usize::try_from(frames.start().address()).unwrap_or(0);
        let bytes = usize::try_from(frames.count().bytes().get()).unwrap_or(0);
        let at = core::ptr::with_exposed_provenance_mut::<u8>(start);
        // SAFETY: memory mapped one to one, free, and the balloon's alone.
        unsafe { at.write_bytes(0, bytes) };
    }
}

/// A domain's balloon, and where its targets come from.
pub(crate) struct Domain {
    balloon: XenBalloon<Guest<Instruction>, Translated, Zeros>,
    nodes: BalloonNodes<MappedPage>,
    port: Port,
}

impl Domain {
    /// `None` if this machine is no Xen domain, or one without a store.
    pub(crate) fn find(managed: FrameCount) -> Option<Self> {
        let instruction = Cpuid::find()?.instruction();
        // SAFETY: on Xen, ring 0, memory mapped one to one.
        let mut xen = unsafe { Guest::new(instruction) };
        let port = Port::new(u32::try_from(xen.param(Param::StorePort).ok()?).ok()?)?;
        let ring = Pfn::new(xen.param(Param::StoreFrame).ok()?).address();
        let ring = core::ptr::with_exposed_provenance_mut(usize::try_from(ring).ok()?);
        // SAFETY: Xen says that the ring lies there; nobody else gets it.
        let ring = unsafe { MappedPage::new(ring) };
        Some(Self {
            balloon: XenBalloon::new(
                Reservation::new(xen, Translated, Zeros),
                Target::new(managed),
            ),
            nodes: BalloonNodes::new(Client::new(ring), NodesConfig::DEFAULT),
            port,
        })
    }

    /// Reads what the toolstack wrote; whether the balloon's target may have changed.
    pub(crate) fn read_store(&mut self, now: Nanos) -> Option<bool> {
        let event = self.nodes.step(now).ok()?;
        if self.nodes.take_notify() {
            let xen = self.balloon.reservation_mut().memory_mut();
            xen.notify(self.port).ok()?;
        }
        Some(event.is_some_and(|event| self.balloon.handle_event(event)))
    }

    /// For the engine.
    pub(crate) fn transport(&mut self) -> &mut impl Transport {
        &mut self.balloon
    }
}
