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
    // Regions that touch, as a boot memory map may have them, in any order.
    check_ledger_laws(
        &mut ledger(&[range(160, 100), range(0, 64), range(64, 96)]),
        range(30, 200),
    );
    // Memory that comes at run time.
    let words = usize::try_from(BitmapLedger::words(FrameCount::new(3000))).unwrap();
    let mut grown = BitmapLedger::new(vec![0; words], &[range(1024, 1008)]).unwrap();
    grown.store(range(2000, 32), Via::Bulk).unwrap();
    grown.add_region(range(2032, 1500)).unwrap();
    grown.add_region(range(624, 400)).unwrap();
    assert_eq!(
        grown.add_region(range(4000, 1000)),
        Err(LedgerError::TooFewWords)
    );
    assert_eq!(
        grown.recall_at(range(2000, 32), Via::Bulk),
        Ok(()),
        "what it held stays where it was"
    );
    check_ledger_laws(&mut grown, range(1900, 300));
    check_ledger_laws(&mut grown, range(1000, 100));
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
        ledger.store(range(90, 20), Via::Inflate),
        Err(range(90, 20))
    );
    assert_eq!(
        ledger.store(range(500, 1), Via::Inflate),
        Err(range(500, 1))
    );
    ledger.store(range(98, 2), Via::Inflate).unwrap();
    ledger.store(range(1000, 2), Via::Inflate).unwrap();
    let mut runs = [Run::ZERO; 4];
    let mut sink = RangeSink::new(&mut runs, FrameCount::new(10));
    assert_eq!(
        ledger.recall(Via::Inflate, Order::FRAME, &mut sink),
        Shortage::Empty
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
    ledger.store(range(500, 2), Via::Inflate).unwrap();
    ledger.store(range(128, 2), Via::Bulk).unwrap();
    ledger.store(range(130, 2), Via::Inflate).unwrap();
    let all = range(0, 2000);
    assert_eq!(ledger.next_held(all), Some((range(128, 2), Via::Bulk)));
    assert_eq!(
        ledger.next_held(range(131, 900)),
        Some((range(131, 1), Via::Inflate))
    );
    assert_eq!(
        ledger.next_held(range(132, 368)),
        None,
        "nothing beyond what was asked"
    );
    let across = range(128, 4);
    assert_eq!(
        ledger.recall_at(across, Via::Inflate),
        Err(across),
        "the first half of it was given in bulk"
    );
    assert_eq!(ledger.recall_at(range(130, 2), Via::Inflate), Ok(()));
    assert_eq!(
        ledger.next_held(range(130, 900)),
        Some((range(500, 2), Via::Inflate))
    );
}

