//! What a hypervisor offers in place of a PC's console, exit device and CPU.
//!
//! A guest that finds itself on such a hypervisor installs it before it says
//! anything; from then on all output and the end of the machine go there.

use core::fmt;

use embedded_io::{ErrorKind, ErrorType, Write};
use spin::Once;

#[cfg(target_arch = "x86_64")]
use crate::time::Instant;

/// The hypervisor's console and way out.
#[derive(Clone, Copy, Debug)]
pub struct Platform {
    /// Writes text; called with interrupts off, also by a panic.
    pub write: fn(&[u8]),
    /// Ends the machine, with success or failure.
    pub exit: fn(bool) -> !,
}

static PLATFORM: Once<Platform> = Once::new();

/// Makes this the platform, once and for good.
pub fn install(platform: Platform) {
    PLATFORM.call_once(|| platform);
}

pub(crate) fn get() -> Option<Platform> {
    PLATFORM.get().copied()
}

/// What a hypervisor does for a guest that may not execute privileged
/// instructions.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug)]
pub struct Cpu {
    /// Whether interrupts are taken.
    pub interrupts_on: fn() -> bool,
    /// Takes interrupts from now on, or lets them wait.
    pub set_interrupts: fn(bool),
    /// Stops until an interrupt was taken: called with interrupts off, returns
    /// with them on.
    pub wait: fn(),
    /// The time since boot.
    pub now: fn() -> Instant,
    /// Sets the one timer there is, or stops it.
    pub set_timer: fn(Option<Instant>),
}

#[cfg(target_arch = "x86_64")]
static CPU: Once<Cpu> = Once::new();

/// Makes this the CPU, once and for good; before anything else of this crate is
/// called.
#[cfg(target_arch = "x86_64")]
pub fn install_cpu(cpu: Cpu) {
    CPU.call_once(|| cpu);
}

#[cfg(target_arch = "x86_64")]
pub(crate) fn cpu() -> Option<&'static Cpu> {
    CPU.get()
}

/// The platform's console as a writer.
pub(crate) struct Output(pub(crate) Platform);

/// The console takes everything.
#[derive(Debug)]
pub(crate) enum Never {}

impl fmt::Display for Never {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {}
    }
}

impl core::error::Error for Never {}

impl embedded_io::Error for Never {
    fn kind(&self) -> ErrorKind {
        match *self {}
    }
}

impl ErrorType for Output {
    type Error = Never;
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Never> {
        (self.0.write)(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> Result<(), Never> {
        Ok(())
    }
}
