//! x86-64: PVH boot, four-level paging, 8259 and local APIC, 16550 consoles.
//!
//! Facts this rests on: one CPU, or others that a guest starts by itself and keeps
//! out of critical sections; physical memory mapped one to one; code without
//! floating point. Nothing here knows what runs on top.

#[expect(unsafe_code, reason = "programs the local APIC's MSR")]
mod apic;
#[expect(unsafe_code, reason = "the image starts here: entry, linker symbols")]
mod boot;
#[expect(unsafe_code, reason = "reads the time-stamp counter")]
mod clock;
#[expect(unsafe_code, reason = "asks the CPU about its hypervisor")]
mod hypervisor;
#[expect(
    unsafe_code,
    reason = "halts with interrupts on, implements the critical section"
)]
mod idle;
#[expect(
    unsafe_code,
    reason = "loads descriptor tables and defines the interrupt stubs"
)]
mod idt;
#[expect(unsafe_code, reason = "builds and switches page tables")]
mod paging;
#[expect(unsafe_code, reason = "names the ports of the configuration mechanism")]
mod pci;
#[expect(unsafe_code, reason = "names the interrupt controllers' ports")]
mod pic;
#[expect(unsafe_code, reason = "names the timer's ports")]
mod pit;
#[expect(unsafe_code, reason = "port input and output")]
mod port;
#[expect(unsafe_code, reason = "fills and compares physical frames")]
mod ram;
#[expect(unsafe_code, reason = "names the consoles' ports")]
mod serial;
#[expect(unsafe_code, reason = "reads what the boot loader left in memory")]
mod start_info;

#[cfg(feature = "xen")]
#[expect(unsafe_code, reason = "enters the hypervisor")]
mod xen;

pub(crate) use apic::{arm_timer, disarm_timer, message};
pub(crate) use idle::halt_unless;
pub(crate) use idt::interrupts_taken;
pub(crate) use paging::{map_device, map_shared};
pub(crate) use pic::{LINES, unmask};
pub(crate) use ram::{fill_frame, frame_holds};
pub(crate) use serial::{Serial, console_line, emergency_serial};

pub use boot::{exit_failure, exit_success};
pub use clock::now;
pub use idt::EVENT_VECTOR;
pub use paging::page_tables;
pub use pci::{Ports as PciConfig, pci_hierarchy};