#[test]
fn a_frame_is_held_by_one_path_only() {
    let mut ledger = ledger(&[range(0, 100)]);
    ledger.store(range(10, 1), Via::Bulk).unwrap();
    assert_eq!(ledger.store(range(0, 20), Via::Inflate), Err(range(0, 20)));
    assert_eq!(ledger.held(Via::Inflate), FrameCount::ZERO);
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
fn recalled(ledger: &mut impl Ledger, unit: Order, wanted: u64) -> (Shortage, Vec<FrameRange>) {
    let mut runs = vec![Run::ZERO; 64];
    let mut sink = RangeSink::new(&mut runs, FrameCount::new(wanted));
    let stop = ledger.recall(Via::Inflate, unit, &mut sink);
    let mut got: Vec<_> = sink.runs().iter().map(|run| run.range()).collect();
    got.sort_by_key(|range| range.start());
    (stop, got)
}

/// Regions that begin and end inside blocks, with frames below and whole blocks above.
fn scattered_below_whole() -> BitmapLedger<Vec<u64>> {
    let mut ledger = ledger(&[range(100, 3 * BLOCK_FRAMES), range(6 * BLOCK_FRAMES, 5000)]);
    for start in [100, 513, 600] {
        ledger.store(range(start, 1), Via::Inflate).unwrap();
    }
    ledger
        .store(range(2 * BLOCK_FRAMES, BLOCK_FRAMES), Via::Inflate)
        .unwrap();
    // One more, in pieces that came in no order.
    for (start, count) in [(7 * 512 + 200, 312), (7 * 512, 199), (7 * 512 + 199, 1)] {
        ledger.store(range(start, count), Via::Inflate).unwrap();
    }
    ledger
}

#[test]
fn whole_blocks_come_as_such_wherever_they_are() {
    let mut ledger = scattered_below_whole();
    let unit = BLOCK;
    assert_eq!(
        recalled(&mut ledger, unit, 511),
        (Shortage::Fragmented, vec![])
    );
    let first = vec![range(2 * BLOCK_FRAMES, BLOCK_FRAMES)];
    assert_eq!(recalled(&mut ledger, unit, 512), (Shortage::None, first));
    let second = vec![range(7 * BLOCK_FRAMES, BLOCK_FRAMES)];
    assert_eq!(
        recalled(&mut ledger, unit, 5000),
        (Shortage::Fragmented, second)
    );
    assert_eq!(ledger.held(Via::Inflate), FrameCount::new(3));
}

#[test]
fn frames_come_from_broken_blocks_first_and_break_one_at_a_time() {
    let mut ledger = scattered_below_whole();
    let scattered = vec![range(100, 1), range(513, 1)];
    assert_eq!(
        recalled(&mut ledger, Order::FRAME, 2),
        (Shortage::None, scattered)
    );
    let broken = vec![range(600, 1), range(2 * BLOCK_FRAMES, 9)];
    assert_eq!(
        recalled(&mut ledger, Order::FRAME, 10),
        (Shortage::None, broken)
    );
    let rest = vec![range(2 * BLOCK_FRAMES + 9, 3)];
    assert_eq!(
        recalled(&mut ledger, Order::FRAME, 3),
        (Shortage::None, rest)
    );
    // Another way to break a block: the other one is broken now as well.
    let hole = range(7 * BLOCK_FRAMES + 5, 1);
    assert_eq!(ledger.recall_at(hole, Via::Inflate), Ok(()));
    assert_eq!(
        recalled(&mut ledger, BLOCK, 512),
        (Shortage::Fragmented, vec![])
    );
    ledger.store(hole, Via::Inflate).unwrap();
    let whole = vec![range(7 * BLOCK_FRAMES, BLOCK_FRAMES)];
    assert_eq!(recalled(&mut ledger, BLOCK, 512), (Shortage::None, whole));
}

#[test]
fn blocks_of_any_order_are_found_inside_and_across_those_of_2_mib() {
    let order = |order| Order::new(order).unwrap();
    let mut ledger = ledger(&[range(3, 10_000)]);
    ledger.store(range(30, 6000), Via::Inflate).unwrap();
    let large = vec![range(2048, 2048)];
    assert_eq!(
        recalled(&mut ledger, order(11), 9999),
        (Shortage::Fragmented, large)
    );
    // The broken blocks at both ends, before the whole ones.
    let (stop, got) = recalled(&mut ledger, order(3), 480 + 392);
    let ends = vec![range(32, 480), range(4096 + 1536, 392)];
    assert_eq!((stop, got), (Shortage::None, ends));
}

/// In a ledger of 1 TiB almost all looks are in vain; what is looked for is at the end.
#[test]
#[cfg_attr(miri, ignore = "a gigabyte of bits, and no code is unsafe")]
fn a_search_in_vain_is_bounded_goes_on_and_says_when_it_is_over() {
    for (unit, part, step, frames) in [
        (2, 1, 2, 1 << 16),
        (8, 200, 256, 1 << 20),
        (10, 512, 1024, 1 << 28),
    ] {
        let order = Order::new(unit).unwrap();
        let size = order.frames().get();
        let mut ledger = ledger(&[range(0, frames / 2), range(frames / 2, frames / 2)]);
        for start in (0..frames - size).step_by(step) {
            ledger.store(range(start, part), Via::Inflate).unwrap();
        }
        let last = range(frames - size, size);
        ledger.store(last, Via::Inflate).unwrap();
        let mut calls = 1u64;
        let found = loop {
            match recalled(&mut ledger, order, size) {
                (Shortage::Again, none) => assert_eq!(none, []),
                (stop, found) => break (stop, found),
            }
            calls += 1;
        };
        assert_eq!(found, (Shortage::None, vec![last]));
        let looks = (frames - size).div_ceil(step as u64);
        let bounded = looks / u64::from(IN_VAIN);
        assert!(
            (bounded..=2 * bounded + 2).contains(&calls),
            "{calls} calls for {looks} looks"
        );
        while recalled(&mut ledger, order, size).0 == Shortage::Again {}
        let side = |ledger: &BitmapLedger<Vec<u64>>| ledger.told.is_done();
        assert!(side(&ledger));
        assert_eq!(
            recalled(&mut ledger, order, size),
            (Shortage::Fragmented, vec![])
        );
        // What comes behind is found.
        for start in size..2 * size {
            let _ = ledger.store(range(start, 1), Via::Inflate);
        }
        assert_eq!(
            recalled(&mut ledger, order, size),
            (Shortage::None, vec![range(size, size)])
        );
    }
}

/// A block that was whole when a search passed over it.
#[test]
fn what_is_left_of_a_block_that_was_cut_is_found() {
    let order = Order::new(2).unwrap();
    let mut ledger = ledger(&[range(0, 4096)]);
    ledger.store(range(512, 512), Via::Inflate).unwrap();
    assert_eq!(
        recalled(&mut ledger, order, 8),
        (Shortage::None, vec![range(512, 8)])
    );
    assert_eq!(
        recalled(&mut ledger, order, 8),
        (Shortage::None, vec![range(520, 8)])
    );
    assert_eq!(
        recalled(&mut ledger, order, 4096),
        (Shortage::Empty, vec![range(528, 496)])
    );
}

proptest! {
    /// Against a list of frames: nothing lost, nothing twice, blocks that are blocks.
    #[test]
    #[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
    fn recalls_agree_with_a_plain_map(
        first in 0u64..600,
        // Regions that touch, or do not.
        gap in prop_oneof![Just(0u64), Just(200)],
        ops in prop::collection::vec((any::<u8>(), 0u64..2600, 1u64..1100, 0u8..12), 1..60),
    ) {
        let all = [range(first, 1500), range(first + 1500 + gap, 1200)];
        let mut ledger = ledger(&all);
        let mut model = BTreeMap::new();
        for (what, start, count, unit) in ops {
            let via = Via::ALL[usize::from(what % 2)];
            let at = range(first + start, count);
            let known = |pfn| all.iter().any(|r| r.start() <= pfn && pfn < r.end());
            let in_region = at.frames().all(known);
            match what / 2 % 4 {
                0 | 1 => {
                    let fits = in_region && !at.frames().any(|pfn| model.contains_key(&pfn));
                    prop_assert_eq!(ledger.store(at, via).is_ok(), fits);
                    if fits {
                        model.extend(at.frames().map(|pfn| (pfn, via)));
                    }
                }
                2 => {
                    let held = in_region
                        && at.frames().all(|pfn| model.get(&pfn) == Some(&via));
                    prop_assert_eq!(ledger.recall_at(at, via).is_ok(), held);
                    if held {
                        model.retain(|&pfn, _| pfn < at.start() || pfn >= at.end());
                    }
                }
                _ => check_one_recall(&mut ledger, &mut model, &all, via, unit, count)?,
            }
            for via in Via::ALL {
                let held = model.values().filter(|&&p| p == via).count() as u64;
                prop_assert_eq!(ledger.held(via).get(), held);
            }
        }
    }
}

type Model = BTreeMap<Pfn, Via>;

fn check_one_recall(
    ledger: &mut BitmapLedger<Vec<u64>>,
    model: &mut Model,
    regions: &[FrameRange],
    via: Via,
    unit: u8,
    wanted: u64,
) -> Result<(), TestCaseError> {
    let unit = Order::new(unit).unwrap();
    let held = |model: &Model, block: FrameRange| {
        regions.iter().any(|r| r.intersection(block) == Some(block))
            && block.frames().all(|pfn| model.get(&pfn) == Some(&via))
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
    let stop = ledger.recall(via, unit, &mut sink);
    let full = sink.is_full();
    let left = wanted - sink.frames().get();
    for run in sink.runs().iter().map(|run| run.range()) {
        prop_assert!(run.start().is_aligned(unit) && run.end().is_aligned(unit));
        for pfn in run.frames() {
            prop_assert_eq!(model.remove(&pfn), Some(via));
        }
    }
    let rest = blocks(model, unit);
    prop_assert_eq!(stop == Shortage::None, full);
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
