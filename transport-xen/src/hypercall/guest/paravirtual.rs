//! What only a PV guest asks of Xen: page tables, entry points, its timer.
//!
//! Methods instead of a trait: nothing in this crate calls them. They are what a
//! PV kernel needs to be one, and to implement [`FrameMap`](crate::FrameMap).

use core::ptr::{null_mut, without_provenance_mut};

use balloon_core::Nanos;

use super::{Guest, abi};
use crate::errno::Errno;
use crate::hypercall::gate::Gate;
use crate::units::{MachineAddress, Vcpu};

/// A page-table entry to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct EntryUpdate {
    place: MachineAddress,
    entry: u64,
}

impl EntryUpdate {
    /// Writes `entry`, in the CPU's format with machine frames, at `place`.
    #[must_use]
    pub const fn new(place: MachineAddress, entry: u64) -> Self {
        Self { place, entry }
    }
}

/// Where an exception enters the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrapGate {
    /// The exception's number.
    pub vector: u8,
    /// Linear address of the code.
    pub address: usize,
}

impl<G: Gate> Guest<G> {
    /// Writes page-table entries, in order.
    ///
    /// # Safety
    /// The mappings that go are used by nobody; those that come break no
    /// promise of the memory behind them.
    ///
    /// # Errors
    /// When Xen refuses an entry; those before it are written.
    #[doc(alias = "mmu_update")]
    pub unsafe fn update_entries(&mut self, updates: &[EntryUpdate]) -> Result<(), Errno> {
        let args = [
            // Xen only reads the list.
            updates.as_ptr().cast_mut().cast(),
            without_provenance_mut(updates.len()),
            null_mut(),
            without_provenance_mut(abi::DOMID_SELF.into()),
        ];
        // SAFETY: the list is as long as is said; the caller vouches for what is
        // in it.
        Errno::check(unsafe { self.gate.call(abi::MMU_UPDATE, args) }).map(drop)
    }

    /// Makes this CPU forget translations of entries that were changed.
    ///
    /// # Errors
    /// When Xen refuses.
    #[doc(alias = "MMUEXT_TLB_FLUSH_LOCAL")]
    pub fn flush_tlb(&mut self) -> Result<(), Errno> {
        let mut operation = abi::MmuextOp {
            operation: abi::TLB_FLUSH_LOCAL,
            first: 0,
            second: 0,
        };
        let args = [
            (&raw mut operation).cast(),
            without_provenance_mut(1),
            null_mut(),
            without_provenance_mut(abi::DOMID_SELF.into()),
        ];
        // SAFETY: one operation, which outlives the call.
        Errno::check(unsafe { self.gate.call(abi::MMUEXT_OP, args) }).map(drop)
    }

    /// Enters the kernel at `event` for events, and at `failsafe` where a
    /// return to it fails.
    ///
    /// # Safety
    /// At both addresses is code that takes Xen's frames, for good.
    ///
    /// # Errors
    /// When Xen refuses.
    pub unsafe fn set_callbacks(&mut self, event: usize, failsafe: usize) -> Result<(), Errno> {
        let args = [
            without_provenance_mut(event),
            without_provenance_mut(failsafe),
            // System calls: there is no user mode yet.
            null_mut(),
            null_mut(),
        ];
        // SAFETY: the caller vouches for the addresses.
        Errno::check(unsafe { self.gate.call(abi::SET_CALLBACKS, args) }).map(drop)
    }

    /// Enters the kernel at these places for exceptions; an exception without
    /// one ends the domain.
    ///
    /// # Safety
    /// At each address is code that takes Xen's frame of that exception, for
    /// good.
    ///
    /// # Errors
    /// When Xen refuses.
    #[doc(alias = "set_trap_table")]
    pub unsafe fn set_traps(&mut self, gates: &[TrapGate]) -> Result<(), Errno> {
        /// Lets events wait.
        const EVENTS_OFF: u8 = 1 << 2;
        // One more than there can be: an empty entry ends the table.
        let mut table = [abi::TrapInfo::default(); abi::TRAPS + 1];
        for (place, gate) in table.iter_mut().take(abi::TRAPS).zip(gates) {
            *place = abi::TrapInfo {
                vector: gate.vector,
                flags: EVENTS_OFF,
                segment: abi::KERNEL_CODE,
                padding: 0,
                address: gate.address,
            };
        }
        let args = [
            table.as_mut_ptr().cast(),
            null_mut(),
            null_mut(),
            null_mut(),
        ];
        // SAFETY: the table ends with an empty entry; the caller vouches for the
        // addresses.
        Errno::check(unsafe { self.gate.call(abi::SET_TRAP_TABLE, args) }).map(drop)
    }

    /// Raises the timer's virtual interrupt once, at `at` of the system time
    /// that the shared-info page tells, or never.
    ///
    /// # Errors
    /// When Xen refuses.
    #[doc(alias = "set_timer_op")]
    pub fn set_timer(&mut self, at: Option<Nanos>) -> Result<(), Errno> {
        // Zero is never; what is past is due at once.
        let at = at.map_or(0, |at| at.get().max(1));
        let args = [
            without_provenance_mut(usize::try_from(at).unwrap_or(usize::MAX)),
            null_mut(),
            null_mut(),
            null_mut(),
        ];
        // SAFETY: no pointer is passed.
        Errno::check(unsafe { self.gate.call(abi::SET_TIMER_OP, args) }).map(drop)
    }

    /// Stops the tick that PV CPUs start with.
    ///
    /// # Errors
    /// When there is no such CPU.
    #[doc(alias = "VCPUOP_stop_periodic_timer")]
    pub fn stop_periodic_timer(&mut self, vcpu: Vcpu) -> Result<(), Errno> {
        self.vcpu_call(abi::STOP_PERIODIC_TIMER, vcpu, &mut ())
    }
}
