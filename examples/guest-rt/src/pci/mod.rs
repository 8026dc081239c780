//! PCI configuration space: devices of bus 0 and behind its bridges, their BARs
//! and capabilities.
//!
//! Firmware has numbered the buses, placed the BARs and routed the interrupt
//! lines; this module reads what it did and turns the device on. Where there is
//! no firmware, the architecture's boot code does its part first:
//! [`Hierarchy::place`]. What is plugged into a port later nobody has placed:
//! [`Hierarchy::place_plugged`].

mod bridge;
mod msix;
mod place;

use crate::memory::{PhysAddr, PhysRange};

pub use msix::{Message, Msix, MsixError};
pub use place::Pin;

/// Place of a device function: bus, device, function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot {
    bus: u8,
    device: u8,
    function: u8,
}

impl Slot {
    /// `None` unless `device` is below 32 and `function` below 8.
    #[must_use]
    pub const fn new(bus: u8, device: u8, function: u8) -> Option<Self> {
        if device < 32 && function < 8 {
            Some(Self {
                bus,
                device,
                function,
            })
        } else {
            None
        }
    }

    /// Every place of a bus.
    fn on(bus: u8) -> impl Iterator<Item = Self> {
        (0..32).flat_map(move |device| {
            (0..8).map(move |function| Self {
                bus,
                device,
                function,
            })
        })
    }

    /// Number of the bus, 0 for those that hang at no bridge.
    #[must_use]
    pub const fn bus(self) -> u8 {
        self.bus
    }

    /// Device number, 0 to 31.
    #[must_use]
    pub const fn device(self) -> u8 {
        self.device
    }

    /// Function number, 0 to 7.
    #[must_use]
    pub const fn function(self) -> u8 {
        self.function
    }
}

/// Access to the 256 bytes of configuration space that each function has, in
/// aligned words.
///
/// `offset` is a byte offset; its two low bits are ignored.
pub trait ConfigSpace {
    /// Reads the word at `offset`.
    fn read(&mut self, slot: Slot, offset: u8) -> u32;
    /// Writes the word at `offset`.
    fn write(&mut self, slot: Slot, offset: u8, value: u32);
}

/// Vendor and device number of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceId {
    /// Vendor number.
    pub vendor: u16,
    /// Device number.
    pub device: u16,
}

/// A BAR's number, 0 to 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct BarIndex(u8);

impl BarIndex {
    /// `None` for 6 and above, which the specification reserves.
    #[must_use]
    pub const fn new(index: u8) -> Option<Self> {
        if index < 6 { Some(Self(index)) } else { None }
    }
}

/// An entry of the capability list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Capability {
    /// What kind of capability (9: vendor specific, as virtio's).
    pub id: u8,
    /// Offset of its first byte in configuration space.
    pub offset: u8,
}

/// An input of the interrupt controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct InterruptLine(u8);

impl InterruptLine {
    /// `None` for 255, which says that there is none.
    #[must_use]
    pub const fn new(line: u8) -> Option<Self> {
        if line == u8::MAX {
            None
        } else {
            Some(Self(line))
        }
    }

    /// The bare number, 0 to 254.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }
}

const ID: u8 = 0x00;
const COMMAND: u8 = 0x04;
const HEADER: u8 = 0x0c;
const BAR0: u8 = 0x10;
const CAPABILITIES: u8 = 0x34;
const INTERRUPT: u8 = 0x3c;

const COMMAND_MEMORY: u32 = 1 << 1;
const COMMAND_MASTER: u32 = 1 << 2;
const COMMAND_NO_INTX: u32 = 1 << 10;
const STATUS_CAPABILITIES: u32 = 1 << 20;
const HEADER_MULTIFUNCTION: u32 = 1 << 23;

/// Bus 0 and the buses behind its bridges, as seen through some configuration
/// space.
#[derive(Clone, Copy, Debug)]
pub struct Hierarchy<C> {
    config: C,
}

impl<C: ConfigSpace> Hierarchy<C> {
    /// What hangs at the host bridge that `config` is the space of.
    #[must_use]
    pub const fn new(config: C) -> Self {
        Self { config }
    }

    /// The first function for which `wanted` holds, in the order of bus numbers.
    pub fn find(&mut self, mut wanted: impl FnMut(DeviceId) -> bool) -> Option<Slot> {
        self.walk(|this, slot| this.id(slot).is_some_and(&mut wanted).then_some(slot))
    }

    /// Whether a function is there: a device with a single one may answer for all
    /// eight.
    fn is_present(&mut self, slot: Slot) -> bool {
        let first = Slot {
            function: 0,
            ..slot
        };
        let answers = slot.function == 0
            || (self.id(first).is_some()
                && self.config.read(first, HEADER) & HEADER_MULTIFUNCTION != 0);
        answers && self.id(slot).is_some()
    }

