//! The host's floor: what it costs to discard memory with nobody in between.
//!
//! QEMU's guest memory is anonymous and advised for huge pages, so ours is too. It is touched page by
//! page, then discarded once in 2 MiB steps (what a bulk path can hope for) and once in 4 KiB steps (what
//! the PFN path pays per page).

use std::ffi::c_void;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

const PAGE: usize = 4096;
const HUGE: usize = 2 << 20;

/// Wall time of discarding the same amount in two step sizes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Floor {
    /// In 2 MiB steps.
    pub(crate) two_mib: Duration,
    /// In 4 KiB steps.
    pub(crate) four_kib: Duration,
}

/// Measures both for `bytes`, each on fresh memory.
///
/// A floor is what disturbs least: the faster one of two rounds counts.
pub(crate) fn measure(bytes: u64) -> Result<Floor> {
    let length = usize::try_from(bytes)?;
    let faster = |step| Ok::<_, anyhow::Error>(discard(length, step)?.min(discard(length, step)?));
    Ok(Floor {
        two_mib: faster(HUGE)?,
        four_kib: faster(PAGE)?,
    })
}

fn discard(length: usize, step: usize) -> Result<Duration> {
    let memory = Mapping::new(length)?;
    memory.advise(0, length, Advice::LinuxHugepage)?;
    memory.touch();
    let start = Instant::now();
    for offset in (0..length).step_by(step) {
        memory.advise(offset, step.min(length - offset), Advice::LinuxDontNeed)?;
    }
    Ok(start.elapsed())
}

/// Anonymous memory of ours, aligned to huge pages.
#[derive(Debug)]
struct Mapping {
    mapped: *mut c_void,
    mapped_length: usize,
    aligned: *mut u8,
    length: usize,
}

impl Mapping {
    fn new(length: usize) -> Result<Self> {
        let mapped_length = length + HUGE;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing of ours.
        let mapped = unsafe {
            mmap_anonymous(
                core::ptr::null_mut(),
                mapped_length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        };
        let mapped = mapped.context("reserving memory for the floor")?;
        let to_aligned = mapped.cast::<u8>().align_offset(HUGE);
        // SAFETY: the mapping is longer than `length` by the largest distance to an aligned address.
        let aligned = unsafe { mapped.cast::<u8>().add(to_aligned) };
        Ok(Self {
            mapped,
            mapped_length,
            aligned,
            length,
        })
    }

    /// Writes one byte to each page.
    fn touch(&self) {
        for offset in (0..self.length).step_by(PAGE) {
            // SAFETY: `offset` is below `length`, so the address lies inside the mapping.
            let page = unsafe { self.aligned.add(offset) };
            // SAFETY: the mapping is writable, nobody holds a reference into it, and the write is volatile
            // so that it really happens.
            unsafe { page.write_volatile(1) };
        }
    }

    fn advise(&self, offset: usize, length: usize, advice: Advice) -> Result<()> {
        assert!(
            offset + length <= self.length,
            "advice outside of the mapping"
        );
        // SAFETY: the range was just checked to lie inside the mapping.
        let from = unsafe { self.aligned.add(offset) };
        // SAFETY: the range is ours, and nobody relies on what it holds: discarding it is the purpose.
        unsafe { madvise(from.cast(), length, advice) }.context("madvise")
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this address and length, and nothing refers into it any more.
        let unmapped = unsafe { munmap(self.mapped, self.mapped_length) };
        debug_assert!(unmapped.is_ok(), "a mapping of ours can be unmapped");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn discarding_really_frees() {
        let before = crate::vm::resident(std::process::id()).unwrap();
        let memory = Mapping::new(64 << 20).unwrap();
        memory.touch();
        let touched = crate::vm::resident(std::process::id()).unwrap();
        assert!(touched >= before + (60 << 20), "{before} -> {touched}");
        memory.advise(0, 64 << 20, Advice::LinuxDontNeed).unwrap();
        let discarded = crate::vm::resident(std::process::id()).unwrap();
        assert!(
            discarded + (60 << 20) <= touched,
            "{touched} -> {discarded}"
        );
    }
}
