//! Memory of this process in the part of memory shared with a device.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU16, Ordering};

use embedded_hal::delay::DelayNs;

use crate::dma::Dma;

/// Memory of the process that plays shared memory; clones are the same memory.
#[derive(Clone, Debug)]
pub struct FakeMemory {
    blocks: Arc<[Block]>,
    len: usize,
    physical: bool,
}

/// What is initialised at a time: fuzzing makes new memory for every input.
type Block = [AtomicU16; BLOCK];
const BLOCK: usize = 128;

impl FakeMemory {
    /// Far from any address of the process, so that mix-ups show.
    const ADDRESS: u64 = 0x7_6543_0000;

    /// Memory full of ones: who needs zeros has to clear it.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        let blocks = (0..bytes.div_ceil(size_of::<Block>()))
            .map(|_| [const { AtomicU16::new(u16::MAX) }; BLOCK]);
        Self {
            blocks: blocks.collect(),
            len: bytes.next_multiple_of(2),
            physical: true,
        }
    }

    /// The same behind an IOMMU, which translates what the device has.
    #[must_use]
    pub const fn behind_iommu(mut self) -> Self {
        self.physical = false;
        self
    }

    fn half(&self, offset: usize) -> Option<&AtomicU16> {
        let within = (offset < self.len).then_some(offset / 2);
        self.blocks.as_flattened().get(within?)
    }
}

impl Dma for FakeMemory {
    fn address(&self) -> u64 {
        Self::ADDRESS
    }

    fn len(&self) -> usize {
        self.len
    }

    fn bus_is_physical(&self) -> bool {
        self.physical
    }

    fn load16(&self, offset: usize) -> u16 {
        self.half(offset)
            .map_or(0, |half| half.load(Ordering::Relaxed))
    }

    fn store16(&self, offset: usize, value: u16) {
        if let Some(half) = self.half(offset) {
            half.store(value, Ordering::Relaxed);
        }
    }
}

/// Waits not at all.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoDelay;

impl DelayNs for NoDelay {
    fn delay_ns(&mut self, _: u32) {}
}
