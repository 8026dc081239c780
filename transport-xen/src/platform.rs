//! Ties between a translated guest and its domain, made at boot and again
//! after a restore.

use balloon_core::Pfn;

use crate::errno::Errno;
use crate::events::EventPage;
use crate::hypercall::calls::{Domain, Memory, Param};
use crate::page::SharedPage;
use crate::units::{Gmfn, InfoSlot, Port, Vcpu, Vector};

/// A ring of the domain: the frame of its page, and its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channel {
    /// The shared page.
    pub frame: Pfn,
    /// Signals the other side.
    pub port: Port,
}

/// The rings a domain has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Platform {
    /// The store; the first domain has none.
    pub store: Option<Channel>,
    /// The port by which a store that is still to come will call: a domain that Xen
    /// itself started runs before there is one. Unmask it, and look on each of its
    /// events ([`find_store`](Self::find_store)).
    pub awaited: Option<Port>,
    /// The console; the first domain has none.
    pub console: Option<Channel>,
}

/// Which tie could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum PlatformError {
    /// The shared-info page could not be mapped.
    #[error("mapping shared info: {0}")]
    SharedInfo(Errno),
    /// A CPU's information could not be registered.
    #[error("registering a CPU's information: {0}")]
    VcpuInfo(Errno),
    /// The interrupt for events could not be set.
    #[error("setting the callback: {0}")]
    Callback(Errno),
    /// The store's page lies elsewhere after a restore.
    #[error("the store's page lies elsewhere now")]
    StoreMoved,
    /// There was a store before a restore, and now there is none.
    #[error("there is no store any more")]
    StoreGone,
}

impl Platform {
    /// Maps shared info at `at`, masks every port, directs events to
    /// `callback` on the boot CPU and finds the rings.
    ///
    /// `events` is the page at `at`: a ballooned frame or one that never was
    /// RAM costs nothing, memory behind it would be freed.
    ///
    /// With interrupts off, until the handler is in place and pending events have
    /// been taken once: one from before is announced again and again.
    ///
    /// # Errors
    /// See [`PlatformError`]; a ring that is not there is no error.
    pub fn connect(
        xen: &mut (impl Memory + Domain),
        at: Pfn,
        events: &mut EventPage<impl SharedPage>,
        callback: Vector,
    ) -> Result<Self, PlatformError> {
        xen.map_shared_info(at).map_err(PlatformError::SharedInfo)?;
        events.mask_all();
        xen.set_callback(callback)
            .map_err(PlatformError::Callback)?;
        let mut platform = Self {
            store: None,
            awaited: None,
            console: channel(xen, Param::ConsoleFrame, Param::ConsolePort),
        };
        platform.find_store(xen);
        Ok(platform)
    }

    /// Looks for the store, and returns it once it is there.
    pub fn find_store(&mut self, xen: &mut impl Domain) -> Option<Channel> {
        self.store = channel(xen, Param::StoreFrame, Param::StorePort);
        let is_to_come = self.store.is_none() && xen.param(Param::StoreFrame) == Ok(TO_COME);
        self.awaited = is_to_come.then(|| port(xen, Param::StorePort)).flatten();
        self.store
    }

    /// Makes `vcpu`, another than the boot CPU, take events by itself: it has its
    /// information in `slot` of `page`, and `vector` through its local APIC. At
    /// boot and again after a restore; stops the CPU, so that it is to be started
    /// ([`Guest::start_vcpu`](crate::hypercall::Guest::start_vcpu)), or to go on
    /// ([`Domain::vcpu_up`]), afterwards.
    ///
    /// Its events are those of an [`EventPage::of_vcpu`]; its ports come by
    /// [`Events::bind_vcpu`](crate::hypercall::Events::bind_vcpu).
    ///
    /// # Errors
    /// See [`PlatformError`]; among them that there is no such CPU.
    pub fn connect_vcpu(
        xen: &mut impl Domain,
        vcpu: Vcpu,
        (page, slot): (Gmfn, InfoSlot),
        vector: Vector,
    ) -> Result<(), PlatformError> {
        xen.vcpu_down(vcpu).map_err(PlatformError::VcpuInfo)?;
        xen.register_vcpu_info(vcpu, page, slot)
            .map_err(PlatformError::VcpuInfo)?;
        xen.set_upcall(vcpu, vector)
            .map_err(PlatformError::Callback)
    }

    /// [`connect`](Self::connect) after a restore: ports may be others. The store's
    /// page is where it was, since a domain is saved with what says where; the client
    /// counts on it.
    ///
    /// The caller then binds its virtual interrupts anew and unmasks what it
    /// handles; before that, nothing is pending that could be lost.
    ///
    /// # Errors
    /// As [`connect`](Self::connect), [`PlatformError::StoreMoved`], and
    /// [`PlatformError::StoreGone`].
    pub fn rebuild(
        &mut self,
        xen: &mut (impl Memory + Domain),
        at: Pfn,
        events: &mut EventPage<impl SharedPage>,
        callback: Vector,
    ) -> Result<(), PlatformError> {
        let old = self.store;
        *self = Self::connect(xen, at, events, callback)?;
        match (old, self.store) {
            (Some(old), Some(new)) if old.frame != new.frame => Err(PlatformError::StoreMoved),
            (Some(_), None) => Err(PlatformError::StoreGone),
            _ => Ok(()),
        }
    }
}

