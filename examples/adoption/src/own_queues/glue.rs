//! All that this kernel adds for its balloon, in three of its components.

use core::alloc::Layout;

use balloon_core::*;
use transport_virtio::{protocol::POISON_VALUE, *};

use super::kernel::{self, FRAME_ALLOCATOR, SLOTS, VirtQueue, VirtioDevice};

// In the virtio component: requests over its queues and DMA memory.

/// A queue, and which request each of its tokens stands for.
struct Line(VirtQueue, [Option<RequestId>; SLOTS]);
/// The device and its queues.
pub struct BalloonDevice {
    device: VirtioDevice,
    lines: [Option<Line>; QueueId::ALL.len()],
}

/// Called by the component for a balloon device it has negotiated with.
pub fn probe(mut dev: VirtioDevice, bits: Features, how: &DriverOptions) -> Option<BalloonDevice> {
    let map = discover(dev.features(), bits, |i| dev.has_queue(i.get())).ok()?;
    let mut line = |index: QueueIndex| Line(dev.queue(index.get()), [None; SLOTS]);
    let lines = QueueId::ALL.map(|queue| map.index(queue).map(&mut line));
    // What free frames hold: the device has to know before it runs.
    if bits.contains(Features::PAGE_POISON) {
        dev.write_config(POISON_VALUE, how.poison().unwrap_or(0));
    }
    dev.finish_init();
    Some(BalloonDevice { device: dev, lines })
}

impl Queues for BalloonDevice {
    fn capacity(&self, queue: QueueId) -> Capacity {
        let line = self.lines[queue.index()].as_ref();
        let size = line.map_or(0, |line| line.0.size());
        Capacity {
            descriptors: size,
            requests: size,
            ranges: 0, // Each costs a descriptor.
        }
    }
    fn submit(&mut self, q: QueueId, id: RequestId, body: Body<'_>) -> Result<(), QueueError> {
        let buffer = self.device.dma_buffer(q.index() * SLOTS + id.slot.index());
        let piece = |run: &Run| (run.range().start().address(), run.count().bytes().get());
        let Some(Line(queue, waiting)) = &mut self.lines[q.index()] else {
            return Err(QueueError::TooLong);
        };
        let token = match body {
            Body::Bytes(bytes) => queue.add_input(buffer.write(bytes), bytes.len()),
            Body::Ranges(runs) => queue.add_outputs(runs.iter().map(piece)),
        };
        waiting[usize::from(token.map_err(|_| QueueError::Full)?)] = Some(id);
        Ok(())
    }
    fn kick(&mut self, queue: QueueId, _: usize) -> bool {
        let line = &mut self.lines[queue.index()];
        line.as_mut().is_some_and(|line| line.0.kick())
    }
    fn pop(&mut self, queue: QueueId) -> Result<Option<RequestId>, QueueError> {
        Ok(self.lines[queue.index()].as_mut().and_then(|line| {
            let token = line.0.pop_used()?;
            line.1[usize::from(token)].take()
        }))
    }
    fn counters(&self) -> QueueCounters {
        QueueCounters::default()
    }
}
impl ConfigIo for BalloonDevice {
    fn config_len(&self) -> usize {
        self.device.config_len()
    }
    fn read_config(&mut self, offset: u16) -> u32 {
        self.device.read_config(offset)
    }
    fn write_config(&mut self, offset: u16, value: u32) {
        self.device.write_config(offset, value);
    }
}

// In the memory component: frames from the static allocator.

/// The frame allocator.
pub struct GlobalFrames;
impl PageAllocator for GlobalFrames {
    fn allocate(&mut self, count: FrameCount, align: Order) -> Option<Pfn> {
        let (size, align) = (count.bytes(), align.frames().bytes());
        let layout = Layout::from_size_align(size.to_usize(), align.to_usize());
        FRAME_ALLOCATOR.alloc(layout.ok()?).map(Pfn::containing)
    }
    fn free(&mut self, range: FrameRange) {
        FRAME_ALLOCATOR.dealloc(range.start().address(), range.count().bytes().get());
    }
    fn available(&mut self) -> FrameCount {
        FrameCount::from_usize(FRAME_ALLOCATOR.left())
    }
}

// In the device registry: the thread, where all three meet.

/// Out of frames? `request_relief` makes the thread bring some back.
pub static SHARED: Shared = Shared::new();

/// The body of the balloon's thread.
pub fn run(mut balloon: VirtioBalloon<BalloonDevice>) -> Option<()> {
    kernel::on_config_change(|| SHARED.signal().config_changed());
    kernel::on_used(|| SHARED.signal().used());
    let (source, ram) = (Paged(GlobalFrames), FRAME_ALLOCATOR.memory());
    let words = vec![0; BitmapLedger::words(ram.count()) as usize];
    let ledger = BitmapLedger::new(words, &[ram]).ok()?;
    let mut frames = Ledgered { source, ledger };
    let mut engine = Engine::new(&SHARED, Policy::for_memory(ram.count()));
    loop {
        let step = engine.step(&mut balloon, &mut frames, kernel::now(), Budget::LARGE);
        let woken = || step.more || SHARED.signal().take();
        kernel::WAIT_QUEUE.wait_until_or_timeout(woken, step.wake_at)?;
    }
}
