//! The device without a bus.

use guest_rt::BootInfo;
use guest_rt::interrupts::{Trigger, on_line};
use qemu_guest::Interrupts;
use transport_virtio::pci::InterruptStatus;
use transport_virtio::{MappedMmio, MmioError};

use super::registers::Registers;
use super::{DeviceError, Found, on_interrupt, watch, window};

/// Finds the device in one of the places the machine has, and connects its
/// interrupt.
pub(super) fn find(boot: &BootInfo, wanted: Interrupts) -> Result<Option<Found>, DeviceError> {
    if wanted == Interrupts::Messages {
        return Err(DeviceError::Interrupts(wanted));
    }
    let mut refused = None;
    for place in boot.virtio_mmio() {
        let Some(registers) = window(place.registers) else {
            continue;
        };
        let device = match MappedMmio::new(registers) {
            Ok(device) => device,
            // Empty, or somebody else's.
            Err(MmioError::NotVirtio | MmioError::NotABalloon(_)) => continue,
            Err(error) => {
                refused = Some(error);
                continue;
            }
        };
        let interrupts = if wanted == Interrupts::None {
            Interrupts::None
        } else {
            // A second window on the same registers: the handler takes no lock.
            let status = window(place.registers).map(InterruptStatus::mmio);
            let status = status.ok_or(DeviceError::Absent)?;
            watch(status);
            // The line is up as long as a cause is not acknowledged, whatever a
            // device tree says: by its edges one of two causes could be missed.
            on_line(place.line, Trigger::Level, on_interrupt)?;
            Interrupts::Line
        };
        return Ok(Some(Found {
            registers: Registers::Mmio(device),
            interrupts,
            port: None,
        }));
    }
    refused.map_or(Ok(None), |error| Err(error.into()))
}
