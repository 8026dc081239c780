//! Services beside the balloon: what a device does to them is not the balloon's.

// Whole guests on memory that is safe code: hours under Miri.
#![cfg(not(any(miri, loom)))]

use balloon_core::testing::FakeSource;
use balloon_core::{
    Budget, Engine, FrameCount, FrameRange, Nanos, Pfn, Policy as Pace, Progress, Shared,
};
use transport_virtio::fake::{self, Profile};
use transport_virtio::{Features, Policy, QueueError, QueueId, Statistics, Tag, VirtioError};

#[test]
fn a_statistics_queue_that_runs_away_leaves_the_balloon_alone() {
    let shared: &'static Shared<16> = Box::leak(Box::default());
    let policy = Policy::new().with_statistics();
    let mut balloon = fake::bring_up::<16>(Profile::qemu(Features::empty()), &policy).unwrap();
    let mut statistics = Statistics::new(&[Tag::FREE]);
    let memory = FrameRange::new(Pfn::new(0x1000), FrameCount::new(2048)).unwrap();
    let mut source = FakeSource::new(memory);
    let mut engine = Engine::new(shared, Pace::DEFAULT);
    let offered = statistics.step(&mut balloon, shared.slots(), |_| 1);
    assert_eq!(offered, Ok(true));

    let device = balloon.queues_mut().device_mut();
    device.jump(QueueId::Statistics, 1000);
    device.set_target(1024);
    shared.signal().config_changed();
    for millis in 0..100 {
        let now = Nanos::from_millis(millis);
        engine.step(&mut balloon, &mut source, now, Budget::LARGE);
        let device = balloon.queues_mut().device_mut();
        device.serve(QueueId::Inflate);
        shared.signal().used();
    }
    let status = engine.status(&source);
    assert_eq!(status.progress, Progress::Reached, "{status:?}");
    assert_eq!(balloon.queues().device().actual(), 1024);
    let told = statistics.step(&mut balloon, shared.slots(), |_| 1);
    let broken = VirtioError::Queue(QueueId::Statistics, QueueError::Broken);
    assert_eq!(told, Err(broken), "the service is told");
}
