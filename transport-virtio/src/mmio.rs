//! Mapped device registers.

use core::ptr::NonNull;

use crate::dma::words;

/// A mapped piece of a device's register space.
///
/// Accesses are volatile, of the width asked for, little endian on the wire.
/// Those that leave the window read as all ones, as from a device that is gone,
/// and write nothing.
#[derive(Debug)]
pub struct MmioWindow {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: registers may be accessed from any CPU.
unsafe impl Send for MmioWindow {}
// SAFETY: each access is one volatile load or store of device registers, which
// have no Rust-visible state to race on.
unsafe impl Sync for MmioWindow {}

impl MmioWindow {
    /// The `len` bytes of registers mapped at `base`.
    ///
    /// # Safety
    /// `base` is mapped, uncached, to registers of the device that are valid
    /// for volatile reads and writes of `len` bytes as long as this value is
    /// in use; it is aligned to 4.
    #[must_use]
    pub const unsafe fn new(base: NonNull<u8>, len: usize) -> Self {
        Self { base, len }
    }

    /// Bytes in all.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    fn at<T>(&self, offset: usize) -> Option<*mut T> {
        let end = offset.checked_add(size_of::<T>())?;
        if end > self.len || !offset.is_multiple_of(align_of::<T>()) {
            return None;
        }
        // SAFETY: offset < len, within the mapping that `new` was promised.
        Some(unsafe { self.base.add(offset) }.as_ptr().cast())
    }

    pub(crate) fn read8(&self, offset: usize) -> u8 {
        self.at::<u8>(offset).map_or(u8::MAX, |register| {
            // SAFETY: mapped and aligned by `at` and `new`.
            unsafe { register.read_volatile() }
        })
    }

    pub(crate) fn read16(&self, offset: usize) -> u16 {
        self.at::<u16>(offset).map_or(u16::MAX, |register| {
            // SAFETY: mapped and aligned by `at` and `new`.
            u16::from_le(unsafe { register.read_volatile() })
        })
    }

    pub(crate) fn read32(&self, offset: usize) -> u32 {
        self.at::<u32>(offset).map_or(u32::MAX, |register| {
            // SAFETY: mapped and aligned by `at` and `new`.
            u32::from_le(unsafe { register.read_volatile() })
        })
    }

    pub(crate) fn write8(&self, offset: usize, value: u8) {
        if let Some(register) = self.at::<u8>(offset) {
            // SAFETY: mapped and aligned by `at` and `new`.
            unsafe { register.write_volatile(value) };
        }
    }

    pub(crate) fn write16(&self, offset: usize, value: u16) {
        if let Some(register) = self.at::<u16>(offset) {
            // SAFETY: mapped and aligned by `at` and `new`.
            unsafe { register.write_volatile(value.to_le()) };
        }
    }

    pub(crate) fn write32(&self, offset: usize, value: u32) {
        if let Some(register) = self.at::<u32>(offset) {
            // SAFETY: mapped and aligned by `at` and `new`.
            unsafe { register.write_volatile(value.to_le()) };
        }
    }

    /// Writes the low and then the high half of a 64-bit register.
    pub(crate) fn write64(&self, offset: usize, value: u64) {
        for (place, half) in [offset, offset.saturating_add(4)]
            .into_iter()
            .zip(words(value))
        {
            self.write32(place, half);
        }
    }

    /// Reads 64 bits through a register that shows the half a selector names.
    pub(crate) fn read_selected(&self, selector: usize, register: usize) -> u64 {
        (0..2).fold(0, |value, half| {
            self.write32(selector, half);
            value | u64::from(self.read32(register)) << (32 * half)
        })
    }

    /// Writes 64 bits through such a register.
    pub(crate) fn write_selected(&self, selector: usize, register: usize, value: u64) {
        for (half, word) in (0..).zip(words(value)) {
            self.write32(selector, half);
            self.write32(register, word);
        }
    }
}
