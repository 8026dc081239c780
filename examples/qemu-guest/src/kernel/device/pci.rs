//! The device on a PCI pci.

use core::sync::atomic::Ordering;

use guest_rt::interrupts::{Trigger, on_line, on_message};
use guest_rt::mmio::Mmio;
use guest_rt::pci::{BarIndex, Hierarchy, InterruptLine, Message, MsixError, Slot};
use guest_rt::{PciConfig, PhysAddr, PhysRange, pci_hierarchy};
use qemu_guest::Interrupts;
use spin::Once;
use transport_virtio::pci::Vectors;
use transport_virtio::pci::{BarRegion, InterruptStatus, PciError, PciId, PciLayout, Structure};
use transport_virtio::{MappedPci, MmioWindow};

use super::registers::Registers;
use super::{DeviceError, Found, INTERRUPTS, SHARED, on_interrupt, watch, window};

/// What was connected first is connected for good.
static LINE: Once<InterruptLine> = Once::new();
static MESSAGES: Once<[Message; 2]> = Once::new();

/// Finds the device, turns it on, and connects its interrupts.
pub(super) fn find(wanted: Interrupts) -> Result<Option<Found>, DeviceError> {
    let mut pci = pci_hierarchy();
    let Some(slot) = balloon(&mut pci) else {
        return Ok(None);
    };
    start(&mut pci, slot, wanted).map(Some)
}

/// The same for a device that was plugged into this slot.
pub(super) fn find_plugged(port: Slot, wanted: Interrupts) -> Result<Option<Found>, DeviceError> {
    let mut pci = pci_hierarchy();
    pci.set_slot_power(port, true);
    let Some(slot) = balloon(&mut pci) else {
        return Ok(None);
    };
    pci.place_plugged(port);
    start(&mut pci, slot, wanted).map(Some)
}

fn balloon(pci: &mut Hierarchy<PciConfig>) -> Option<Slot> {
    let is_balloon = |vendor, device| PciId { vendor, device }.is_balloon();
    pci.find(|id| is_balloon(id.vendor, id.device))
}

fn start(
    pci: &mut Hierarchy<PciConfig>,
    slot: Slot,
    wanted: Interrupts,
) -> Result<Found, DeviceError> {
    let layout = PciLayout::read(|offset| pci.read(slot, offset))?;
    let device = layout.connect(|region| map(pci, slot, region))?;
    let (device, interrupts) = connect(pci, slot, &layout, device, wanted)?;
    Ok(Found {
        registers: Registers::Pci(device),
        interrupts,
        port: pci.bridge_to(slot),
    })
}

/// Connects interrupts as they are wanted; by the best there is if any will do.
fn connect(
    pci: &mut Hierarchy<PciConfig>,
    slot: Slot,
    layout: &PciLayout,
    device: MappedPci,
    wanted: Interrupts,
) -> Result<(MappedPci, Interrupts), DeviceError> {
    if matches!(wanted, Interrupts::Any | Interrupts::Messages) {
        match connect_messages(pci, slot) {
            Ok(vectors) => return Ok((device.with_vectors(vectors), Interrupts::Messages)),
            Err(error) if wanted == Interrupts::Messages => return Err(error),
            Err(_) => {}
        }
    }
    pci.enable(slot);
    match pci.interrupt_line(slot) {
        Some(line) if wanted != Interrupts::None => {
            let status = map(pci, slot, layout.isr).ok_or(PciError::Unmapped(Structure::Isr))?;
            watch(InterruptStatus::new(status));
            // Connected already, for a device that was pulled out.
            if LINE.get() != Some(&line) {
                on_line(line, Trigger::Level, on_interrupt)?;
                LINE.call_once(|| line);
            }
            Ok((device, Interrupts::Line))
        }
        None if wanted == Interrupts::Line => Err(DeviceError::Interrupts(wanted)),
        _ => Ok((device, Interrupts::None)),
    }
}

/// Two messages: the target changed, requests were answered.
fn connect_messages(pci: &mut Hierarchy<PciConfig>, slot: Slot) -> Result<Vectors, DeviceError> {
    let msix = pci.msix(slot, 2)?;
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
    pci.enable(slot);
    let mut offset = 0;
    // Those of a device that was pulled out go on to serve.
    let messages = match MESSAGES.get() {
        Some(messages) => *messages,
        None => {
            let [config, used] = handlers.map(on_message);
            let both = config.zip(used).map(|(config, used)| [config, used]);
            let both = both.ok_or(DeviceError::Interrupts(Interrupts::Messages))?;
            *MESSAGES.call_once(|| both)
        }
    };
    for message in messages {
        for word in message.entry() {
            table.write(offset, word).map_err(|_| MsixError::Nowhere)?;
            offset += size_of::<u32>();
        }
    }
    pci.enable_msix(slot, msix);
    Ok(Vectors {
        config: 0,
        queues: 1,
    })
}

/// Maps a structure of the device, wherever firmware put its BAR.
fn map(pci: &mut Hierarchy<PciConfig>, slot: Slot, region: BarRegion) -> Option<MmioWindow> {
    let bar = pci.memory_bar(slot, BarIndex::new(region.bar)?)?;
    let start = bar.start().get().checked_add(region.offset.into())?;
    let range = PhysRange::sized(PhysAddr::new(start), region.len.into());
    if range.end() > bar.end() {
        return None;
    }
    window(range)
}
