//! What an interrupt handler of a device with a line does.

use balloon_core::Signal;
use bitflags::bitflags;

use crate::mmio::MmioWindow;
use crate::virtio_mmio::{INTERRUPT_ACK, INTERRUPT_STATUS};

bitflags! {
    /// Why a device raised its interrupt line.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Interrupts: u8 {
        /// Requests were answered.
        const USED = 1;
        /// The configuration changed.
        const CONFIG = 2;
    }
}

/// The interrupt status register: what the handler of a line needs, no more.
///
/// Independent of the driver, so that a handler takes no lock.
#[derive(Debug)]
pub struct InterruptStatus {
    window: MmioWindow,
    interface: Interface,
}

#[derive(Clone, Copy, Debug)]
enum Interface {
    Pci,
    Mmio,
}

impl InterruptStatus {
    /// The register mapped from [`PciLayout::isr`](crate::pci::PciLayout::isr).
    #[must_use]
    pub const fn new(window: MmioWindow) -> Self {
        Self {
            window,
            interface: Interface::Pci,
        }
    }

    /// The registers of a [`MappedMmio`](crate::MappedMmio): a second window on
    /// the same device.
    #[must_use]
    pub const fn mmio(window: MmioWindow) -> Self {
        Self {
            window,
            interface: Interface::Mmio,
        }
    }

    /// Reads the register and lowers the line.
    ///
    /// Empty if another device on the line interrupted; also if bits are set that mean
    /// nothing, as all are where a device was pulled out.
    #[must_use]
    pub fn read_acknowledge(&self) -> Interrupts {
        let raised = match self.interface {
            // Reading is the acknowledgement.
            Interface::Pci => self.window.read8(0).into(),
            // Registers of this interface are accessed in whole words only.
            Interface::Mmio => self.window.read32(INTERRUPT_STATUS),
        };
        let raised = u8::try_from(raised).ok().and_then(Interrupts::from_bits);
        let raised = raised.unwrap_or(Interrupts::empty());
        if let Interface::Mmio = self.interface {
            self.window.write32(INTERRUPT_ACK, raised.bits().into());
        }
        raised
    }

    /// The whole interrupt handler: acknowledges, tells the engine.
    ///
    /// Returns whether the device had raised the line; then wake whoever steps
    /// the engine.
    pub fn handle(&self, signal: &Signal) -> bool {
        let raised = self.read_acknowledge();
        if raised.contains(Interrupts::CONFIG) {
            signal.config_changed();
        }
        if raised.contains(Interrupts::USED) {
            signal.used();
        }
        !raised.is_empty()
    }
}