/// In place of the store's frame as long as nobody has laid it out.
const TO_COME: u64 = u64::MAX;

/// A ring, if both its parameters are set.
fn channel(xen: &mut impl Domain, frame: Param, at: Param) -> Option<Channel> {
    let frame = xen.param(frame).ok().filter(|&frame| frame != 0)?;
    Some(Channel {
        frame: Some(Pfn::new(frame)).filter(|&frame| frame < Pfn::LIMIT)?,
        port: port(xen, at)?,
    })
}

fn port(xen: &mut impl Domain, at: Param) -> Option<Port> {
    let port = xen.param(at).ok().filter(|&port| port != 0)?;
    u32::try_from(port).ok().and_then(Port::new)
}

#[cfg(test)]
mod tests {
    use balloon_core::{FrameCount, FrameRange};

    use super::*;
    use crate::hypercall::calls::{Events as _, ShutdownReason};
    use crate::testing::{FakePage, FakeXen, Kind};

    #[test]
    fn a_restore_leaves_the_stores_page_where_it_was() {
        let memory = FrameRange::new(Pfn::new(0), FrameCount::new(8)).unwrap();
        let mut xen = FakeXen::new(Kind::Pvh, memory);
        xen.params.extend([(1, 0xfeff), (2, 1)]);
        let vector = Vector::new(0x40).unwrap();
        let mut events = EventPage::new(FakePage::new());
        let at = Pfn::new(100);
        let mut platform = Platform::connect(&mut xen, at, &mut events, vector).unwrap();
        xen.params.insert(2, 3);
        platform.rebuild(&mut xen, at, &mut events, vector).unwrap();
        assert_eq!(platform.store.map(|store| store.port), Port::new(3));
        xen.params.insert(1, 0xfefe);
        let moved = platform.rebuild(&mut xen, at, &mut events, vector);
        assert_eq!(moved, Err(PlatformError::StoreMoved));
        xen.params.remove(&1);
        let gone = platform.rebuild(&mut xen, at, &mut events, vector);
        assert_eq!(gone, Err(PlatformError::StoreGone));
        let none = platform.rebuild(&mut xen, at, &mut events, vector);
        assert_eq!(none, Ok(()), "there was none before");
    }

    #[test]
    fn a_store_that_is_still_to_come_is_found_when_it_is_there() {
        let memory = FrameRange::new(Pfn::new(0), FrameCount::new(8)).unwrap();
        let mut xen = FakeXen::new(Kind::Arm, memory);
        xen.params.extend([(1, u64::MAX), (2, 1)]);
        let vector = Vector::new(0x40).unwrap();
        let mut events = EventPage::new(FakePage::new());
        let at = Pfn::new(100);
        let mut platform = Platform::connect(&mut xen, at, &mut events, vector).unwrap();
        assert_eq!((platform.store, platform.awaited), (None, Port::new(1)));
        assert_eq!(platform.find_store(&mut xen), None, "not yet");
        xen.params.insert(1, 0x3_9001);
        let store = platform.find_store(&mut xen).unwrap();
        assert_eq!(store.frame, Pfn::new(0x3_9001));
        assert_eq!(platform.awaited, None);
        // None at all, as for a domain that is to have none.
        xen.params.clear();
        assert_eq!(platform.find_store(&mut xen), None);
        assert_eq!(platform.awaited, None);
    }

    const SLOT: InfoSlot = match InfoSlot::new(1) {
        Some(slot) => slot,
        None => panic!("a page has more"),
    };

    #[test]
    fn other_cpus_are_connected_at_boot_and_again_after_a_restore() {
        let memory = FrameRange::new(Pfn::new(0), FrameCount::new(8)).unwrap();
        let mut xen = FakeXen::new(Kind::Pvh, memory);
        xen.vcpus = 2;
        let vector = Vector::new(0x40).unwrap();
        let (store, other) = (Port::new(1).unwrap(), Vcpu::new(1));
        let mut events = EventPage::new(FakePage::new());
        let at = Pfn::new(100);
        let mut platform = Platform::connect(&mut xen, at, &mut events, vector).unwrap();
        let info = (Gmfn::new(5), SLOT);
        for _ in 0..2 {
            Platform::connect_vcpu(&mut xen, other, info, vector).unwrap();
            xen.bind_vcpu(store, other).unwrap();
            xen.vcpu_up(other).unwrap();
            assert_eq!(xen.upcalls.get(&1), Some(&vector));
            assert_eq!(xen.infos.get(&1), Some(&info));
            let twice = Platform::connect_vcpu(&mut xen, other, info, vector);
            assert_eq!(twice, Err(PlatformError::VcpuInfo(Errno::Invalid)));
            xen.shutdown(ShutdownReason::Suspend).unwrap();
            assert!(xen.upcalls.is_empty() && xen.bound.is_empty());
            platform.rebuild(&mut xen, at, &mut events, vector).unwrap();
        }
        let none = Platform::connect_vcpu(&mut xen, Vcpu::new(2), info, vector);
        assert_eq!(none, Err(PlatformError::VcpuInfo(Errno::NoEntry)));
    }
}
