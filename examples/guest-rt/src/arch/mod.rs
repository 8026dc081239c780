//! One folder per architecture; each offers the same names.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
pub(crate) use aarch64::*;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::*;

#[cfg(target_arch = "aarch64")]
pub use aarch64::{PciConfig, exit_failure, exit_success, now, pci_hierarchy};
#[cfg(target_arch = "x86_64")]
pub use x86_64::{
    EVENT_VECTOR, PciConfig, exit_failure, exit_success, now, page_tables, pci_hierarchy,
};

#[cfg(not(any(target_arch = "aarch64", target_arch = "x86_64")))]
compile_error!("guest-rt has no code for this architecture yet");
