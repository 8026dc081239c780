//! Compaction over virtio: no exchange, so each pair is inflated and deflated.

// Whole guests on memory that is safe code: hours under Miri.
#![cfg(not(any(miri, loom)))]
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use balloon_core::testing::{FakeSource, check_migrate_laws};
use balloon_core::{
    Budget, Compactor, Engine, FrameCount, FrameRange, Migrate, Migration, Nanos, Pfn, Policy,
    Progress, Shared, compactor_words,
};
use transport_virtio::testing::{self, FakeBalloon, Profile};
use transport_virtio::{DriverOptions, Features, QueueId};

fn range(start: u64, count: u64) -> FrameRange {
    FrameRange::new(Pfn::new(start), FrameCount::new(count)).unwrap()
}

fn balloon(options: &DriverOptions) -> FakeBalloon<16> {
    testing::bring_up(Profile::qemu(Features::PAGE_REPORTING), options).unwrap()
}

fn serve(balloon: &mut FakeBalloon<16>) {
    for queue in [QueueId::Inflate, QueueId::Deflate, QueueId::Reporting] {
        balloon.queues_mut().device_mut().serve(queue);
    }
}

#[test]
fn two_steps_keep_the_law() {
    let mut balloon = balloon(&DriverOptions::new());
    assert_eq!(balloon.migration(), Migration::InflateFirst);
    check_migrate_laws(&mut balloon, range(0x1000, 512), serve);
}

/// Every second frame is given; compaction puts the holes together, whether the
/// frames went one by one or in bulk.
#[test]
fn a_scattered_balloon_comes_together() {
    for options in [DriverOptions::new().without_bulk(), DriverOptions::new()] {
        let zone = range(0, 8 * 512);
        let shared: &'static Shared<16> = Box::leak(Box::default());
        let mut balloon = balloon(&options);
        let mut engine = Engine::new(shared, Policy::DEFAULT);
        let mut source = FakeSource::new(zone).scattered();
        let words = vec![0; usize::try_from(compactor_words(zone)).unwrap()];
        let mut compactor = Compactor::<_, 2>::new(words, zone).unwrap();
        let mut now = Nanos::ZERO;
        balloon.queues_mut().device_mut().set_target(4 * 512);
        shared.signal().config_changed();
        for round in 0..600 {
            now = now.saturating_add(Nanos::from_millis(1));
            engine.step(&mut balloon, &mut source, now, Budget::LARGE);
            compactor.step(&mut engine, &mut balloon, &mut source, now, Budget::LARGE);
            serve(&mut balloon);
            shared.signal().used();
            if round == 100 {
                source.check(FrameCount::ZERO);
                assert_eq!(engine.status(&source).progress, Progress::Reached);
                assert!(compactor.start());
            }
        }
        assert!(!compactor.is_running());
        source.check(FrameCount::ZERO);
        let report = compactor.report();
        assert_eq!(report.before.blocks(), 0);
        assert_eq!(report.after.blocks(), 4, "{report:?}");
        assert_eq!(report.moves, report.fewest_moves);
        let status = engine.status(&source);
        assert_eq!(status.progress, Progress::Reached);
        assert_eq!(balloon.queues().device().actual(), 4 * 512);
    }
}
