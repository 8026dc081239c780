//! The balloon device of this machine: found, mapped, brought up.

mod mmio;
mod pci;
mod registers;

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};

use guest_rt::interrupts::LineError;
use guest_rt::pci::{MsixError, Slot};
use guest_rt::{BootInfo, Delay, PhysAddr, PhysRange};
use qemu_guest::{Interrupts, Options};
use spin::Mutex;
use thiserror::Error;
use transport_virtio::pci::{InterruptStatus, PciError};
use transport_virtio::{
    BringUpError, DmaRegion, DriverOptions, MmioError, MmioWindow, Rings, VirtioBalloon,
};

use super::balloon::{REQUESTS, SHARED};
use registers::Registers;

/// Descriptors of a queue: QEMU's queues have 128.
const QUEUE: usize = REQUESTS;

/// The transport of this kernel.
pub(super) type Transport = VirtioBalloon<Rings<Registers, DmaRegion, QUEUE>>;

/// Why this machine has no working balloon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum DeviceError {
    /// There is none.
    #[error("this machine has no balloon device")]
    Absent,
    /// Its registers were not found.
    #[error("the balloon device: {0}")]
    Layout(#[from] PciError),
    /// It is there, and not one we drive.
    #[error("the balloon device: {0}")]
    Mmio(#[from] MmioError),
    /// Its interrupt line cannot be had.
    #[error("the balloon device: {0}")]
    Line(#[from] LineError),
    /// It was to interrupt by messages, and cannot.
    #[error("the balloon device: {0}")]
    Messages(#[from] MsixError),
    /// It was to interrupt in a way that this machine does not have.
    #[error("the balloon device cannot interrupt by {0}")]
    Interrupts(Interrupts),
    /// No memory is left for its queues.
    #[error("no memory for the balloon's queues")]
    Memory,
    /// It did not start.
    #[error("the balloon device: {0}")]
    BringUp(#[from] BringUpError),
}

/// A device that was found, and how it interrupts.
struct Found {
    registers: Registers,
    interrupts: Interrupts,
    /// The slot it is in, if it can be pulled out.
    port: Option<Slot>,
}

/// Locked with interrupts off: the handler never finds it taken.
static INTERRUPT_STATUS: Mutex<Option<InterruptStatus>> = Mutex::new(None);
static INTERRUPTS: AtomicU32 = AtomicU32::new(0);

/// The handler of a line.
fn on_interrupt() {
    if let Some(status) = &*INTERRUPT_STATUS.lock()
        && status.handle(SHARED.signal())
    {
        INTERRUPTS.fetch_add(1, Ordering::Relaxed);
    }
}

/// Where the handler of a line looks from now on.
fn watch(status: InterruptStatus) {
    critical_section::with(|_| *INTERRUPT_STATUS.lock() = Some(status));
}

/// Interrupts that the device has raised so far.
pub(super) fn interrupts() -> u32 {
    INTERRUPTS.load(Ordering::Relaxed)
}

/// A running device.
pub(super) struct Running {
    pub(super) transport: Transport,
    pub(super) interrupts: Interrupts,
    pub(super) bus: &'static str,
    /// The slot it is in, if it can be pulled out.
    pub(super) port: Option<Slot>,
    wanted: Wanted,
}

/// What this kernel wants of any device.
#[derive(Clone, Copy)]
struct Wanted {
    policy: DriverOptions,
    interrupts: Interrupts,
}

/// What is left of a device that was pulled out.
pub(super) struct Pulled {
    memory: DmaRegion,
    port: Option<Slot>,
    wanted: Wanted,
}

impl Running {
    /// The device is gone, and everything of it is home.
    pub(super) fn pulled(self) -> Pulled {
        let (_, memory) = self.transport.into_queues().into_parts();
        Pulled {
            memory,
            port: self.port,
            wanted: self.wanted,
        }
    }
}

impl Pulled {
    /// Starts what was plugged into the slot since, over the same memory.
    pub(super) fn start(self) -> Result<Running, Self> {
        let Self {
            memory,
            port,
            wanted,
        } = self;
        let found = port.and_then(|port| pci::find_plugged(port, wanted.interrupts).ok()?);
        match found {
            Some(found) => bring_up(found, memory, wanted).map_err(|(memory, error)| {
                defmt::error!("a device that was plugged in does not start");
                guest_rt::println!("the balloon device: {error}");
                Self {
                    memory,
                    port,
                    wanted,
                }
            }),
            None => Err(Self {
                memory,
                port,
                wanted,
            }),
        }
    }
}

/// Starts the device, with or without the bulk path, and what runs beside it.
pub(super) fn start(boot: &mut BootInfo, options: &Options<'_>) -> Result<Running, DeviceError> {
    let found = match pci::find(options.interrupts)? {
        Some(found) => found,
        None => mmio::find(boot, options.interrupts)?.ok_or(DeviceError::Absent)?,
    };
    let wanted = Wanted {
        policy: policy(options),
        interrupts: options.interrupts,
    };
    let memory = memory(boot).ok_or(DeviceError::Memory)?;
    // Device and memory of a failed start are of no further use.
    bring_up(found, memory, wanted).map_err(|(_, error)| error.into())
}

/// Starts a device that was found.
fn bring_up(
    found: Found,
    memory: DmaRegion,
    wanted: Wanted,
) -> Result<Running, (DmaRegion, BringUpError)> {
    let mut policy = wanted.policy;
    if found.interrupts == Interrupts::None {
        policy = policy.polled();
    }
    let bus = found.registers.bus();
    let transport = Transport::bring_up(found.registers, memory, &policy, &mut Delay)
        .map_err(|refused| (refused.memory, refused.error))?;
    let numbering = transport.queues().numbering();
    defmt::info!("queues numbered {}", numbering);
    Ok(Running {
        transport,
        interrupts: found.interrupts,
        bus,
        port: found.port,
        wanted,
    })
}

fn policy(options: &Options<'_>) -> DriverOptions {
    let mut policy = DriverOptions::new();
    if !options.bulk {
        policy = policy.without_bulk();
    }
    if options.superpages {
        policy = policy.with_host_superpages();
    }
    if let Some(value) = options.poison {
        policy = policy.with_poison(value);
    }
    if options.services.statistics {
        policy = policy.with_statistics();
    }
    if options.services.hints {
        policy = policy.with_hints();
    }
    if options.services.reports {
        policy = policy.with_reporting();
    }
    policy
}

/// Lets go of the device in this slot, as whoever pushes its button may ask.
pub(super) fn eject(port: Slot) {
    guest_rt::pci_hierarchy().set_slot_power(port, false);
}

/// Maps registers uncached and for good.
fn window(range: PhysRange) -> Option<MmioWindow> {
    let registers = guest_rt::mmio::Mmio::map(range).ok()?;
    let base = NonNull::new(registers.as_ptr())?;
    // SAFETY: mapped by `Mmio::map`. A device that follows its specification is
    // aligned to 4; one that is not is refused right here.
    base.addr()
        .get()
        .is_multiple_of(4)
        .then(|| unsafe { MmioWindow::new(base, registers.bytes()) })
}

/// Memory for the queues, the device's and ours alone.
fn memory(boot: &mut BootInfo) -> Option<DmaRegion> {
    let bytes = Rings::<Registers, DmaRegion, QUEUE>::DMA_BYTES;
    let words = boot.carve_words(bytes.div_ceil(size_of::<u64>()))?;
    let address = PhysAddr::of(words.as_ptr());
    let base = NonNull::from(words).cast::<u8>();
    // SAFETY: page-aligned RAM that belonged to nobody, carved for good; mapped
    // one to one, so that the device finds it at its address.
    let region = unsafe { DmaRegion::new(base, address.get(), bytes) };
    // An IOMMU, if there is one, is left as it was switched on: it translates nothing.
    Some(region.with_physical_bus())
}
