//! A kernel that has memory, a balloon, and nothing else to do.

use core::ptr::NonNull;

use balloon_core::{Balloon, Budget, Nanos, Policy, Shared};
use buddy_alloc::{Backing, Config, FrameRange, Zone};
use guest_rt::interrupts::{self, Trigger};
use guest_rt::mmio::Mmio;
use guest_rt::pci::BarIndex;
use guest_rt::{BootInfo, Delay, Instant, PhysAddr, PhysRange, now, pci_hierarchy, println, timer};
use spin::{Mutex, Once};
use transport_virtio::pci::{BarRegion, InterruptStatus, PciId, PciLayout};
use transport_virtio::{DmaRegion, MmioWindow, PciBalloon};

guest_rt::entry!(main);

/// The device's interrupt handler and the kernel's loop share this.
static SHARED: Shared = Shared::new();
/// The kernel's loop alone uses it; all zeros until it is started.
static BALLOON: Mutex<Balloon<PciBalloon<16>, Zone<'static>>> = Mutex::new(Balloon::new());
/// Reading this register acknowledges the interrupt.
static STATUS: Once<InterruptStatus> = Once::new();

fn main(mut boot: BootInfo) -> ! {
    let device = start_device(&mut boot).expect("a balloon device on PCI");
    let zone = take_memory(&mut boot).expect("memory for the allocator");
    let policy = Policy::for_memory(balloon_core::FrameCount::new(zone.free_frames().get()));
    let mut balloon = BALLOON.lock();
    let started = balloon.start(&SHARED, policy, device, zone);
    assert!(started.is_ok(), "nobody has started it before");
    println!("@ready");
    loop {
        let _news = SHARED.signal().take();
        timer::take_went_off();
        let step = balloon.step(Nanos::new(now().as_nanos()), Budget::LARGE);
        for (event, _) in balloon.take_events().iter() {
            println!("{event}");
        }
        match step.wake_at {
            Some(at) => timer::arm(Instant::from_nanos(at.get())),
            None => timer::disarm(),
        }
        if !step.more {
            interrupts::idle_unless(|| SHARED.signal().is_set() || timer::went_off());
        }
    }
}

/// Finds the device, connects its interrupt, gives it memory for its queues, and starts it.
fn start_device(boot: &mut BootInfo) -> Option<PciBalloon<16>> {
    let mut pci = pci_hierarchy();
    let is_balloon = |vendor, device| PciId { vendor, device }.is_balloon();
    let slot = pci.find(|id| is_balloon(id.vendor, id.device))?;
    let layout = PciLayout::read(|offset| pci.read(slot, offset)).ok()?;
    let mut map = |region: BarRegion| {
        let bar = pci.memory_bar(slot, BarIndex::new(region.bar)?)?;
        let start = PhysAddr::new(bar.start().get() + u64::from(region.offset));
        let registers = Mmio::map(PhysRange::sized(start, region.len.into())).ok()?;
        let base = NonNull::new(registers.as_ptr())?;
        // SAFETY: mapped for good; these registers are the driver's alone.
        Some(unsafe { MmioWindow::new(base, registers.bytes()) })
    };
    let device = layout.connect(&mut map).ok()?;
    let status = InterruptStatus::new(map(layout.isr)?);
    STATUS.call_once(|| status);
    pci.enable(slot);
    interrupts::on_line(pci.interrupt_line(slot)?, Trigger::Level, || {
        STATUS.get().map(|status| status.handle(SHARED.signal()));
    })
    .ok()?;

    let bytes = PciBalloon::<16>::DMA_BYTES;
    let words = boot.carve_words(bytes.div_ceil(size_of::<u64>()))?;
    let address = PhysAddr::of(words.as_ptr()).get();
    // SAFETY: memory of nobody, carved for good, at the same address for the device.
    let memory = unsafe { DmaRegion::new(NonNull::from(words).cast(), address, bytes) };
    let policy = transport_virtio::DriverOptions::new();
    PciBalloon::bring_up(device, memory, &policy, &mut Delay).ok()
}

/// Hands all memory that is left to the allocator.
fn take_memory(boot: &mut BootInfo) -> Option<Zone<'static>> {
    let start = boot.free().iter().next()?.start().get();
    let end = boot.free().iter().last()?.end().get();
    let span = FrameRange::inside_bytes(start, end - start);
    let config = Config::new();
    let metadata = boot.carve_words(config.metadata_words(span))?;
    let mut zone = Zone::new_zeroed(span, config, metadata).ok()?;
    for range in boot.free().iter() {
        let frames = FrameRange::inside_bytes(range.start().get(), range.bytes());
        zone.add_range(frames, Backing::Unknown).ok()?;
    }
    Some(zone)
}
