//! All memory the boot code left over, in the hands of the allocator.

use buddy_alloc::{AddError, Backing, Config, ConfigError, Frame, FrameRange, Zone};
use guest_rt::BootInfo;
use qemu_guest::{FrameSet, TooSmall};
use thiserror::Error;

/// Why the allocator could not be set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum MemoryError {
    /// The boot code left no memory.
    #[error("no memory is left for the allocator")]
    Nothing,
    /// No free range holds the metadata.
    #[error("no room for {0} words of metadata")]
    Metadata(usize),
    /// The allocator does not take its span.
    #[error("allocator: {0}")]
    Zone(#[from] ConfigError),
    /// The allocator does not take a range.
    #[error("allocator: {0}")]
    Range(#[from] AddError),
    /// The workload's bits do not fit.
    #[error("{0}")]
    Bits(#[from] TooSmall),
}

/// The allocator, and an empty set of frames over the same span.
pub(super) struct Memory {
    pub(super) zone: Zone<'static>,
    pub(super) held: FrameSet<'static>,
}

/// Hands all free memory to the allocator, its metadata excepted.
pub(super) fn take_over(boot: &mut BootInfo) -> Result<Memory, MemoryError> {
    let start = boot
        .free()
        .iter()
        .next()
        .ok_or(MemoryError::Nothing)?
        .start();
    let end = boot.free().iter().last().ok_or(MemoryError::Nothing)?.end();
    let span = FrameRange::inside_bytes(start.get(), end.get() - start.get());

    let config = Config::new();
    let metadata = config.metadata_words(span);
    let metadata = boot
        .carve_words(metadata)
        .ok_or(MemoryError::Metadata(metadata))?;
    let bits = usize::try_from(FrameSet::words(span)).unwrap_or(usize::MAX);
    let bits = boot.carve_words(bits).ok_or(MemoryError::Metadata(bits))?;

    // Carved words are zeroed already.
    let mut zone = Zone::new_zeroed(span, config, metadata)?;
    for range in boot.free().iter() {
        let frames = FrameRange::inside_bytes(range.start().get(), range.bytes());
        // Nobody has touched it since the machine was switched on.
        zone.add_range(frames, Backing::Unpopulated)?;
        defmt::debug!(
            "memory {=u64:#x}..{=u64:#x}",
            Frame::address(frames.start()),
            range.end().get()
        );
    }
    Ok(Memory {
        zone,
        held: FrameSet::new(span, bits)?,
    })
}
