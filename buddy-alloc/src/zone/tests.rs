//! Bounds, counted in accesses to nodes: a call costs what the documentation says.

use ::alloc::vec;
use ::alloc::vec::Vec;

use super::*;
use crate::cached_bits;
use crate::frame::{Frame, FrameCount};
use crate::storage::accesses;
use crate::{AtError, Backing, FreeError, Preference, RangeBuf, Shortage, TakeRequest, Via};

/// A few accesses for each order that a block passes through.
const PER_ORDER: u64 = 14;
const ALL_ORDERS: u64 = PER_ORDER * (Order::COUNT as u64 + 1);

fn range(start: u64, count: u64) -> FrameRange {
    FrameRange::new(Frame::new(start), FrameCount::new(count))
}

fn with_zone(frames: u64, test: impl FnOnce(&mut Zone<'_>)) {
    let (span, config) = (range(0, frames), Config::new());
    let mut memory = vec![0; config.metadata_words(span)];
    let mut zone = Zone::new(span, config, &mut memory).unwrap();
    zone.add_range(span, Backing::Unpopulated).unwrap();
    test(&mut zone);
}

/// Frames of the zones below: one or two blocks of the largest order.
const LARGE: u64 = if cfg!(miri) { 1 << 12 } else { 1 << 19 };

/// Accesses of a call that has to succeed.
fn cost<R, E: fmt::Debug>(call: impl FnOnce() -> Result<R, E>) -> (R, u64) {
    let (result, accesses) = accesses::during(call);
    (result.unwrap(), accesses)
}

#[test]
fn splitting_and_merging_through_all_orders_costs_a_few_nodes_each() {
    with_zone(LARGE, |zone| {
        for _ in 0..3 {
            let (frame, split) = cost(|| zone.allocate(Order::FRAME, Preference::Any));
            let (_, merge) = cost(|| zone.free(frame, Order::FRAME));
            assert!(
                split <= ALL_ORDERS && merge <= ALL_ORDERS,
                "{split} {merge}"
            );
            let middle = Frame::new(LARGE / 2 + 12_345 % LARGE / 2);
            let (_, split) = cost(|| zone.allocate_at(middle, Order::FRAME));
            let (_, merge) = cost(|| zone.free(middle, Order::FRAME));
            assert!(
                split <= 2 * ALL_ORDERS && merge <= ALL_ORDERS,
                "{split} {merge}"
            );
        }
    });
}

#[test]
fn the_number_of_free_blocks_makes_no_difference() {
    let worst = |frames: u64| {
        let mut worst = 0;
        with_zone(frames, |zone| {
            zone.allocate_range_at(range(0, frames)).unwrap();
            // Singles all over the zone in both classes, the order of freeing not that of address.
            for step in 0..frames / 4 {
                let single = range(step * 2 * 77 % frames, 1);
                if step % 3 == 0 {
                    zone.free_unpopulated(single).unwrap();
                } else {
                    zone.free_range(single).unwrap();
                }
            }
            for preference in [
                Preference::Any,
                Preference::Populated,
                Preference::Unpopulated,
            ] {
                for _ in 0..if cfg!(miri) { 4 } else { 20 } {
                    let (frame, taken) = cost(|| zone.allocate(Order::FRAME, preference));
                    let (_, freed) = cost(|| zone.free_range(range(frame.get(), 1)));
                    let (_, again) = cost(|| zone.allocate_at(frame, Order::FRAME));
                    worst = worst.max(taken).max(freed).max(again);
                }
            }
        });
        worst
    };
    let (small, large) = (
        worst(if cfg!(miri) { 1 << 8 } else { 1 << 10 }),
        worst(if cfg!(miri) { 1 << 8 } else { 1 << 15 }),
    );
    assert!(
        large <= small + 10,
        "{small} with few blocks, {large} with many"
    );
}

#[test]
fn every_refusal_costs_a_look_per_order() {
    with_zone(LARGE, |zone| {
        let half = Order::holding(FrameCount::new(LARGE / 2)).unwrap();
        let used = zone.allocate(half, Preference::Any).unwrap().get();
        let refusals: Vec<(FreeError, u64)> =
            [used + LARGE / 4 + 1, used ^ (LARGE / 2 + 77), LARGE]
                .into_iter()
                .map(|frame| {
                    let call = || zone.free(Frame::new(frame), Order::FRAME);
                    let (answer, accesses) = accesses::during(call);
                    (answer.unwrap_err(), accesses)
                })
                .collect();
        for (error, accesses) in refusals {
            assert!(accesses <= ALL_ORDERS, "{error}: {accesses}");
        }
        let call = || zone.allocate_at(Frame::new(used + 3), Order::FRAME);
        let (answer, accesses) = accesses::during(call);
        assert_eq!(answer, Err(AtError::NotFree));
        assert!(accesses <= ALL_ORDERS, "{accesses}");
    });
}

/// Below a limit, in order of address: full regions cost no look at a node.
#[test]
fn a_take_below_a_limit_passes_over_full_regions() {
    with_zone(LARGE, |zone| {
        zone.allocate_range_at(range(0, LARGE)).unwrap();
        let last = LARGE - 700;
        for frame in [3, last] {
            zone.free_unpopulated(range(frame, 1)).unwrap();
        }
        let mut places = [range(0, 1); 4];
        let mut sink = RangeBuf::new(&mut places, FrameCount::new(2));
        let ask = TakeRequest {
            below: Frame::new(LARGE - 1),
            ..TakeRequest::default()
        };
        let (stop, accesses) = accesses::during(|| zone.take(ask, &mut sink));
        assert_eq!(stop, Shortage::None);
        assert_eq!(sink.ranges(), [range(3, 1), range(last, 1)]);
        // Two regions are looked at, in which the used block of 1 GiB has left a block per order.
        assert!(accesses <= 3 * ALL_ORDERS, "{accesses} accesses");
        let ask = TakeRequest { only: true, ..ask };
        let (_, accesses) = accesses::during(|| {
            zone.take(ask, &mut RangeBuf::new(&mut places, FrameCount::new(2)))
        });
        assert_eq!(accesses, 0, "nothing populated is free");
    });
}

/// One recall: why it stopped, what it yielded, and how many nodes it looked at.
fn recall(zone: &mut Zone<'_>, unit: u8, wanted: u64) -> (Shortage, Vec<FrameRange>, u64) {
    let mut places = [range(0, 1); 4];
    let mut sink = RangeBuf::new(&mut places, FrameCount::new(wanted));
    let unit = Order::new(unit).unwrap();
    let (stop, accesses) = accesses::during(|| zone.recall(Via::Bulk, unit, &mut sink));
    (stop, sink.ranges().to_vec(), accesses)
}

fn balloon(zone: &mut Zone<'_>, range: FrameRange) {
    zone.take_at(range).unwrap();
    zone.store(range, Via::Bulk).unwrap();
}

#[test]
fn whole_regions_are_looked_for_in_vain_once() {
    with_zone(LARGE, |zone| {
        // All but the last frame of each region, one whole region in the middle.
        for start in (0..LARGE).step_by(512) {
            balloon(zone, range(start, 511 + u64::from(start == LARGE / 2)));
        }
        let whole = range(LARGE / 2, 512);
        let (stop, found, _) = recall(zone, 9, 1024);
        assert_eq!((stop, found), (Shortage::Fragmented, [whole].to_vec()));
        let again = recall(zone, 9, 1024);
        assert_eq!(again, (Shortage::Fragmented, Vec::new(), 0));
        // What changes is looked at, and nothing else.
        balloon(zone, range(511, 1));
        let (stop, found, accesses) = recall(zone, 9, 512);
        assert_eq!((stop, found), (Shortage::None, [range(0, 512)].to_vec()));
        assert!(accesses <= 6 * ALL_ORDERS, "{accesses} accesses");
    });
}

#[test]
fn whole_regions_are_passed_over_for_frames_without_a_look() {
    with_zone(LARGE, |zone| {
        // In halves: the second one makes the region whole.
        for start in (0..LARGE - 512).step_by(256) {
            balloon(zone, range(start, 256));
        }
        let single = range(LARGE - 300, 1);
        for _ in 0..2 {
            balloon(zone, single);
            let (stop, found, accesses) = recall(zone, 0, 1);
            assert_eq!((stop, found), (Shortage::None, [single].to_vec()));
            assert!(accesses <= ALL_ORDERS, "{accesses} accesses");
            zone.put(single, Backing::Unpopulated).unwrap();
        }
        // One is broken, and what is left of it comes next.
        for start in 0..3 {
            let (_, found, accesses) = recall(zone, 0, 1);
            assert_eq!(found, [range(start, 1)]);
            assert!(accesses <= 3 * ALL_ORDERS, "{accesses} accesses");
        }
    });
}

#[test]
fn a_block_larger_than_a_region_comes_back_in_one_piece() {
    with_zone(LARGE, |zone| {
        balloon(zone, range(0, LARGE));
        for unit in [0, 9, 10] {
            let wanted = LARGE / 2;
            // Above a region unit by unit.
            let units = if unit > 9 { LARGE >> 11 } else { 1 };
            let (stop, found, accesses) = recall(zone, unit, wanted);
            assert_eq!((stop, found), (Shortage::None, [range(0, wanted)].to_vec()));
            assert!(accesses <= 4 * units * ALL_ORDERS, "{accesses} accesses");
            zone.store(range(0, wanted), Via::Bulk).unwrap();
        }
    });
}

/// A search for units smaller than a region, or of several, in which almost all looks are in vain.
#[cfg_attr(miri, ignore = "it counts looks, for many minutes under Miri")]
#[test]
fn a_search_in_vain_is_bounded_goes_on_and_says_when_it_is_over() {
    // Every other frame, and at the end of the zone what is looked for; every other region likewise.
    for (unit, part, step) in [(2, 1, 2), (4, 3, 4), (10, 512, 1024)] {
        with_zone(LARGE, |zone| {
            let found = range(LARGE - (1 << unit), 1 << unit);
            for start in (0..LARGE - (1 << unit)).step_by(step) {
                balloon(zone, range(start, part));
            }
            balloon(zone, found);
            let mut calls = 0;
            loop {
                calls += 1;
                let (stop, ranges, accesses) = recall(zone, unit, 1 << unit);
                assert!(accesses <= 100 * ALL_ORDERS, "{accesses} accesses");
                if stop == Shortage::None {
                    assert_eq!(ranges, [found]);
                    break;
                }
                assert_eq!((stop, ranges), (Shortage::Again, Vec::new()));
                assert!(calls <= LARGE >> unit, "it goes on");
            }
            // Nothing is left: the pass ends, and what was looked at is not looked at again.
            while recall(zone, unit, 1 << unit).0 == Shortage::Again {}
            let over = recall(zone, unit, 1 << unit);
            assert_eq!(over, (Shortage::Fragmented, Vec::new(), 0));
            // A unit given at the start is found again, whatever was looked at.
            zone.put(found, Backing::Unpopulated).unwrap();
            let unit_of = range(1 << unit, 1 << unit);
            for frame in (1 << unit)..(2 << unit) {
                let _ = zone.take_at(range(frame, 1)).map(|()| {
                    zone.store(range(frame, 1), Via::Bulk).unwrap();
                });
            }
            let found = loop {
                let (stop, ranges, _) = recall(zone, unit, 1 << unit);
                if stop != Shortage::Again {
                    break ranges;
                }
            };
            assert_eq!(found, [unit_of]);
        });
    }
}

#[cfg_attr(miri, ignore = "it counts looks, for many minutes under Miri")]
#[test]
fn frames_that_left_by_place_are_not_looked_for() {
    with_zone(LARGE, |zone| {
        for start in (0..LARGE).step_by(512) {
            balloon(zone, range(start + 7, 1));
        }
        for start in (0..LARGE - 512).step_by(512) {
            zone.recall_at(range(start + 7, 1), Via::Bulk).unwrap();
        }
        let last = range(LARGE - 505, 1);
        let all = range(0, LARGE);
        let (next, looks) = accesses::during(|| zone.next_ballooned(all));
        assert_eq!(next, Some((last, Via::Bulk)));
        assert!(looks <= ALL_ORDERS, "{looks} accesses");
        let (stop, found, accesses) = recall(zone, 0, 1);
        assert_eq!((stop, found), (Shortage::None, [last].to_vec()));
        assert!(accesses <= ALL_ORDERS, "{accesses} accesses");
    });
}

fn with_caches(test: impl FnOnce(&mut Zone<'_>, CachedBits<'_>)) {
    let (span, config) = (range(0, 64), Config::new());
    let mut memory = vec![0; usize::try_from(cached_bits::words(span)).unwrap()];
    let bits = CachedBits::new(&mut memory, span).unwrap();
    let mut nodes = vec![0; config.metadata_words(span)];
    let mut zone = Zone::new(span, config, &mut nodes).unwrap();
    zone.add_range(span, Backing::Unpopulated).unwrap();
    zone.attach(bits).unwrap();
    test(&mut zone, bits);
}

/// A frame that was freed, with the bit that another free into a cache has set too late.
fn freed_twice(zone: &mut Zone<'_>, bits: CachedBits<'_>) -> Frame {
    let frame = zone.allocate(Order::FRAME, Preference::Any).unwrap();
    zone.free(frame, Order::FRAME).unwrap();
    assert!(
        bits.bit(usize::try_from(frame.get()).unwrap())
            .unwrap()
            .put()
    );
    frame
}

#[test]
fn a_late_free_is_refused_and_takes_its_bit_back() {
    with_caches(|zone, bits| {
        let late = freed_twice(zone, bits);
        let refused = zone.refused_free(late.get(), 0);
        assert_eq!(refused, Err(FreeError::DoubleFree));
        assert!(!bits.is_set(late.get()));
    });
}

/// The bit of a free that came too late ends with the next allocation, whose owner is not harmed.
#[test]
fn a_block_is_allocated_without_the_bit_of_a_late_free() {
    for by_address in [false, true] {
        with_caches(|zone, bits| {
            let late = freed_twice(zone, bits);
            if by_address {
                zone.allocate_at(late, Order::FRAME).unwrap();
            } else {
                assert_eq!(zone.allocate(Order::FRAME, Preference::Any), Ok(late));
            }
            assert!(!bits.is_set(late.get()));
            // That free is not told, and changes nothing.
            assert_eq!(zone.refused_free(late.get(), 0), Ok(()));
            assert_eq!(zone.free(late, Order::FRAME), Ok(()));
        });
    }
}
