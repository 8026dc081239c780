#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![expect(
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    clippy::type_complexity,
    clippy::std_instead_of_alloc,
    reason = "stand-ins: nothing else calls them"
)]

pub mod executor;
pub mod machine;
pub mod own_queues;
pub mod polling;
