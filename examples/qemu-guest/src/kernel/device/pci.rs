//! The device on a PCI bus.

use core::sync::atomic::Ordering;

use guest_rt::interrupts::{Trigger, on_line, on_message};
use guest_rt::mmio::Mmio;
use guest_rt::pci::{BarIndex, Bus, MsixError, Slot};
use guest_rt::{PciConfig, PhysAddr, PhysRange, pci_bus};
use qemu_guest::Interrupts;
use transport_virtio::pci::Vectors;
use transport_virtio::pci::{BarRegion, InterruptStatus, PciError, PciId, PciLayout, Structure};
use transport_virtio::{MappedPci, MmioWindow};

use super::registers::Registers;
use super::{DeviceError, Found, INTERRUPT_STATUS, INTERRUPTS, SHARED, on_interrupt, window};

/// Finds the device, turns it on, and connects its interrupts.
pub(super) fn find(wanted: Interrupts) -> Result<Option<Found>, DeviceError> {
    let mut bus = pci_bus();
    let is_balloon = |vendor, device| PciId { vendor, device }.is_balloon();
    let Some(slot) = bus.find(|id| is_balloon(id.vendor, id.device)) else {
        return Ok(None);
    };
    let layout = PciLayout::read(|offset| bus.read(slot, offset))?;
    let device = layout.connect(|region| map(&mut bus, slot, region))?;
    let (device, interrupts) = connect(&mut bus, slot, &layout, device, wanted)?;
    Ok(Some(Found {
        registers: Registers::Pci(device),
        interrupts,
    }))
}

/// Connects interrupts as they are wanted; by the best there is if any will do.
fn connect(
    bus: &mut Bus<PciConfig>,
    slot: Slot,
    layout: &PciLayout,
    device: MappedPci,
    wanted: Interrupts,
) -> Result<(MappedPci, Interrupts), DeviceError> {
    if matches!(wanted, Interrupts::Any | Interrupts::Messages) {
        match connect_messages(bus, slot) {
            Ok(vectors) => return Ok((device.with_vectors(vectors), Interrupts::Messages)),
            Err(error) if wanted == Interrupts::Messages => return Err(error),
            Err(_) => {}
        }
    }
    bus.enable(slot);
    match bus.interrupt_line(slot) {
        Some(line) if wanted != Interrupts::None => {
            let status = map(bus, slot, layout.isr).ok_or(PciError::Unmapped(Structure::Isr))?;
            INTERRUPT_STATUS.call_once(|| InterruptStatus::new(status));
            on_line(line, Trigger::Level, on_interrupt)?;
            Ok((device, Interrupts::Line))
        }
        None if wanted == Interrupts::Line => Err(DeviceError::Interrupts(wanted)),
        _ => Ok((device, Interrupts::None)),
    }
}

/// Two messages: the target changed, requests were answered.
fn connect_messages(bus: &mut Bus<PciConfig>, slot: Slot) -> Result<Vectors, DeviceError> {
    let msix = bus.msix(slot, 2)?;
    let table = Mmio::map(msix.table).map_err(|_| MsixError::Nowhere)?;
    let handlers: [fn(); 2] = [
        || {
            INTERRUPTS.fetch_add(1, Ordering::Relaxed);
            SHARED.signal().config_changed();
        },
        || {
            INTERRUPTS.fetch_add(1, Ordering::Relaxed);
            SHARED.signal().used();
        },
    ];
    bus.enable(slot);
    let mut offset = 0;
    for handler in handlers {
        let message = on_message(handler).ok_or(DeviceError::Interrupts(Interrupts::Messages))?;
        for word in message.entry() {
            table.write(offset, word).map_err(|_| MsixError::Nowhere)?;
            offset += size_of::<u32>();
        }
    }
    bus.enable_msix(slot, msix);
    Ok(Vectors {
        config: 0,
        queues: 1,
    })
}

/// Maps a structure of the device, wherever firmware put its BAR.
fn map(bus: &mut Bus<PciConfig>, slot: Slot, region: BarRegion) -> Option<MmioWindow> {
    let bar = bus.memory_bar(slot, BarIndex::new(region.bar)?)?;
    let start = bar.start().get().checked_add(region.offset.into())?;
    let range = PhysRange::sized(PhysAddr::new(start), region.len.into());
    if range.end() > bar.end() {
        return None;
    }
    window(range)
}
