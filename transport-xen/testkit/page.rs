//! A page that two sides of a test hold.

use alloc::rc::Rc;
use core::cell::RefCell;

use crate::page::{PAGE, SharedPage};

/// A shared page: each clone is another view of the same bytes.
#[derive(Clone, Debug)]
pub struct FakePage(Rc<RefCell<[u8; PAGE]>>);

impl FakePage {
    /// A zeroed page.
    #[must_use]
    pub fn new() -> Self {
        Self(Rc::new(RefCell::new([0; PAGE])))
    }

    /// Overwrites the whole page.
    pub fn fill(&mut self, byte: u8) {
        self.0.borrow_mut().fill(byte);
    }
}

impl Default for FakePage {
    fn default() -> Self {
        Self::new()
    }
}

impl SharedPage for FakePage {
    fn load(&self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn store(&mut self, offset: usize, value: u32) {
        self.write(offset, &value.to_le_bytes());
    }

    fn fetch_and(&mut self, offset: usize, keep: u32) -> u32 {
        let before = self.load(offset);
        self.store(offset, before & keep);
        before
    }

    fn set_bits(&mut self, offset: usize, bits: u32) {
        let before = self.load(offset);
        self.store(offset, before | bits);
    }

    fn read(&self, offset: usize, out: &mut [u8]) {
        let page = self.0.borrow();
        for (byte, place) in page.iter().skip(offset).zip(out) {
            *place = *byte;
        }
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let mut page = self.0.borrow_mut();
        for (place, byte) in page.iter_mut().skip(offset).zip(bytes) {
            *place = *byte;
        }
    }
}
