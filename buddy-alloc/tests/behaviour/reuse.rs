//! Which block comes next.

use buddy_alloc::{Backing, Config, Frame, FrameRange, Order, Preference};

use super::{order, range, with_zone};

/// The order of reuse is exact across areas that lie far apart.
#[test]
fn most_recently_freed_first() {
    with_zone(1 << 18, Config::new(), Backing::Unpopulated, |zone| {
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
        with_zone(64, Config::new(), Backing::Unpopulated, |zone| {
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
    expect(Preference::Unpopulated, [8, 6, 2, 12, 13, 14]);
}

#[test]
fn a_split_hands_out_the_populated_half() {
    with_zone(1 << 18, Config::new(), Backing::Unpopulated, |zone| {
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
        let unpopulated = zone.allocate(order(16), Preference::Unpopulated).unwrap();
        assert!(!FrameRange::block(unpopulated, order(16)).contains(used));
    });
}
