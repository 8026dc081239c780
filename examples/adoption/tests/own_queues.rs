//! The kernel with its own virtqueues, from plug-in to relief.

use adoption::machine::Registers;
use adoption::own_queues::glue;
use adoption::own_queues::kernel::{self, FRAME_ALLOCATOR, VirtioDevice, WAIT_QUEUE};
use balloon_core::testing::check_frame_source_laws;
use balloon_core::{FrameCount, Paged, Transport as _};
use core::alloc::Layout;
use transport_virtio::testing::FakeMemory;
use transport_virtio::{DriverOptions, Features, QueueId, VirtioBalloon, wanted_features};

/// What happens to the machine while the thread waits: it is switched off once
/// all memory is back.
fn machine(device: Registers, bulk: bool) -> impl FnMut() -> bool + Send {
    let all = FRAME_ALLOCATOR.left();
    let targets = [1000, 300, 1200, 0, 1500];
    let page = Layout::from_size_align(4096, 4096).expect("a page");
    let (mut ticks, mut used) = (0usize, Vec::new());
    move || {
        device.work();
        kernel::interrupt();
        let (phase, tick) = (ticks / 100, ticks % 100);
        ticks += 1;
        match (targets.get(phase), phase.checked_sub(targets.len())) {
            (Some(target), _) if tick == 0 => device.want(*target),
            (Some(target), _) if tick == 99 => {
                assert_eq!(device.actual(), *target);
                assert_eq!(FRAME_ALLOCATOR.left(), all - *target as usize);
            }
            (None, Some(0)) if tick == 0 => {
                // Every frame that is left is in use, and one more is needed.
                while let Some(frame) = FRAME_ALLOCATOR.alloc(page) {
                    used.push(frame);
                }
                glue::SHARED.request_relief(FrameCount::new(64));
            }
            (None, Some(0)) if tick == 99 => {
                assert_eq!(FRAME_ALLOCATOR.left(), 64, "relief");
                assert_eq!(device.actual() as usize, 1500 - 64, "the host is told");
                let pages = device.notified(QueueId::Inflate) > 0;
                assert_eq!(pages, !bulk, "the path");
            }
            (None, Some(1)) if tick == 0 => {
                for frame in used.drain(..) {
                    FRAME_ALLOCATOR.dealloc(frame, 4096);
                }
                device.want(0);
            }
            (None, Some(2)) => {
                assert_eq!(FRAME_ALLOCATOR.left(), all, "nothing is lost");
                return false;
            }
            _ => {}
        }
        true
    }
}

fn start(
    (device, memory): (Registers, FakeMemory),
    policy: &DriverOptions,
) -> VirtioBalloon<glue::BalloonDevice> {
    let wanted = |offered| wanted_features(offered, policy);
    let (virtio, agreed) = VirtioDevice::negotiate(device, memory, wanted);
    let queues = glue::probe(virtio, agreed, policy).expect("a balloon");
    VirtioBalloon::attach(queues, agreed, policy)
}

fn run(policy: &DriverOptions, bulk: bool) {
    let (device, memory) = Registers::plugged(bulk);
    let balloon = start((device.clone(), memory), policy);
    WAIT_QUEUE.plug(Box::new(machine(device, bulk)));
    // Ends when the machine does.
    assert_eq!(glue::run(balloon), None);
}

/// On a host with the bulk path, then on one without.
#[test]
fn inflate_deflate_and_relief() {
    check_frame_source_laws(&mut Paged(glue::GlobalFrames));
    for bulk in [true, false] {
        // Its queues know no notification by ring position.
        run(&DriverOptions::new().without_event_idx(), bulk);
    }
}

/// Each range costs a descriptor.
#[test]
fn the_queue_holds_as_many_ranges_as_it_says() {
    let policy = DriverOptions::new().without_event_idx();
    let balloon = start(Registers::plugged(true), &policy);
    let bulk = balloon.capabilities().bulk.expect("ranges");
    assert!(bulk.runs * bulk.in_flight <= usize::from(kernel::QUEUE_SIZE));
}

#[test]
fn the_device_is_told_what_free_frames_hold() {
    let policy = DriverOptions::new().without_event_idx().with_reporting();
    let features = Features::PAGE_REPORTING | Features::PAGE_POISON;
    for poison in [None, Some(0x5a5a_5a5a)] {
        let policy = poison.map_or(policy, |value| policy.with_poison(value));
        let (device, memory) = Registers::with(features);
        let balloon = start((device.clone(), memory), &policy);
        let negotiated = balloon.negotiated();
        assert_eq!(negotiated.contains(Features::PAGE_POISON), poison.is_some());
        assert_eq!(device.poison(), poison.unwrap_or(0));
        assert!(!device.broken().contains(&"10"), "too late");
    }
}
