//! A kernel whose heap owns the memory and whose tasks run in interrupt context.

#[expect(clippy::cast_possible_truncation, reason = "a 64-bit kernel")]
pub mod glue;
pub mod kernel;
