//! The calls, as traits: one for each part of the interface.

use crate::errno::Errno;
use crate::units::{Gmfn, InfoSlot, Port, Vcpu, Vector};
use balloon_core::{FrameCount, FrameRange, Order, Pfn};

/// Calls that move memory between this domain and the host.
#[doc(alias = "memory_op")]
pub trait Memory {
    /// Gives extents of `order` to the host, as they are; returns how many were given.
    ///
    /// The extent after the last one given may be gone in part: Xen removes
    /// its frames one by one and stops at a hole, without a word.
    ///
    /// # Errors
    /// When Xen refuses the call as a whole.
    #[doc(alias = "XENMEM_decrease_reservation")]
    fn decrease_reservation(&mut self, extents: &[Gmfn], order: Order) -> Result<usize, Errno>;

    /// Puts memory behind extents of `order`; returns how many got some.
    ///
    /// `extents` are the guest's frame numbers. For a PV guest the entries that
    /// were served hold machine frames afterwards.
    ///
    /// An extent with memory behind any of its frames must not be passed: that
    /// memory stays charged to the domain and is nowhere.
    ///
    /// # Errors
    /// When Xen refuses the call as a whole.
    #[doc(alias = "XENMEM_populate_physmap")]
    fn populate_physmap(&mut self, extents: &mut [Gmfn], order: Order) -> Result<usize, Errno>;

    /// Migrates machine frames for others, atomically for each chunk (PV only).
    ///
    /// `given` are machine frames without any mapping left, which go as they are. `wanted` names the
    /// guest frames that get the new ones, which replace it entry by entry.
    #[doc(alias = "XENMEM_exchange")]
    fn exchange(&mut self, given: (&[Gmfn], Order), wanted: (&mut [Gmfn], Order)) -> Exchanged;

    /// Moves what is behind `from` to `to` (auto-translated x86 guests only).
    ///
    /// What was behind `to` before is freed. `from` becomes a hole.
    ///
    /// # Errors
    /// When Xen refuses; `from` may be a hole all the same. Xen takes the memory
    /// out before it finds room in its tables to map it at `to`: without room it
    /// stays charged to the domain and is nowhere. The number says little: a hole
    /// at `from` is [`Errno::Invalid`] to older Xen, [`Errno::Access`] since 4.19.5.
    #[doc(alias = "XENMEM_add_to_physmap")]
    #[doc(alias = "XENMAPSPACE_gmfn")]
    fn move_frame(&mut self, from: Pfn, to: Pfn) -> Result<(), Errno>;

    /// Moves `from` to the frames from `to` on, one after the other, each as
    /// [`move_frame`](Self::move_frame) does, in one call.
    ///
    /// # Errors
    /// At the first frame Xen refuses, which is as
    /// [`move_frame`](Self::move_frame) leaves it. Those before it are moved,
    /// unless the two ranges overlap: newer Xen goes backwards then where `to` is
    /// above.
    #[doc(alias = "XENMAPSPACE_gmfn_range")]
    fn move_range(&mut self, from: FrameRange, to: Pfn) -> Result<(), Errno>;

    /// Whether nothing is behind a frame (auto-translated x86 guests only).
    ///
    /// Asks and changes nothing: no promise of populate-on-demand is kept and no
    /// superpage leaf split for it. A promise is no hole.
    ///
    /// # Errors
    /// When Xen refuses to tell.
    #[doc(alias = "HVMOP_get_mem_type")]
    fn is_hole(&mut self, pfn: Pfn) -> Result<bool, Errno>;

    /// Maps the shared-info page at `at`, unmapping it from where it was.
    ///
    /// Memory behind `at` is freed to the host, as it is.
    ///
    /// # Errors
    /// When Xen refuses.
    #[doc(alias = "XENMAPSPACE_shared_info")]
    fn map_shared_info(&mut self, at: Pfn) -> Result<(), Errno>;

    /// What the domain is charged for.
    ///
    /// Under populate-on-demand that is the cache and what is populated, not
    /// the size of the guest's memory map.
    ///
    /// # Errors
    /// When Xen refuses.
    #[doc(alias = "XENMEM_current_reservation")]
    fn current_reservation(&mut self) -> Result<FrameCount, Errno>;

