//! What the documentation promises, one property a test.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use buddy_alloc::{
    AddError, AllocError, AtError, Backing, Config, ConfigError, Frame, FrameCount, FrameRange,
    FreeError, GivePath, Isolated, Order, Preference, RangeBuf, RangeError, RegionUse, ReportAsk,
    ReportCursor, Reserve, State, TakeAsk, TakeEnd, TakeStop, Zone, Zones,
};

fn order(order: u8) -> Order {
    Order::new(order).unwrap()
}

fn range(start: u64, count: u64) -> FrameRange {
    FrameRange::new(Frame::new(start), FrameCount::new(count))
}

fn with_zone<R>(
    frames: u64,
    config: Config,
    backing: Backing,
    test: impl FnOnce(&mut Zone<'_>) -> R,
) -> R {
    let span = range(0, frames);
    let mut memory = vec![0; config.metadata_words(span)];
    let mut zone = Zone::new(span, config, &mut memory).unwrap();
    zone.add_range(span, backing).unwrap();
    test(&mut zone)
}

/// The order of reuse is exact across areas that lie far apart.
#[test]
fn most_recently_freed_first() {
    with_zone(1 << 18, Config::new(), Backing::Untouched, |zone| {
        // A: low memory, B: 512 MiB further up. Allocated buddies keep them from merging.
        let (a, b) = ([0, 2, 4], [1 << 17, (1 << 17) + 2]);
        for frame in a.iter().chain(&b) {
            zone.allocate_range_at(range(*frame, 2)).unwrap();
        }
        let freed = [a[0], b[0], a[1], b[1], a[2]];
        for frame in freed {
            zone.free_range(range(frame, 1)).unwrap();
        }
        for frame in freed.iter().rev() {
            let found = zone.allocate(Order::FRAME, Preference::Any);
            assert_eq!(found, Ok(Frame::new(*frame)));
        }
    });
}

#[test]
fn preference_any_ignores_population_and_the_others_are_exact_within_their_class() {
    let freed = [
        (0, true),
        (2, false),
        (4, true),
        (6, false),
        (8, false),
        (10, true),
    ];
    let expect = |preference, expected: [u64; 6]| {
        with_zone(64, Config::new(), Backing::Untouched, |zone| {
            zone.allocate_range_at(range(0, 12)).unwrap();
            for (frame, populated) in freed {
                if populated {
                    zone.free_range(range(frame, 1)).unwrap();
                } else {
                    zone.free_unpopulated(range(frame, 1)).unwrap();
                }
            }
            let found = [(); 6].map(|()| zone.allocate(Order::FRAME, preference).unwrap().get());
            assert_eq!(found, expected, "{preference:?}");
        });
    };
    expect(Preference::Any, [10, 8, 6, 4, 2, 0]);
    expect(Preference::Populated, [10, 4, 0, 8, 6, 2]);
    expect(Preference::Untouched, [8, 6, 2, 12, 13, 14]);
}

#[test]
fn a_split_hands_out_the_populated_half() {
    with_zone(1 << 18, Config::new(), Backing::Untouched, |zone| {
        let used = Frame::new(200_001);
        zone.allocate_at(used, Order::FRAME).unwrap();
        zone.free(used, Order::FRAME).unwrap();
        assert_eq!(
            zone.stats().blocks[18],
            [0, 1],
            "one block of 1 GiB, populated somewhere"
        );
        assert_eq!(zone.allocate(Order::FRAME, Preference::Populated), Ok(used));
        zone.free(used, Order::FRAME).unwrap();
        let untouched = zone.allocate(order(16), Preference::Untouched).unwrap();
        assert!(!FrameRange::block(untouched, order(16)).contains(used));
    });
}

#[test]
fn a_range_for_the_balloon_keeps_the_populated_bit_as_it_was() {
    with_zone(4096, Config::new(), Backing::Untouched, |zone| {
        let mut places = [range(0, 1); 4];
        let mut sink = RangeBuf::new(&mut places, FrameCount::new(100));
        assert_eq!(zone.take(TakeAsk::default(), &mut sink), TakeStop::Enough);
        assert_eq!(sink.populated(), FrameCount::ZERO);
        let taken = sink.ranges()[0];
        zone.put_unchanged(taken).unwrap();
        assert_eq!(zone.stats().free_populated, FrameCount::ZERO);
        zone.take_at(taken).unwrap();
        zone.put(taken, Backing::Unknown).unwrap();
        assert_eq!(zone.stats().free_populated, FrameCount::new(100));
    });
}

#[test]
fn ballooned_frames_remember_their_path() {
    with_zone(4096, Config::new(), Backing::Populated, |zone| {
        zone.take_at(range(0, 1024)).unwrap();
        zone.store(range(0, 512), GivePath::Told).unwrap();
        zone.store(range(512, 512), GivePath::Bulk).unwrap();
        assert_eq!(
            zone.store(range(0, 1), GivePath::Bulk),
            Err(RangeError::WrongState)
        );
        assert_eq!(
            zone.put(range(0, 512), Backing::Unknown),
            Err(RangeError::WrongState)
        );
        let told = State::Ballooned(GivePath::Told);
        assert_eq!(zone.state(Frame::new(3)).unwrap().state, told);
        assert_eq!(zone.ballooned(GivePath::Bulk), FrameCount::new(512));
        let mut places = [range(0, 1); 4];
        let mut sink = RangeBuf::new(&mut places, FrameCount::new(1000));
        assert_eq!(zone.recall(GivePath::Bulk, &mut sink), TakeStop::Empty);
        assert_eq!(sink.ranges(), [range(512, 512)], "one run");
        zone.put(range(512, 512), Backing::Untouched).unwrap();
        zone.recall_at(range(7, 3), GivePath::Told).unwrap();
        zone.put(range(7, 3), Backing::Untouched).unwrap();
        assert_eq!(zone.owned_frames(), FrameCount::new(4096 - 512 + 3));
    });
}

#[test]
fn every_misuse_is_told_apart_and_changes_nothing() {
    with_zone(4096, Config::new(), Backing::Untouched, |zone| {
        let block = zone.allocate(order(4), Preference::Any).unwrap();
        let inside = Frame::new(block.get() + 4);
        zone.reserve(range(1000, 10)).unwrap();
        zone.isolate_at(Frame::new(2048), order(5)).unwrap();
        zone.take_at(range(3000, 1)).unwrap();
        let before = zone.stats();
        assert_eq!(zone.free(block, order(3)), Err(FreeError::WrongOrder));
        assert_eq!(zone.free(block, order(5)), Err(FreeError::WrongOrder));
        assert_eq!(zone.free(inside, order(2)), Err(FreeError::Interior));
        assert_eq!(
            zone.free(Frame::new(1004), Order::FRAME),
            Err(FreeError::Reserved)
        );
        assert_eq!(
            zone.free(Frame::new(2048), order(5)),
            Err(FreeError::Isolated)
        );
        assert_eq!(
            zone.free(Frame::new(3000), Order::FRAME),
            Err(FreeError::Ballooned)
        );
        assert_eq!(
            zone.free(Frame::new(4096), Order::FRAME),
            Err(FreeError::Foreign)
        );
        assert_eq!(
            zone.free(Frame::new(u64::MAX), Order::MAX),
            Err(FreeError::Foreign)
        );
        assert_eq!(
            zone.free(Frame::new(2000), Order::FRAME),
            Err(FreeError::DoubleFree)
        );
        assert_eq!(
            zone.free_range(range(block.get(), 17)),
            Err(FreeError::DoubleFree)
        );
        assert_eq!(
            zone.allocate_at(inside, Order::FRAME),
            Err(AtError::NotFree)
        );
        assert_eq!(
            zone.allocate_at(Frame::new(4096), order(1)),
            Err(AtError::Foreign)
        );
        assert_eq!(
            zone.allocate_at(Frame::new(2001), order(1)),
            Err(AtError::Misaligned)
        );
        assert_eq!(
            zone.add_range(range(100, 1), Backing::Unknown),
            Err(AddError::Overlap)
        );
        assert_eq!(
            zone.add_range(range(4000, 200), Backing::Unknown),
            Err(AddError::Foreign)
        );
        assert_eq!(
            zone.unreserve(range(999, 2), Backing::Unknown),
            Err(RangeError::WrongState)
        );
        assert_eq!(zone.stats(), before);
        assert_eq!(zone.free(block, order(4)), Ok(()));
        assert_eq!(zone.free(block, order(4)), Err(FreeError::DoubleFree));
    });
}

#[test]
fn a_zone_that_cannot_be_is_refused() {
    let mut memory = vec![0; 100];
    let mut build = |span, config| Zone::new(span, config, &mut memory).err();
    let new = Config::new();
    assert_eq!(build(range(0, 0), new), Some(ConfigError::Empty));
    assert_eq!(
        build(range((1 << 40) - 1, 2), new),
        Some(ConfigError::FrameNumber)
    );
    assert_eq!(
        build(range(0, (1 << 29) + 1), new),
        Some(ConfigError::TooLarge)
    );
    assert_eq!(build(range(0, 4096), new), Some(ConfigError::Metadata));
    assert_eq!(
        build(range(0, 9), new.with_granule(order(5))),
        Some(ConfigError::Granule)
    );
    assert_eq!(
        build(range(0, 9), new.with_max_order(order(0))),
        Some(ConfigError::MaxOrder)
    );
    let odd = new.with_max_order(order(5)).with_breakable(1);
    assert_eq!(build(range(0, 9), odd), Some(ConfigError::Granule));
    assert_eq!(
        build(range((1 << 40) - 9, 9), new),
        None,
        "the highest frame there is"
    );
}

/// Free beside used: the two frames of a pair share a node, each has its own state.
#[test]
fn a_single_frame_is_freed_once() {
    with_zone(64, Config::new(), Backing::Untouched, |zone| {
        for (frame, buddy) in [(10, 11), (21, 20)] {
            zone.allocate_range_at(range(frame.min(buddy), 2)).unwrap();
            zone.free_range(range(frame, 1)).unwrap();
            let again = zone.free(Frame::new(frame), Order::FRAME);
            assert_eq!(again, Err(FreeError::DoubleFree));
            zone.free_range(range(buddy, 1)).unwrap();
        }
        assert_eq!(zone.stats().free, FrameCount::new(64));
    });
}

/// The whole 2 TiB of a zone: link values run up to the very last pair.
#[test]
#[cfg_attr(miri, ignore = "2 GiB of metadata, of which almost nothing is touched")]
fn a_zone_of_two_tebibytes_reaches_its_last_frame() {
    let span = range(1 << 30, 1 << 29);
    let config = Config::new();
    let mut memory = vec![0; config.metadata_words(span)];
    let mut zone = Zone::new_zeroed(span, config, &mut memory).unwrap();
    zone.add_range(span, Backing::Untouched).unwrap();
    let last = span.end().get() - 1;
    for frame in [last, last - 1, last - 4, last - 5, last - 2] {
        zone.allocate_at(Frame::new(frame), Order::FRAME).unwrap();
    }
    for frame in [last, last - 2, last - 4] {
        zone.free(Frame::new(frame), Order::FRAME).unwrap();
    }
    for frame in [last - 4, last] {
        assert_eq!(
            zone.allocate(Order::FRAME, Preference::Any),
            Ok(Frame::new(frame))
        );
    }
    for frame in [last, last - 1, last - 4, last - 5] {
        zone.free(Frame::new(frame), Order::FRAME).unwrap();
    }
    assert_eq!(
        zone.stats().blocks[18][0] + zone.stats().blocks[18][1],
        1 << 11
    );
}

#[test]
fn alignment_above_size_and_odd_sizes() {
    with_zone(1024, Config::new(), Backing::Untouched, |zone| {
        zone.allocate(Order::FRAME, Preference::Any).unwrap();
        let found = zone
            .allocate_range(FrameCount::new(5), order(6), Preference::Any)
            .unwrap();
        assert_eq!(found.start().get() % 64, 0);
        assert_eq!(
            zone.stats().used,
            FrameCount::new(6),
            "the tail was freed at once"
        );
        zone.free_range(range(found.start().get() + 1, 2)).unwrap();
        assert_eq!(zone.stats().used, FrameCount::new(4));
        let none = zone.allocate_range(FrameCount::ZERO, order(0), Preference::Any);
        assert_eq!(none, Err(AllocError::TooLarge));
    });
}

#[test]
fn a_split_block_is_freed_in_parts() {
    with_zone(64, Config::new(), Backing::Untouched, |zone| {
        let block = zone.allocate(order(4), Preference::Any).unwrap();
        zone.split_block(block, order(4), order(2)).unwrap();
        assert_eq!(zone.free(block, order(4)), Err(FreeError::WrongOrder));
        for part in 0..4 {
            zone.free(Frame::new(block.get() + part * 4), order(2))
                .unwrap();
        }
        assert_eq!(zone.stats().free, FrameCount::new(64));
    });
}

/// Whole blocks of 2 MiB left after a mixed load: small demands of all orders come and go at 40 %
/// use, their number swings.
fn whole_blocks_after_mixed_load(breakable: u32) -> u64 {
    let frames: u64 = if cfg!(miri) { 1 << 13 } else { 1 << 16 };
    let config = Config::new().with_breakable(breakable);
    with_zone(frames, config, Backing::Untouched, |zone| {
        let mut seed = 1u64;
        let mut random = move |below: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed >> 8) % below
        };
        let mut live = Vec::new();
        let mut used = 0;
        for step in 0..frames * 8 {
            let swing = if (step * 4 / frames).is_multiple_of(2) {
                4
            } else {
                0
            };
            if used < frames * (2 + swing) / 16 {
                let size = order(u8::try_from(random(1 << 9).trailing_zeros().min(8)).unwrap());
                let frame = zone.allocate(size, Preference::Populated).unwrap();
                live.push((frame, size));
                used += size.frames();
            } else {
                let nth = usize::try_from(random(live.len() as u64)).unwrap();
                let (frame, size) = live.swap_remove(nth);
                zone.free(frame, size).unwrap();
                used -= size.frames();
            }
        }
        zone.stats().free_in_blocks(Order::MIB_2).get() >> 9
    })
}

