//! The ways into the hypervisor, for each architecture.

#[cfg(all(target_arch = "aarch64", not(miri)))]
mod aarch64;
#[cfg(all(target_arch = "x86_64", not(miri)))]
mod x86_64;

#[cfg(all(target_arch = "aarch64", not(miri)))]
pub use aarch64::Hvc;
#[cfg(all(target_arch = "x86_64", not(miri)))]
pub use x86_64::{Cpuid, HypercallPage, Instruction};

/// A way into the hypervisor.
///
/// # Safety
/// `call` performs the hypercall `number` with `args` and nothing else, and
/// returns what Xen returned.
pub unsafe trait Gate {
    /// Performs a hypercall. Integers are passed as pointers without
    /// provenance.
    ///
    /// # Safety
    /// Pointers among `args`, and those in the structures behind them, are
    /// valid for what the hypercall reads and writes through them. It does not
    /// take away memory that Rust code still uses.
    unsafe fn call(&mut self, number: u32, args: [*mut (); 4]) -> isize;
}
