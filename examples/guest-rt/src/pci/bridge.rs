//! Bridges: the buses behind them, what they let through, and the power of the
//! slots that some of them are.

use super::{ConfigSpace, HEADER, Hierarchy, Slot};
use crate::memory::{PhysAddr, PhysRange};

const NUMBERS: u8 = 0x18;
const IO_WINDOW: u8 = 0x1c;
const MEMORY_WINDOW: u8 = 0x20;
const PREFETCHABLE_WINDOW: u8 = 0x24;
const PREFETCHABLE_UPPER: [u8; 2] = [0x28, 0x2c];

/// Bits of a header's type; the one above says that there are several functions.
const TYPE: u8 = 0x7f;
const TYPE_BRIDGE: u8 = 1;

/// A bridge's windows begin and end at multiples of this.
pub(super) const WINDOW: u64 = 1 << 20;
/// Base above limit: nothing passes.
const IO_CLOSED: u32 = 0x00f0;
const MEMORY_CLOSED: u32 = 0x0000_fff0;

/// The capability of PCI Express, and in it the registers of a slot.
const EXPRESS: u8 = 0x10;
const SLOT_CONTROL: u8 = 0x18;
const INDICATOR: u32 = 3 << 8;
const INDICATOR_ON: u32 = 1 << 8;
const INDICATOR_OFF: u32 = 3 << 8;
const POWER_OFF: u32 = 1 << 10;

/// Buses still to be looked at. Their numbers only grow, so that a walk ends
/// whatever bridges say.
#[derive(Debug)]
struct Buses {
    waiting: [u64; 4],
    next: u16,
}

impl Buses {
    const ROOT: Self = Self {
        waiting: [1, 0, 0, 0],
        next: 0,
    };

    /// A bus behind one that was looked at; one before it is passed over.
    fn add(&mut self, bus: u8) {
        if let Some(word) = self.waiting.get_mut(usize::from(bus / 64)) {
            *word |= 1 << (bus % 64);
        }
    }

    fn take(&mut self) -> Option<u8> {
        let waits = |bus: &u16| {
            let word = self.waiting.get(usize::from(bus / 64));
            word.is_some_and(|word| word >> (bus % 64) & 1 != 0)
        };
        let bus = (self.next..256).find(waits)?;
        self.next = bus + 1;
        u8::try_from(bus).ok()
    }
}

impl<C: ConfigSpace> Hierarchy<C> {
    /// Shows `visit` every function there is, in the order of bus numbers, until
    /// it has an answer.
    pub(super) fn walk<T>(
        &mut self,
        mut visit: impl FnMut(&mut Self, Slot) -> Option<T>,
    ) -> Option<T> {
        let mut buses = Buses::ROOT;
        while let Some(bus) = buses.take() {
            for slot in Slot::on(bus) {
                if !self.is_present(slot) {
                    continue;
                }
                if let Some(found) = visit(self, slot) {
                    return Some(found);
                }
                if let Some(behind) = self.bus_behind(slot) {
                    buses.add(behind);
                }
            }
        }
        None
    }

    /// Whether the function leads to another bus.
    pub(super) fn is_bridge(&mut self, slot: Slot) -> bool {
        let [_, _, header, _] = self.read(slot, HEADER).to_le_bytes();
        header & TYPE == TYPE_BRIDGE
    }

    /// The bus behind a bridge; `None` for other functions, and where nobody has
    /// numbered it.
    pub(super) fn bus_behind(&mut self, slot: Slot) -> Option<u8> {
        if !self.is_bridge(slot) {
            return None;
        }
        let [_, secondary, _, _] = self.read(slot, NUMBERS).to_le_bytes();
        Some(secondary).filter(|&secondary| secondary != 0)
    }

    /// The bridge that leads to the function; `None` for those of bus 0.
    pub fn bridge_to(&mut self, slot: Slot) -> Option<Slot> {
        self.walk(|this, bridge| (this.bus_behind(bridge) == Some(slot.bus)).then_some(bridge))
    }

    /// Numbers the bus behind a bridge, and those behind that up to `last`.
    pub(super) fn number(&mut self, bridge: Slot, secondary: u8, last: u8) {
        let [.., latency] = self.read(bridge, NUMBERS).to_le_bytes();
        let numbers = u32::from_le_bytes([bridge.bus, secondary, last, latency]);
        self.config.write(bridge, NUMBERS, numbers);
    }

    /// Lets memory of `window` through a bridge, and nothing else: no ports, and
    /// no window of its own for memory that may be prefetched, which may lie in
    /// the other one.
    pub(super) fn open(&mut self, bridge: Slot, window: PhysRange) {
        let bounds = [window.start().get(), window.end().get().saturating_sub(1)];
        let bounds = bounds.map(|at| u16::try_from(at >> 16));
        let memory = match bounds {
            [Ok(base), Ok(limit)] if !window.is_empty() => {
                u32::from(base & 0xfff0) | u32::from(limit & 0xfff0) << 16
            }
            _ => MEMORY_CLOSED,
        };
        self.config.write(bridge, MEMORY_WINDOW, memory);
        self.config
            .write(bridge, PREFETCHABLE_WINDOW, MEMORY_CLOSED);
        for upper in PREFETCHABLE_UPPER {
            self.config.write(bridge, upper, 0);
        }
        // The upper half is write-one-to-clear.
        self.config.write(bridge, IO_WINDOW, IO_CLOSED);
        self.enable(bridge);
    }

    /// The memory that a bridge lets through, without what may be prefetched.
    pub(super) fn window(&mut self, bridge: Slot) -> PhysRange {
        let word = self.read(bridge, MEMORY_WINDOW);
        let (base, limit) = (u64::from(word & 0xfff0), u64::from(word >> 16 & 0xfff0));
        let [start, end] = [base << 16, (limit << 16) + WINDOW].map(PhysAddr::new);
        PhysRange::new(start, end.max(start))
    }

    /// Gives the slot that a port of PCI Express is its power, or takes it, by
    /// which what is in it may be pulled out. A port that is no slot ignores it.
    pub fn set_slot_power(&mut self, port: Slot, on: bool) {
        let express = self.capabilities(port).find(|cap| cap.id == EXPRESS);
        let Some(register) = express.and_then(|cap| cap.offset.checked_add(SLOT_CONTROL)) else {
            return;
        };
        // The upper half is the slot's status, write-one-to-clear.
        let control = self.read(port, register) & 0xffff & !(INDICATOR | POWER_OFF);
        let power = if on {
            INDICATOR_ON
        } else {
            INDICATOR_OFF | POWER_OFF
        };
        self.config.write(port, register, control | power);
    }
}
