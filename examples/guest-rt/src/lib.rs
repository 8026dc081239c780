#![doc = include_str!("../README.md")]
#![no_std]
// Unsafe code only in the modules that say why.
#![deny(unsafe_code)]

#[cfg(test)]
extern crate alloc;

mod command_line;
mod line;
mod memory;
pub mod pci;
mod time;
mod virtio_mmio;

pub use command_line::CommandLine;
pub use line::LineBuffer;
pub use memory::{MapFull, MemoryMap, PhysAddr, PhysRange};
pub use time::{Instant, Span, Steady};
pub use virtio_mmio::{Places, VirtioMmio};

#[cfg(target_os = "none")]
mod arch;
#[cfg(target_os = "none")]
#[expect(unsafe_code, reason = "hands out memory nobody owns, calls the guest")]
pub mod boot;
#[cfg(target_os = "none")]
pub mod console;
#[cfg(target_os = "none")]
mod delay;
#[cfg(target_os = "none")]
pub mod interrupts;
#[cfg(target_os = "none")]
#[expect(unsafe_code, reason = "implements the logger")]
mod log;
#[cfg(target_os = "none")]
#[expect(unsafe_code, reason = "accesses device registers")]
pub mod mmio;
#[cfg(target_os = "none")]
mod panic;
#[cfg(target_os = "none")]
pub mod platform;
#[cfg(target_os = "none")]
#[expect(
    unsafe_code,
    reason = "passes its callers' word on to the architecture"
)]
pub mod ram;
#[cfg(target_os = "none")]
pub mod timer;

#[cfg(all(target_os = "none", target_arch = "x86_64"))]
pub use arch::{EVENT_VECTOR, page_tables};
#[cfg(target_os = "none")]
pub use arch::{PciConfig, exit_failure, exit_success, now, pci_hierarchy};
#[cfg(target_os = "none")]
pub use boot::BootInfo;
#[cfg(target_os = "none")]
pub use delay::Delay;