#[test]
fn blocks_kept_for_breaking_leave_the_others_whole() {
    let set = if cfg!(miri) { 2 } else { 16 };
    let (without, with) = (
        whole_blocks_after_mixed_load(0),
        whole_blocks_after_mixed_load(set),
    );
    assert!(
        with > without,
        "{with} whole blocks left with the set, {without} without"
    );
}

#[test]
fn reporting_walks_what_is_worth_it_and_nothing_twice() {
    with_zone(1 << 14, Config::new(), Backing::Untouched, |zone| {
        // Region 3 wholly used once, region 5 in three frames, region 20 in half.
        for (start, count) in [(3 * 512, 512), (5 * 512, 3), (20 * 512, 256)] {
            zone.allocate_range_at(range(start, count)).unwrap();
            zone.free_range(range(start, count)).unwrap();
        }
        let ask = ReportAsk {
            order: Order::MIB_2,
            populated: FrameCount::new(200),
        };
        let mut cursor = ReportCursor::default();
        assert_eq!(
            zone.isolate_next(&mut cursor, ask),
            Isolated::Block(range(3 * 512, 512))
        );
        // Isolated frames are nobody's: not free, not to be freed.
        assert_eq!(
            zone.allocate_at(Frame::new(3 * 512), Order::FRAME),
            Err(AtError::NotFree)
        );
        // The zone changes while the lock is dropped; the cursor goes on all the same.
        let frame = zone.allocate(Order::FRAME, Preference::Untouched).unwrap();
        assert_eq!(
            zone.isolate_next(&mut cursor, ask),
            Isolated::Block(range(20 * 512, 512))
        );
        assert_eq!(zone.isolate_next(&mut cursor, ask), Isolated::Done);
        zone.free(frame, Order::FRAME).unwrap();
        zone.unisolate(range(3 * 512, 512), Backing::Untouched)
            .unwrap();
        zone.unisolate(range(20 * 512, 512), Backing::Untouched)
            .unwrap();
        assert_eq!(
            zone.isolate_next(&mut cursor, ask),
            Isolated::Done,
            "nothing new to report"
        );
        assert_eq!(zone.stats().free, FrameCount::new(1 << 14));
    });
}

