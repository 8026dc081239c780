//! Fakes for tests of anything built on this crate (feature `test-utils`).
//!
//! [`FakeHost`] is a transport with the host behind it: it keeps its own books
//! of which frames it was given and notes every breach of the protocols' rules.
//! [`FakeSource`] is an allocator and ledger that knows where each frame is.
//! Together they are an ownership oracle: after every step each frame must be
//! in exactly one place.

mod host;
mod laws;
mod second_stage;
mod source;
mod trader;

pub use host::{Answers, FakeHost};
pub use laws::{check_frame_source_laws, check_ledger_laws, check_transport_laws};
pub use second_stage::SecondStage;
pub use source::FakeSource;
pub use trader::{FakeTrader, Fault};
