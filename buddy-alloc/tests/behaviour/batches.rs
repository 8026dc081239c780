//! Thousands of frames per call.

use buddy_alloc::{
    AllocError, Backing, Config, Frame, FrameCount, FrameRange, FreeBatchError, FreeError, Order,
    Preference, RangeBuf, Reserve, ReserveShortage, Shortage, Zone, Zones,
};

use super::{order, range, with_zone};

/// A zone with free blocks of all sizes in both classes, freed in no order of address.
fn mixed(test: impl FnOnce(&mut Zone<'_>)) {
    with_zone(1 << 13, Config::new(), Backing::Unpopulated, |zone| {
        zone.allocate_range_at(range(0, 1 << 13)).unwrap();
        let mut at = 5;
        for step in 0..700 {
            at = (at * 29 + 7) % 8000;
            let some = range(at, 1 + step % 37);
            // Parts of it may be free already.
            let _ = if step % 3 == 0 {
                zone.free_unpopulated(some)
            } else {
                zone.free_range(some)
            };
        }
        let stats = zone.stats();
        assert!(stats.free_populated != FrameCount::ZERO && stats.free_populated < stats.free);
        test(zone);
    });
}

fn frames(ranges: &[FrameRange]) -> impl Iterator<Item = u64> {
    let numbers = |range: &FrameRange| range.start().get()..range.end().get();
    ranges.iter().flat_map(numbers)
}

#[test]
fn a_batch_finds_what_single_demands_would_find_one_after_the_other() {
    for preference in [
        Preference::Any,
        Preference::Populated,
        Preference::Unpopulated,
    ] {
        let mut expected = Vec::new();
        mixed(|zone| {
            while let Ok(frame) = zone.allocate(Order::FRAME, preference) {
                expected.push(frame.get());
            }
        });
        mixed(|zone| {
            let mut found = Vec::new();
            let mut places = [range(0, 1); 50];
            loop {
                let mut sink = RangeBuf::new(&mut places, FrameCount::new(100));
                let stop = zone.allocate_batch(Order::FRAME, preference, &mut sink);
                found.extend(frames(sink.ranges()));
                if stop == Shortage::Empty {
                    break;
                }
                assert_eq!(stop, Shortage::None);
            }
            assert_eq!(found, expected, "{preference:?}");
        });
    }
}

#[test]
fn a_batch_of_larger_units_leaves_what_is_smaller() {
    mixed(|zone| {
        let unit = order(3);
        let mut places = [range(0, 1); 500];
        let mut sink = RangeBuf::new(&mut places, FrameCount::new(1 << 13));
        let stop = zone.allocate_batch(unit, Preference::Populated, &mut sink);
        assert_eq!(stop, Shortage::Fragmented);
        for range in sink.ranges() {
            assert_eq!(
                (range.start().get() | range.count().get()) % 8,
                0,
                "{range}"
            );
        }
        assert_eq!(zone.stats().free_in_blocks(unit), FrameCount::ZERO);
        assert!(zone.allocate(order(2), Preference::Any).is_ok());
        // All of it goes back, in parts as it pleases.
        let first = sink.ranges()[0];
        zone.free_range(range(first.start().get() + 1, 6)).unwrap();
        zone.free_batch(&sink.ranges()[1..]).unwrap();
    });
}

#[test]
fn a_batch_that_meets_a_wrong_range_says_which_and_can_go_on() {
    with_zone(64, Config::new(), Backing::Unpopulated, |zone| {
        zone.allocate_range_at(range(0, 32)).unwrap();
        zone.reserve(range(40, 4)).unwrap();
        let batch = [
            range(0, 4),
            range(6, 2),
            range(40, 1),
            range(10, 1),
            range(50, 1),
        ];
        let wrong = |freed, reason| Err(FreeBatchError { freed, reason });
        assert_eq!(zone.free_batch(&batch), wrong(2, FreeError::Reserved));
        assert_eq!(zone.stats().used, FrameCount::new(26));
        assert_eq!(
            zone.free_batch(&batch[3..]),
            wrong(1, FreeError::DoubleFree)
        );
        assert_eq!(zone.stats().used, FrameCount::new(25));
        assert_eq!(zone.free_batch(&[]), Ok(()));
        let text = zone.free_batch(&batch).unwrap_err().to_string();
        assert_eq!(text, "range 0 of the batch: free already");
    });
}

#[test]
fn a_reserve_is_kept_from_a_batch() {
    with_zone(1024, Config::new(), Backing::Populated, |zone| {
        let mut kept = Reserve::new(FrameCount::new(100)).of(zone);
        let mut places = [range(0, 1); 8];
        let mut sink = RangeBuf::new(&mut places, FrameCount::new(5000));
        let end = kept.allocate_batch(Order::FRAME, Preference::Any, &mut sink);
        assert_eq!(end, ReserveShortage::Floor);
        let refused = kept.allocate(Order::FRAME, Preference::Any);
        assert_eq!(refused, Err(AllocError::Floor));
        assert_eq!(zone.stats().free, FrameCount::new(100));
    });
}

#[test]
fn a_batch_asks_all_zones_for_the_preferred_class_first() {
    let config = Config::new();
    let spans = [range(0, 1024), range(1 << 39, 1024)];
    let mut memory = spans.map(|span| vec![0; config.metadata_words(span)]);
    let mut zones = Zones::<2>::new();
    for (span, memory) in spans.into_iter().zip(&mut memory) {
        zones
            .add_zone(Zone::new(span, config, memory).unwrap())
            .unwrap();
        zones.add_range(span, Backing::Unpopulated).unwrap();
    }
    let used = Frame::new((1 << 39) + 64);
    zones.allocate_at(used, order(6)).unwrap();
    zones.free(used, order(6)).unwrap();
    let mut places = [range(0, 1); 8];
    let mut sink = RangeBuf::new(&mut places, FrameCount::new(100));
    let stop = zones.allocate_batch(Order::FRAME, Preference::Populated, &mut sink);
    assert_eq!(stop, Shortage::None);
    assert_eq!(
        sink.ranges(),
        [FrameRange::block(used, order(6)), range(0, 36)]
    );
    zones.free_batch(sink.ranges()).unwrap();
    assert_eq!(zones.free_frames(), FrameCount::new(2048));
}
