//! Memory shared with the device.
//!
//! The ring code addresses it by offset through [`Dma`], in words, and never
//! holds a reference into it. [`DmaRegion`] is the ready implementation over a
//! raw address, and with [`MmioWindow`](crate::MmioWindow) the only place where
//! raw addresses enter the crate.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU16, Ordering};

/// Memory that both the CPU and the device see.
///
/// Safe to implement: wrong answers cost the balloon, not memory safety.
/// Offsets count bytes from the start; those handed in are naturally aligned
/// and within [`len`](Self::len), and an implementation must not fault on
/// others. Values are in the CPU's byte order, memory is little endian. Single
/// accesses are atomic and need no ordering: the caller sets fences.
pub trait Dma {
    /// The address the device has for the first byte, a multiple of 16.
    fn address(&self) -> u64;

    /// Bytes in all.
    fn len(&self) -> usize;

    /// Whether there is no memory at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the device's addresses of all memory are the guest-physical ones: there is
    /// no IOMMU between, or it passes them on as they are.
    ///
    /// Asked only if `ACCESS_PLATFORM` is negotiated. If not, nothing is given, reported
    /// or hinted by ranges, which name frames that nobody maps for the device.
    fn bus_is_physical(&self) -> bool {
        false
    }

    /// Reads the half-word at `offset`.
    fn load16(&self, offset: usize) -> u16;

    /// Writes the half-word at `offset`.
    fn store16(&self, offset: usize, value: u16);

    /// Reads the word at `offset`.
    fn load32(&self, offset: usize) -> u32 {
        u32::from(self.load16(offset)) | u32::from(self.load16(offset.saturating_add(2))) << 16
    }

    /// Writes the word at `offset`.
    fn store32(&self, offset: usize, value: u32) {
        let [low, high] = halves(value);
        self.store16(offset, low);
        self.store16(offset.saturating_add(2), high);
    }
}

/// The low and the high half of a word.
pub(crate) const fn halves(value: u32) -> [u16; 2] {
    let [a, b, c, d] = value.to_le_bytes();
    [u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])]
}

/// The low and the high word of an address or a set of features.
pub(crate) const fn words(value: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    [
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, g, h]),
    ]
}

impl<M: Dma + ?Sized> Dma for &M {
    fn address(&self) -> u64 {
        (**self).address()
    }

    fn len(&self) -> usize {
        (**self).len()
    }

    fn bus_is_physical(&self) -> bool {
        (**self).bus_is_physical()
    }

    fn load16(&self, offset: usize) -> u16 {
        (**self).load16(offset)
    }

    fn store16(&self, offset: usize, value: u16) {
        (**self).store16(offset, value);
    }

    fn load32(&self, offset: usize) -> u32 {
        (**self).load32(offset)
    }

    fn store32(&self, offset: usize, value: u32) {
        (**self).store32(offset, value);
    }
}

/// A physically contiguous piece of mapped, cache-coherent memory.
///
/// Accessed in half-words alone: atomics of two sizes on one place are undefined.
#[derive(Debug)]
pub struct DmaRegion {
    base: NonNull<u8>,
    address: u64,
    len: usize,
    physical: bool,
}

// SAFETY: the region is exclusive to its owner (see `new`), wherever that runs.
unsafe impl Send for DmaRegion {}

impl DmaRegion {
    /// `len` bytes at `base`, which the device reaches at `address`.
    ///
    /// The content does not matter: the driver clears it.
    ///
    /// # Safety
    /// * `base` is aligned to 16 and valid for reads and writes of `len` bytes
    ///   until the device is reset and this value is gone.
    /// * Nothing but the device behind this driver accesses the memory.
    /// * `address` is where the device finds it.
    #[must_use]
    pub const unsafe fn new(base: NonNull<u8>, address: u64, len: usize) -> Self {
        Self {
            base,
            address,
            len,
            physical: false,
        }
    }

    /// The same on a bus whose addresses are the guest-physical ones:
    /// [`Dma::bus_is_physical`].
    #[must_use]
    pub const fn with_physical_bus(mut self) -> Self {
        self.physical = true;
        self
    }

    /// Where the memory is mapped.
    #[must_use]
    pub const fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// A pointer to `size` bytes at an aligned `offset`, if they exist.
    fn at<T>(&self, offset: usize) -> Option<NonNull<T>> {
        let end = offset.checked_add(size_of::<T>())?;
        if end > self.len || !offset.is_multiple_of(align_of::<T>()) {
            return None;
        }
        // SAFETY: offset < len, within the allocation that `new` was promised.
        Some(unsafe { self.base.add(offset) }.cast())
    }
}

impl Dma for DmaRegion {
    fn address(&self) -> u64 {
        self.address
    }

    fn len(&self) -> usize {
        self.len
    }

    fn bus_is_physical(&self) -> bool {
        self.physical
    }

    fn load16(&self, offset: usize) -> u16 {
        self.at(offset).map_or(0, |place| {
            // SAFETY: mapped and aligned by `at` and `new`; all accesses to the
            // memory are atomic.
            let word = unsafe { AtomicU16::from_ptr(place.as_ptr()) };
            u16::from_le(word.load(Ordering::Relaxed))
        })
    }

    fn store16(&self, offset: usize, value: u16) {
        if let Some(place) = self.at(offset) {
            // SAFETY: as in `load16`.
            let word = unsafe { AtomicU16::from_ptr(place.as_ptr()) };
            word.store(value.to_le(), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_endian_words_within_bounds() {
        #[repr(align(16))]
        struct Memory([u8; 16]);
        let mut memory = Memory([0; 16]);
        let base = NonNull::from(&mut memory.0).cast();
        // SAFETY: aligned, mapped, and untouched while the region lives.
        let region = unsafe { DmaRegion::new(base, 0x1000, 16) };
        region.store32(4, 0x0403_0201);
        region.store16(10, 0x0605);
        assert_eq!((region.load16(4), region.load32(8)), (0x0201, 0x0605_0000));
        // Out of bounds or misaligned: nothing happens.
        region.store32(16, 1);
        region.store32(usize::MAX, 1);
        region.store16(16, 1);
        region.store16(1, 1);
        assert_eq!((region.load32(16), region.load16(usize::MAX)), (0, 0));
        assert_eq!(memory.0, [0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 5, 6, 0, 0, 0, 0]);
    }
}
