//! Blocks, rounding, tolerance, clamps.

use super::*;
use crate::events::Event;
use crate::source::Shortage;
use crate::transport::Limits;

fn superpage_host() -> FakeHost {
    let mut host = FakeHost::bulk();
    host.capabilities.unit = Order::SUPERPAGE;
    host
}

const ADAPTIVE: Policy = Policy {
    granularity: Granularity::Adaptive,
    ..POLICY
};

/// Whole blocks in a row, then a region with every other frame in use.
fn mixed(rig: &mut Rig) {
    let all = FrameRange::new(Pfn::new(0x200), FrameCount::new(0x800)).expect("frames");
    rig.source = FakeSource::new(all);
    let mut used = Vec::new();
    // The allocator hands out its highest frame first.
    for _ in 0..0x400 {
        used.push(rig.source.allocate().expect("free frames"));
    }
    for pfn in used.iter().filter(|pfn| pfn.get() % 2 == 0) {
        rig.source.free_allocated(*pfn);
    }
    rig.used = FrameCount::new(0x200);
}

#[test]
fn blocks_are_given_whole_until_there_are_none_then_a_downgrade_is_announced() {
    let mut rig = Rig::with_policy(superpage_host(), 1, ADAPTIVE);
    mixed(&mut rig);
    rig.inflate_to(0x400);
    assert_eq!(rig.status().counters.downgrades, 0);
    assert_eq!(rig.status().unit, Order::SUPERPAGE);
    assert!(rig.host.units.is_empty());
    rig.inflate_to(0x600);
    rig.assert_reached(0x600);
    let status = rig.status();
    assert_eq!((status.counters.downgrades, status.unit), (1, Order::FRAME));
    assert_eq!(rig.host.units, [Order::FRAME], "the host is told");
    let mut downgrades = Vec::new();
    for (event, _) in rig.engine.take_events().iter() {
        if let Event::Downgraded { from, reason } = event {
            downgrades.push((from, reason));
        }
    }
    assert_eq!(downgrades, [(Order::SUPERPAGE, Shortage::Fragmented)]);
}

#[test]
fn the_unit_returns_once_all_given_blocks_are_whole_again() {
    let mut rig = Rig::with_policy(superpage_host(), 1, ADAPTIVE);
    mixed(&mut rig);
    rig.inflate_to(0x410);
    // The kernel frees the rest; all is taken back, then given anew.
    rig.inflate_to(0);
    assert_eq!(
        rig.status().counters.upgrades,
        1,
        "an empty balloon has no broken block"
    );
    assert_eq!(rig.host.units, [Order::FRAME, Order::SUPERPAGE]);
    rig.inflate_to(0x400);
    assert_eq!(rig.status().unit, Order::SUPERPAGE);
}

#[test]
fn a_strict_unit_leaves_what_is_no_block() {
    let policy = Policy {
        granularity: Granularity::Whole(Order::SUPERPAGE),
        ..POLICY
    };
    let mut rig = Rig::with_policy(superpage_host(), 1, policy);
    mixed(&mut rig);
    rig.inflate_to(0x600);
    assert_eq!(rig.size(), 0x400);
    assert_eq!(
        rig.status().progress,
        Progress::Blocked(Blocked::Fragmented)
    );
    assert_eq!(rig.status().counters.downgrades, 0);
}

#[test]
fn targets_are_rounded_where_the_policy_says() {
    let policy = Policy {
        round_to: Order::SUPERPAGE,
        granularity: Granularity::Adaptive,
        ..POLICY
    };
    let mut rig = Rig::with_policy(superpage_host(), 4096, policy);
    rig.inflate_to(1023);
    assert_eq!(rig.status().goal, Some(FrameCount::new(512)));
    rig.assert_reached(512);
    assert_eq!(
        rig.status().target,
        Some(FrameCount::new(1023)),
        "as the host said it"
    );
}