    /// Who is in `slot`.
    pub fn id(&mut self, slot: Slot) -> Option<DeviceId> {
        let word = self.config.read(slot, ID);
        let [v0, v1, d0, d1] = word.to_le_bytes();
        let id = DeviceId {
            vendor: u16::from_le_bytes([v0, v1]),
            device: u16::from_le_bytes([d0, d1]),
        };
        (id.vendor != u16::MAX).then_some(id)
    }

    /// Reads the word at `offset`.
    pub fn read(&mut self, slot: Slot, offset: u8) -> u32 {
        self.config.read(slot, offset)
    }

    /// Lets the function decode its memory BARs, access memory and interrupt.
    pub fn enable(&mut self, slot: Slot) {
        let command = self.config.read(slot, COMMAND) & 0xffff;
        let command = (command | COMMAND_MEMORY | COMMAND_MASTER) & !COMMAND_NO_INTX;
        // The status half is write-one-to-clear: zeros leave it alone.
        self.config.write(slot, COMMAND, command);
    }

    /// Where INTx of the function ends, as firmware routed it.
    pub fn interrupt_line(&mut self, slot: Slot) -> Option<InterruptLine> {
        let [line, pin, ..] = self.config.read(slot, INTERRUPT).to_le_bytes();
        if pin == 0 {
            None
        } else {
            InterruptLine::new(line)
        }
    }

    /// The memory behind a BAR; `None` for port BARs and unused ones.
    ///
    /// Sizing switches decoding off for a moment: call it before the driver
    /// runs.
    pub fn memory_bar(&mut self, slot: Slot, index: BarIndex) -> Option<PhysRange> {
        let MemoryBar { base, bytes, .. } = self.size_bar(slot, index)?;
        Some(PhysRange::sized(PhysAddr::new(base), bytes))
            .filter(|range| base != 0 && range.bytes() == bytes)
    }

    /// What a BAR says of itself, placed or not.
    fn size_bar(&mut self, slot: Slot, index: BarIndex) -> Option<MemoryBar> {
        let offset = BAR0 + index.0 * 4;
        let low = self.config.read(slot, offset);
        if low & 1 != 0 {
            return None;
        }
        let wide = low & 0b110 == 0b100;
        let above = if wide {
            Some(BarIndex::new(index.0 + 1)?)
        } else {
            None
        };
        let high_offset = above.map(|above| BAR0 + above.0 * 4);

        let command = self.config.read(slot, COMMAND) & 0xffff;
        self.config.write(slot, COMMAND, command & !COMMAND_MEMORY);
        let (low, low_mask) = self.size_word(slot, offset);
        let (high, high_mask) =
            high_offset.map_or((0, u32::MAX), |offset| self.size_word(slot, offset));
        self.config.write(slot, COMMAND, command);

        let base = u64::from(high) << 32 | u64::from(low & !0xf);
        let mask = u64::from(high_mask) << 32 | u64::from(low_mask & !0xf);
        let bytes = (!mask).checked_add(1)?;
        (low_mask & !0xf != 0 || (wide && high_mask != 0)).then_some(MemoryBar {
            base,
            bytes,
            wide,
        })
    }

    /// A BAR word's content, and what it reads as with all address bits set.
    fn size_word(&mut self, slot: Slot, offset: u8) -> (u32, u32) {
        let content = self.config.read(slot, offset);
        self.config.write(slot, offset, u32::MAX);
        let mask = self.config.read(slot, offset);
        self.config.write(slot, offset, content);
        (content, mask)
    }

    /// The function's capabilities; a list that bites its tail ends.
    pub fn capabilities(&mut self, slot: Slot) -> Capabilities<'_, C> {
        let has = self.config.read(slot, COMMAND) & STATUS_CAPABILITIES != 0;
        let [first, ..] = self.config.read(slot, CAPABILITIES).to_le_bytes();
        Capabilities {
            hierarchy: self,
            slot,
            next: if has { first & !3 } else { 0 },
            // As many as fit behind the 64 bytes of the header.
            left: 48,
        }
    }
}

/// A memory BAR.
#[derive(Clone, Copy, Debug)]
struct MemoryBar {
    base: u64,
    bytes: u64,
    /// It takes two words.
    wide: bool,
}

/// Iterator of [`Hierarchy::capabilities`].
#[derive(Debug)]
pub struct Capabilities<'a, C> {
    hierarchy: &'a mut Hierarchy<C>,
    slot: Slot,
    next: u8,
    left: u8,
}

impl<C: ConfigSpace> Iterator for Capabilities<'_, C> {
    type Item = Capability;

    fn next(&mut self) -> Option<Capability> {
        if self.next < 0x40 {
            return None;
        }
        self.left = self.left.checked_sub(1)?;
        let offset = self.next;
        let [id, next, ..] = self.hierarchy.read(self.slot, offset).to_le_bytes();
        self.next = next & !3;
        Some(Capability { id, offset })
    }
}

#[cfg(test)]
mod tests;
