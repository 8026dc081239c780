use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::run::Run;
use crate::testing::{
    FakeSource, check_frame_source_laws, check_ledger_laws, check_put_refuses_what_is_free,
};

fn range(start: u64, count: u64) -> FrameRange {
    FrameRange::new(Pfn::new(start), FrameCount::new(count)).unwrap()
}

fn ledger(regions: &[FrameRange]) -> BitmapLedger<Vec<u64>> {
    let frames: u64 = regions.iter().map(|region| region.count().get()).sum();
    let words = BitmapLedger::words(FrameCount::new(frames));
    BitmapLedger::new(vec![u64::MAX; usize::try_from(words).unwrap()], regions).unwrap()
}

#[test]
fn keeps_the_laws() {
    for start in [0, 1, 63, 64, 4000] {
        check_ledger_laws(&mut ledger(&[range(start, 8192)]), range(start + 100, 300));
    }
    check_frame_source_laws(&mut FakeSource::new(range(0, 100)));
    check_put_refuses_what_is_free(&mut FakeSource::new(range(0, 100)));
    check_frame_source_laws(&mut Ledgered {
        source: FakeSource::new(range(0, 100)),
        ledger: ledger(&[range(0, 100)]),
    });
}

#[test]
fn regions_are_kept_apart() {
    let mut ledger = ledger(&[range(0, 100), range(1000, 100)]);
    assert_eq!(
        ledger.store(range(90, 20), GivePath::Told),
        Err(range(90, 20))
    );
    assert_eq!(
        ledger.store(range(500, 1), GivePath::Told),
        Err(range(500, 1))
    );
    ledger.store(range(98, 2), GivePath::Told).unwrap();
    ledger.store(range(1000, 2), GivePath::Told).unwrap();
    let mut runs = [Run::ZERO; 4];
    let mut sink = RangeSink::new(&mut runs, FrameCount::new(10));
    assert_eq!(
        ledger.recall(GivePath::Told, Order::FRAME, &mut sink),
        Stop::Empty
    );
    let got: Vec<_> = sink.runs().iter().map(|run| run.range()).collect();
    assert_eq!(
        got,
        [range(98, 2), range(1000, 2)],
        "bits are neighbours, frames are not"
    );
}

#[test]
fn regions_are_looked_at_by_address() {
    // In no order, and two of them neighbours.
    let mut ledger = ledger(&[range(500, 100), range(60, 70), range(130, 40)]);
    ledger.store(range(500, 2), GivePath::Told).unwrap();
    ledger.store(range(128, 2), GivePath::Bulk).unwrap();
    ledger.store(range(130, 2), GivePath::Told).unwrap();
    let all = range(0, 2000);
    assert_eq!(ledger.next_held(all), Some((range(128, 2), GivePath::Bulk)));
    assert_eq!(
        ledger.next_held(range(131, 900)),
        Some((range(131, 1), GivePath::Told))
    );
    assert_eq!(
        ledger.next_held(range(132, 368)),
        None,
        "nothing beyond what was asked"
    );
    let across = range(128, 4);
    assert_eq!(ledger.recall_at(across, GivePath::Told), Err(across));
    assert_eq!(ledger.recall_at(range(130, 2), GivePath::Told), Ok(()));
    assert_eq!(
        ledger.next_held(range(130, 900)),
        Some((range(500, 2), GivePath::Told))
    );
}

#[test]
fn a_frame_is_held_by_one_path_only() {
    let mut ledger = ledger(&[range(0, 100)]);
    ledger.store(range(10, 1), GivePath::Bulk).unwrap();
    assert_eq!(
        ledger.store(range(0, 20), GivePath::Told),
        Err(range(0, 20))
    );
    assert_eq!(ledger.held(GivePath::Told), FrameCount::ZERO);
}

#[test]
fn what_cannot_work_is_refused_at_once() {
    let overlap = [range(0, 10), range(9, 2)];
    assert_eq!(
        BitmapLedger::new(vec![0; 100], &overlap).unwrap_err(),
        LedgerError::Overlap
    );
    let many: Vec<_> = (0..9).map(|i| range(i * 10, 1)).collect();
    assert_eq!(
        BitmapLedger::new(vec![0; 100], &many).unwrap_err(),
        LedgerError::TooManyRegions
    );
    let big = [range(0, 1000)];
    assert_eq!(
        BitmapLedger::new(vec![0; 10], &big).unwrap_err(),
        LedgerError::TooFewWords
    );
}

