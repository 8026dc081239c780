//! Balloon, reporting and the reserve.

use buddy_alloc::{
    AllocError, AtError, Backing, Config, Frame, FrameCount, IsolateRequest, Isolated, Order,
    Preference, RangeBuf, RangeError, ReportCursor, Reserve, ReserveShortage, Shortage, State,
    TakeRequest, Via, Zone, Zones,
};

use super::{order, range, with_zone};

#[test]
fn a_range_for_the_balloon_keeps_the_populated_bit_as_it_was() {
    with_zone(4096, Config::new(), Backing::Unpopulated, |zone| {
        let mut places = [range(0, 1); 4];
        let mut sink = RangeBuf::new(&mut places, FrameCount::new(100));
        assert_eq!(zone.take(TakeRequest::default(), &mut sink), Shortage::None);
        assert_eq!(sink.populated(), FrameCount::ZERO);
        let taken = sink.ranges()[0];
        zone.put_unchanged(taken).unwrap();
        assert_eq!(zone.stats().free_populated, FrameCount::ZERO);
        zone.take_at(taken).unwrap();
        zone.put(taken, Backing::Unknown).unwrap();
        assert_eq!(zone.stats().free_populated, FrameCount::new(100));
    });
}

/// However far into a large free block the populated memory lies.
#[test]
fn a_unit_of_any_order_finds_the_populated_memory() {
    for (unit, populated) in [
        (9, range(5120, 512)),
        (4, range(1536, 16)),
        (11, range(6144, 1)),
    ] {
        for only in [false, true] {
            with_zone(1 << 14, Config::new(), Backing::Unpopulated, |zone| {
                zone.allocate_range_at(populated).unwrap();
                zone.free_range(populated).unwrap();
                let ask = TakeRequest {
                    unit: order(unit),
                    only,
                    ..TakeRequest::default()
                };
                let mut places = [range(0, 1); 4];
                let mut sink = RangeBuf::new(&mut places, FrameCount::new(1 << unit));
                assert_eq!(zone.take(ask, &mut sink), Shortage::None);
                let start = populated.start().get();
                assert_eq!(sink.ranges(), [range(start, 1 << unit)], "{ask:?}");
                assert_eq!(sink.populated(), populated.count());
                assert_eq!(zone.stats().free_populated, FrameCount::ZERO);
            });
        }
    }
}

/// Whole units of them, wherever in a block that is populated in places.
#[test]
fn untouched_memory_comes_first_if_it_is_preferred() {
    for unit in [0, 4, 9, 11] {
        with_zone(1 << 14, Config::new(), Backing::Unpopulated, |zone| {
            let used = [range(3, 1), range(2048, 5000), range(9000, 1)];
            for used in used {
                zone.allocate_range_at(used).unwrap();
                zone.free_range(used).unwrap();
            }
            let size = 1 << unit;
            let whole = |frames: u64| frames / size * size;
            let unpopulated = (4u64.next_multiple_of(size)..2048)
                .chain(7048u64.next_multiple_of(size)..whole(9000))
                .chain(9001u64.next_multiple_of(size)..1 << 14);
            let count = unpopulated.count() as u64 + if unit == 0 { 3 } else { 0 };
            let ask = TakeRequest {
                unit: order(unit),
                preference: Preference::Unpopulated,
                only: true,
                ..TakeRequest::default()
            };
            let mut places = [range(0, 1); 8];
            let mut sink = RangeBuf::new(&mut places, FrameCount::new(1 << 14));
            assert_eq!(zone.take(ask, &mut sink), Shortage::Fragmented);
            let taken: u64 = sink.ranges().iter().map(|range| range.count().get()).sum();
            assert_eq!((taken, sink.populated()), (count, FrameCount::ZERO));

            // The others after them, and apart.
            for &range in sink.ranges() {
                zone.put_unchanged(range).unwrap();
            }
            let mut places = [range(0, 1); 16];
            let mut sink = RangeBuf::new(&mut places, FrameCount::new(1 << 14));
            let all = TakeRequest { only: false, ..ask };
            assert_eq!(zone.take(all, &mut sink), Shortage::None);
            assert_eq!(sink.populated().get(), 5002);
        });
    }
}

#[test]
fn ballooned_frames_remember_their_path() {
    with_zone(4096, Config::new(), Backing::Populated, |zone| {
        zone.take_at(range(0, 1024)).unwrap();
        zone.store(range(0, 512), Via::Inflate).unwrap();
        zone.store(range(512, 512), Via::Bulk).unwrap();
        assert_eq!(
            zone.store(range(0, 1), Via::Bulk),
            Err(RangeError::WrongState)
        );
        assert_eq!(
            zone.put(range(0, 512), Backing::Unknown),
            Err(RangeError::WrongState)
        );
        let told = State::Ballooned(Via::Inflate);
        assert_eq!(zone.state(Frame::new(3)).unwrap().state, told);
        assert_eq!(zone.ballooned(Via::Bulk), FrameCount::new(512));
        let mut places = [range(0, 1); 4];
        let mut sink = RangeBuf::new(&mut places, FrameCount::new(1000));
        assert_eq!(
            zone.recall(Via::Bulk, Order::FRAME, &mut sink),
            Shortage::Empty
        );
        assert_eq!(sink.ranges(), [range(512, 512)], "one run");
        zone.put(range(512, 512), Backing::Unpopulated).unwrap();
        zone.recall_at(range(7, 3), Via::Inflate).unwrap();
        zone.put(range(7, 3), Backing::Unpopulated).unwrap();
        assert_eq!(zone.owned_frames(), FrameCount::new(4096 - 512 + 3));
    });
}

