//! All that this kernel adds for its balloon.

use balloon_core::*;
use transport_virtio::*;

use super::kernel::{self, DmaMemory, VirtioTransport};
use crate::machine::Lock;

type Frames = Ledgered<Paged<Pages>, BitmapLedger<Vec<u64>>>;
type Virtio = VirtioBalloon<Rings<Bus, DmaMemory, 16>>;
static SHARED: Shared = Shared::new();
static BALLOON: Lock<Balloon<Virtio, Frames>> = Lock::new(Balloon::new());
const POLL: Nanos = Nanos::from_millis(100);

/// The page allocator.
#[derive(Debug)]
pub struct Pages;
impl PageAllocator for Pages {
    fn allocate(&mut self, count: FrameCount, align: Order) -> Option<Pfn> {
        let at = kernel::alloc_pages(count.to_usize(), align.frames().get())?;
        Some(Pfn::containing(kernel::virt_to_phys(at)))
    }
    fn free(&mut self, range: FrameRange) {
        let at = kernel::phys_to_virt(range.start().address());
        kernel::dealloc_pages(at, range.count().to_usize());
    }
    fn available(&mut self) -> FrameCount {
        FrameCount::from_usize(kernel::free_pages())
    }
}

/// The kernel's register layer, for the balloon.
struct Bus(VirtioTransport);
impl ConfigIo for Bus {
    fn config_len(&self) -> usize {
        self.0.config_space_size()
    }
    fn read_config(&mut self, offset: u16) -> u32 {
        self.0.read_config_space(offset.into())
    }
    fn write_config(&mut self, offset: u16, value: u32) {
        self.0.write_config_space(offset.into(), value);
    }
    fn generation(&mut self) -> u32 {
        self.0.read_config_generation()
    }
}
impl Device for Bus {
    fn max_queue_size(&mut self, queue: QueueIndex) -> u16 {
        u16::try_from(self.0.max_queue_size(queue.get())).unwrap_or(u16::MAX)
    }
    fn set_queue(&mut self, q: QueueIndex, n: u16, at: RingAddresses) -> Result<(), QueueRefused> {
        let areas = [at.descriptors, at.driver, at.device];
        self.0.queue_set(q.get(), n.into(), areas);
        Ok(())
    }
    fn notify(&mut self, queue: QueueIndex) {
        self.0.notify(queue.get());
    }
}

/// Called by the bus for a balloon device.
pub fn probe(mut bus: VirtioTransport, memory: DmaMemory) -> Option<()> {
    let how = DriverOptions::new().polled();
    let offered = Features::from_bits_retain(bus.read_device_features());
    let agreed = bus.begin_init(wanted_features(offered, &how).bits());
    let agreed = Features::from_bits_retain(agreed);
    let rings = Rings::attach(Bus(bus), memory, offered, agreed, &how).ok()?;
    let mut balloon = VirtioBalloon::attach(rings, agreed, &how);
    balloon.queues_mut().device_mut().0.finish_init();
    let ram = kernel::memory();
    let words = vec![0; BitmapLedger::words(ram.count()) as usize];
    let ledger = BitmapLedger::new(words, &[ram]).ok()?;
    let source = Paged(Pages);
    let frames = Ledgered { source, ledger };
    let mut running = BALLOON.lock();
    running.stop(); // a device that was there before
    running
        .start(&SHARED, Policy::DEFAULT, balloon, frames)
        .ok()?;
    kernel::on_out_of_pages(relieve);
    Some(())
}

/// A task, or the body of the timer tick; when it is to be called next.
pub fn work() -> Option<Nanos> {
    let (now, mut balloon) = (kernel::now(), BALLOON.lock());
    while balloon.step(now, Budget::SMALL).more {}
    balloon.status().map(|_| now.saturating_add(POLL))
}

fn relieve(pages: usize) -> Option<()> {
    let (inside, mut balloon) = SHARED.enter().zip(BALLOON.try_lock())?;
    let need = Need::run(FrameCount::from_usize(pages), Order::FRAME);
    let relieved = balloon.relieve(inside, need, kernel::now());
    let relieved = relieved.wake(|| {}); // the next poll is soon
    (relieved.usable >= need.frames).then_some(())
}