    /// The most it may be charged for.
    ///
    /// # Errors
    /// When Xen refuses.
    #[doc(alias = "XENMEM_maximum_reservation")]
    fn maximum_reservation(&mut self) -> Result<FrameCount, Errno>;

    /// The memory map; returns how many entries of `out` were written.
    ///
    /// # Errors
    /// When Xen refuses.
    #[doc(alias = "XENMEM_memory_map")]
    fn memory_map(&mut self, out: &mut [MapEntry]) -> Result<usize, Errno>;
}

/// How far an exchange got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exchanged {
    /// Input extents whose frames are migrated; the rest is untouched.
    pub done: usize,
    /// Why it stopped, if it did.
    pub error: Option<Errno>,
}

/// One entry of the memory map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MapEntry {
    /// First byte.
    pub address: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// Whether it is RAM.
    pub ram: bool,
}

/// Calls about event channels.
#[doc(alias = "event_channel_op")]
pub trait Events {
    /// Signals the other end.
    ///
    /// # Errors
    /// When the port is not bound.
    #[doc(alias = "EVTCHNOP_send")]
    fn notify(&mut self, port: Port) -> Result<(), Errno>;

    /// Lets a port interrupt, at once if it is pending.
    ///
    /// # Errors
    /// When there is no such port.
    #[doc(alias = "EVTCHNOP_unmask")]
    fn unmask(&mut self, port: Port) -> Result<(), Errno>;

    /// Binds a virtual interrupt of one CPU to a new port.
    ///
    /// # Errors
    /// When it is bound already, or no port is free.
    #[doc(alias = "EVTCHNOP_bind_virq")]
    fn bind_virq(&mut self, virq: Virq, vcpu: Vcpu) -> Result<Port, Errno>;

    /// Makes a new port whose signal ([`notify`](Self::notify)) is an event of
    /// that CPU: what one CPU wakes another with.
    ///
    /// # Errors
    /// When there is no such CPU, or no port is free.
    #[doc(alias = "EVTCHNOP_bind_ipi")]
    fn bind_ipi(&mut self, vcpu: Vcpu) -> Result<Port, Errno>;

    /// Makes events of a port those of another CPU.
    ///
    /// What is pending stays where it is: mask the port before and
    /// [`unmask`](Self::unmask) it afterwards.
    ///
    /// # Errors
    /// When there is no such CPU, or the port cannot change its own.
    #[doc(alias = "EVTCHNOP_bind_vcpu")]
    fn bind_vcpu(&mut self, port: Port, vcpu: Vcpu) -> Result<(), Errno>;
}

/// A virtual interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Virq {
    /// The one-shot timer of a virtual CPU.
    Timer,
}

/// Calls about the domain as a whole.
pub trait Domain {
    /// The hypervisor's version.
    ///
    /// # Errors
    /// When there is no hypervisor that answers.
    #[doc(alias = "xen_version")]
    fn version(&mut self) -> Result<Version, Errno>;

    /// Reads a parameter of a translated guest.
    ///
    /// # Errors
    /// When Xen refuses.
    #[doc(alias = "HVMOP_get_param")]
    fn param(&mut self, param: Param) -> Result<u64, Errno>;

    /// Makes Xen raise `vector` on the boot CPU for events, with no interrupt
    /// controller in between: no end-of-interrupt is due.
    ///
    /// # Errors
    /// When Xen refuses.
    #[doc(alias = "HVM_PARAM_CALLBACK_IRQ")]
    fn set_callback(&mut self, vector: Vector) -> Result<(), Errno>;

    /// Makes Xen raise `vector` on `vcpu` through its local APIC: it must be
    /// enabled, and each interrupt needs an end-of-interrupt. Takes precedence
    /// over [`set_callback`](Self::set_callback) on that CPU.
    ///
    /// # Errors
    /// When there is no such CPU.
    #[doc(alias = "HVMOP_set_evtchn_upcall_vector")]
    fn set_upcall(&mut self, vcpu: Vcpu, vector: Vector) -> Result<(), Errno>;

