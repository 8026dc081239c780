//! The guest's memory, and how the host takes parts of it back.

use std::fs::File;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use balloon_core::FrameRange;
use rustix::fs::{FallocateFlags, MemfdFlags};
use rustix::mm::Advice;
use transport_virtio::{Dma, DmaRegion};
use vm_memory::{
    Address as _, FileOffset, GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap,
    GuestMemoryRegion as _, GuestRegionMmap, MemoryRegionAddress,
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
    len: usize,
}

/// A piece of the host's mapping of guest memory.
#[derive(Clone, Copy, Debug)]
pub struct HostPiece<'a> {
    at: NonNull<u8>,
    len: NonZeroUsize,
    /// What is mapped, and from where on, unless it is anonymous memory.
    file: Option<(&'a File, u64)>,
}

impl Ram {
    /// `len` bytes of memory that nobody has touched.
    ///
    /// # Errors
    /// If the host has no such memory.
    pub fn new(backing: Backing, len: usize) -> Result<Self> {
        let start = GuestAddress(0);
        let memory = match backing {
            Backing::Anon => GuestMemoryMmap::from_ranges(&[(start, len)])?,
            Backing::Memfd => {
                let file = rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC)?;
                rustix::fs::ftruncate(&file, len as u64)?;
                let offset = FileOffset::new(File::from(file), 0);
                GuestMemoryMmap::from_ranges_with_files([(start, len, Some(offset))])?
            }
        };
        Self::mapped(memory)
    }

    /// Memory that is mapped already, as a vhost-user front end shares it.
    ///
    /// # Errors
    /// If it cannot be advised on.
    pub fn mapped(memory: GuestMemoryMmap) -> Result<Self> {
        let last = memory.last_addr().raw_value();
        let ram = Self {
            memory,
            len: usize::try_from(last)?.saturating_add(1),
        };
        for piece in ram.regions() {
            let advice = match piece.file {
                None => Advice::LinuxHugepage,
                // Else the host notes of each page that it was used, when it goes.
                Some(_) => Advice::Random,
            };
            ram.advise(piece, advice)?;
        }
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
        let mut regions = self.regions();
        regions.try_for_each(|piece| self.advise(piece, Advice::LinuxPopulateWrite))
    }

    /// Where the host has a range; `None` if it is not the guest's.
    #[must_use]
    pub fn translate(&self, range: FrameRange) -> Option<HostPiece<'_>> {
        let len = usize::try_from(range.count().bytes().get()).ok()?;
        self.piece(range.start().address(), len)
    }

    fn piece(&self, address: u64, len: usize) -> Option<HostPiece<'_>> {
        let (region, offset) = self.memory.to_region_addr(GuestAddress(address))?;
        let left = region.len().checked_sub(offset.raw_value())?;
        if len as u64 > left {
            return None;
        }
        piece(region, offset, len)
    }

    /// Gives the memory behind a piece back to the host; it reads as zeros then.
    ///
    /// # Errors
    /// What the host says.
    pub fn discard(&self, piece: HostPiece<'_>) -> Result<()> {
        let Some((file, offset)) = piece.file else {
            return self.advise(piece, Advice::LinuxDontNeed);
        };
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let len = piece.len.get() as u64;
        Ok(rustix::fs::fallocate(file, flags, offset, len)?)
    }

    /// The driver's view of some of the memory.
    ///
    /// # Errors
    /// If the guest has no such memory, or it is not aligned to 16 bytes.
    pub fn dma(self: &Arc<Self>, address: u64, len: usize) -> Result<RamDma> {
        let piece = self.piece(address, len).context("DMA outside of memory")?;
        ensure!(
            piece.at.addr().get().is_multiple_of(16) && address.is_multiple_of(16),
            "misaligned DMA"
        );
        // SAFETY: mapped as long as the memory is, which `RamDma` holds on to;
        // aligned as was just seen; whoever else has access (the device, who looks
        // into guest memory) does so by atomic or volatile operations.
        let region = unsafe { DmaRegion::new(piece.at, address, len) };
        Ok(RamDma {
            region,
            _ram: Arc::clone(self),
        })
    }

    fn regions(&self) -> impl Iterator<Item = HostPiece<'_>> {
        let whole = |region| piece(region, MemoryRegionAddress(0), region_len(region));
        self.memory.iter().filter_map(whole)
    }

    fn advise(&self, piece: HostPiece<'_>, advice: Advice) -> Result<()> {
        // SAFETY: `translate` found the piece within our mapping, which holds
        // nothing but guest memory: no Rust object can lose its value.
        unsafe { rustix::mm::madvise(piece.at.as_ptr().cast(), piece.len.get(), advice) }?;
        Ok(())
    }
}

/// A piece of guest memory for a driver's rings; all of it stays mapped meanwhile.
#[derive(Debug)]
pub struct RamDma {
    region: DmaRegion,
    _ram: Arc<Ram>,
}

impl Dma for RamDma {
    fn address(&self) -> u64 {
        self.region.address()
    }

    fn len(&self) -> usize {
        self.region.len()
    }

    fn load16(&self, offset: usize) -> u16 {
        self.region.load16(offset)
    }

    fn store16(&self, offset: usize, value: u16) {
        self.region.store16(offset, value);
    }
}

fn region_len(region: &GuestRegionMmap) -> usize {
    usize::try_from(region.len()).unwrap_or(usize::MAX)
}

/// A piece within one region.
fn piece(
    region: &GuestRegionMmap,
    offset: MemoryRegionAddress,
    len: usize,
) -> Option<HostPiece<'_>> {
    let place = |file| FileOffset::start(file) + offset.raw_value();
    let file = region.file_offset();
    Some(HostPiece {
        at: NonNull::new(region.get_host_address(offset).ok()?)?,
        len: NonZeroUsize::new(len)?,
        file: file.map(|file| (file.file(), place(file))),
    })
}