#[test]
fn regions_are_found_by_density_and_by_gain() {
    with_zone(1 << 14, Config::new(), Backing::Untouched, |zone| {
        assert_eq!(zone.densest_region(), None);
        zone.allocate_range_at(range(0, 1 << 14)).unwrap();
        for (region, free) in [(3u64, 100), (7, 500), (9, 480), (11, 511)] {
            zone.free_range(range(region * 512, free)).unwrap();
        }
        zone.free_range(range(12 * 512, 512)).unwrap();
        assert_eq!(zone.densest_region().unwrap().range, range(12 * 512, 512));
        let mut best = [RegionUse::EMPTY; 3];
        assert_eq!(zone.compaction_candidates(Frame::new(0), &mut best), None);
        assert_eq!(
            best.map(|region| region.range.start().get() / 512),
            [11, 7, 9]
        );
        assert_eq!(best.map(|region| region.to_move().get()), [1, 12, 32]);
        assert_eq!(
            zone.region_use(Frame::new(3 * 512)).unwrap().free,
            FrameCount::new(100)
        );
    });
}

#[test]
fn fragmentation_is_measured() {
    with_zone(2048, Config::new(), Backing::Untouched, |zone| {
        assert_eq!(zone.stats().unusable_index(Order::MIB_2), 0);
        for region in 0..2 {
            zone.allocate_at(Frame::new(region * 512 + 300), Order::FRAME)
                .unwrap();
        }
        let stats = zone.stats();
        assert_eq!(stats.free_in_blocks(Order::MIB_2), FrameCount::new(1024));
        assert_eq!(stats.unusable_index(Order::MIB_2), 1022 * 1000 / 2046);
        let blocks: Vec<_> = zone
            .free_blocks(order(8))
            .map(|block| block.start.get())
            .collect();
        assert_eq!(blocks, [512, 0]);
    });
}