const BLOCK_FRAMES: u64 = BLOCK.frames().get();

/// What one recall yields, as ranges by address.
fn recalled(ledger: &mut impl Ledger, unit: Order, wanted: u64) -> (Stop, Vec<FrameRange>) {
    let mut runs = vec![Run::ZERO; 64];
    let mut sink = RangeSink::new(&mut runs, FrameCount::new(wanted));
    let stop = ledger.recall(GivePath::Told, unit, &mut sink);
    let mut got: Vec<_> = sink.runs().iter().map(|run| run.range()).collect();
    got.sort_by_key(|range| range.start());
    (stop, got)
}

/// Regions that begin and end inside blocks, with frames below and whole blocks above.
fn scattered_below_whole() -> BitmapLedger<Vec<u64>> {
    let mut ledger = ledger(&[range(100, 3 * BLOCK_FRAMES), range(6 * BLOCK_FRAMES, 5000)]);
    for start in [100, 513, 600] {
        ledger.store(range(start, 1), GivePath::Told).unwrap();
    }
    ledger
        .store(range(2 * BLOCK_FRAMES, BLOCK_FRAMES), GivePath::Told)
        .unwrap();
    // One more, in pieces that came in no order.
    for (start, count) in [(7 * 512 + 200, 312), (7 * 512, 199), (7 * 512 + 199, 1)] {
        ledger.store(range(start, count), GivePath::Told).unwrap();
    }
    ledger
}

#[test]
fn whole_blocks_come_as_such_wherever_they_are() {
    let mut ledger = scattered_below_whole();
    let unit = BLOCK;
    assert_eq!(recalled(&mut ledger, unit, 511), (Stop::Fragmented, vec![]));
    let first = vec![range(2 * BLOCK_FRAMES, BLOCK_FRAMES)];
    assert_eq!(recalled(&mut ledger, unit, 512), (Stop::Enough, first));
    let second = vec![range(7 * BLOCK_FRAMES, BLOCK_FRAMES)];
    assert_eq!(
        recalled(&mut ledger, unit, 5000),
        (Stop::Fragmented, second)
    );
    assert_eq!(ledger.held(GivePath::Told), FrameCount::new(3));
}

#[test]
fn frames_come_from_broken_blocks_first_and_break_one_at_a_time() {
    let mut ledger = scattered_below_whole();
    let scattered = vec![range(100, 1), range(513, 1)];
    assert_eq!(
        recalled(&mut ledger, Order::FRAME, 2),
        (Stop::Enough, scattered)
    );
    let broken = vec![range(600, 1), range(2 * BLOCK_FRAMES, 9)];
    assert_eq!(
        recalled(&mut ledger, Order::FRAME, 10),
        (Stop::Enough, broken)
    );
    let rest = vec![range(2 * BLOCK_FRAMES + 9, 3)];
    assert_eq!(recalled(&mut ledger, Order::FRAME, 3), (Stop::Enough, rest));
    // Another way to break a block: the other one is broken now as well.
    let hole = range(7 * BLOCK_FRAMES + 5, 1);
    assert_eq!(ledger.recall_at(hole, GivePath::Told), Ok(()));
    assert_eq!(
        recalled(&mut ledger, BLOCK, 512),
        (Stop::Fragmented, vec![])
    );
    ledger.store(hole, GivePath::Told).unwrap();
    let whole = vec![range(7 * BLOCK_FRAMES, BLOCK_FRAMES)];
    assert_eq!(recalled(&mut ledger, BLOCK, 512), (Stop::Enough, whole));
}

#[test]
fn blocks_of_any_order_are_found_inside_and_across_those_of_2_mib() {
    let order = |order| Order::new(order).unwrap();
    let mut ledger = ledger(&[range(3, 10_000)]);
    ledger.store(range(30, 6000), GivePath::Told).unwrap();
    let large = vec![range(2048, 2048)];
    assert_eq!(
        recalled(&mut ledger, order(11), 9999),
        (Stop::Fragmented, large)
    );
    // The broken blocks at both ends, before the whole ones.
    let (stop, got) = recalled(&mut ledger, order(3), 480 + 392);
    let ends = vec![range(32, 480), range(4096 + 1536, 392)];
    assert_eq!((stop, got), (Stop::Enough, ends));
}

