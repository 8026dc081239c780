//! A kernel that polls: virtio registers in a layer of its own, no interrupt
//! from them, a heap that grows by contiguous pages.

#[expect(clippy::cast_possible_truncation, reason = "a 64-bit kernel")]
pub mod glue;
pub mod kernel;
