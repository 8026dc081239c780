//! Device registers in memory.

use core::ptr;

use thiserror::Error;

use crate::arch;
use crate::memory::PhysRange;

/// Why a device's registers could not be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum MapError {
    /// Part of the range is memory.
    #[error("the range is memory, not device registers")]
    IsRam,
    /// The range lies beyond what can be mapped one to one.
    #[error("the range lies beyond the lower half of the address space")]
    NotAddressable,
    /// The range is mapped as something else.
    #[error("the range overlaps another mapping")]
    Overlaps,
    /// The frames set aside for page tables are used up.
    #[error("no frames left for page tables")]
    NoTables,
}

/// An access outside the mapped registers, or not aligned to its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("no register at offset {offset:#x}")]
pub struct OutOfRange {
    /// Where the access was to start.
    pub offset: usize,
}

/// Unsigned integers a register can hold.
///
/// # Safety
/// Every bit pattern is a value of the type.
pub unsafe trait RegisterWord: Copy {}

// SAFETY: an integer; so for the three below.
unsafe impl RegisterWord for u8 {}
// SAFETY: as above.
unsafe impl RegisterWord for u16 {}
// SAFETY: as above.
unsafe impl RegisterWord for u32 {}
// SAFETY: as above.
unsafe impl RegisterWord for u64 {}

/// Maps pages that a hypervisor shares with us, cached, at their address, and
/// returns that.
///
/// # Errors
/// When the range is RAM of ours, or there is no room for the tables.
pub fn map_shared(range: PhysRange) -> Result<*mut u8, MapError> {
    arch::map_shared(range)?;
    Ok(range.start().as_mut_ptr())
}

/// A device's registers, mapped uncached.
///
/// Accesses are volatile. What a device does upon them is the driver's business:
/// one that is told to write into memory must be given memory to write to.
#[derive(Clone, Copy, Debug)]
pub struct Mmio {
    base: usize,
    bytes: usize,
}

impl Mmio {
    /// Maps the registers at `range`, wherever firmware put them.
    ///
    /// # Errors
    /// When the range cannot hold registers, or there is no room for the tables.
    pub fn map(range: PhysRange) -> Result<Self, MapError> {
        arch::map_device(range)?;
        let base = usize::try_from(range.start().get()).map_err(|_| MapError::NotAddressable)?;
        let bytes = usize::try_from(range.bytes()).map_err(|_| MapError::NotAddressable)?;
        Ok(Self { base, bytes })
    }

    /// Size of the region in bytes.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where the region is mapped, for drivers with accessors of their own.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        ptr::with_exposed_provenance_mut(self.base)
    }

    fn address<T: RegisterWord>(&self, offset: usize) -> Result<usize, OutOfRange> {
        let end = offset
            .checked_add(size_of::<T>())
            .ok_or(OutOfRange { offset })?;
        let address = self.base + offset;
        if end > self.bytes || !address.is_multiple_of(align_of::<T>()) {
            return Err(OutOfRange { offset });
        }
        Ok(address)
    }

    /// Reads the register at `offset`.
    ///
    /// # Errors
    /// When there is none.
    pub fn read<T: RegisterWord>(&self, offset: usize) -> Result<T, OutOfRange> {
        let register: *const T = ptr::with_exposed_provenance(self.address::<T>(offset)?);
        // SAFETY: within registers that `map` mapped for good, and aligned.
        Ok(unsafe { register.read_volatile() })
    }

    /// Writes the register at `offset`.
    ///
    /// # Errors
    /// When there is none.
    pub fn write<T: RegisterWord>(&self, offset: usize, value: T) -> Result<(), OutOfRange> {
        let register: *mut T = ptr::with_exposed_provenance_mut(self.address::<T>(offset)?);
        // SAFETY: as above; no Rust object lives in device registers.
        unsafe { register.write_volatile(value) };
        Ok(())
    }
}
