//! Odd but legal: paths without room, kernels of large pages, requests for relief that
//! one step cannot meet, a ledger that is not empty.

use super::*;
use crate::transport::Limits;

fn without(part: usize, limits: &mut Limits) {
    match part {
        0 => limits.in_flight = 0,
        1 => limits.frames = FrameCount::ZERO,
        _ => limits.runs = 0,
    }
}

#[test]
fn a_path_without_room_is_no_path() {
    for part in 0..3 {
        for scattered in [false, true] {
            let mut rig = Rig::new(FakeHost::bulk(), 1000);
            if scattered {
                rig.source = rig.source.scattered();
            }
            without(part, &mut rig.host.capabilities.inflate);
            rig.inflate_to(100);
            rig.assert_reached(100);
            assert_eq!(rig.source.held(Via::Bulk).get(), 100);
        }
    }
}

#[test]
fn what_needs_no_request_comes_back_without_a_way_to_make_one() {
    for part in 0..3 {
        for reset in [false, true] {
            let mut rig = Rig::new(FakeHost::bulk(), 1000);
            without(part, &mut rig.host.capabilities.deflate);
            rig.inflate_to(600);
            rig.assert_reached(600);
            rig.set_target(0);
            if reset {
                rig.engine.resume(Resume::Reset);
            }
            rig.run();
            assert_eq!((rig.size(), rig.source.free().get()), (0, 1000));
        }
    }
}

/// Kernels with pages of 16 and 64 KiB.
#[test]
fn a_kernel_of_large_pages_has_whole_ones_in_its_reserve() {
    for order in [2, 4].map(|order| Order::new(order).unwrap()) {
        let policy = Policy {
            emergency_pool: FrameCount::new(6),
            granularity: Granularity::Whole(order),
            ..POLICY
        };
        let mut rig = Rig::with_policy(FakeHost::plain(), 1024, policy);
        rig.run();
        let pages = 6u64.div_ceil(order.frames().get());
        assert_eq!(rig.shared.emergency_frames().get(), pages << order.get());
        for _ in 0..pages {
            let page = rig.shared.take_emergency().expect("a page");
            assert!(page.start().is_aligned(order), "{page}");
            assert_eq!(page.count(), order.frames());
            page.frames().for_each(|pfn| rig.source.free_allocated(pfn));
        }
        assert_eq!(rig.shared.take_emergency(), None);
    }
}

#[test]
fn a_kernel_of_large_pages_gets_whole_ones_back() {
    let order = Order::new(4).unwrap();
    let unit = Granularity::Whole(order);
    for host in [FakeHost::plain(), FakeHost::bulk()] {
        let policy = Policy {
            granularity: unit,
            ..POLICY
        };
        let mut rig = Rig::with_policy(host, 2048, policy);
        rig.host.capabilities.deflate_on_oom = true;
        let mut expected = 1024;
        rig.inflate_to(expected);
        for (need, frames) in [
            (Need::frames(FrameCount::ONE), 16),
            (Need::frames(FrameCount::new(40)), 48),
            (Need::run(FrameCount::new(20), Order::FRAME), 32),
        ] {
            let relieved = rig.relieve(need);
            let came = relieved.usable.saturating_add(relieved.coming);
            assert_eq!(came.get(), frames, "{need:?}");
            rig.run();
            expected -= frames;
            assert_eq!(rig.size(), expected);
        }
        rig.shared.request_relief(FrameCount::new(40));
        rig.run();
        assert_eq!(rig.size(), expected - 48);
        // Nothing was cut: the way back to the target is free.
        rig.now = Nanos::from_secs(60);
        rig.run();
        rig.assert_reached(1024);
    }
}

#[test]
fn relief_that_was_asked_for_comes_in_as_many_steps_as_it_takes() {
    for must_tell in [false, true] {
        let mut rig = Rig::new(FakeHost::plain(), 20_000);
        rig.source = rig.source.scattered();
        rig.host.capabilities.deflate_on_oom = true;
        rig.host.capabilities.must_tell_host = must_tell;
        rig.inflate_to(15_000);
        rig.shared.request_relief(FrameCount::new(10_000));
        rig.run();
        assert_eq!(rig.size(), 5_000);
        // More than there is: what there is, and then no more is asked.
        rig.shared.request_relief(FrameCount::new(10_000));
        assert!(!rig.run().more);
        assert_eq!(rig.size(), 0);
    }
}

#[test]
fn a_quiesced_engine_takes_nothing_and_remembers_who_asked() {
    let reserve = FrameCount::new(4);
    let mut rig = Rig::with_policy(
        FakeHost::plain(),
        1000,
        Policy {
            emergency_pool: reserve,
            ..POLICY
        },
    );
    rig.host.capabilities.deflate_on_oom = true;
    rig.inflate_to(300);
    assert_eq!(rig.shared.emergency_frames(), reserve);
    rig.engine.quiesce();
    let frame = rig.shared.take_emergency().unwrap();
    rig.used = frame.count();
    rig.shared.request_relief(FrameCount::new(10));
    let free = rig.source.free();
    for _ in 0..10 {
        assert!(!rig.step(Budget::LARGE).more);
    }
    assert_eq!((rig.source.free(), rig.size()), (free, 300));
    rig.engine.resume(Resume::Kept);
    rig.run();
    assert_eq!(rig.size(), 290);
}

#[test]
fn relief_of_nothing_starts_no_cool_down() {
    let mut rig = Rig::new(FakeHost::plain(), 1000);
    rig.relieve(Need::frames(FrameCount::ZERO));
    rig.inflate_to(300);
    rig.assert_reached(300);
}

#[test]
fn a_ledger_that_is_not_empty_is_taken_apart_first() {
    for kept in [false, true] {
        let mut rig = Rig::new(FakeHost::plain(), 1000);
        rig.inflate_to(300);
        // The driver is bound again, over the books of the last one.
        rig.shared = crate::shared::tests::leaked();
        *rig.engine = Engine::new(rig.shared, POLICY);
        if kept {
            rig.engine.resume(Resume::Kept);
        } else {
            rig.host = FakeHost::plain();
        }
        rig.inflate_to(300);
        rig.assert_reached(300);
        assert_eq!(
            rig.host.owned().get(),
            300,
            "what the host has is published"
        );
        assert_eq!(rig.host.requests(), 2, "none of them is given twice");
    }
}
