//! A kernel with virtqueues of its own and no unsafe code: transport, source
//! and thread live in three of its components.

#[expect(clippy::cast_possible_truncation, reason = "a 64-bit kernel")]
#[expect(
    missing_debug_implementations,
    reason = "glue in as few lines as it takes"
)]
#[expect(
    clippy::indexing_slicing,
    reason = "by queue, by slot, and by tokens of the queue's own"
)]
pub mod glue;
pub mod kernel;
