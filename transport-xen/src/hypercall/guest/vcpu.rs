//! Other CPUs of the domain: where one starts.

use core::ptr::{from_mut, without_provenance_mut};

use super::{Guest, abi};
use crate::errno::Errno;
use crate::hypercall::calls::Domain as _;
use crate::hypercall::gate::Gate;
use crate::units::Vcpu;

/// Where and how a CPU of a translated x86 guest starts: in 64-bit mode, with
/// flat segments that no descriptor table is behind, interrupts off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuStart {
    /// Address of the first instruction.
    pub entry: usize,
    /// The stack's end.
    pub stack: usize,
    /// In the register that holds a function's first argument.
    pub argument: u64,
    /// Physical address of the page tables' root.
    pub page_tables: u64,
}

/// Protected mode, extension type, write protection, paging.
const CR0: u64 = 1 | 1 << 4 | 1 << 16 | 1 << 31;
/// Physical address extension.
const CR4: u64 = 1 << 5;
/// Long mode enabled and active, no-execute.
const EFER: u64 = 1 << 8 | 1 << 10 | 1 << 11;
/// The bit that is always set.
const RFLAGS: u64 = 1 << 1;

impl<G: Gate> Guest<G> {
    /// Starts a CPU that has never run (translated x86 guests).
    ///
    /// # Safety
    /// At `entry` is code that takes a CPU in this state, with the stack and the
    /// page tables for itself or shared as it expects, for good.
    ///
    /// # Errors
    /// When there is no such CPU ([`Errno::NoEntry`]), or it runs.
    #[doc(alias = "VCPUOP_initialise")]
    pub unsafe fn start_vcpu(&mut self, vcpu: Vcpu, start: &VcpuStart) -> Result<(), Errno> {
        let mut context = abi::HvmContext {
            mode: abi::MODE_64,
            padding: 0,
            registers: [
                0,
                0,
                0,
                0,
                start.stack as u64,
                0,
                0,
                start.argument,
                start.entry as u64,
                RFLAGS,
            ],
            control: [CR0, start.page_tables, CR4, EFER],
            rest: 0,
        };
        self.vcpu_call(abi::INITIALISE, vcpu, &mut context)?;
        self.vcpu_up(vcpu)
    }

    /// An operation on a CPU; `argument` is its structure, or nothing.
    pub(super) fn vcpu_call<T>(
        &mut self,
        operation: usize,
        vcpu: Vcpu,
        argument: &mut T,
    ) -> Result<(), Errno> {
        let args = [
            without_provenance_mut(operation),
            without_provenance_mut(vcpu.get() as usize),
            from_mut(argument).cast(),
            core::ptr::null_mut(),
        ];
        // SAFETY: `argument` is the structure of this operation, or it reads none,
        // and outlives the call; what a structure names is vouched for by who
        // filled it in.
        Errno::check(unsafe { self.gate.call(abi::VCPU_OP, args) }).map(drop)
    }
}