#[test]
fn a_target_is_clamped_and_the_clamp_is_named() {
    let policy = Policy {
        max_size: FrameCount::new(600),
        ..POLICY
    };
    let mut rig = Rig::with_policy(FakeHost::bulk(), 1000, policy);
    let step = rig.inflate_to(u64::MAX);
    assert_eq!(rig.size(), 600);
    assert_eq!(rig.status().progress, Progress::Blocked(Blocked::Floor));
    assert_eq!(step.wake_at, None, "nothing to retry");
}

/// By every path, in every unit, in the reserve for emergencies, too.
#[test]
fn frames_kept_for_page_tables_are_never_given() {
    // The kernel maps far more than it has here: 32 GiB of devices, say.
    let min_free = page_table_reserve(FrameCount::new(40 * 512));
    assert_eq!(min_free.get(), 40);
    for host in [FakeHost::plain, FakeHost::bulk, superpage_host] {
        let block = Granularity::Whole(Order::new(3).unwrap());
        for unit in [Granularity::Frames, Granularity::Adaptive, block] {
            let policy = Policy {
                min_free,
                granularity: unit,
                emergency_pool: FrameCount::new(7),
                ..POLICY
            };
            let mut rig = Rig::with_policy(host(), 1000, policy);
            for target in [300, u64::MAX, 0, 990, 1000] {
                rig.set_target(target);
                for _ in 0..20 {
                    rig.step(Budget::SMALL);
                    assert!(rig.source.free() >= min_free, "{unit:?} at {target}");
                    rig.now = rig.now.saturating_add(Nanos::from_secs(1));
                }
            }
            let left = rig.source.free().saturating_sub(min_free).get();
            assert!(left < 8, "{unit:?}: {left} more are left");
            assert_eq!(rig.status().progress, Progress::Blocked(Blocked::Reserve));
        }
    }
}

#[test]
fn a_miss_within_tolerance_is_no_reason_to_retry() {
    let policy = Policy {
        tolerance: FrameCount::new(16),
        ..POLICY
    };
    let mut rig = Rig::with_policy(FakeHost::plain(), 1000, policy);
    let step = rig.inflate_to(1010);
    assert_eq!(rig.status().progress, Progress::WithinTolerance);
    assert_eq!(step.wake_at, None);
    let step = rig.inflate_to(1017);
    assert_eq!(
        rig.status().progress,
        Progress::Blocked(Blocked::AllocatorEmpty)
    );
    assert!(step.wake_at.is_some());
}

#[test]
fn a_host_that_keeps_changing_its_mind_is_read_at_a_bounded_rate() {
    let mut rig = Rig::with_policy(FakeHost::bulk(), 1000, Policy::DEFAULT);
    let mut steps = 0u64;
    while rig.now < Nanos::from_secs(1) {
        rig.set_target(steps % 1000);
        // What was not read keeps no step busy.
        rig.run();
        rig.now = rig.now.saturating_add(Nanos::from_millis(1));
        steps += 1;
    }
    assert!(rig.status().counters.target_changes <= 100);
    // The last word counts, without another interrupt.
    rig.host.target = FrameCount::new(77);
    rig.now = rig.run().wake_at.unwrap_or(rig.now);
    rig.run();
    rig.assert_reached(rig.status().target.unwrap().get());
}

#[test]
fn the_pace_is_published_while_frames_move() {
    let mut rig = Rig::new(FakeHost::plain(), 256 * 40);
    rig.host.answers = Answers::WhenTold;
    rig.set_target(256 * 40);
    rig.step(Budget::LARGE);
    for _ in 0..10 {
        rig.now = rig.now.saturating_add(Nanos::from_millis(100));
        rig.host.answer(1, rig.shared.slots().completer());
        rig.step(Budget::LARGE);
    }
    let pace = rig.status().pace.expect("working");
    assert_eq!(pace.per_second.get(), 2560);
    assert_eq!(pace.left.get(), 256 * 30);
    assert_eq!(pace.remaining, Some(Nanos::from_secs(3)));
}

/// A host that maps superpages, with requests that are no multiple of one.
fn superpages_in_odd_requests() -> FakeHost {
    let mut host = FakeHost::plain();
    let limits = Limits {
        frames: FrameCount::new(1300),
        run: FrameCount::new(1100),
        ..host.capabilities.deflate
    };
    host.capabilities.unit = Order::SUPERPAGE;
    (host.capabilities.inflate, host.capabilities.deflate) = (limits, limits);
    host
}

