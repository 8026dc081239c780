use alloc::vec;
use alloc::vec::Vec;

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

/// Every second frame from `start` on.
fn scattered(start: u64, count: u64) -> Vec<Run> {
    (0..count).map(|n| run(start + 2 * n, 1)).collect()
}

#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn a_pair_that_fails_ends_the_trade_and_later_ones_are_untouched() {
    let mut xen = pvh();
    xen.memory_mut().punch(Pfn::new(620));
    let moved = xen.trade(&[run(0, 50)], &scattered(600, 50));
    assert_eq!(moved.frames, FrameCount::new(10));
    assert_eq!(moved.stopped, Some(Stopped::Refused(Errno::Invalid)));
    let memory = xen.memory_mut();
    for n in 0..50 {
        assert_eq!(memory.is_populated(Pfn::new(n)), n < 10, "old {n}");
        assert_eq!(
            memory.is_populated(Pfn::new(600 + 2 * n)),
            n > 10,
            "new {n}"
        );
    }
}

#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn refusals_in_a_row_leave_each_frame_its_owner() {
    for errno in [1, 12, 22, 95].map(Errno::from_number) {
        for apart in [true, false] {
            for (good, refusals) in (0..12).flat_map(|good| (1..6).map(move |n| (good, n))) {
                let mut xen = pvh();
                let news = if apart {
                    scattered(600, 12)
                } else {
                    vec![run(600, 12)]
                };
                let mut faults = vec![Fault::None; good];
                faults.push(Fault::Refuse(errno));
                faults.push(Fault::None);
                faults.extend(vec![Fault::Refuse(errno); refusals]);
                xen.memory_mut().faults = faults.into();
                let traded = xen.trade(&[run(0, 12)], &news).frames.get();
                let news = news.iter().flat_map(|run| run.range().frames());
                let memory = xen.memory_mut();
                for (n, new) in (0..12).zip(news) {
                    assert_eq!(memory.is_populated(Pfn::new(n)), n < traded, "old {n}");
                    assert_eq!(memory.is_populated(new), n >= traded, "new {n}");
                }
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn a_trade_that_xen_will_not_show_is_decided_later() {
    let errno = Errno::NoMemory;
    for good in 0..12 {
        let mut xen = pvh();
        // Moves are allowed, a part of this one is made, and then nothing goes any more.
        let mut faults = vec![Fault::None; 1 + good];
        faults.extend(vec![Fault::Refuse(errno); 100]);
        xen.memory_mut().faults = faults.into();
        let moved = xen.trade(&[run(0, 12)], &[run(600, 12)]);
        assert_eq!(moved.frames, FrameCount::ZERO);
        assert_eq!(moved.stopped, Some(Stopped::Undecided));
        assert_eq!(xen.decide(), None, "still nothing");
        let other = xen.trade(&[run(50, 1)], &[run(700, 1)]);
        assert_eq!(other.stopped, Some(Stopped::NotServed));
        xen.memory_mut().faults.clear();
        assert_eq!(xen.decide(), Some(FrameCount::new(good as u64)));
        assert_eq!(xen.decide(), None, "once");
        let other = xen.trade(&[run(50, 1)], &[run(700, 1)]);
        assert_eq!(other.stopped, None);
        assert_eq!(xen.counters().traded, good as u64 + 1);
    }
}

#[test]
fn where_moves_are_forbidden_nothing_stays_undecided() {
    for errno in [1, 13, 38, 95].map(Errno::from_number) {
        let mut xen = pvh();
        xen.memory_mut().faults = vec![Fault::Refuse(errno); 100].into();
        let moved = xen.trade(&[run(0, 12)], &[run(600, 12)]);
        let nothing = Moved {
            frames: FrameCount::ZERO,
            stopped: Some(Stopped::Refused(errno)),
        };
        assert_eq!(moved, nothing);
    }
}

#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn a_range_that_fails_is_looked_at() {
    for at in 0..100 {
        let mut xen = pvh();
        xen.memory_mut().punch(Pfn::new(600 + at));
        let moved = xen.trade(&[run(0, 100)], &[run(600, 100)]);
        assert_eq!(moved.frames, FrameCount::new(at));
        assert_eq!(moved.stopped, Some(Stopped::Refused(Errno::Invalid)));
        let memory = xen.memory_mut();
        for n in 0..100 {
            assert_eq!(memory.is_populated(Pfn::new(n)), n < at, "old {n}");
            assert_eq!(memory.is_populated(Pfn::new(600 + n)), n > at, "new {n}");
        }
        assert!(memory.breaches.is_empty(), "{:?}", memory.breaches);
    }
}

#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn ranges_and_pairs_keep_the_order() {
    let mut xen = pvh();
    // 3 pairs, a range of 20, 5 pairs, a range of 30.
    let mut news = scattered(600, 3);
    news.extend([run(700, 20)]);
    news.extend(scattered(800, 5));
    news.extend([run(900, 30)]);
    let frames: Vec<Pfn> = news.iter().flat_map(|run| run.range().frames()).collect();
    let memory = xen.memory_mut();
    let before: Vec<_> = frames.iter().map(|&pfn| memory.machine(pfn)).collect();
    let calls = xen.counters().hypercalls;
    let moved = xen.trade(&[run(0, 40), run(60, 18)], &news);
    assert_eq!((moved.frames, moved.stopped), (FrameCount::new(58), None));
    assert_eq!(
        xen.counters().hypercalls - calls,
        1 + 3 + 3 + 5,
        "a look, each pair, and the second range is cut"
    );
    let memory = xen.memory_mut();
    let after: Vec<_> = (0..40)
        .chain(60..78)
        .map(|n| memory.machine(Pfn::new(n)))
        .collect();
    assert_eq!(before, after);
}

#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn unequal_sides_are_not_traded() {
    for (olds, news) in [(10, 11), (11, 10)] {
        let mut xen = pvh();
        let moved = xen.trade(&[run(0, olds)], &[run(600, news)]);
        let refused = Moved {
            frames: FrameCount::ZERO,
            stopped: Some(Stopped::Unequal),
        };
        assert_eq!(moved, refused);
        assert!(!xen.memory_mut().is_populated(Pfn::new(0)));
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
