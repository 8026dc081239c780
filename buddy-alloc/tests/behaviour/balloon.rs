//! Balloon, reporting and the reserve.

use buddy_alloc::{
    AllocError, AtError, Backing, Config, Frame, FrameCount, GivePath, Isolated, Order, Preference,
    RangeBuf, RangeError, ReportAsk, ReportCursor, Reserve, State, TakeAsk, TakeEnd, TakeStop,
    Zone, Zones,
};

use super::{order, range, with_zone};

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

/// However far into a large free block the populated memory lies.
#[test]
fn a_unit_of_any_order_finds_the_populated_memory() {
    for (unit, populated) in [
        (9, range(5120, 512)),
        (4, range(1536, 16)),
        (11, range(6144, 1)),
    ] {
        for untouched in [false, true] {
            with_zone(1 << 14, Config::new(), Backing::Untouched, |zone| {
                zone.allocate_range_at(populated).unwrap();
                zone.free_range(populated).unwrap();
                let ask = TakeAsk {
                    unit: order(unit),
                    untouched,
                    ..TakeAsk::default()
                };
                let mut places = [range(0, 1); 4];
                let mut sink = RangeBuf::new(&mut places, FrameCount::new(1 << unit));
                assert_eq!(zone.take(ask, &mut sink), TakeStop::Enough);
                let start = populated.start().get();
                assert_eq!(sink.ranges(), [range(start, 1 << unit)], "{ask:?}");
                assert_eq!(sink.populated(), populated.count());
                assert_eq!(zone.stats().free_populated, FrameCount::ZERO);
            });
        }
    }
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
        assert_eq!(
            zone.recall(GivePath::Bulk, Order::FRAME, &mut sink),
            TakeStop::Empty
        );
        assert_eq!(sink.ranges(), [range(512, 512)], "one run");
        zone.put(range(512, 512), Backing::Untouched).unwrap();
        zone.recall_at(range(7, 3), GivePath::Told).unwrap();
        zone.put(range(7, 3), Backing::Untouched).unwrap();
        assert_eq!(zone.owned_frames(), FrameCount::new(4096 - 512 + 3));
    });
}

#[test]
fn a_recall_finds_units_of_any_order() {
    with_zone(1 << 14, Config::new(), Backing::Untouched, |zone| {
        for range in [range(800, 2500), range(600, 200), range(5120, 512)] {
            zone.take_at(range).unwrap();
            zone.store(range, GivePath::Bulk).unwrap();
        }
        let mut places = [range(0, 1); 4];
        let mut recall = |unit, wanted| {
            let mut sink = RangeBuf::new(&mut places, FrameCount::new(wanted));
            let stop = zone.recall(GivePath::Bulk, order(unit), &mut sink);
            (stop, sink.ranges().to_vec())
        };
        let large = (TakeStop::Fragmented, vec![range(1024, 2048)]);
        assert_eq!(recall(10, 4096), large);
        // The ends of broken regions, before the whole one.
        let ends = vec![range(600, 424), range(3072, 24)];
        assert_eq!(recall(3, 448), (TakeStop::Enough, ends));
        assert_eq!(
            recall(9, 4096),
            (TakeStop::Fragmented, vec![range(5120, 512)])
        );
        let rest = vec![range(3096, 204)];
        assert_eq!(recall(2, 4096), (TakeStop::Empty, rest));
        assert_eq!(recall(18, 4096), (TakeStop::Empty, vec![]));
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
        zone.add_range(span, Backing::Untouched).unwrap();
        assert!(zones.add_zone(zone).is_ok());
    }
    let (whole, single) = (range(512, 512), range((1 << 16) + 7, 1));
    let mut places = [range(0, 1); 4];
    let mut recall = |zones: &mut Zones<'_, 2>, unit, wanted| {
        let mut sink = RangeBuf::new(&mut places, FrameCount::new(wanted));
        let stop = zones.recall(GivePath::Told, order(unit), &mut sink);
        (stop, sink.ranges().to_vec())
    };
    for (unit, wanted, expected) in [
        (0, 1, (TakeStop::Enough, vec![single])),
        (9, 1024, (TakeStop::Fragmented, vec![whole])),
        (0, 513, (TakeStop::Enough, vec![single, whole])),
        (0, 514, (TakeStop::Empty, vec![single, whole])),
    ] {
        for range in [whole, single] {
            zones.take_at(range).unwrap();
            zones.store(range, GivePath::Told).unwrap();
        }
        assert_eq!(recall(&mut zones, unit, wanted), expected);
        recall(&mut zones, 0, 1024);
        for range in [whole, single] {
            zones.put(range, Backing::Untouched).unwrap();
        }
    }
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
