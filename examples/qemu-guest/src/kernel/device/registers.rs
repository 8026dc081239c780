//! One driver for both kinds of registers.

use transport_virtio::{
    ConfigIo, Device, DeviceStatus, Features, Handshake, MappedMmio, MappedPci, QueueIndex,
    QueueRefused, RingAddresses,
};

/// The registers of the device, wherever it was found.
#[derive(Debug)]
pub(in crate::kernel) enum Registers {
    /// On a PCI bus.
    Pci(MappedPci),
    /// Without a bus.
    Mmio(MappedMmio),
}

macro_rules! on_either {
    ($registers:expr, $device:ident => $call:expr) => {
        match $registers {
            Registers::Pci($device) => $call,
            Registers::Mmio($device) => $call,
        }
    };
}

impl Registers {
    /// What the device hangs at.
    pub(super) const fn bus(&self) -> &'static str {
        match self {
            Self::Pci(_) => "pci",
            Self::Mmio(_) => "mmio",
        }
    }
}

impl ConfigIo for Registers {
    fn config_len(&self) -> usize {
        on_either!(self, device => device.config_len())
    }

    fn read_config(&mut self, offset: u16) -> u32 {
        on_either!(self, device => device.read_config(offset))
    }

    fn write_config(&mut self, offset: u16, value: u32) {
        on_either!(self, device => device.write_config(offset, value));
    }

    fn generation(&mut self) -> u32 {
        on_either!(self, device => device.generation())
    }

    fn status(&mut self) -> DeviceStatus {
        on_either!(self, device => device.status())
    }
}

impl Device for Registers {
    fn max_queue_size(&mut self, queue: QueueIndex) -> u16 {
        on_either!(self, device => device.max_queue_size(queue))
    }

    fn set_queue(
        &mut self,
        queue: QueueIndex,
        size: u16,
        at: RingAddresses,
    ) -> Result<(), QueueRefused> {
        on_either!(self, device => device.set_queue(queue, size, at))
    }

    fn notify(&mut self, queue: QueueIndex) {
        on_either!(self, device => device.notify(queue));
    }
}

impl Handshake for Registers {
    fn set_status(&mut self, status: DeviceStatus) {
        on_either!(self, device => device.set_status(status));
    }

    fn offered_features(&mut self) -> Features {
        on_either!(self, device => device.offered_features())
    }

    fn accept_features(&mut self, accepted: Features) {
        on_either!(self, device => device.accept_features(accepted));
    }
}