#[test]
fn a_reserve_is_kept() {
    with_zone(1024, Config::new(), Backing::Populated, |zone| {
        let reserve =
            Reserve::new(FrameCount::new(100)).with_low_memory_cap(FrameCount::new(1013), order(4));
        let mut kept = reserve.of(zone);
        kept.allocate(order(9), Preference::Any).unwrap();
        let mut places = [range(0, 1); 8];
        let mut sink = RangeBuf::new(&mut places, FrameCount::new(5000));
        assert_eq!(kept.take(TakeAsk::default(), &mut sink), TakeEnd::Floor);
        let taken = sink.ranges().to_vec();
        assert_eq!(
            kept.allocate(order(0), Preference::Any),
            Err(AllocError::Floor)
        );
        for range in taken {
            kept.zone().store(range, GivePath::Bulk).unwrap();
        }
        assert_eq!(zone.stats().free, FrameCount::new(100));
        // The guest is small now: the cap on large blocks holds, for those that keep the reserve.
        zone.recall_at(range(512, 400), GivePath::Bulk).unwrap();
        zone.put(range(512, 400), Backing::Untouched).unwrap();
        let large = reserve.of(zone).allocate(order(5), Preference::Any);
        assert_eq!(large, Err(AllocError::TooLarge));
        assert!(reserve.of(zone).allocate(order(4), Preference::Any).is_ok());
        assert!(zone.allocate(order(5), Preference::Any).is_ok());
    });
}

