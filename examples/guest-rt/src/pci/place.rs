//! What firmware would have done: numbers for buses, addresses for BARs, numbers
//! for lines.

use super::bridge::WINDOW;
use super::{BAR0, BarIndex, ConfigSpace, Hierarchy, INTERRUPT, InterruptLine, Slot};
use crate::memory::{PhysAddr, PhysRange};

/// BARs share pages with nobody: they are mapped by pages.
const PAGE: u64 = 4096;

/// What a bridge lets through at least: room for a device that is plugged in
/// later.
const LEAST_WINDOW: u64 = 2 * WINDOW;

/// Bridges in a row that are followed.
const DEPTH: u8 = 8;

/// The pin by which a function interrupts, INTA to INTD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Pin(u8);

impl Pin {
    /// `None` beyond 1 to 4.
    #[must_use]
    pub const fn new(pin: u8) -> Option<Self> {
        if pin >= 1 && pin <= 4 {
            Some(Self(pin))
        } else {
            None
        }
    }

    /// The bare number, 1 to 4.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }

    /// The pin of the bridge in front of `slot` that this one of `slot` ends at.
    const fn at_bridge(self, slot: Slot) -> Self {
        Self((self.0 - 1 + slot.device) % 4 + 1)
    }
}

/// Where a pin of a function ends.
type Route<'a> = &'a dyn Fn(Slot, Pin) -> Option<InterruptLine>;

/// What is left to give away.
#[derive(Debug)]
struct Room {
    next: PhysAddr,
    end: PhysAddr,
    last_bus: u8,
}

impl<C: ConfigSpace> Hierarchy<C> {
    /// Numbers all buses, gives every memory BAR that has no address one within
    /// `window`, opens bridges for what is behind them, and notes in each function
    /// the line that its pin leads to.
    ///
    /// `route` says it of the functions of bus 0. BARs that do not fit stay
    /// without address, as with any firmware.
    pub fn place(&mut self, window: PhysRange, route: impl Fn(Slot, Pin) -> Option<InterruptLine>) {
        let mut room = Room {
            next: window.start(),
            end: window.end(),
            last_bus: 0,
        };
        self.place_bus(0, &mut room, &route, 0);
    }

    /// Does the same for what was plugged into the port `bridge` since, within
    /// what the port lets through. Bridges among it stay closed.
    pub fn place_plugged(&mut self, bridge: Slot) {
        let Some(bus) = self.bus_behind(bridge) else {
            return;
        };
        let window = self.window(bridge);
        let mut room = Room {
            next: window.start(),
            end: window.end(),
            last_bus: bus,
        };
        // Beyond what is in use.
        for slot in Slot::on(bus) {
            for index in (0..6).filter_map(BarIndex::new) {
                if let Some(bar) = self
                    .placed_bar(slot, index)
                    .filter(|bar| bar.end() <= room.end)
                {
                    room.next = room.next.max(bar.end());
                }
            }
        }
        let [line, pin, ..] = self.read(bridge, INTERRUPT).to_le_bytes();
        let route = |slot, found: Pin| {
            let own = Pin::new(pin) == Some(found.at_bridge(slot));
            own.then(|| InterruptLine::new(line)).flatten()
        };
        self.place_bus(bus, &mut room, &route, DEPTH);
    }

    fn placed_bar(&mut self, slot: Slot, index: BarIndex) -> Option<PhysRange> {
        if self.is_present(slot) && index.0 < self.bars(slot) {
            self.memory_bar(slot, index)
        } else {
            None
        }
    }

    /// BARs that the function's header has.
    fn bars(&mut self, slot: Slot) -> u8 {
        if self.is_bridge(slot) { 2 } else { 6 }
    }

    fn place_bus(&mut self, bus: u8, room: &mut Room, route: Route<'_>, depth: u8) {
        for slot in Slot::on(bus) {
            if !self.is_present(slot) {
                continue;
            }
            self.place_bars(slot, room);
            let interrupt = self.read(slot, INTERRUPT);
            let [_, pin, ..] = interrupt.to_le_bytes();
            let line = Pin::new(pin).and_then(|pin| route(slot, pin));
            let line = line.map_or(u8::MAX, InterruptLine::get);
            let noted = interrupt & !0xff | u32::from(line);
            self.config.write(slot, INTERRUPT, noted);
            if depth < DEPTH && self.is_bridge(slot) {
                self.place_behind(slot, room, route, depth + 1);
            }
        }
    }

    /// What is behind a bridge, in a window of its own.
    fn place_behind(&mut self, bridge: Slot, room: &mut Room, route: Route<'_>, depth: u8) {
        let Some(bus) = room.last_bus.checked_add(1) else {
            return;
        };
        let Some(start) = room.next.align_up(WINDOW).filter(|start| *start < room.end) else {
            return;
        };
        room.last_bus = bus;
        room.next = start;
        // Until it is known how many there are, all that are left.
        self.number(bridge, bus, u8::MAX);
        let behind = |slot: Slot, pin: Pin| route(bridge, pin.at_bridge(slot));
        self.place_bus(bus, room, &behind, depth);
        self.number(bridge, bus, room.last_bus);
        let used = room.next.max(PhysAddr::new(start.get() + LEAST_WINDOW));
        let end = used.align_up(WINDOW).unwrap_or(room.end).min(room.end);
        // Not to reach into what is not ours.
        let end = end.align_down(WINDOW);
        self.open(bridge, PhysRange::new(start, end.max(start)));
        room.next = end.max(room.next);
    }

    fn place_bars(&mut self, slot: Slot, room: &mut Room) {
        let bars = self.bars(slot);
        let mut index = 0;
        while let Some(bar) = BarIndex::new(index).filter(|bar| bar.0 < bars) {
            index += 1;
            let Some(found) = self.size_bar(slot, bar) else {
                continue;
            };
            index += u8::from(found.wide);
            let bytes = found.bytes.max(PAGE);
            let Some(at) = room.next.align_up(bytes).filter(|_| found.base == 0) else {
                continue;
            };
            let placed = PhysRange::sized(at, bytes);
            // A narrow BAR holds no more.
            let reach = if found.wide {
                room.end
            } else {
                room.end.min(PhysAddr::new(1 << 32))
            };
            if placed.end() > reach {
                continue;
            }
            room.next = placed.end();
            let [low, high] = [at.get(), at.get() >> 32].map(|word| {
                let [a, b, c, d, ..] = word.to_le_bytes();
                u32::from_le_bytes([a, b, c, d])
            });
            self.config.write(slot, BAR0 + bar.0 * 4, low);
            if found.wide {
                self.config.write(slot, BAR0 + bar.0 * 4 + 4, high);
            }
        }
    }
}
