//! 64-bit Arm on QEMU's `virt`: device tree, four-level paging, GIC of version
//! 2 or 3, generic timer, PL011 console, semihosting.
//!
//! Facts this rests on: one CPU at EL1, physical memory mapped one to one, code
//! without floating point. Nothing here knows what runs on top.

#[expect(unsafe_code, reason = "the image starts here: entry, linker symbols")]
mod boot;
#[expect(unsafe_code, reason = "defines the exception vectors")]
mod exceptions;
#[expect(unsafe_code, reason = "drives the CPU interface by system registers")]
mod gic;
#[expect(
    unsafe_code,
    reason = "halts with interrupts waiting, implements the critical section"
)]
mod idle;
#[expect(unsafe_code, reason = "builds and switches page tables")]
mod paging;
mod pci;
#[expect(unsafe_code, reason = "fills and compares physical frames")]
mod ram;
#[expect(unsafe_code, reason = "calls the emulator")]
mod semihosting;
mod serial;
#[expect(unsafe_code, reason = "reads the counter, sets the alarm")]
mod timer;
#[expect(unsafe_code, reason = "reads what the boot loader left in memory")]
mod tree;

pub(crate) use exceptions::interrupts_taken;
pub(crate) use gic::{LINES, message, unmask};
pub(crate) use idle::halt_unless;
pub(crate) use paging::{map_device, map_shared};
pub(crate) use ram::{fill_frame, frame_holds};
pub(crate) use serial::{Serial, console_line, emergency_serial};
pub(crate) use timer::{arm_timer, disarm_timer};

pub use boot::{exit_failure, exit_success};
pub use pci::{Ecam as PciConfig, pci_hierarchy};
pub use timer::now;
