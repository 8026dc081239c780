//! The balloon device of this machine: found, mapped, brought up.

use core::ptr::NonNull;

use guest_rt::interrupts::{self, LineTaken};
use guest_rt::mmio::Mmio;
use guest_rt::pci::{BarIndex, Bus, Slot};
use guest_rt::{BootInfo, Delay, PhysAddr, PhysRange, Ports, pci_bus};
use qemu_guest::Beside;
use spin::Once;
use thiserror::Error;
use transport_virtio::pci::{BarRegion, InterruptStatus, PciError, PciId, PciLayout};
use transport_virtio::{
    BringUpError, DmaRegion, MappedPci, MmioWindow, Policy, Rings, VirtioBalloon,
};

use super::balloon::{REQUESTS, SHARED};

/// Descriptors of a queue: QEMU's queues have 128.
const QUEUE: usize = REQUESTS;

/// The transport of this kernel.
pub(super) type Transport = VirtioBalloon<Rings<MappedPci, DmaRegion, QUEUE>>;

/// Why this machine has no working balloon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum DeviceError {
    /// There is none on the bus.
    #[error("this machine has no balloon device")]
    Absent,
    /// Its registers were not found.
    #[error("the balloon device: {0}")]
    Layout(#[from] PciError),
    /// Somebody else has its interrupt line.
    #[error("the balloon device: {0}")]
    Line(#[from] LineTaken),
    /// No memory is left for its queues.
    #[error("no memory for the balloon's queues")]
    Memory,
    /// It did not start.
    #[error("the balloon device: {0}")]
    BringUp(#[from] BringUpError),
}

static INTERRUPT_STATUS: Once<InterruptStatus> = Once::new();

fn on_interrupt() {
    if let Some(status) = INTERRUPT_STATUS.get() {
        status.handle(SHARED.signal());
    }
}

/// Starts the device, with or without the bulk path, and what runs beside it.
pub(super) fn start(
    boot: &mut BootInfo,
    bulk: bool,
    beside: Beside,
) -> Result<Transport, DeviceError> {
    let mut bus = pci_bus();
    let slot = bus
        .find(|id| {
            PciId {
                vendor: id.vendor,
                device: id.device,
            }
            .is_balloon()
        })
        .ok_or(DeviceError::Absent)?;
    let layout = PciLayout::read(|offset| bus.read(slot, offset))?;
    let device = layout.connect(|region| map(&mut bus, slot, region))?;
    let status = map(&mut bus, slot, layout.isr)
        .ok_or(PciError::Unmapped(transport_virtio::pci::Structure::Isr))?;
    INTERRUPT_STATUS.call_once(|| InterruptStatus::new(status));
    bus.enable(slot);

    let mut policy = Policy::new();
    if !bulk {
        policy = policy.without_bulk();
    }
    if beside.statistics {
        policy = policy.with_statistics();
    }
    if beside.hints {
        policy = policy.with_hints();
    }
    if beside.reports {
        policy = policy.with_reporting();
    }
    match bus.interrupt_line(slot) {
        Some(line) => interrupts::on_line(line, on_interrupt)?,
        None => policy = policy.polled(),
    }
    let memory = memory(boot).ok_or(DeviceError::Memory)?;
    // Device and memory of a failed start are of no further use.
    Ok(
        Transport::bring_up(device, memory, &policy, &mut Delay)
            .map_err(|refused| refused.error)?,
    )
}

/// Maps a structure of the device, wherever firmware put its BAR.
fn map(bus: &mut Bus<Ports>, slot: Slot, region: BarRegion) -> Option<MmioWindow> {
    let bar = bus.memory_bar(slot, BarIndex::new(region.bar)?)?;
    let start = bar.start().get().checked_add(region.offset.into())?;
    let range = PhysRange::sized(PhysAddr::new(start), region.len.into());
    if range.end() > bar.end() {
        return None;
    }
    let registers = Mmio::map(range).ok()?;
    let base = NonNull::new(registers.as_ptr())?;
    // SAFETY: mapped uncached for good by `Mmio::map`; BAR and offset are
    // aligned to 4 in a device that follows its specification, and one that
    // does not is refused right here.
    base.addr()
        .get()
        .is_multiple_of(4)
        .then(|| unsafe { MmioWindow::new(base, registers.bytes()) })
}

/// Memory for the queues, the device's and ours alone.
fn memory(boot: &mut BootInfo) -> Option<DmaRegion> {
    let bytes = Rings::<MappedPci, DmaRegion, QUEUE>::DMA_BYTES;
    let words = boot.carve_words(bytes.div_ceil(size_of::<u64>()))?;
    let address = PhysAddr::of(words.as_ptr());
    let base = NonNull::from(words).cast::<u8>();
    // SAFETY: page-aligned RAM that belonged to nobody, carved for good; mapped
    // one to one, so that the device finds it at its address.
    Some(unsafe { DmaRegion::new(base, address.get(), bytes) })
}
