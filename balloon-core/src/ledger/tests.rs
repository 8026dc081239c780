use alloc::vec;
use alloc::vec::Vec;

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
    assert_eq!(ledger.recall(GivePath::Told, &mut sink), Stop::Empty);
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
