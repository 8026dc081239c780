//! Fakes for tests of anything built on this crate (feature `test-utils`).
//!
//! [`FakeHost`] is a transport with the host behind it: it keeps its own books
//! of which frames it was given and notes every breach of the protocols' rules.
//! [`FakeSource`] is an allocator and ledger that knows where each frame is.
//! Together they are an ownership oracle: after every step each frame must be
//! in exactly one place.
//!
//! Over any transport, fake or real: [`FaultInjector`] puts failures in its way,
//! [`Recorder`] writes down what host and guest said to each other, and [`Replay`]
//! says it again. The `check_…_laws` put an
//! implementation of one of the traits through that trait's laws.

mod host;
mod inject;
mod laws;
mod migrate_host;
mod record;
mod second_stage;
mod source;

pub use host::{Answers, FakeHost};
pub use inject::{FaultInjector, InjectedError, Injection, Odds};
pub use laws::{
    check_frame_source_laws, check_ledger_laws, check_migrate_laws, check_put_refuses_what_is_free,
    check_transport_laws,
};
pub use migrate_host::{FakeMigrateHost, Fault};
pub use record::{Recorder, Recording, Replay, Said};
pub use second_stage::SecondStage;
pub use source::FakeSource;
