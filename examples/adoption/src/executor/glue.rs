//! All that this kernel adds for its balloon.

use core::future::poll_fn;
use core::task::Poll;

use balloon_core::*;
use transport_virtio::{Rings, VirtioBalloon};

use super::kernel::{self, DmaMemory, HEAP, Heap, Registers};
use crate::machine::{Lock, NoDelay};

/// The heap deals in chunks of 1 MiB, which come back as they were taken.
const CHUNK: Order = Order::new(8).unwrap();
/// What handlers and the out-of-memory hook touch.
pub static SHARED: Shared = Shared::new();

type Device = VirtioBalloon<Rings<Registers, DmaMemory, 16>>;
type Balloon = (Engine, Device, BitmapLedger<Vec<u64>>);
/// Locked by the task while it steps.
pub static BALLOON: Lock<Option<Balloon>> = Lock::new(None);

/// The locked heap.
#[derive(Debug)]
pub struct Chunks<'a>(pub &'a mut Heap);
impl FrameSource for Chunks<'_> {
    fn take(&mut self, ask: TakeRequest, out: &mut RangeSink<'_>) -> Shortage {
        let size = ask.order.frames();
        while out.wanted() >= size && !out.is_full() {
            if (self.0.left() as u64) < size.get().saturating_add(ask.min_free.get()) {
                return Shortage::Floor;
            }
            let start = self.0.allocate_quietly(size.to_usize(), size.get());
            let chunk = start.and_then(|at| FrameRange::new(Pfn::containing(at), size));
            let Some(chunk) = chunk else {
                return Shortage::Fragmented;
            };
            if chunk.end() > ask.below || out.push(chunk, Backing::Unknown).is_err() {
                let _ = self.put(chunk, Backing::Unknown);
                return Shortage::Fragmented;
            }
        }
        Shortage::None
    }
    fn put(&mut self, range: FrameRange, _: Backing) -> Result<(), FrameRange> {
        // The heap frees what it allocated: chunks, or single frames if those were asked for.
        let (count, chunk) = (range.count().to_usize(), CHUNK.frames().to_usize());
        let size = if count.is_multiple_of(chunk) {
            chunk
        } else {
            1
        };
        for first in range.frames().step_by(size) {
            self.0.deallocate(first.address(), size);
        }
        Ok(())
    }
}

/// Called by the PCI scan; both handlers may share a vector.
pub fn probe(device: Registers, memory: DmaMemory) -> Option<()> {
    let how = transport_virtio::DriverOptions::new();
    let device = VirtioBalloon::bring_up(device, memory, &how, &mut NoDelay).ok()?;
    let ram = HEAP.lock().memory();
    let words = vec![0; BitmapLedger::words(ram.count()) as usize];
    let ledger = BitmapLedger::new(words, &[ram]).ok()?;
    let mut policy = Policy::DEFAULT;
    (policy.granularity, policy.emergency_pool) = (Granularity::Whole(CHUNK), CHUNK.frames());
    *BALLOON.lock() = Some((Engine::new(&SHARED, policy), device, ledger));
    HEAP.lock().on_out_of_memory(relieve);
    kernel::spawn(poll_fn(|cx| {
        kernel::register_waker(cx.waker());
        if step().is_some_and(|step| step.more) | SHARED.signal().take() {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }));
    Some(())
}

fn step() -> Option<Step> {
    let (mut balloon, mut heap) = (BALLOON.lock(), HEAP.lock());
    let (engine, device, ledger) = balloon.as_mut()?;
    let source = Chunks(&mut heap);
    let mut frames = Ledgered { source, ledger };
    let step = engine.step(device, &mut frames, kernel::now(), Budget::SMALL);
    kernel::create_timer(step.wake_at);
    Some(step)
}

/// The interrupt handlers.
pub fn config_changed() {
    SHARED.signal().config_changed();
    kernel::wake();
}
/// The other one.
pub fn used() {
    SHARED.signal().used();
    kernel::wake();
}

/// Out of memory, with the heap locked: a chunk back, or a frame set aside.
fn relieve(heap: &mut Heap) -> Option<()> {
    let Some(mut balloon) = BALLOON.try_lock() else {
        SHARED.request_relief(CHUNK.frames());
        return Chunks(heap)
            .put(SHARED.take_emergency()?, Backing::Unknown)
            .ok();
    };
    let (engine, device, ledger) = balloon.as_mut()?;
    let source = Chunks(heap);
    let mut frames = Ledgered { source, ledger };
    let need = Need::run(CHUNK.frames(), CHUNK);
    let relieved = engine.relieve(device, &mut frames, need, kernel::now());
    let relieved = relieved.wake(kernel::wake); // allocates nothing
    (!relieved.usable.is_zero()).then_some(())
}
