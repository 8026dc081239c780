//! A hypervisor and a store in memory (feature `test-utils`).
//!
//! [`FakeXen`] keeps a domain's reservation, its frame table with superpage
//! leaves, limits and populate-on-demand accounting the way real Xen was
//! measured to, and notes what a guest must never do. [`FakeStore`] is the
//! other end of a xenstore ring and can misbehave in every way.

mod page;
mod store;
mod xen;

pub use page::FakePage;
pub use store::{Behaviour, FakeStore};
pub use xen::{FakeClear, FakeP2m, FakeXen, Fault, Kind};
