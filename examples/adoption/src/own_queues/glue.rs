//! All that this kernel adds for its balloon, in three of its components.

use balloon_core::{Policy as Pace, *};
use transport_virtio::*;

use super::kernel::{self, FRAME_ALLOCATOR, SLOTS, VirtQueue, VirtioDevice};

// In the virtio component: requests over its queues and DMA memory.

/// The device, its queues, and what each token of a queue stands for.
pub struct BalloonDevice(
    VirtioDevice,
    [Option<VirtQueue>; 5],
    [[Option<RequestId>; SLOTS]; 5],
);

/// Called by the component for a balloon device it has negotiated with.
pub fn probe(mut device: VirtioDevice, [offered, agreed]: [Features; 2]) -> Option<BalloonDevice> {
    let map = discover(offered, agreed, |index| device.has_queue(index.get())).ok()?;
    let queues = QueueId::ALL.map(|queue| Some(device.queue(map.index(queue)?.get())));
    device.finish_init();
    Some(BalloonDevice(device, queues, Default::default()))
}

fn piece(run: &Run) -> (u64, u64) {
    (run.range().start().address(), run.count().bytes().get())
}

impl Queues for BalloonDevice {
    fn capacity(&self, queue: QueueId) -> Capacity {
        let size = self.1[queue.index()].as_ref().map_or(0, VirtQueue::size);
        Capacity {
            descriptors: size,
            requests: size,
            ranges: size,
        }
    }
    fn submit(&mut self, q: QueueId, id: RequestId, body: Body<'_>) -> Result<(), QueueError> {
        let queue = self.1[q.index()].as_mut().ok_or(QueueError::TooLong)?;
        let token = match body {
            Body::Bytes(bytes) => {
                let buffer = self.0.dma_buffer(q.index() * SLOTS + id.slot.index());
                queue.add_input(buffer.write(bytes), bytes.len())
            }
            Body::Ranges(runs) => queue.add_outputs(runs.iter().map(piece)),
        };
        self.2[q.index()][usize::from(token.map_err(|_| QueueError::Full)?)] = Some(id);
        Ok(())
    }
    fn kick(&mut self, queue: QueueId, _: usize) -> bool {
        self.1[queue.index()].as_mut().is_some_and(VirtQueue::kick)
    }
    fn pop(&mut self, queue: QueueId) -> Result<Option<RequestId>, QueueError> {
        let token = self.1[queue.index()].as_mut().and_then(VirtQueue::pop_used);
        Ok(token.and_then(|token| self.2[queue.index()][usize::from(token)].take()))
    }
    fn counters(&self) -> QueueCounters {
        QueueCounters::default()
    }
}
impl ConfigIo for BalloonDevice {
    fn config_len(&self) -> usize {
        self.0.config_len()
    }
    fn read_config(&mut self, offset: u16) -> u32 {
        self.0.read_config(offset)
    }
    fn write_config(&mut self, offset: u16, value: u32) {
        self.0.write_config(offset, value);
    }
    fn generation(&mut self) -> u32 {
        self.0.generation()
    }
}

// In the memory component: frames from the static allocator.

struct GlobalFrames;
impl FrameSource for GlobalFrames {
    fn take(&mut self, ask: Ask, out: &mut RangeSink<'_>) -> Stop {
        let (n, size) = (ask.order.frames(), 4096 << ask.order.get());
        let layout = core::alloc::Layout::from_size_align(size, size).ok();
        let block = |l| FrameRange::new(Pfn::containing(FRAME_ALLOCATOR.alloc(l)?), n);
        while out.wanted() >= n && !out.is_full() {
            let pushed = layout
                .and_then(block)
                .map(|b| out.push(b, Backing::Unknown));
            if pushed.is_none_or(|pushed| pushed.is_err()) {
                return Stop::Fragmented;
            }
        }
        Stop::Enough
    }
    fn put(&mut self, range: FrameRange, _: Backing) -> Result<(), FrameRange> {
        FRAME_ALLOCATOR.dealloc(range.start().address(), range.count().bytes().get());
        Ok(())
    }
}

// In the device registry: the thread, where all three meet.

/// Out of frames? `request_relief` makes the thread bring some back.
pub static SHARED: Shared = Shared::new();

/// The body of the balloon's thread.
pub fn run(mut balloon: VirtioBalloon<BalloonDevice>) -> Option<()> {
    kernel::on_config_change(|| SHARED.signal().config_changed());
    kernel::on_used(|| SHARED.signal().used());
    let (source, ram) = (GlobalFrames, FRAME_ALLOCATOR.memory());
    let words = vec![0; BitmapLedger::words(ram.count()) as usize];
    let ledger = BitmapLedger::new(words, &[ram]).ok()?;
    let mut frames = Ledgered { source, ledger };
    let mut engine = Engine::new(&SHARED, Pace::DEFAULT);
    loop {
        let step = engine.step(&mut balloon, &mut frames, kernel::now(), Budget::LARGE);
        let pending = || step.more || SHARED.signal().pending();
        kernel::WAIT_QUEUE.wait_until_or_timeout(pending, step.wake_at)?;
    }
}
