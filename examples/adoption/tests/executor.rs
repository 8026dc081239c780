//! The kernel with a task in interrupt context, from plug-in to relief.

use adoption::executor::{glue, kernel};
use adoption::machine::Registers;
use balloon_core::Nanos;
use balloon_core::testing::check_frame_source_laws;
use transport_virtio::QueueId;

const CHUNK: usize = 256;

/// The host works and interrupts until it has nothing more to say.
fn settle(device: &Registers) {
    let mut seen = 0;
    for _ in 0..500 {
        kernel::pass(Nanos::from_millis(1));
        let interrupts = device.work();
        if interrupts != seen {
            seen = interrupts;
            kernel::interrupt(glue::used);
        } else {
            // The timer's interrupt.
            kernel::interrupt(|| {});
        }
    }
}

fn want(device: &Registers, frames: usize) {
    device.want(u32::try_from(frames).expect("a small machine"));
    kernel::interrupt(glue::config_changed);
    settle(device);
}

fn left() -> usize {
    kernel::HEAP.lock().left()
}

/// On a host with the bulk path, then on one without.
#[test]
fn inflate_deflate_and_relief_under_the_heap_lock() {
    check_frame_source_laws(&mut glue::Chunks(&mut kernel::HEAP.lock()));
    let all = left();
    for reporting in [true, false] {
        cycle(reporting, all);
    }
}

fn cycle(reporting: bool, all: usize) {
    let (device, memory) = Registers::plugged(reporting);
    glue::probe(device.clone(), memory).expect("a balloon");
    settle(&device);
    let reserve = CHUNK;
    assert_eq!(left(), all - reserve);
    for target in [8 * CHUNK, 3 * CHUNK, 10 * CHUNK, 0] {
        want(&device, target);
        assert_eq!(device.actual() as usize, target);
        assert_eq!(left(), all - reserve - target);
    }
    // Not a whole number of chunks: what fits.
    want(&device, 2 * CHUNK + 100);
    assert_eq!(device.actual() as usize, 2 * CHUNK);

    // The heap is empty but for the balloon: a chunk comes back inside the
    // allocation, with the heap locked.
    want(&device, 6 * CHUNK);
    let mut used = Vec::new();
    let mut heap = kernel::HEAP.lock();
    used.extend(core::iter::from_fn(|| heap.allocate_quietly(1, 1)));
    used.push(heap.allocate(1, 1).expect("relief"));
    assert_eq!(heap.left(), CHUNK - 1);
    used.extend(core::iter::from_fn(|| heap.allocate_quietly(1, 1)));
    drop(heap);
    // The task was woken, by no timer and by no interrupt of the device.
    kernel::interrupt(|| {});
    assert_eq!(device.actual() as usize, 5 * CHUNK, "the host is told");
    settle(&device);

    // The task is at work on another CPU: the chunk set aside helps at once, and
    // its next step brings another one.
    let working = glue::BALLOON.lock();
    let mut heap = kernel::HEAP.lock();
    for _ in 0..reserve {
        used.push(heap.allocate(1, 1).expect("a frame set aside"));
    }
    assert!(heap.allocate(1, 1).is_none(), "no more are");
    drop(heap);
    drop(working);
    settle(&device);
    assert_eq!(left(), CHUNK);
    assert_eq!(device.actual() as usize, 4 * CHUNK);

    // All of it goes back.
    for address in used {
        kernel::HEAP.lock().deallocate(address, 1);
    }
    want(&device, 0);
    for _ in 0..20 {
        kernel::pass(Nanos::from_millis(1000));
        settle(&device);
    }
    assert_eq!(left(), all - reserve, "the reserve is filled again");
    let told = device.notified(QueueId::Inflate) > 0;
    assert_eq!(told, !reporting, "the path");
    while let Some(frame) = glue::SHARED.take_emergency() {
        let address = frame.start().address();
        kernel::HEAP.lock().deallocate(address, CHUNK);
    }
}
