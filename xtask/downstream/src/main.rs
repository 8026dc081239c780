//! The smallest kernel that has a balloon: its own frame stack, its own hypervisor port, the engine.
//!
//! It is linked, not booted: what it proves is that the packaged crates are complete, that their default
//! features suffice, and that their names and traits are within a user's reach.
#![no_std]
#![no_main]

use core::panic::PanicInfo;
use core::sync::atomic::{AtomicU64, Ordering};

use balloon_core::{
    Ask, Backing, BitmapLedger, Budget, Capabilities, Completer, Engine, FrameCount, FrameRange, FrameSource, Kind,
    Ledgered, Limits, Nanos, Outcome, Pfn, Policy, RangeSink, Request, Shared, Stop, Transport, TransportErrorKind,
};
use buddy_alloc as _;
use transport_virtio as _;

const FIRST: u64 = 0x1000;
const FRAMES: usize = 4096;

/// Where the "hypervisor" leaves its wish.
static WISH: AtomicU64 = AtomicU64::new(1000);
static SHARED: Shared = Shared::new();

/// Free frames, last in, first out.
struct Frames {
    free: [u64; FRAMES],
    count: usize,
}

impl FrameSource for Frames {
    fn take(&mut self, ask: Ask, out: &mut RangeSink<'_>) -> Stop {
        while !out.is_full() {
            let Some(at) = self.count.checked_sub(1) else { return Stop::Empty };
            let frame = FrameRange::single(Pfn::new(self.free[at])).filter(|frame| frame.end() <= ask.below);
            let Some(frame) = frame else { return Stop::Fragmented };
            if out.push(frame, Backing::Unknown).is_err() {
                return Stop::Fragmented;
            }
            self.count = at;
        }
        Stop::Enough
    }

    fn put(&mut self, range: FrameRange, _: Backing) -> Result<(), FrameRange> {
        if range.count().get() as usize > FRAMES - self.count {
            return Err(range);
        }
        for frame in range.frames() {
            self.free[self.count] = frame.get();
            self.count += 1;
        }
        Ok(())
    }
}

/// A hypervisor that carries out a request before its call returns.
struct Port {
    size: FrameCount,
}

impl Transport for Port {
    type Error = TransportErrorKind;

    fn capabilities(&self) -> Capabilities {
        let limits = Limits {
            frames: FrameCount::new(256),
            runs: 256,
            run: FrameCount::new(256),
            in_flight: 1,
            below: Pfn::new(1 << 32),
        };
        Capabilities { inflate: limits, bulk: None, deflate: limits, interrupts: false }
    }

    fn read_target(&mut self) -> Result<FrameCount, Self::Error> {
        Ok(FrameCount::new(WISH.load(Ordering::Relaxed)))
    }

    fn write_actual(&mut self, size: FrameCount) -> Result<(), Self::Error> {
        self.size = size;
        Ok(())
    }

    fn submit(&mut self, request: Request<'_>, done: Completer<'_>) -> Result<(), Self::Error> {
        match request.kind {
            Kind::Inflate | Kind::Deflate => {
                done.complete(request.kind, request.slot, Outcome::Whole).map_err(|_| TransportErrorKind::Broken)
            }
            _ => Err(TransportErrorKind::Unsupported),
        }
    }

    fn kick(&mut self, _: usize) -> Result<bool, Self::Error> {
        Ok(true)
    }

    fn reap(&mut self, _: Completer<'_>) -> Result<(), Self::Error> {
        Ok(())
    }
}

/// Entry point of the kernel.
#[unsafe(no_mangle)]
pub extern "C" fn _start() -> ! {
    let mut free = [0; FRAMES];
    for (number, frame) in (FIRST..).zip(free.iter_mut()) {
        *frame = number;
    }
    let memory = FrameRange::new(Pfn::new(FIRST), FrameCount::new(FRAMES as u64));
    let ledger = memory.and_then(|memory| BitmapLedger::new([0; 256], &[memory]).ok());
    let Some(ledger) = ledger else { halt() };
    let mut source = Ledgered { source: Frames { free, count: FRAMES }, ledger };
    let mut port = Port { size: FrameCount::ZERO };
    let mut engine = Engine::new(&SHARED, Policy::DEFAULT);
    let mut ticks = 0;
    loop {
        SHARED.signal().config_changed();
        while engine.step(&mut port, &mut source, Nanos::from_millis(ticks), Budget::SMALL).more {}
        ticks += 1;
        core::hint::black_box(port.size);
    }
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
