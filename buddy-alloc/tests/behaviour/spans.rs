//! Large spans, and several of them.

use buddy_alloc::{
    Backing, Config, Frame, FrameCount, FreeError, Order, Preference, RangeBuf, Shortage,
    TakeRequest, Zone, Zones,
};

use super::{order, range};

/// The whole 2 TiB of a zone: link values run up to the very last pair.
#[test]
#[cfg_attr(miri, ignore = "2 GiB of metadata, of which almost nothing is touched")]
fn a_zone_of_two_tebibytes_reaches_its_last_frame() {
    let span = range(1 << 30, 1 << 29);
    let config = Config::new();
    let mut memory = vec![0; config.metadata_words(span)];
    let mut zone = Zone::new_zeroed(span, config, &mut memory).unwrap();
    zone.add_range(span, Backing::Unpopulated).unwrap();
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
    zones.add_range(spans[0], Backing::Unpopulated).unwrap();
    zones.add_range(spans[1], Backing::Populated).unwrap();
    let populated = zones.allocate(order(2), Preference::Populated).unwrap();
    assert!(spans[1].contains(populated));
    let unpopulated = zones.allocate(order(2), Preference::Unpopulated).unwrap();
    assert!(spans[0].contains(unpopulated));
    let mut places = [range(0, 1); 8];
    let mut sink = RangeBuf::new(&mut places, FrameCount::new(1500));
    assert_eq!(
        zones.take(TakeRequest::default(), &mut sink),
        Shortage::None
    );
    assert_eq!(
        sink.populated(),
        FrameCount::new(1020),
        "all populated frames of both zones"
    );
    let preferred = TakeRequest {
        preference: Preference::Unpopulated,
        ..TakeRequest::default()
    };
    for taken in sink.ranges() {
        zones.put_unchanged(*taken).unwrap();
    }
    for (frames, populated) in [(1020, 0), (1500, 480)] {
        let mut places = [range(0, 1); 8];
        let mut sink = RangeBuf::new(&mut places, FrameCount::new(frames));
        assert_eq!(zones.take(preferred, &mut sink), Shortage::None);
        assert_eq!(sink.populated().get(), populated, "of {frames}");
        for taken in sink.ranges() {
            zones.put_unchanged(*taken).unwrap();
        }
    }
    zones.free(populated, order(2)).unwrap();
    assert_eq!(
        zones.free(Frame::new(5000), order(2)),
        Err(FreeError::Foreign)
    );
    let mut again = vec![0; config.metadata_words(spans[0])];
    let overlapping = Zone::new(spans[0], config, &mut again).unwrap();
    assert!(zones.add_zone(overlapping).is_err());
}
