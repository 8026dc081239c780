//! What firmware would have done: addresses for BARs, numbers for lines.

use super::{BAR0, BarIndex, Bus, ConfigSpace, INTERRUPT, InterruptLine, Slot};
use crate::memory::{PhysAddr, PhysRange};

/// BARs share pages with nobody: they are mapped by pages.
const PAGE: u64 = 4096;

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
}

impl<C: ConfigSpace> Bus<C> {
    /// Gives every memory BAR of bus 0 that has no address one within `window`,
    /// and notes in each function the line that `route` says its pin leads to.
    ///
    /// BARs that do not fit stay without address, as with any firmware.
    pub fn place(&mut self, window: PhysRange, route: impl Fn(Slot, Pin) -> Option<InterruptLine>) {
        let mut next = window.start();
        for slot in Slot::all() {
            if !self.is_decoded(slot) || self.id(slot).is_none() {
                continue;
            }
            self.place_bars(slot, &mut next, window.end());
            let interrupt = self.read(slot, INTERRUPT);
            let [_, pin, ..] = interrupt.to_le_bytes();
            let line = if pin == 0 {
                None
            } else {
                route(slot, Pin(pin))
            };
            let line = line.map_or(u8::MAX, InterruptLine::get);
            let noted = interrupt & !0xff | u32::from(line);
            self.config.write(slot, INTERRUPT, noted);
        }
    }

    fn place_bars(&mut self, slot: Slot, next: &mut PhysAddr, end: PhysAddr) {
        let mut index = 0;
        while let Some(bar) = BarIndex::new(index) {
            index += 1;
            let Some(found) = self.size_bar(slot, bar) else {
                continue;
            };
            index += u8::from(found.wide);
            let bytes = found.bytes.max(PAGE);
            let Some(at) = next.align_up(bytes).filter(|_| found.base == 0) else {
                continue;
            };
            let placed = PhysRange::sized(at, bytes);
            // A narrow BAR holds no more.
            let reach = if found.wide {
                end
            } else {
                end.min(PhysAddr::new(1 << 32))
            };
            if placed.end() > reach {
                continue;
            }
            *next = placed.end();
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
