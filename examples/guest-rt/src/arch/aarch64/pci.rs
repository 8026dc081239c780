//! PCI configuration space in memory (ECAM), and the part of firmware: there is
//! none that places BARs on this machine.

use spin::Once;

use super::tree::Pcie;
use crate::memory::PhysRange;
use crate::mmio::{MapError, Mmio};
use crate::pci::{Bus, ConfigSpace, Slot};

/// Bus 0: 256 functions of 4 KiB.
const BUS_BYTES: u64 = 1 << 20;

static ECAM: Once<Mmio> = Once::new();

/// Configuration space of bus 0; all ones on a machine without PCI.
#[derive(Clone, Copy, Debug)]
pub struct Ecam(Option<Mmio>);

impl ConfigSpace for Ecam {
    fn read(&mut self, slot: Slot, offset: u8) -> u32 {
        let word = self.0.map(|ecam| ecam.read(place(slot, offset)));
        // Every place of a bus is in the window.
        word.and_then(Result::ok).unwrap_or(u32::MAX)
    }

    fn write(&mut self, slot: Slot, offset: u8, value: u32) {
        if let Some(ecam) = self.0 {
            let _ = ecam.write(place(slot, offset), value);
        }
    }
}

fn place(slot: Slot, offset: u8) -> usize {
    usize::from(slot.device()) << 15 | usize::from(slot.function()) << 12 | usize::from(offset & !3)
}

/// Finds the bus and does what firmware would have done.
pub(super) fn start(host: &Pcie) -> Result<(), MapError> {
    let range = PhysRange::sized(host.configuration, BUS_BYTES);
    let ecam = Mmio::map(range)?;
    ECAM.call_once(|| ecam);
    pci_bus().place(host.window, |slot, pin| host.line(slot, pin));
    Ok(())
}

/// The machine's first PCI bus.
#[must_use]
pub fn pci_bus() -> Bus<Ecam> {
    Bus::new(Ecam(ECAM.get().copied()))
}
