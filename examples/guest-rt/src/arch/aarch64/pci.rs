//! PCI configuration space in memory (ECAM), and the part of firmware: there is
//! none that places BARs on this machine.

use spin::Once;

use super::tree::Pcie;
use crate::mmio::{MapError, Mmio};
use crate::pci::{ConfigSpace, Hierarchy, Slot};

static ECAM: Once<Mmio> = Once::new();

/// Configuration space of all buses; all ones on a machine without PCI.
#[derive(Clone, Copy, Debug)]
pub struct Ecam(Option<Mmio>);

impl ConfigSpace for Ecam {
    fn read(&mut self, slot: Slot, offset: u8) -> u32 {
        let word = self.0.map(|ecam| ecam.read(place(slot, offset)));
        // The machine may have room for fewer buses than have numbers.
        word.and_then(Result::ok).unwrap_or(u32::MAX)
    }

    fn write(&mut self, slot: Slot, offset: u8, value: u32) {
        if let Some(ecam) = self.0 {
            let _ = ecam.write(place(slot, offset), value);
        }
    }
}

fn place(slot: Slot, offset: u8) -> usize {
    usize::from(slot.bus()) << 20
        | usize::from(slot.device()) << 15
        | usize::from(slot.function()) << 12
        | usize::from(offset & !3)
}

/// Finds the buses and does what firmware would have done.
pub(super) fn start(host: &Pcie) -> Result<(), MapError> {
    let ecam = Mmio::map(host.configuration)?;
    ECAM.call_once(|| ecam);
    pci_hierarchy().place(host.window, |slot, pin| host.line(slot, pin));
    Ok(())
}

/// The machine's PCI buses.
#[must_use]
pub fn pci_hierarchy() -> Hierarchy<Ecam> {
    Hierarchy::new(Ecam(ECAM.get().copied()))
}
