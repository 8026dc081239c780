//! The polling kernel from plug-in to relief.

use adoption::machine::Registers;
use adoption::polling::{glue, kernel};
use balloon_core::Paged;
use balloon_core::testing::check_frame_source_laws;
use transport_virtio::QueueId;

/// A tick of the kernel's worker and of its host.
fn ticks(device: &Registers, count: usize) {
    for _ in 0..count {
        kernel::schedule(glue::work);
        assert_eq!(device.work(), device.work(), "the host interrupts nobody");
    }
}

/// On a host with the bulk path, then on one without.
#[test]
fn inflate_deflate_and_contiguous_relief() {
    check_frame_source_laws(&mut Paged(glue::Pages));
    for reporting in [true, false] {
        cycle(reporting);
    }
}

fn cycle(reporting: bool) {
    let (device, memory) = Registers::plugged(reporting);
    glue::probe(kernel::VirtioTransport(device.clone()), memory).expect("a balloon");
    let pages = kernel::free_pages();
    // Every second page in use: the balloon gets the others, one by one.
    let used: Vec<_> = (0..pages / 2).map(|_| kernel::alloc_pages(1, 1)).collect();
    for page in used.iter().flatten().step_by(2) {
        kernel::dealloc_pages(*page, 1);
    }
    for target in [1000, 300, 1200, 0] {
        device.want(target);
        ticks(&device, 20);
        assert_eq!(device.actual(), target);
        assert_eq!(kernel::free_pages(), pages - pages / 4 - target as usize);
    }

    // All but some scattered pages are in the balloon: no run for the heap.
    let free = kernel::free_pages();
    device.want(u32::try_from(free).expect("a small machine"));
    ticks(&device, 20);
    assert_eq!(kernel::free_pages(), 0);
    assert!(kernel::grow_heap(64), "the balloon gives up a run");
    assert_eq!(kernel::free_pages(), 0, "and nothing beyond it");
    ticks(&device, 1);
    assert_eq!(device.actual() as usize, free - 64, "the host is told");
    // More than the balloon has in a row.
    assert!(!kernel::grow_heap(pages));
    device.want(0);
    ticks(&device, 20);
    assert_eq!(kernel::free_pages(), free - 64);

    // One long run: by ranges where the host takes them.
    for page in used.iter().flatten().skip(1).step_by(2) {
        kernel::dealloc_pages(*page, 1);
    }
    let told = device.notified(QueueId::Inflate);
    device.want(1024);
    ticks(&device, 60);
    assert_eq!(device.actual(), 1024);
    assert_eq!(device.notified(QueueId::Inflate) == told, reporting);
    device.want(0);
    ticks(&device, 60);
    assert_eq!(kernel::free_pages(), pages - 64, "what the heap got stays");
}
