//! MSI-X: interrupts as messages, a table of them in a BAR.

use thiserror::Error;

use super::{BarIndex, ConfigSpace, Hierarchy, Slot};
use crate::memory::{PhysAddr, PhysRange};

const CAPABILITY: u8 = 0x11;
const ENABLE: u32 = 1 << 31;
const MASK_ALL: u32 = 1 << 30;
const ENTRY_BYTES: u64 = 16;

/// What a device writes, and where, instead of raising a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Where it writes.
    pub address: PhysAddr,
    /// What.
    pub data: u32,
}

impl Message {
    /// The entry of the table that makes a device send this: unmasked.
    #[must_use]
    pub const fn entry(self) -> [u32; 4] {
        let [a, b, c, d, e, f, g, h] = self.address.get().to_le_bytes();
        [
            u32::from_le_bytes([a, b, c, d]),
            u32::from_le_bytes([e, f, g, h]),
            self.data,
            0,
        ]
    }
}

/// A function cannot use messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum MsixError {
    /// It has no table, or one shorter than what is wanted.
    #[error("the device has no room for {0} messages")]
    TooFew(u16),
    /// The table is not in any memory of the function.
    #[error("the table of messages is nowhere")]
    Nowhere,
}

/// A function's table of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msix {
    capability: u8,
    /// Where the entries lie, 16 bytes each.
    pub table: PhysRange,
}

impl<C: ConfigSpace> Hierarchy<C> {
    /// Finds the function's table, which has at least `entries`.
    ///
    /// # Errors
    /// When it has none, or a shorter one.
    pub fn msix(&mut self, slot: Slot, entries: u16) -> Result<Msix, MsixError> {
        let found = self.capabilities(slot).find(|cap| cap.id == CAPABILITY);
        let capability = found.ok_or(MsixError::TooFew(entries))?.offset;
        let [_, _, low, high] = self.read(slot, capability).to_le_bytes();
        let last = u16::from_le_bytes([low, high]) & 0x7ff;
        if entries > last + 1 {
            return Err(MsixError::TooFew(entries));
        }
        let place = self.read(slot, capability.saturating_add(4));
        let [index, ..] = (place & 7).to_le_bytes();
        let bar = BarIndex::new(index).and_then(|index| self.memory_bar(slot, index));
        let bar = bar.ok_or(MsixError::Nowhere)?;
        let start = PhysAddr::new(bar.start().get() + u64::from(place & !7));
        let table = PhysRange::sized(start, (u64::from(last) + 1) * ENTRY_BYTES);
        if table.end() > bar.end() {
            return Err(MsixError::Nowhere);
        }
        Ok(Msix { capability, table })
    }

    /// Lets the function send the messages of its table, which is filled; its
    /// line stays silent from then on.
    pub fn enable_msix(&mut self, slot: Slot, msix: Msix) {
        let control = self.read(slot, msix.capability);
        self.config
            .write(slot, msix.capability, control & !MASK_ALL | ENABLE);
    }
}