proptest! {
    /// Against a list of frames: nothing lost, nothing twice, blocks that are blocks.
    #[test]
    #[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
    fn recalls_agree_with_a_plain_map(
        first in 0u64..600,
        ops in prop::collection::vec((any::<u8>(), 0u64..2600, 1u64..1100, 0u8..12), 1..60),
    ) {
        let all = [range(first, 1500), range(first + 1700, 1200)];
        let mut ledger = ledger(&all);
        let mut model = BTreeMap::new();
        for (what, start, count, unit) in ops {
            let path = GivePath::ALL[usize::from(what % 2)];
            let at = range(first + start, count);
            let in_region = all.iter().any(|r| r.intersection(at) == Some(at));
            match what / 2 % 4 {
                0 | 1 => {
                    let fits = in_region && !at.frames().any(|pfn| model.contains_key(&pfn));
                    prop_assert_eq!(ledger.store(at, path).is_ok(), fits);
                    if fits {
                        model.extend(at.frames().map(|pfn| (pfn, path)));
                    }
                }
                2 => {
                    let held = in_region
                        && at.frames().all(|pfn| model.get(&pfn) == Some(&path));
                    prop_assert_eq!(ledger.recall_at(at, path).is_ok(), held);
                    if held {
                        model.retain(|&pfn, _| pfn < at.start() || pfn >= at.end());
                    }
                }
                _ => check_one_recall(&mut ledger, &mut model, &all, path, unit, count)?,
            }
            for path in GivePath::ALL {
                let held = model.values().filter(|&&p| p == path).count() as u64;
                prop_assert_eq!(ledger.held(path).get(), held);
            }
        }
    }
}

type Model = BTreeMap<Pfn, GivePath>;

fn check_one_recall(
    ledger: &mut BitmapLedger<Vec<u64>>,
    model: &mut Model,
    regions: &[FrameRange],
    path: GivePath,
    unit: u8,
    wanted: u64,
) -> Result<(), TestCaseError> {
    let unit = Order::new(unit).unwrap();
    let held = |model: &Model, block: FrameRange| {
        regions.iter().any(|r| r.intersection(block) == Some(block))
            && block.frames().all(|pfn| model.get(&pfn) == Some(&path))
    };
    let blocks = |model: &Model, order: Order| -> Vec<FrameRange> {
        let starts = model.keys().filter(|pfn| pfn.is_aligned(order));
        starts
            .filter_map(|&pfn| FrameRange::new(pfn, order.frames()))
            .filter(|&block| held(model, block))
            .collect()
    };
    let whole = blocks(model, BLOCK);
    let mut runs = vec![Run::ZERO; 4];
    let mut sink = RangeSink::new(&mut runs, FrameCount::new(wanted));
    let stop = ledger.recall(path, unit, &mut sink);
    let full = sink.is_full();
    let left = wanted - sink.frames().get();
    for run in sink.runs().iter().map(|run| run.range()) {
        prop_assert!(run.start().is_aligned(unit) && run.end().is_aligned(unit));
        for pfn in run.frames() {
            prop_assert_eq!(model.remove(&pfn), Some(path));
        }
    }
    let rest = blocks(model, unit);
    prop_assert_eq!(stop == Stop::Enough, full);
    prop_assert!(
        full || left < unit.frames().get() || rest.is_empty(),
        "{:?}",
        rest
    );
    let touched = whole.iter().filter(|&&block| !held(model, block));
    let gone = |block: &FrameRange| !block.frames().any(|pfn| model.contains_key(&pfn));
    let touched: Vec<_> = touched.collect();
    prop_assert!(touched.iter().filter(|block| !gone(block)).count() <= 1);
    if unit < BLOCK && !touched.is_empty() {
        let inside = |part: &FrameRange| whole.iter().any(|b| b.intersection(*part) == Some(*part));
        prop_assert!(rest.iter().all(inside), "a whole block came first");
    }
    Ok(())
}
