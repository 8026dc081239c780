//! Numbers and layouts of Xen's public headers, for 64-bit guests.
//!
//! Guest handles are pointers here: they keep their provenance until the
//! instruction that enters Xen.

/// Hypercall numbers.
pub(super) const SET_TRAP_TABLE: u32 = 0;
pub(super) const MMU_UPDATE: u32 = 1;
pub(super) const SET_CALLBACKS: u32 = 4;
pub(super) const MEMORY_OP: u32 = 12;
pub(super) const SET_TIMER_OP: u32 = 15;
pub(super) const XEN_VERSION: u32 = 17;
pub(super) const CONSOLE_IO: u32 = 18;
pub(super) const VCPU_OP: u32 = 24;
pub(super) const MMUEXT_OP: u32 = 26;
pub(super) const SCHED_OP: u32 = 29;
pub(super) const EVENT_CHANNEL_OP: u32 = 32;
pub(super) const HVM_OP: u32 = 34;

/// Operations of `MEMORY_OP`.
pub(super) const DECREASE_RESERVATION: usize = 1;
pub(super) const CURRENT_RESERVATION: usize = 3;
pub(super) const MAXIMUM_RESERVATION: usize = 4;
pub(super) const POPULATE_PHYSMAP: usize = 6;
pub(super) const ADD_TO_PHYSMAP: usize = 7;
pub(super) const MEMORY_MAP: usize = 9;
pub(super) const EXCHANGE: usize = 11;

/// Spaces of `ADD_TO_PHYSMAP`.
pub(super) const SPACE_SHARED_INFO: u16 = 0;
pub(super) const SPACE_GMFN: u16 = 2;
pub(super) const SPACE_GMFN_RANGE: u16 = 3;

/// Operations of `EVENT_CHANNEL_OP`.
pub(super) const BIND_VIRQ: usize = 1;
pub(super) const SEND: usize = 4;
pub(super) const BIND_IPI: usize = 7;
pub(super) const BIND_VCPU: usize = 8;
pub(super) const UNMASK: usize = 9;

/// Operation of `CONSOLE_IO`.
pub(super) const CONSOLE_WRITE: usize = 0;

/// Operations of `SCHED_OP`.
pub(super) const YIELD: usize = 0;
pub(super) const BLOCK: usize = 1;
pub(super) const SHUTDOWN: usize = 2;

/// Operations of `HVM_OP`.
pub(super) const SET_PARAM: usize = 0;
pub(super) const GET_PARAM: usize = 1;
pub(super) const GET_MEM_TYPE: usize = 15;
pub(super) const SET_UPCALL_VECTOR: usize = 23;

/// Operation of `MMUEXT_OP`.
pub(super) const TLB_FLUSH_LOCAL: u32 = 6;

/// Operations of `VCPU_OP`.
pub(super) const INITIALISE: usize = 0;
pub(super) const UP: usize = 1;
pub(super) const DOWN: usize = 2;
pub(super) const STOP_PERIODIC_TIMER: usize = 7;
pub(super) const REGISTER_VCPU_INFO: usize = 10;

/// A context whose CPU starts in 64-bit mode.
pub(super) const MODE_64: u32 = 1;

/// The code segment that a PV guest's kernel runs in.
pub(super) const KERNEL_CODE: u16 = 0xe033;
/// Exceptions there are.
pub(super) const TRAPS: usize = 32;

/// What `GET_MEM_TYPE` says of a frame with nothing behind it (`HVMMEM_mmio_dm`).
pub(super) const MEM_TYPE_HOLE: u16 = 2;

pub(super) const PARAM_CALLBACK_IRQ: u32 = 0;
pub(super) const PARAM_STORE_PFN: u32 = 1;
pub(super) const PARAM_STORE_EVTCHN: u32 = 2;
pub(super) const PARAM_CONSOLE_PFN: u32 = 17;
pub(super) const PARAM_CONSOLE_EVTCHN: u32 = 18;
/// `CALLBACK_IRQ` holds a vector.
pub(super) const CALLBACK_VECTOR: u64 = 2 << 56;

/// This domain, whatever its number.
pub(super) const DOMID_SELF: u16 = 0x7ff0;

/// RAM in the memory map.
pub(super) const E820_RAM: u32 = 1;