#[test]
fn a_recall_finds_units_of_any_order() {
    with_zone(1 << 14, Config::new(), Backing::Unpopulated, |zone| {
        for range in [range(800, 2500), range(600, 200), range(5120, 512)] {
            zone.take_at(range).unwrap();
            zone.store(range, Via::Bulk).unwrap();
        }
        let mut places = [range(0, 1); 4];
        let mut recall = |unit, wanted| {
            let mut sink = RangeBuf::new(&mut places, FrameCount::new(wanted));
            let stop = zone.recall(Via::Bulk, order(unit), &mut sink);
            (stop, sink.ranges().to_vec())
        };
        let large = (Shortage::Fragmented, vec![range(1024, 2048)]);
        assert_eq!(recall(10, 4096), large);
        // The ends of broken regions, before the whole one.
        let ends = vec![range(600, 424), range(3072, 24)];
        assert_eq!(recall(3, 448), (Shortage::None, ends));
        assert_eq!(
            recall(9, 4096),
            (Shortage::Fragmented, vec![range(5120, 512)])
        );
        let rest = vec![range(3096, 204)];
        assert_eq!(recall(2, 4096), (Shortage::Empty, rest));
        assert_eq!(recall(18, 4096), (Shortage::Empty, vec![]));
    });
}

#[test]
fn a_recall_asks_all_zones_before_it_breaks_a_whole_region() {
    let mut zones = Zones::<2>::new();
    let config = Config::new();
    for start in [0, 1 << 16] {
        let span = range(start, 2048);
        let memory = vec![0; config.metadata_words(span)].leak();
        let mut zone = Zone::new(span, config, memory).unwrap();
        zone.add_range(span, Backing::Unpopulated).unwrap();
        assert!(zones.add_zone(zone).is_ok());
    }
    let (whole, single) = (range(512, 512), range((1 << 16) + 7, 1));
    let mut places = [range(0, 1); 4];
    let mut recall = |zones: &mut Zones<'_, 2>, unit, wanted| {
        let mut sink = RangeBuf::new(&mut places, FrameCount::new(wanted));
        let stop = zones.recall(Via::Inflate, order(unit), &mut sink);
        (stop, sink.ranges().to_vec())
    };
    for (unit, wanted, expected) in [
        (0, 1, (Shortage::None, vec![single])),
        (9, 1024, (Shortage::Fragmented, vec![whole])),
        (0, 513, (Shortage::None, vec![single, whole])),
        (0, 514, (Shortage::Empty, vec![single, whole])),
    ] {
        for range in [whole, single] {
            zones.take_at(range).unwrap();
            zones.store(range, Via::Inflate).unwrap();
        }
        assert_eq!(recall(&mut zones, unit, wanted), expected);
        recall(&mut zones, 0, 1024);
        for range in [whole, single] {
            zones.put(range, Backing::Unpopulated).unwrap();
        }
    }
}

#[test]
fn reporting_walks_what_is_worth_it_and_nothing_twice() {
    with_zone(1 << 14, Config::new(), Backing::Unpopulated, |zone| {
        // Region 3 wholly used once, region 5 in three frames, region 20 in half.
        for (start, count) in [(3 * 512, 512), (5 * 512, 3), (20 * 512, 256)] {
            zone.allocate_range_at(range(start, count)).unwrap();
            zone.free_range(range(start, count)).unwrap();
        }
        let ask = IsolateRequest {
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
        let frame = zone
            .allocate(Order::FRAME, Preference::Unpopulated)
            .unwrap();
        assert_eq!(
            zone.isolate_next(&mut cursor, ask),
            Isolated::Block(range(20 * 512, 512))
        );
        assert_eq!(zone.isolate_next(&mut cursor, ask), Isolated::Done);
        zone.free(frame, Order::FRAME).unwrap();
        zone.unisolate(range(3 * 512, 512), Backing::Unpopulated)
            .unwrap();
        zone.unisolate(range(20 * 512, 512), Backing::Unpopulated)
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
fn a_reserve_is_kept() {
    with_zone(1024, Config::new(), Backing::Populated, |zone| {
        let reserve =
            Reserve::new(FrameCount::new(100)).with_low_memory_cap(FrameCount::new(1013), order(4));
        let mut kept = reserve.of(zone);
        kept.allocate(order(9), Preference::Any).unwrap();
        let mut places = [range(0, 1); 8];
        let mut sink = RangeBuf::new(&mut places, FrameCount::new(5000));
        assert_eq!(
            kept.take(TakeRequest::default(), &mut sink),
            ReserveShortage::Floor
        );
        let taken = sink.ranges().to_vec();
        assert_eq!(
            kept.allocate(order(0), Preference::Any),
            Err(AllocError::Floor)
        );
        for range in taken {
            kept.zone().store(range, Via::Bulk).unwrap();
        }
        assert_eq!(zone.stats().free, FrameCount::new(100));
        // The guest is small now: the cap on large blocks holds, for those that keep the reserve.
        zone.recall_at(range(512, 400), Via::Bulk).unwrap();
        zone.put(range(512, 400), Backing::Unpopulated).unwrap();
        let large = reserve.of(zone).allocate(order(5), Preference::Any);
        assert_eq!(large, Err(AllocError::TooLarge));
        assert!(reserve.of(zone).allocate(order(4), Preference::Any).is_ok());
        assert!(zone.allocate(order(5), Preference::Any).is_ok());
    });
}
