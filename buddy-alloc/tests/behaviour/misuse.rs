//! Refusals.

use buddy_alloc::{
    AddError, AtError, Backing, Config, ConfigError, Frame, FrameCount, FrameRange, FreeError,
    Order, Preference, RangeError, Zone, Zones,
};

use super::{order, range, with_zone};

#[test]
fn the_last_frame_number_is_in_no_zone() {
    let mut zones = Zones::<1>::new();
    let span = FrameRange::new(Frame::new(0), FrameCount::new(1000));
    let memory = vec![0; Config::new().metadata_words(span)].leak();
    let mut zone = Zone::new(span, Config::new(), memory).expect("metadata");
    zone.add_range(span, Backing::Populated).expect("inside");
    let last = Frame::new(u64::MAX);
    for order in Order::all() {
        let beyond = FrameRange::block(last, order);
        assert_eq!(
            zone.allocate_at(beyond.start(), order),
            Err(AtError::Foreign),
            "{order}"
        );
        assert_eq!(zone.take_at(beyond), Err(AtError::Foreign));
        assert_eq!(zone.reserve(beyond), Err(AtError::Foreign));
        assert_eq!(zone.free_range(beyond), Err(FreeError::Foreign));
        assert_eq!(
            zone.put(beyond, Backing::Populated),
            Err(RangeError::Foreign)
        );
        assert_eq!(
            zone.add_range(beyond, Backing::Populated),
            Err(AddError::Foreign)
        );
    }
    assert_eq!(zone.allocate_at(last, Order::FRAME), Err(AtError::Foreign));
    assert_eq!(zone.free(last, Order::FRAME), Err(FreeError::Foreign));
    zones.add_zone(zone).expect("room");
    assert_eq!(zones.allocate_at(last, Order::FRAME), Err(AtError::Foreign));
    assert_eq!(zones.free_frames().get(), 1000);
}

#[test]
fn every_misuse_is_told_apart_and_changes_nothing() {
    with_zone(4096, Config::new(), Backing::Unpopulated, |zone| {
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
    let odd = new.with_max_order(order(5)).with_fragmentable(1);
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
    with_zone(64, Config::new(), Backing::Unpopulated, |zone| {
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
