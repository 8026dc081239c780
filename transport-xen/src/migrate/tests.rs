use alloc::vec;
use alloc::vec::Vec;

use super::*;
use crate::frame_map::Translated;
use crate::testing::{FakeClear, FakeP2m, FakeXen, Fault, Kind};

fn range(start: u64, count: u64) -> FrameRange {
    FrameRange::new(Pfn::new(start), FrameCount::new(count)).unwrap()
}

fn run(start: u64, count: u64) -> Run {
    Run::new(range(start, count)).unwrap()
}

/// 1024 frames from 0; the first 100 are ballooned.
fn pvh() -> Reservation<FakeXen, Translated<true>, FakeClear> {
    let fake = FakeXen::new(Kind::Pvh, range(0, 1024));
    let clear = FakeClear::of(&fake);
    let mut xen = Reservation::new(fake, Translated, clear);
    assert_eq!(xen.inflate(&[run(0, 100)]).frames, FrameCount::new(100));
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
    memory.write(Pfn::new(650));
    let moved = xen.migrate(&[run(0, 100)], &[run(600, 70), run(670, 30)]);
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
    assert_eq!(
        (xen.counters().migrated, xen.counters().cleared),
        (100, 100)
    );
    // It came along, and is cleared where it is given.
    assert_eq!(xen.inflate(&[run(0, 100)]).stopped, None);
    let memory = xen.memory_mut();
    assert!(memory.breaches.is_empty(), "{:?}", memory.breaches);
}

/// Every second frame from `start` on.
fn scattered(start: u64, count: u64) -> Vec<Run> {
    (0..count).map(|n| run(start + 2 * n, 1)).collect()
}

#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn a_pair_that_fails_ends_the_migration_and_later_ones_are_untouched() {
    let mut xen = pvh();
    xen.memory_mut().punch(Pfn::new(620));
    let moved = xen.migrate(&[run(0, 50)], &scattered(600, 50));
    assert_eq!(moved.frames, FrameCount::new(10));
    // The hole is the host's as the frame is that it was to fill.
    assert_eq!(moved.stopped, Some(Stopped::Torn));
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
                let to = if apart {
                    scattered(600, 12)
                } else {
                    vec![run(600, 12)]
                };
                let mut faults = vec![Fault::None; good];
                faults.push(Fault::Refuse(errno));
                faults.push(Fault::None);
                faults.extend(vec![Fault::Refuse(errno); refusals]);
                xen.memory_mut().faults = faults.into();
                let migrated = xen.migrate(&[run(0, 12)], &to).frames.get();
                let to = to.iter().flat_map(|run| run.range().frames());
                let memory = xen.memory_mut();
                for (n, new) in (0..12).zip(to) {
                    assert_eq!(memory.is_populated(Pfn::new(n)), n < migrated, "old {n}");
                    assert_eq!(memory.is_populated(new), n >= migrated, "new {n}");
                }
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn a_migration_that_xen_will_not_show_is_decided_later() {
    let errno = Errno::NoMemory;
    for good in 0..12 {
        let mut xen = pvh();
        // Moves are allowed, a part of this one is made, and then nothing goes any more.
        let mut faults = vec![Fault::None; 1 + good];
        faults.extend(vec![Fault::Refuse(errno); 100]);
        xen.memory_mut().faults = faults.into();
        let moved = xen.migrate(&[run(0, 12)], &[run(600, 12)]);
        assert_eq!(moved.frames, FrameCount::ZERO);
        assert_eq!(moved.stopped, Some(Stopped::Undecided));
        assert_eq!(xen.decide(), None, "still nothing");
        let other = xen.migrate(&[run(50, 1)], &[run(700, 1)]);
        assert_eq!(other.stopped, Some(Stopped::NotServed));
        xen.memory_mut().faults.clear();
        let decided = Moved {
            frames: FrameCount::new(good as u64),
            stopped: None,
        };
        assert_eq!(xen.decide(), Some(decided));
        assert_eq!(xen.decide(), None, "once");
        let other = xen.migrate(&[run(50, 1)], &[run(700, 1)]);
        assert_eq!(other.stopped, None);
        assert_eq!(xen.counters().migrated, good as u64 + 1);
    }
}