#[test]
fn zones_are_asked_for_the_preferred_class_first() {
    let config = Config::new();
    let spans = [range(0, 1024), range(1 << 39, 1024)];
    let mut memory = spans.map(|span| vec![0; config.metadata_words(span)]);
    let [low, high] = &mut memory;
    let mut zones = Zones::<2>::new();
    zones
        .add_zone(Zone::new(spans[0], config, low).unwrap())
        .unwrap();
    zones
        .add_zone(Zone::new(spans[1], config, high).unwrap())
        .unwrap();
    zones.add_range(spans[0], Backing::Untouched).unwrap();
    zones.add_range(spans[1], Backing::Populated).unwrap();
    let populated = zones.allocate(order(2), Preference::Populated).unwrap();
    assert!(spans[1].contains(populated));
    let untouched = zones.allocate(order(2), Preference::Untouched).unwrap();
    assert!(spans[0].contains(untouched));
    let mut places = [range(0, 1); 8];
    let mut sink = RangeBuf::new(&mut places, FrameCount::new(1500));
    assert_eq!(zones.take(TakeAsk::default(), &mut sink), TakeStop::Enough);
    assert_eq!(
        sink.populated(),
        FrameCount::new(1020),
        "all populated frames of both zones"
    );
    zones.free(populated, order(2)).unwrap();
    assert_eq!(
        zones.free(Frame::new(5000), order(2)),
        Err(FreeError::Foreign)
    );
    let mut again = vec![0; config.metadata_words(spans[0])];
    let overlapping = Zone::new(spans[0], config, &mut again).unwrap();
    assert!(zones.add_zone(overlapping).is_err());
}
