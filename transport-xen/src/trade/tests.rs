use alloc::vec;
use alloc::vec::Vec;

use balloon_core::FrameRange;

use super::*;
use crate::frame_map::Translated;
use crate::testing::{FakeP2m, FakeXen, Fault, Kind};

fn range(start: u64, count: u64) -> FrameRange {
    FrameRange::new(Pfn::new(start), FrameCount::new(count)).unwrap()
}

fn run(start: u64, count: u64) -> Run {
    Run::new(range(start, count)).unwrap()
}

/// 1024 frames from 0; the first 100 are ballooned.
fn pvh() -> Reservation<FakeXen, Translated<true>> {
    let mut xen = Reservation::new(FakeXen::new(Kind::Pvh, range(0, 1024)), Translated);
    assert_eq!(xen.give(&[run(0, 100)]).frames, FrameCount::new(100));
    xen
}

#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn moves_keep_content_and_need_nothing() {
    let mut xen = pvh();
    let memory = xen.memory_mut();
    memory.limit = memory.owned();
    let before: Vec<_> = (600..700).map(|n| memory.machine(Pfn::new(n))).collect();
    let owned = memory.owned();
    let moved = xen.trade(&[run(0, 100)], &[run(600, 70), run(670, 30)]);
    assert_eq!(
        moved,
        Moved {
            frames: FrameCount::new(100),
            stopped: None
        }
    );
    let memory = xen.memory_mut();
    let after: Vec<_> = (0..100).map(|n| memory.machine(Pfn::new(n))).collect();
    assert_eq!(before, after);
    assert_eq!(memory.owned(), owned);
    assert!(memory.breaches.is_empty(), "{:?}", memory.breaches);
    assert_eq!(xen.counters().traded, 100);
}

#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn a_pair_that_fails_ends_the_trade_and_later_ones_are_undone() {
    let mut xen = pvh();
    xen.memory_mut().punch(Pfn::new(610));
    let moved = xen.trade(&[run(0, 100)], &[run(600, 100)]);
    assert_eq!(moved.frames, FrameCount::new(10));
    assert_eq!(moved.stopped, Some(Stopped::Refused(Errno::Invalid)));
    let memory = xen.memory_mut();
    for n in 0..100 {
        assert_eq!(memory.is_populated(Pfn::new(n)), n < 10, "old {n}");
        assert_eq!(memory.is_populated(Pfn::new(600 + n)), n > 10, "new {n}");
    }
}

#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn exchange_updates_the_table_also_when_it_stops() {
    let fake = FakeXen::new(Kind::Pv, range(0, 1024));
    let p2m = FakeP2m::of(&fake);
    let mut xen = Reservation::new(fake, p2m);
    xen.give(&[run(0, 100)]);
    xen.memory_mut().limit = FrameCount::ZERO;
    xen.memory_mut().faults = vec![Fault::None, Fault::Extents(5)].into();
    let moved = xen.trade(&[run(0, 100)], &[run(600, 100)]);
    assert_eq!(moved.frames, FrameCount::new(64 + 5));
    assert_eq!(moved.stopped, Some(Stopped::Refused(Errno::NoMemory)));
    let (memory, map, _) = xen.parts_mut();
    assert!(map.agrees_with(memory));
    assert!(memory.is_populated(Pfn::new(68)) && !memory.is_populated(Pfn::new(668)));
    assert!(!memory.is_populated(Pfn::new(69)) && memory.is_populated(Pfn::new(669)));
}

#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn every_refusal_trades_nothing() {
    for number in 1..100 {
        let errno = Errno::from_number(number);
        let mut xen = pvh();
        xen.memory_mut().faults = vec![Fault::Refuse(errno)].into();
        let moved = xen.trade(&[run(0, 1)], &[run(600, 1)]);
        assert_eq!(
            moved,
            Moved {
                frames: FrameCount::ZERO,
                stopped: Some(Stopped::Refused(errno))
            }
        );
        assert!(xen.memory_mut().is_populated(Pfn::new(600)));
    }
}
