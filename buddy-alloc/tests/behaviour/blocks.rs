//! Sizes, splitting, fragmentation.

use buddy_alloc::{
    AllocError, Backing, Config, Frame, FrameCount, FreeError, Order, Preference, RegionUse, Via,
};

use super::{order, range, with_zone};

#[test]
fn alignment_above_size_and_odd_sizes() {
    with_zone(1024, Config::new(), Backing::Unpopulated, |zone| {
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
    with_zone(64, Config::new(), Backing::Unpopulated, |zone| {
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
fn whole_blocks_after_mixed_load(fragmentable: u32) -> u64 {
    let frames: u64 = if cfg!(miri) { 1 << 13 } else { 1 << 16 };
    let config = Config::new().with_fragmentable(fragmentable);
    with_zone(frames, config, Backing::Unpopulated, |zone| {
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

/// A block set aside is one no more when it is whole again, whether it can merge further or not.
#[test]
fn a_block_set_aside_is_let_go_when_it_is_whole() {
    for max in [9, 10, 18] {
        let config = Config::new()
            .with_max_order(order(max))
            .with_fragmentable(2);
        with_zone(4096, config, Backing::Unpopulated, |zone| {
            let frames = [(); 600].map(|()| zone.allocate(Order::FRAME, Preference::Any).unwrap());
            assert_eq!(zone.stats().fragmentable, 2);
            for frame in frames {
                zone.free(frame, Order::FRAME).unwrap();
            }
            assert_eq!(zone.stats().fragmentable, 0, "blocks up to order {max}");
        });
    }
}

#[test]
fn regions_are_found_by_density_and_by_gain() {
    with_zone(1 << 14, Config::new(), Backing::Unpopulated, |zone| {
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
fn regions_that_cannot_be_emptied_are_no_candidates() {
    with_zone(1 << 13, Config::new(), Backing::Unpopulated, |zone| {
        // One frame each that cannot move, in a place of its own; two used ones in region 6.
        let place = |region: u64| range(region * 512 + 100 * region % 512, 1);
        zone.reserve(place(1)).unwrap();
        zone.isolate_at(place(2).start(), Order::FRAME).unwrap();
        for region in 3..6 {
            zone.take_at(place(region)).unwrap();
        }
        zone.store(place(4), Via::Inflate).unwrap();
        zone.store(place(5), Via::Bulk).unwrap();
        zone.allocate_range_at(range(6 * 512 + 7, 2)).unwrap();
        // A reserved range that reaches over two regions, and a used frame in one of them.
        zone.reserve(range(7 * 512 + 500, 20)).unwrap();
        zone.allocate_at(Frame::new(8 * 512 + 300), Order::FRAME)
            .unwrap();
        let mut best = [RegionUse::EMPTY; 3];
        assert_eq!(zone.compaction_candidates(Frame::new(0), &mut best), None);
        let found = best.map(|region| (region.range, region.to_move().get()));
        let none = (range(0, 0), 0);
        assert_eq!(found, [(range(6 * 512, 512), 2), none, none]);
    });
}

#[test]
fn fragmentation_is_measured() {
    with_zone(2048, Config::new(), Backing::Unpopulated, |zone| {
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

/// The granule is the host's affair: density is told in its unit.
#[test]
fn the_densest_region_follows_the_granule() {
    for (granule, expected) in [
        (6, range(64, 64)),
        (9, range(512, 512)),
        (12, range(0, 4096)),
    ] {
        let config = Config::new().with_granule(order(granule));
        with_zone(1 << 13, config, Backing::Unpopulated, |zone| {
            zone.allocate_range_at(range(0, 1 << 13)).unwrap();
            // 64 frames in a row; ten times 50 not far from each other; ten times 20 far away.
            zone.free_range(range(64, 64)).unwrap();
            for part in 0..10 {
                zone.free_range(range(512 + part * 64, 50)).unwrap();
                zone.free_range(range(6000 + part * 200, 20)).unwrap();
            }
            assert_eq!(zone.granule(), order(granule));
            assert_eq!(zone.densest_region().unwrap().range, expected);
        });
    }
}
