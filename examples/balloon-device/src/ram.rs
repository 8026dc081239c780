//! The guest's memory, and how the host takes parts of it back.

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;

use anyhow::{Context as _, Result, ensure};
use balloon_core::FrameRange;
use rustix::fs::{FallocateFlags, MemfdFlags};
use rustix::mm::Advice;
use transport_virtio::DmaRegion;
use vm_memory::{
    Address as _, FileOffset, GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap,
    GuestMemoryRegion as _,
};

/// What is behind guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Backing {
    /// Private anonymous memory, with transparent huge pages.
    Anon,
    /// A shared memory file, as vhost-user needs it.
    Memfd,
}

/// Guest memory from guest-physical address 0 on.
#[derive(Debug)]
pub struct Ram {
    memory: GuestMemoryMmap,
    file: Option<OwnedFd>,
    len: usize,
}

/// A piece of the host's mapping of guest memory.
#[derive(Clone, Copy, Debug)]
pub struct HostPiece {
    at: NonNull<u8>,
    offset: u64,
    len: NonZeroUsize,
}

impl Ram {
    /// `len` bytes of memory that nobody has touched.
    ///
    /// # Errors
    /// If the host has no such memory.
    pub fn new(backing: Backing, len: usize) -> Result<Self> {
        let start = GuestAddress(0);
        let (memory, file) = match backing {
            Backing::Anon => (GuestMemoryMmap::from_ranges(&[(start, len)])?, None),
            Backing::Memfd => {
                let file = rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC)?;
                rustix::fs::ftruncate(&file, len as u64)?;
                let offset = FileOffset::new(File::from(file.try_clone()?), 0);
                let ranges = [(start, len, Some(offset))];
                (GuestMemoryMmap::from_ranges_with_files(ranges)?, Some(file))
            }
        };
        let ram = Self { memory, file, len };
        ram.advise(
            ram.whole()?,
            match backing {
                Backing::Anon => Advice::LinuxHugepage,
                // Else the host notes of each page that it was used, when it goes.
                Backing::Memfd => Advice::Random,
            },
        )?;
        Ok(ram)
    }

    /// Bytes in all.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no memory.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The memory as `vm-memory` has it.
    #[must_use]
    pub const fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Makes the host back all of it.
    ///
    /// # Errors
    /// If the host is short of memory.
    pub fn touch(&self) -> Result<()> {
        self.advise(self.whole()?, Advice::LinuxPopulateWrite)
    }

    /// Where the host has a range; `None` if it is not the guest's.
    #[must_use]
    pub fn translate(&self, range: FrameRange) -> Option<HostPiece> {
        let start = GuestAddress(range.start().address());
        let len = usize::try_from(range.count().bytes().get()).ok()?;
        let (region, offset) = self.memory.to_region_addr(start)?;
        let left = region.len().checked_sub(offset.raw_value())?;
        if len as u64 > left {
            return None;
        }
        Some(HostPiece {
            at: NonNull::new(region.get_host_address(offset).ok()?)?,
            offset: start.raw_value(),
            len: NonZeroUsize::new(len)?,
        })
    }

    /// Gives the memory behind a piece back to the host; it reads as zeros then.
    ///
    /// # Errors
    /// What the host says.
    pub fn discard(&self, piece: HostPiece) -> Result<()> {
        let Some(file) = &self.file else {
            return self.advise(piece, Advice::LinuxDontNeed);
        };
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let len = piece.len.get() as u64;
        Ok(rustix::fs::fallocate(file, flags, piece.offset, len)?)
    }

    /// The driver's view of some of the memory.
    ///
    /// # Errors
    /// If the guest has no such memory.
    pub fn dma(&self, address: u64, len: usize) -> Result<DmaRegion> {
        let end = usize::try_from(address)?.checked_add(len);
        ensure!(
            end.is_some_and(|end| end <= self.len),
            "DMA outside of memory"
        );
        let base = self.memory.get_host_address(GuestAddress(address))?;
        let base = NonNull::new(base).context("memory at null")?;
        // SAFETY: mapped, aligned as the guest's address is, for as long as the
        // memory, which outlives driver and device; only these two use it, by
        // atomic or volatile accesses.
        Ok(unsafe { DmaRegion::new(base, address, len) })
    }

    fn whole(&self) -> Result<HostPiece> {
        let at = self.memory.get_host_address(GuestAddress(0))?;
        Ok(HostPiece {
            at: NonNull::new(at).context("memory at null")?,
            offset: 0,
            len: NonZeroUsize::new(self.len).context("no memory")?,
        })
    }

    fn advise(&self, piece: HostPiece, advice: Advice) -> Result<()> {
        // SAFETY: `translate` found the piece within our mapping, which holds
        // nothing but guest memory: no Rust object can lose its value.
        unsafe { rustix::mm::madvise(piece.at.as_ptr().cast(), piece.len.get(), advice) }?;
        Ok(())
    }
}