/// Every other frame of the lowest two blocks is ballooned, and six whole blocks above.
fn scattered_below_whole(host: FakeHost) -> Rig {
    let mut rig = Rig::with_policy(host, 1, ADAPTIVE);
    let all = FrameRange::new(Pfn::new(0x200), FrameCount::new(8 * 0x200)).expect("frames");
    rig.source = FakeSource::new(all);
    let mut used: Vec<_> = core::iter::from_fn(|| rig.source.allocate()).collect();
    used.retain(|pfn| pfn.get() < 0x600 && pfn.get() % 2 == 1);
    for pfn in all.frames().filter(|pfn| !used.contains(pfn)) {
        rig.source.free_allocated(pfn);
    }
    rig.used = FrameCount::new(used.len() as u64);
    rig.inflate_to(7 * 0x200);
    rig.assert_reached(7 * 0x200);
    rig
}

/// Whole ballooned blocks, what is left of cut ones, and frames of the lowest two.
fn whole_cut_and_scattered(source: &FakeSource) -> [usize; 3] {
    let ballooned = |from: u64, to: u64| {
        let frames = (from..to).map(Pfn::new);
        frames
            .filter(|&pfn| source.ballooned(pfn).is_some())
            .count()
    };
    let [mut whole, mut cut] = [0; 2];
    for start in (0x600..0x1200).step_by(0x200) {
        match ballooned(start, start + 0x200) {
            0x200 => whole += 1,
            some => cut += some,
        }
    }
    [whole, cut, ballooned(0x200, 0x600)]
}

#[test]
fn whole_blocks_are_taken_back_first_and_none_is_cut() {
    let mut rig = scattered_below_whole(superpages_in_odd_requests());
    assert_eq!(whole_cut_and_scattered(&rig.source), [6, 0, 0x200]);
    // Five blocks, and five frames that come from where nothing is whole.
    rig.inflate_to(0x200 * 2 - 5);
    assert_eq!(whole_cut_and_scattered(&rig.source), [1, 0, 0x200 - 5]);
    rig.inflate_to(0x200 + 1);
    assert_eq!(whole_cut_and_scattered(&rig.source), [1, 0, 1]);
    // Nothing else is left.
    rig.inflate_to(0x200 - 1);
    assert_eq!(whole_cut_and_scattered(&rig.source), [0, 0x200 - 1, 0]);
    rig.inflate_to(0);
    rig.assert_reached(0);
}

#[test]
fn what_is_no_block_comes_back_once_there_are_none() {
    let mut rig = scattered_below_whole(superpages_in_odd_requests());
    let before = rig.status().counters.requests;
    rig.inflate_to(0);
    rig.assert_reached(0);
    // Two blocks each, then as many frames as a request has runs for.
    assert_eq!(rig.status().counters.requests - before, 3 + 2);
}

#[test]
fn relief_breaks_no_block_for_a_few_frames_and_takes_whole_ones_for_many() {
    let mut host = superpages_in_odd_requests();
    host.capabilities.deflate_on_oom = true;
    let mut rig = scattered_below_whole(host);
    for (frames, left) in [
        (10, [6, 0, 0x200 - 10]),
        (0x200 * 2, [4, 0, 0x200 - 10]),
        (0x200 + 3, [3, 0, 0x200 - 13]),
    ] {
        let need = Need::frames(FrameCount::new(frames));
        let relieved = rig
            .engine
            .relieve(&mut rig.host, &mut rig.source, need, rig.now)
            .wake(|| {});
        assert_eq!(relieved.usable.get(), frames);
        assert_eq!(whole_cut_and_scattered(&rig.source), left);
    }
}

#[test]
fn blocks_beyond_a_request_come_back_in_frames() {
    let mut host = superpages_in_odd_requests();
    host.capabilities.deflate.run = FrameCount::new(511);
    let mut rig = scattered_below_whole(host);
    rig.inflate_to(0);
    rig.assert_reached(0);
}
