//! Ties between a translated guest and its domain, made at boot and again
//! after a restore.

use balloon_core::Pfn;

use crate::errno::Errno;
use crate::events::EventPage;
use crate::hypercall::{Domain, Memory, Param};
use crate::page::SharedPage;
use crate::units::{Port, Vector};

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
    /// The interrupt for events could not be set.
    #[error("setting the callback: {0}")]
    Callback(Errno),
}

impl Platform {
    /// Maps shared info at `at`, masks every port, directs events to
    /// `callback` on the boot CPU and finds the rings.
    ///
    /// `events` is the page at `at`: a ballooned frame or one that never was
    /// RAM costs nothing, memory behind it would be freed.
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
        Ok(Self {
            store: channel(xen, Param::StoreFrame, Param::StorePort),
            console: channel(xen, Param::ConsoleFrame, Param::ConsolePort),
        })
    }

    /// The same after a restore: the frames and ports may be others.
    ///
    /// The caller then binds its virtual interrupts anew and unmasks what it
    /// handles; before that, nothing is pending that could be lost.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn rebuild(
        &mut self,
        xen: &mut (impl Memory + Domain),
        at: Pfn,
        events: &mut EventPage<impl SharedPage>,
        callback: Vector,
    ) -> Result<(), PlatformError> {
        *self = Self::connect(xen, at, events, callback)?;
        Ok(())
    }
}

/// A ring, if both its parameters are set.
fn channel(xen: &mut impl Domain, frame: Param, port: Param) -> Option<Channel> {
    let frame = xen.param(frame).ok().filter(|&frame| frame != 0)?;
    let port = xen.param(port).ok().filter(|&port| port != 0)?;
    Some(Channel {
        frame: Some(Pfn::new(frame)).filter(|&frame| frame < Pfn::LIMIT)?,
        port: u32::try_from(port).ok().and_then(Port::new)?,
    })
}
