//! A page shared with somebody who may write anything to it at any time.

use core::sync::atomic::{AtomicU32, Ordering};

/// The bytes of one shared page, reached without ever forming a reference.
///
/// The other side may change them between any two calls: what is read is
/// input, not state.
pub trait SharedPage {
    /// Reads the aligned word at `offset`; what is read later was written
    /// after it.
    fn load(&self, offset: usize) -> u32;

    /// Writes the aligned word at `offset`; what was written before is visible
    /// before it.
    fn store(&mut self, offset: usize, value: u32);

    /// Clears the bits of the aligned word at `offset` that are not in `keep`,
    /// at once, and returns what it was.
    fn fetch_and(&mut self, offset: usize, keep: u32) -> u32;

    /// Sets bits of the aligned word at `offset`, at once.
    fn set_bits(&mut self, offset: usize, bits: u32);

    /// Copies bytes out, as far as the page reaches.
    fn read(&self, offset: usize, out: &mut [u8]);

    /// Copies bytes in, as far as the page reaches.
    fn write(&mut self, offset: usize, bytes: &[u8]);
}

/// 4 KiB.
pub(crate) const PAGE: usize = 4096;

/// A mapped page of the machine.
#[derive(Debug)]
pub struct MappedPage(*mut u8);

// SAFETY: the address is not tied to a thread.
unsafe impl Send for MappedPage {}

impl MappedPage {
    /// The page at `address`.
    ///
    /// # Safety
    /// 4096 bytes there are mapped for reading and writing for as long as the
    /// value is used, aligned to 4096, and used on this side by nobody else, or
    /// through such values alone: words by any of them, bytes each by one.
    #[must_use]
    pub const unsafe fn new(address: *mut u8) -> Self {
        Self(address)
    }

    fn word(&self, offset: usize) -> Option<&AtomicU32> {
        if !offset.is_multiple_of(4) || offset >= PAGE {
            return None;
        }
        // SAFETY: inside the page, aligned, and shared memory is accessed by
        // atomics alone; the other side's accesses are whole words too.
        Some(unsafe { AtomicU32::from_ptr(self.0.wrapping_add(offset).cast()) })
    }
}

impl SharedPage for MappedPage {
    fn load(&self, offset: usize) -> u32 {
        self.word(offset)
            .map_or(0, |word| word.load(Ordering::Acquire))
    }

    fn store(&mut self, offset: usize, value: u32) {
        if let Some(word) = self.word(offset) {
            word.store(value, Ordering::Release);
        }
    }

    fn fetch_and(&mut self, offset: usize, keep: u32) -> u32 {
        self.word(offset)
            .map_or(0, |word| word.fetch_and(keep, Ordering::AcqRel))
    }

    fn set_bits(&mut self, offset: usize, bits: u32) {
        if let Some(word) = self.word(offset) {
            word.fetch_or(bits, Ordering::AcqRel);
        }
    }

    fn read(&self, offset: usize, out: &mut [u8]) {
        for (at, byte) in (offset..PAGE).zip(out) {
            // SAFETY: `at` is inside the page.
            *byte = unsafe { self.0.wrapping_add(at).read_volatile() };
        }
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        for (at, &byte) in (offset..PAGE).zip(bytes) {
            // SAFETY: `at` is inside the page.
            unsafe { self.0.wrapping_add(at).write_volatile(byte) };
        }
    }
}

impl<P: SharedPage + ?Sized> SharedPage for &mut P {
    fn load(&self, offset: usize) -> u32 {
        (**self).load(offset)
    }

    fn store(&mut self, offset: usize, value: u32) {
        (**self).store(offset, value);
    }

    fn fetch_and(&mut self, offset: usize, keep: u32) -> u32 {
        (**self).fetch_and(offset, keep)
    }

    fn set_bits(&mut self, offset: usize, bits: u32) {
        (**self).set_bits(offset, bits);
    }

    fn read(&self, offset: usize, out: &mut [u8]) {
        (**self).read(offset, out);
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        (**self).write(offset, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(align(4096))]
    struct Backing([u8; PAGE]);

    #[test]
    fn accesses_stay_inside() {
        let mut backing = Backing([0; PAGE]);
        // SAFETY: outlives the page, and nobody else touches it.
        let mut page = unsafe { MappedPage::new(backing.0.as_mut_ptr()) };
        page.store(8, 0x0403_0201);
        assert_eq!(page.load(8), 0x0403_0201);
        let mut bytes = [0; 4];
        page.read(8, &mut bytes);
        assert_eq!(bytes, [1, 2, 3, 4]);
        page.write(PAGE - 2, &[7; 4]);
        page.read(PAGE - 2, &mut bytes);
        assert_eq!(bytes, [7, 7, 3, 4]);
        for wild in [PAGE, 2, usize::MAX] {
            page.store(wild, 1);
            assert_eq!(page.load(wild), 0);
        }
    }
}
