use super::*;

#[test]
fn the_two_counts_of_a_walk() {
    let walk = WalkLevels { guest: 4, host: 4 };
    assert_eq!(
        walk.cost(),
        WalkCost {
            products: 17,
            table_reads: 24
        }
    );
    let large = walk.with_superpages();
    assert_eq!(
        large.cost(),
        WalkCost {
            products: 13,
            table_reads: 19
        }
    );
    // Where the two differ: the guest's own entries and the last address, not
    // the access itself.
    for (guest, host) in [(1, 1), (4, 3), (5, 5), (2, 4)] {
        let WalkCost {
            products,
            table_reads,
        } = WalkLevels { guest, host }.cost();
        assert_eq!(
            products - 1 + u32::from(guest) + u32::from(host),
            table_reads
        );
    }
}

#[test]
fn memory_in_blocks_is_walked_faster() {
    let count = FrameCount::new;
    let levels = WalkLevels { guest: 4, host: 4 };
    let none = Fragmentation {
        free: count(1024),
        in_blocks: count(0),
        ..Fragmentation::NONE
    };
    assert_eq!(
        none.walk(levels),
        MeanWalk {
            products: 1700,
            table_reads: 2400
        }
    );
    assert_eq!(none.unusable_index(), 1000);
    let half = Fragmentation {
        in_blocks: count(512),
        ..none
    };
    assert_eq!(
        half.walk(levels),
        MeanWalk {
            products: 1500,
            table_reads: 2150
        }
    );
    assert_eq!(half.unusable_index(), 500);
    let all = Fragmentation {
        in_blocks: count(1024),
        ..none
    };
    assert_eq!(
        all.walk(levels),
        MeanWalk {
            products: 1300,
            table_reads: 1900
        }
    );
    assert_eq!((all.unusable_index(), all.blocks()), (0, 2));
    assert_eq!(Fragmentation::NONE.unusable_index(), 0);
}
