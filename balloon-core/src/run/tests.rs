use alloc::collections::BTreeSet;
use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;

fn range(start: u64, count: u64) -> FrameRange {
    FrameRange::new(Pfn::new(start), FrameCount::new(count)).unwrap()
}

fn ranges(runs: &[Run]) -> Vec<(u64, u64)> {
    runs.iter()
        .map(|run| (run.range().start().get(), run.count().get()))
        .collect()
}

#[test]
fn a_run_packs_any_range_it_takes() {
    for (start, count) in [
        (0, 1),
        (7, 300),
        (Pfn::LIMIT.get() - 1, 1),
        (1 << 39, 1 << 23),
    ] {
        let run = Run::new(range(start, count)).unwrap();
        assert_eq!(
            (run.range(), run.is_untouched()),
            (range(start, count), false)
        );
        let run = run.untouched();
        assert_eq!(
            (run.range(), run.is_untouched()),
            (range(start, count), true)
        );
        let head = run.head(FrameCount::ONE).unwrap();
        assert_eq!((head.range(), head.is_untouched()), (range(start, 1), true));
    }
    assert_eq!(Run::new(range(0, (1 << 23) + 1)), None);
    assert_eq!(Run::ZERO.range(), range(0, 1));
}

#[test]
fn neighbours_merge_at_both_ends() {
    let mut runs = [Run::ZERO; 2];
    let mut sink = RangeSink::new(&mut runs, FrameCount::new(100));
    for (start, count) in [(10, 2), (12, 3), (9, 1), (50, 1)] {
        sink.push(range(start, count), Backing::Populated).unwrap();
    }
    assert_eq!(ranges(sink.runs()), [(9, 6), (50, 1)]);
    assert_eq!((sink.frames().get(), sink.populated().get()), (7, 7));
    assert!(sink.is_full(), "no further run fits");
    assert_eq!(
        sink.push(range(51, 1), Backing::Populated),
        Err(range(51, 1))
    );
}

#[test]
fn what_was_written_is_told_apart() {
    let mut runs = [Run::ZERO; 8];
    let mut sink = RangeSink::new(&mut runs, FrameCount::new(100));
    let some = Backing::Partly(FrameCount::ONE);
    let none = Backing::Partly(FrameCount::ZERO);
    for (start, backing) in [
        (0, Backing::Populated),
        (2, some),
        (4, Backing::Unpopulated),
        (6, none),
        (8, Backing::Unknown),
    ] {
        sink.push(range(start, 2), backing).unwrap();
    }
    assert_eq!(ranges(sink.runs()), [(0, 4), (4, 4), (8, 2)]);
    let untouched: Vec<bool> = sink.runs().iter().map(|run| run.is_untouched()).collect();
    assert_eq!(untouched, [false, true, false]);
}

#[test]
fn a_sink_takes_no_more_than_was_wanted() {
    let mut runs = [Run::ZERO; 8];
    let mut sink =
        RangeSink::new(&mut runs, FrameCount::new(10)).with_longest_run(FrameCount::new(4));
    assert_eq!(sink.wanted().get(), 4);
    assert!(sink.push(range(0, 5), Backing::Unknown).is_err());
    sink.push(range(0, 4), Backing::Partly(FrameCount::new(3)))
        .unwrap();
    sink.push(range(4, 4), Backing::Unpopulated).unwrap();
    assert_eq!(
        ranges(sink.runs()),
        [(0, 4), (4, 4)],
        "longer runs are not allowed"
    );
    assert_eq!(sink.wanted().get(), 2);
    sink.push(range(8, 2), Backing::Unknown).unwrap();
    assert!(sink.is_full());
    assert_eq!(sink.populated().get(), 5);
}

#[test]
fn neighbourhoods_taken_in_turn_need_one_run_each() {
    let mut runs = [Run::ZERO; 4];
    let mut sink = RangeSink::new(&mut runs, FrameCount::new(300));
    for frame in 0..100 {
        for start in [5000, 1000, 3000] {
            sink.push(range(start + frame, 1), Backing::Unknown)
                .unwrap();
        }
    }
    assert!(sink.is_full());
    let mut found = ranges(sink.runs());
    found.sort_unstable();
    assert_eq!(found, [(1000, 100), (3000, 100), (5000, 100)]);
}

proptest! {
    /// Any order of arrival ends in the same sorted, maximal runs.
    #[test]
    fn sorting_merges_whatever_the_order(frames in prop::collection::btree_set(0u64..200, 1..80), seed: u64) {
        let mut order: Vec<u64> = frames.iter().copied().collect();
        let mut state = seed | 1;
        for i in (1..order.len()).rev() {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
            order.swap(i, (state >> 33) as usize % (i + 1));
        }
        let mut runs = vec![Run::ZERO; 256];
        let mut sink = RangeSink::new(&mut runs, FrameCount::new(1000));
        for &frame in &order {
            sink.push(range(frame, 1), Backing::Unknown).unwrap();
        }
        let len = sink.runs().len();
        let kept = sort_and_merge(&mut runs[..len], Run::MAX);
        let merged = ranges(&runs[..kept]);
        let back: BTreeSet<u64> = merged.iter().flat_map(|&(s, c)| s..s + c).collect();
        prop_assert_eq!(back, frames);
        prop_assert!(merged.windows(2).all(|w| w[0].0 + w[0].1 < w[1].0), "{:?}", merged);
    }
}