#[test]
fn where_moves_are_forbidden_nothing_stays_undecided() {
    for errno in [1, 13, 38, 95].map(Errno::from_number) {
        let mut xen = pvh();
        xen.memory_mut().faults = vec![Fault::Refuse(errno); 100].into();
        let moved = xen.migrate(&[run(0, 12)], &[run(600, 12)]);
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
    let dialects = [Errno::Invalid, Errno::Access];
    for (at, errno) in (0..100).flat_map(|at| dialects.map(|errno| (at, errno))) {
        let mut xen = pvh();
        xen.memory_mut().hole = errno;
        xen.memory_mut().punch(Pfn::new(600 + at));
        let moved = xen.migrate(&[run(0, 100)], &[run(600, 100)]);
        assert_eq!(moved.frames, FrameCount::new(at));
        assert_eq!(moved.stopped, Some(Stopped::Torn));
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
    let mut to = scattered(600, 3);
    to.extend([run(700, 20)]);
    to.extend(scattered(800, 5));
    to.extend([run(900, 30)]);
    let frames: Vec<Pfn> = to.iter().flat_map(|run| run.range().frames()).collect();
    let memory = xen.memory_mut();
    let before: Vec<_> = frames.iter().map(|&pfn| memory.machine(pfn)).collect();
    let calls = xen.counters().hypercalls;
    let moved = xen.migrate(&[run(0, 40), run(60, 18)], &to);
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
fn unequal_sides_are_not_migrated() {
    for (from, to) in [(10, 11), (11, 10)] {
        let mut xen = pvh();
        let moved = xen.migrate(&[run(0, from)], &[run(600, to)]);
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
    let clear = FakeClear::of(&fake);
    let mut xen = Reservation::new(fake, p2m, clear);
    xen.inflate(&[run(0, 100)]);
    for pfn in range(600, 100).frames() {
        xen.memory_mut().write(pfn);
    }
    xen.memory_mut().limit = FrameCount::ZERO;
    xen.memory_mut().faults = vec![Fault::None, Fault::Extents(5)].into();
    let moved = xen.migrate(&[run(0, 100)], &[run(600, 100)]);
    assert_eq!(moved.frames, FrameCount::new(64 + 5));
    assert_eq!(moved.stopped, Some(Stopped::Refused(Errno::NoMemory)));
    let (memory, map, _) = xen.parts_mut();
    assert!(map.agrees_with(memory));
    assert!(memory.breaches.is_empty(), "{:?}", memory.breaches);
    assert!(memory.is_populated(Pfn::new(68)) && !memory.is_populated(Pfn::new(668)));
    assert!(!memory.is_populated(Pfn::new(69)) && memory.is_populated(Pfn::new(669)));
}

#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn every_refusal_migrates_nothing() {
    for number in 1..100 {
        let errno = Errno::from_number(number);
        let mut xen = pvh();
        xen.memory_mut().faults = vec![Fault::None, Fault::Refuse(errno)].into();
        let moved = xen.migrate(&[run(0, 1)], &[run(600, 1)]);
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

/// Xen takes the frame out of its place before it finds no room to map it elsewhere.
#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn without_memory_for_tables_a_pair_is_torn_and_migrations_end() {
    for (good, apart) in (0..12).flat_map(|good| [(good, true), (good, false)]) {
        let mut xen = pvh();
        xen.memory_mut().tables = good;
        let to = match apart {
            true => scattered(600, 12),
            false => vec![run(600, 12)],
        };
        let torn = Moved {
            frames: FrameCount::new(good),
            stopped: Some(Stopped::Torn),
        };
        assert_eq!(xen.migrate(&[run(0, 12)], &to), torn);
        assert_eq!((xen.counters().lost, xen.memory_mut().lost), (1, 1));
        let to = to.iter().flat_map(|run| run.range().frames());
        for (n, new) in (0..12).zip(to) {
            let memory = xen.memory_mut();
            assert_eq!(memory.is_populated(Pfn::new(n)), n < good, "old {n}");
            assert_eq!(memory.is_populated(new), n > good, "new {n}");
        }
        let calls = xen.counters().hypercalls;
        let again = xen.migrate(&[run(50, 1)], &[run(700, 1)]);
        assert_eq!(again.stopped, Some(Stopped::NoTables));
        assert_eq!(
            xen.counters().hypercalls,
            calls,
            "each attempt costs a frame"
        );
        // Tables have room again, as frames that come show.
        xen.memory_mut().tables = u64::MAX;
        assert_eq!(xen.deflate(&[run(60, 1)]).stopped, None);
        assert_eq!(xen.migrate(&[run(50, 1)], &[run(700, 1)]).stopped, None);
    }
}

/// A superpage may go where a frame would need a table.
#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn a_torn_pair_leaves_takes_their_superpages() {
    let mut xen = pvh();
    assert_eq!(xen.inflate(&[run(512, 512)]).stopped, None);
    let memory = xen.memory_mut();
    (memory.tables, memory.superpages_cost) = (0, false);
    let torn = xen.migrate(&[run(0, 1)], &[run(300, 1)]);
    assert_eq!(torn.stopped, Some(Stopped::Torn));
    let taken = xen.deflate(&[run(512, 512)]);
    assert_eq!((taken.frames.get(), taken.stopped), (512, None));
    assert_eq!((xen.counters().lost, xen.memory_mut().lost), (1, 1));
}

/// What is seen late is booked as what is seen at once.
#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn a_pair_torn_out_of_sight_is_booked_as_any() {
    for shown in [true, false] {
        // For want of tables, and over a hole.
        for (tables, lost) in [(7, 1), (u64::MAX, 0)] {
            let mut xen = pvh();
            let memory = xen.memory_mut();
            memory.tables = tables;
            if lost == 0 {
                memory.punch(Pfn::new(607));
            }
            if !shown {
                memory.faults.extend([Fault::None; 1 + 8]);
                memory
                    .faults
                    .extend([Fault::Refuse(Errno::NotPermitted); 8]);
            }
            let to = scattered(593, 12);
            let mut moved = xen.migrate(&[run(0, 12)], &to);
            if !shown {
                assert_eq!(moved.stopped, Some(Stopped::Undecided));
                let rest = xen.decide().unwrap();
                moved.frames = moved.frames.saturating_add(rest.frames);
                moved.stopped = rest.stopped;
            }
            let torn = Moved {
                frames: FrameCount::new(7),
                stopped: Some(Stopped::Torn),
            };
            assert_eq!(moved, torn);
            assert_eq!((xen.counters().lost, xen.memory_mut().lost), (lost, lost));
            assert_eq!(xen.counters().migrated, 7);
            let ended = (lost == 1).then_some(Stopped::NoTables);
            assert_eq!(xen.migrate(&[run(50, 1)], &[run(700, 1)]).stopped, ended);
        }
    }
}

#[test]
fn another_hypervisor_is_looked_at_anew() {
    let mut xen = pvh();
    let first = xen.migrate(&[run(0, 12)], &[run(600, 12)]);
    assert_eq!(first.stopped, None);
    // Restored where a policy forbids both looks and moves.
    xen.restored();
    let errno = Errno::NotPermitted;
    xen.memory_mut().faults = vec![Fault::Refuse(errno); 100].into();
    let moved = xen.migrate(&[run(20, 12)], &[run(700, 12)]);
    assert_eq!(moved.stopped, Some(Stopped::Refused(errno)));
}

#[test]
fn to_move_a_promise_xen_keeps_it() {
    for (cached, breaches) in [(12, 0), (0, 1)] {
        let mut xen = pvh();
        let promises = range(600, 12);
        xen.memory_mut().promise(promises, FrameCount::new(cached));
        let moved = xen.migrate(&[run(0, 12)], &[run(600, 12).untouched()]);
        assert_eq!(moved.stopped, None);
        assert_eq!(
            xen.memory_mut().breaches.len(),
            breaches,
            "the domain is killed"
        );
    }
}

#[test]
fn nothing_is_traded_while_a_promise_stands() {
    let mut xen = pvh();
    xen.memory_mut().promise(range(600, 12), FrameCount::ZERO);
    xen.promise_stands(true);
    for to in [run(600, 12), run(600, 12).untouched(), run(700, 12)] {
        let moved = xen.migrate(&[run(0, 12)], &[to]);
        let stopped = Some(Stopped::NotServed);
        let frames = FrameCount::ZERO;
        assert_eq!(moved, Moved { frames, stopped });
    }
    assert!(xen.memory_mut().breaches.is_empty());
    xen.promise_stands(false);
    assert_eq!(xen.migrate(&[run(0, 12)], &[run(700, 12)]).stopped, None);
}
