//! A small kernel with a balloon: `buddy-alloc` owns its memory, `balloon-core` decides, `transport-virtio`
//! talks to the device, or `transport-xen` to the hypervisor; `pod-core` runs a guest of its own.
//!
//! It is linked, not booted: what it proves is that the packaged crates are complete, that no feature needs
//! to be on but the glue, and that all names are within a user's reach.
#![no_std]
#![no_main]

mod vmm;
mod xen;

use core::cell::UnsafeCell;
use core::panic::PanicInfo;
use core::ptr::NonNull;

use balloon_core::{Balloon, Budget, Engine, Nanos, Policy, Shared};
use buddy_alloc::{Backing, Config, Frame, FrameCount, FrameRange, Zone};
use embedded_hal::delay::DelayNs;
use transport_virtio::pci::{BarRegion, PciLayout};
use transport_virtio::{DmaRegion, MmioWindow, PciBalloon};

/// One GiB from the second MiB on.
const SPAN: FrameRange = FrameRange::new(Frame::new(0x200), FrameCount::new(1 << 18));
const CONFIG: Config = Config::new();
const METADATA_WORDS: usize = CONFIG.metadata_words(SPAN);
const DMA_BYTES: usize = <PciBalloon>::DMA_BYTES;
/// Where firmware left the function's configuration space and its BARs.
const CONFIG_SPACE: usize = 0xe000_0000;
const BARS: usize = 0xfe00_0000;

/// Memory of the device's queues, touched through raw pointers alone.
#[repr(C, align(4096))]
struct Dma(UnsafeCell<[u8; DMA_BYTES]>);

// SAFETY: only the one transport, on the only CPU, gets its address.
unsafe impl Sync for Dma {}

static DMA: Dma = Dma(UnsafeCell::new([0; DMA_BYTES]));
static SHARED: Shared<64> = Shared::new();

/// The lock of a kernel with one CPU, which polls: nobody else is there.
struct Only<T>(UnsafeCell<T>);

// SAFETY: there is one CPU, and no interrupt handler.
unsafe impl<T> Sync for Only<T> {}

/// All zeros until it is started, as all that a kernel's image is not to hold.
static BALLOON: Only<Balloon<PciBalloon, Zone<'static>, 64>> =
    Only(UnsafeCell::new(Balloon::new()));
static METADATA: Only<[u64; METADATA_WORDS]> = Only(UnsafeCell::new([0; METADATA_WORDS]));

/// Waits by the clock of the CPU.
struct Clock;

impl DelayNs for Clock {
    fn delay_ns(&mut self, nanos: u32) {
        let end = now().saturating_add(Nanos::new(nanos.into()));
        while now() < end {
            core::hint::spin_loop();
        }
    }
}

/// Time since the machine was switched on, for a processor of 1 GHz.
fn now() -> Nanos {
    // SAFETY: the instruction has no precondition.
    Nanos::new(unsafe { core::arch::x86_64::_rdtsc() })
}

fn config_word(offset: u8) -> u32 {
    let address = core::ptr::with_exposed_provenance::<u32>(CONFIG_SPACE + usize::from(offset));
    // SAFETY: the firmware of this machine maps the function's configuration space there.
    unsafe { address.read_volatile() }
}

fn map(region: BarRegion) -> Option<MmioWindow> {
    let address = BARS + (usize::from(region.bar) << 20) + region.offset as usize;
    let base = NonNull::new(core::ptr::with_exposed_provenance_mut(address))?;
    // SAFETY: the BARs of this machine lie there, and this device is asked for once.
    Some(unsafe { MmioWindow::new(base, region.len as usize) })
}

fn device() -> Option<PciBalloon> {
    let layout = PciLayout::read(config_word).ok()?;
    let device = layout.connect(map).ok()?;
    let base = NonNull::new(DMA.0.get().cast::<u8>())?;
    // SAFETY: the memory is a static of ours, and mapped one to one.
    let memory = unsafe { DmaRegion::new(base, base.addr().get() as u64, DMA_BYTES) };
    let policy = transport_virtio::DriverOptions::new().polled();
    PciBalloon::bring_up(device, memory, &policy, &mut Clock).ok()
}

fn run(
    metadata: &'static mut [u64],
    balloon: &mut Balloon<PciBalloon, Zone<'static>, 64>,
) -> Option<()> {
    let mut zone = Zone::new(SPAN, CONFIG, metadata).ok()?;
    zone.add_range(SPAN, Backing::Unpopulated).ok()?;
    let managed = zone.stats().managed.get();
    if let Some(mut domain) = xen::Domain::find(balloon_core::FrameCount::new(managed)) {
        let mut engine = Engine::new(&SHARED, Policy::DEFAULT);
        loop {
            if domain.read_store(now())? {
                SHARED.signal().config_changed();
            }
            engine.step(domain.transport(), &mut zone, now(), Budget::SMALL);
        }
    }
    balloon
        .start(&SHARED, Policy::DEFAULT, device()?, zone)
        .ok()?;
    loop {
        balloon.step(now(), Budget::SMALL);
    }
}

/// Entry point of the kernel.
#[unsafe(no_mangle)]
pub extern "C" fn _start() -> ! {
    if vmm::boot() == Some(true) {
        // SAFETY: nobody else is there, and this runs once.
        let metadata = unsafe { &mut *METADATA.0.get() };
        // SAFETY: as above.
        let balloon = unsafe { &mut *BALLOON.0.get() };
        let _ = run(metadata, balloon);
    }
    halt()
}

fn halt() -> ! {
    loop {
        core::hint::spin_loop();
    }
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    halt()
}