#[repr(C)]
pub(super) struct Reservation {
    pub(super) extents: *mut u64,
    pub(super) count: u64,
    pub(super) order: u32,
    pub(super) flags: u32,
    pub(super) domain: u16,
}

#[repr(C)]
pub(super) struct Exchange {
    pub(super) given: Reservation,
    pub(super) wanted: Reservation,
    pub(super) done: u64,
}

#[repr(C)]
pub(super) struct AddToPhysmap {
    pub(super) domain: u16,
    pub(super) count: u16,
    pub(super) space: u32,
    pub(super) index: u64,
    pub(super) gpfn: u64,
}

#[repr(C)]
pub(super) struct MemoryMap {
    pub(super) count: u32,
    pub(super) buffer: *mut E820,
}

#[derive(Clone, Copy)]
#[repr(C, packed(4))]
pub(super) struct E820 {
    pub(super) address: u64,
    pub(super) bytes: u64,
    pub(super) kind: u32,
}

#[repr(C)]
pub(super) struct HvmParam {
    pub(super) domain: u16,
    pub(super) index: u32,
    pub(super) value: u64,
}

#[repr(C)]
pub(super) struct MemType {
    pub(super) domain: u16,
    pub(super) kind: u16,
    pub(super) padding: [u16; 2],
    pub(super) pfn: u64,
}

#[repr(C)]
pub(super) struct UpcallVector {
    pub(super) vcpu: u32,
    pub(super) vector: u8,
}

#[repr(C)]
pub(super) struct BindVirq {
    pub(super) virq: u32,
    pub(super) vcpu: u32,
    pub(super) port: u32,
}

#[repr(C)]
pub(super) struct BindIpi {
    pub(super) vcpu: u32,
    pub(super) port: u32,
}

#[repr(C)]
pub(super) struct BindVcpu {
    pub(super) port: u32,
    pub(super) vcpu: u32,
}

#[repr(C)]
pub(super) struct RegisterVcpuInfo {
    pub(super) frame: u64,
    pub(super) offset: u32,
    pub(super) reserved: u32,
}

/// `vcpu_hvm_context` with the 64-bit registers; those for the 32-bit mode
/// make the union longer.
#[repr(C)]
pub(super) struct HvmContext {
    pub(super) mode: u32,
    pub(super) padding: u32,
    /// rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, rip, rflags.
    pub(super) registers: [u64; 10],
    /// cr0, cr3, cr4, efer.
    pub(super) control: [u64; 4],
    pub(super) rest: u64,
}

#[repr(C)]
pub(super) struct MmuextOp {
    pub(super) operation: u32,
    pub(super) first: u64,
    pub(super) second: u64,
}

#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(super) struct TrapInfo {
    pub(super) vector: u8,
    pub(super) flags: u8,
    pub(super) segment: u16,
    pub(super) padding: u32,
    pub(super) address: usize,
}

// Xen's 64-bit interface; narrower targets build the rest of the crate only.
#[cfg(target_pointer_width = "64")]
const _: () = {
    use core::mem::offset_of;

    assert!(size_of::<Reservation>() == 32);
    assert!(offset_of!(Reservation, domain) == 24);
    assert!(size_of::<Exchange>() == 72);
    assert!(size_of::<AddToPhysmap>() == 24);
    assert!(offset_of!(AddToPhysmap, index) == 8);
    assert!(size_of::<MemoryMap>() == 16);
    assert!(size_of::<E820>() == 20);
    assert!(size_of::<HvmParam>() == 16);
    assert!(offset_of!(HvmParam, value) == 8);
    assert!(size_of::<MemType>() == 16);
    assert!(offset_of!(MemType, pfn) == 8);
    assert!(size_of::<UpcallVector>() == 8);
    assert!(size_of::<BindVirq>() == 12);
    assert!(size_of::<BindIpi>() == 8);
    assert!(size_of::<BindVcpu>() == 8);
    assert!(size_of::<RegisterVcpuInfo>() == 16);
    assert!(size_of::<HvmContext>() == 128);
    assert!(offset_of!(HvmContext, control) == 88);
    assert!(size_of::<MmuextOp>() == 24);
    assert!(size_of::<TrapInfo>() == 16);
    assert!(offset_of!(TrapInfo, address) == 8);
};
