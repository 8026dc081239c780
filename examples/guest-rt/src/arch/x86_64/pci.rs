//! PCI configuration space by ports (mechanism #1): the same on every machine
//! type, and nothing to map.

use super::port::Register;
use crate::pci::{ConfigSpace, Hierarchy, Slot};

// SAFETY: selects a register; no memory is touched.
const ADDRESS: Register<u32> = unsafe { Register::new(0xcf8) };
// SAFETY: configuration registers. A device whose bus mastering they turn on
// accesses only memory its driver names to it.
const DATA: Register<u32> = unsafe { Register::new(0xcfc) };

const ENABLE: u32 = 1 << 31;

/// Configuration space behind the two ports.
#[derive(Clone, Copy, Debug)]
pub struct Ports(());

impl ConfigSpace for Ports {
    fn read(&mut self, slot: Slot, offset: u8) -> u32 {
        critical_section::with(|_| {
            ADDRESS.write(address(slot, offset));
            DATA.read()
        })
    }

    fn write(&mut self, slot: Slot, offset: u8, value: u32) {
        critical_section::with(|_| {
            ADDRESS.write(address(slot, offset));
            DATA.write(value);
        });
    }
}

fn address(slot: Slot, offset: u8) -> u32 {
    ENABLE
        | u32::from(slot.bus()) << 16
        | u32::from(slot.device()) << 11
        | u32::from(slot.function()) << 8
        | u32::from(offset & !3)
}

/// The machine's PCI buses.
#[must_use]
pub fn pci_hierarchy() -> Hierarchy<Ports> {
    Hierarchy::new(Ports(()))
}
