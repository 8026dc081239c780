//! What this crate asks of the hypervisor, as typed calls.
//!
//! Three small traits, one for each part of the interface, so that code says
//! which part it needs and the fake of the tests can keep books. [`Guest`]
//! implements all three over a [`Gate`](gate::Gate), the one instruction that
//! enters Xen; `testing::FakeXen` implements them in memory.
//!
//! Every call returns at once. Negative returns are [`Errno`](crate::Errno)s, and a count
//! below the asked one is a count, not an error: Xen stops at the first extent
//! it cannot serve.

mod abi;
pub(crate) mod calls;
#[expect(unsafe_code, reason = "the instruction that enters the hypervisor")]
pub mod gate;
#[expect(
    unsafe_code,
    reason = "passes the hypervisor addresses of its arguments"
)]
mod guest;

pub use calls::{
    Domain, Events, Exchanged, MapEntry, Memory, Param, ShutdownReason, Version, Virq, Woken,
};
pub use guest::Guest;
pub use guest::paravirtual::{EntryUpdate, TrapGate};
pub use guest::vcpu::VcpuStart;
