use super::*;
use crate::VirtioBalloon;
use crate::testing::{FakeDevice, NoDelay, Profile};
use balloon_core::testing::check_transport_laws;
use balloon_core::{FrameCount, FrameRange, Pfn};
use core::ptr::NonNull;

/// The whole driver over raw memory, both ends in this process: what Miri
/// is to see of the unsafe code.
#[test]
fn requests_travel_through_raw_memory() {
    const BYTES: usize = Rings::<FakeDevice, DmaRegion, 2>::DMA_BYTES;
    #[repr(align(16))]
    struct Memory([u8; BYTES]);
    let mut memory = Memory([0xff; BYTES]);
    let base = NonNull::from(&mut memory.0).cast();
    // SAFETY: aligned, outlives both ends, and only they access it.
    let ours = unsafe { DmaRegion::new(base, 0x1_0000, BYTES) };
    // SAFETY: as above; this is the device behind the driver.
    let theirs = unsafe { DmaRegion::new(base, 0x1_0000, BYTES) };
    let device = FakeDevice::new(Profile::qemu(Features::PAGE_REPORTING), theirs);
    let mut balloon: VirtioBalloon<Rings<FakeDevice<DmaRegion>, DmaRegion, 2>> =
        VirtioBalloon::bring_up(device, ours, &DriverOptions::new(), &mut NoDelay)
            .map_err(|refused| refused.error)
            .unwrap();
    let frames = FrameRange::new(Pfn::new(0x1000), FrameCount::new(512)).unwrap();
    check_transport_laws(&mut balloon, frames, |balloon| {
        for queue in QueueId::ALL {
            balloon.queues_mut().device_mut().serve(queue);
        }
    });
    assert!(balloon.queues().counters().answers >= 3);
}