    /// Tells Xen where in which page to keep the information of `vcpu`, instead
    /// of the shared-info page, which has that of 32 CPUs only.
    ///
    /// For good, until a restore: Xen writes there whenever it likes.
    ///
    /// # Errors
    /// When there is no such CPU, when it runs and is not this one, or when it
    /// has been done.
    #[doc(alias = "VCPUOP_register_vcpu_info")]
    fn register_vcpu_info(&mut self, vcpu: Vcpu, page: Gmfn, slot: InfoSlot) -> Result<(), Errno>;

    /// Stops another CPU where it is.
    ///
    /// # Errors
    /// When there is no such CPU.
    #[doc(alias = "VCPUOP_down")]
    fn vcpu_down(&mut self, vcpu: Vcpu) -> Result<(), Errno>;

    /// Lets a stopped CPU go on.
    ///
    /// # Errors
    /// When there is no such CPU, or it was never started.
    #[doc(alias = "VCPUOP_up")]
    fn vcpu_up(&mut self, vcpu: Vcpu) -> Result<(), Errno>;

    /// Writes to the hypervisor's own console: for the first domain, and for
    /// others where Xen was built to allow it.
    ///
    /// # Errors
    /// When Xen refuses.
    #[doc(alias = "CONSOLEIO_write")]
    fn print(&mut self, text: &[u8]) -> Result<(), Errno>;

    /// Stops the domain. Only a suspend returns, and says how.
    ///
    /// # Errors
    /// When Xen refuses.
    #[doc(alias = "SCHEDOP_shutdown")]
    fn shutdown(&mut self, reason: ShutdownReason) -> Result<Woken, Errno>;

    /// Lets other CPUs of the host run.
    #[doc(alias = "SCHEDOP_yield")]
    fn yield_cpu(&mut self);

    /// Stops this CPU until an event is pending, with events enabled.
    #[doc(alias = "SCHEDOP_block")]
    fn block(&mut self);
}

/// `major.minor` of the hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// 4.
    pub major: u16,
    /// 17.
    pub minor: u16,
}

/// Parameters of a translated guest that this crate reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Param {
    /// Frame of the xenstore ring.
    StoreFrame,
    /// Port of the xenstore ring.
    StorePort,
    /// Frame of the console ring.
    ConsoleFrame,
    /// Port of the console ring.
    ConsolePort,
}

/// Why a domain stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ShutdownReason {
    /// For good.
    PowerOff,
    /// To start again.
    Reboot,
    /// To be saved.
    Suspend,
    /// It has failed.
    Crash,
}

/// How a suspended domain came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Woken {
    /// In a new domain: rings, ports, callback and watches are gone.
    Restored,
    /// Still the same domain: nothing is lost.
    Cancelled,
}

impl<M: Memory + ?Sized> Memory for &mut M {
    fn decrease_reservation(&mut self, extents: &[Gmfn], order: Order) -> Result<usize, Errno> {
        (**self).decrease_reservation(extents, order)
    }

    fn populate_physmap(&mut self, extents: &mut [Gmfn], order: Order) -> Result<usize, Errno> {
        (**self).populate_physmap(extents, order)
    }

    fn exchange(&mut self, given: (&[Gmfn], Order), wanted: (&mut [Gmfn], Order)) -> Exchanged {
        (**self).exchange(given, wanted)
    }

    fn move_frame(&mut self, from: Pfn, to: Pfn) -> Result<(), Errno> {
        (**self).move_frame(from, to)
    }

    fn move_range(&mut self, from: FrameRange, to: Pfn) -> Result<(), Errno> {
        (**self).move_range(from, to)
    }

    fn is_hole(&mut self, pfn: Pfn) -> Result<bool, Errno> {
        (**self).is_hole(pfn)
    }

    fn map_shared_info(&mut self, at: Pfn) -> Result<(), Errno> {
        (**self).map_shared_info(at)
    }

    fn current_reservation(&mut self) -> Result<FrameCount, Errno> {
        (**self).current_reservation()
    }

    fn maximum_reservation(&mut self) -> Result<FrameCount, Errno> {
        (**self).maximum_reservation()
    }

    fn memory_map(&mut self, out: &mut [MapEntry]) -> Result<usize, Errno> {
        (**self).memory_map(out)
    }
}
