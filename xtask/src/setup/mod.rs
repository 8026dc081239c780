//! What must be on the machine, installed at the moment somebody needs it.
//!
//! Each function looks first and changes nothing if the thing is there. What xtask gets for itself lies
//! under `target/xtask`; only Debian packages and rustup's parts go to the system, and Debian packages
//! only if we are root. Otherwise the error says what to type.

mod apt;
mod debian;
mod qemu;
mod rust;

pub(crate) use apt::{Apt, LOADER, Release, Unpacked};
pub(crate) use debian::{backports, cxx, libvirt, valgrind};
pub(crate) use qemu::{Qemu, any, emulators, measured};
pub(crate) use rust::{component, nightly, target, tool, toolchain, tools};
