use alloc::collections::BTreeSet;
use alloc::vec;
use alloc::vec::Vec;

use balloon_core::Migration;
use proptest::prelude::*;

use super::*;
use crate::frame_map::Translated;
use crate::testing::{FakeClear, FakeP2m, FakeXen, Fault, Kind};

const BASE: u64 = 4 * 512;

fn memory(frames: u64) -> FrameRange {
    FrameRange::new(Pfn::new(BASE), FrameCount::new(frames)).unwrap()
}

fn run(start: u64, count: u64) -> Run {
    Run::new(FrameRange::new(Pfn::new(start), FrameCount::new(count)).unwrap()).unwrap()
}

fn reservation<F: FrameMap>(xen: FakeXen, map: F) -> Reservation<FakeXen, F, FakeClear> {
    let clear = FakeClear::of(&xen);
    Reservation::new(xen, map, clear)
}

fn pvh(frames: u64) -> Reservation<FakeXen, Translated<true>, FakeClear> {
    reservation(FakeXen::new(Kind::Pvh, memory(frames)), Translated)
}

#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn a_gibibyte_takes_few_calls_and_keeps_its_leaves() {
    let frames = 512 * 512;
    let mut xen = pvh(frames);
    let whole = [run(BASE, frames)];
    assert_eq!(
        xen.inflate(&whole),
        Moved {
            frames: FrameCount::new(frames),
            stopped: None
        }
    );
    assert_eq!(
        (xen.memory.owned(), xen.memory.leaves()),
        (FrameCount::ZERO, 0)
    );
    assert_eq!(xen.deflate(&whole).frames, FrameCount::new(frames));
    assert_eq!(xen.memory.leaves(), 512);
    let counters = xen.counters();
    assert_eq!((counters.hypercalls, counters.downgrades), (3, 0));
    assert_eq!(
        (counters.inflated.superpages, counters.deflated.superpages),
        (512, 512)
    );
}

#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn unaligned_runs_are_cut_around_whole_superpages() {
    let mut xen = pvh(4 * 512);
    let runs = [run(BASE + 100, 2 * 512)];
    assert_eq!(xen.inflate(&runs).stopped, None);
    let given = xen.counters().inflated;
    assert_eq!(given.superpages, 1);
    assert_eq!(given.medium * 16 + given.frames, 512);
    assert_eq!(xen.counters().downgrades, 0, "no superpage was broken");
    assert!(xen.counters().hypercalls <= 9);
}

#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn a_hole_inside_an_extent_loses_nothing() {
    for hole in [0, 7, 511] {
        let mut xen = pvh(3 * 512);
        xen.memory.punch(Pfn::new(BASE + 512 + hole));
        let all = [run(BASE, 3 * 512)];
        let moved = xen.inflate(&all);
        assert_eq!(
            moved,
            Moved {
                frames: FrameCount::new(3 * 512),
                stopped: None
            },
            "hole {hole}"
        );
        assert_eq!(xen.memory.owned(), FrameCount::ZERO);
        // The frame before and the hole itself were found by looking.
        assert_eq!(xen.counters().holes_found, hole + 1);
        assert_eq!(xen.counters().downgrades, 1);
        assert_eq!(xen.deflate(&all).frames, FrameCount::new(3 * 512));
        assert_eq!(xen.memory.breaches, Vec::<alloc::string::String>::new());
    }
}

#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn where_no_frame_can_be_looked_at_all_of_the_extent_is_gone() {
    let mut xen = reservation(
        FakeXen::new(Kind::Arm, memory(3 * 512)),
        Translated::<false>,
    );
    xen.memory.punch(Pfn::new(BASE + 512 + 7));
    let moved = xen.inflate(&[run(BASE, 3 * 512)]);
    assert_eq!((moved.frames.get(), moved.stopped), (3 * 512, None));
    // And so it is: the hole is the only frame that Xen does not take.
    assert_eq!(xen.memory.owned(), FrameCount::ZERO);
    assert!(xen.counters().hypercalls < 12);
    assert_eq!(xen.deflate(&[run(BASE, 3 * 512)]).stopped, None);
    assert_eq!(xen.memory.breaches, Vec::<alloc::string::String>::new());
}

#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn a_hypervisor_that_forbids_looking_loses_nothing() {
    let refuse = |errno| Fault::Refuse(Errno::from_number(errno));
    for errno in [1, 12, 95] {
        // Looking fails, and where it goes on so, the reservation does as well.
        for refusals in [1, 40] {
            let mut xen = pvh(3 * 512);
            xen.memory.punch(Pfn::new(BASE + 512 + 7));
            // After a decrease.
            let mut faults = vec![Fault::None];
            faults.extend((0..refusals).map(|_| refuse(errno)));
            xen.memory.faults = faults.into();
            let moved = xen.inflate(&[run(BASE, 3 * 512)]);
            let given = prefix(&[run(BASE, 3 * 512)], moved.frames);
            for pfn in memory(3 * 512).frames() {
                let (populated, hole) = (xen.memory.is_populated(pfn), BASE + 512 + 7);
                if !given.contains(&pfn.get()) && pfn.get() != hole {
                    assert!(populated, "{errno} {refusals}: {pfn:?} is lost");
                }
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn a_host_without_superpages_is_a_counted_downgrade() {
    let cases = [(Order::new(4).unwrap(), 32, 0), (Order::FRAME, 0, 512)];
    for (largest, medium, frames) in cases {
        let mut xen = pvh(512);
        xen.inflate(&[run(BASE, 512)]);
        xen.memory.largest = largest;
        assert_eq!(xen.deflate(&[run(BASE, 512)]).frames, FrameCount::new(512));
        let counters = xen.counters();
        assert_eq!(
            (counters.deflated.medium, counters.deflated.frames),
            (medium, frames)
        );
        assert_eq!(counters.downgrades, 1);
        assert_eq!(xen.memory.leaves(), 0);
        // Less than a superpage is none.
        let less = [run(BASE + 16, 64)];
        xen.inflate(&less);
        xen.memory.largest = Order::FRAME;
        assert_eq!(xen.deflate(&less).frames, FrameCount::new(64));
        assert_eq!(xen.counters().downgrades, 1);
    }
}

#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn the_limit_is_reached_in_smaller_extents() {
    let mut xen = pvh(2 * 512);
    let all = [run(BASE, 2 * 512)];
    xen.inflate(&all);
    xen.memory.limit = FrameCount::new(512 + 100);
    let moved = xen.deflate(&all);
    assert_eq!(moved.frames, FrameCount::new(512 + 100));
    assert_eq!(moved.stopped, Some(Stopped::AtLimit));
    assert_eq!((xen.memory.leaves(), xen.counters().downgrades), (1, 1));
    let taken = xen.counters().deflated;
    assert_eq!((taken.medium, taken.frames), (6, 4));
    // No more calls than it takes to see that there is no room.
    let calls = xen.counters().hypercalls;
    let moved = xen.deflate(&[run(BASE + 512 + 100, 412)]);
    assert_eq!(moved.stopped, Some(Stopped::AtLimit));
    assert_eq!(moved.frames, FrameCount::ZERO);
    assert!(xen.counters().hypercalls <= calls + 4);
}

#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn every_errno_leaves_an_exact_prefix() {
    for number in 1..=100 {
        let errno = Errno::from_number(number);
        for direction in [Direction::Inflate, Direction::Deflate] {
            let mut xen = pvh(2 * 512);
            let runs = [run(BASE + 1, 2 * 512 - 1)];
            if direction == Direction::Deflate {
                xen.inflate(&runs);
            }
            let before = xen.memory.owned();
            xen.memory.faults = vec![Fault::None, Fault::Refuse(errno)].into();
            let moved = xen.transfer(direction, &runs);
            assert_eq!(moved.stopped, Some(Stopped::Refused(errno)));
            let after = xen.memory.owned();
            let moved_frames = before
                .saturating_sub(after)
                .max(after.saturating_sub(before));
            assert_eq!(moved.frames, moved_frames, "{direction:?} {errno:?}");
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn under_populate_on_demand_the_reservation_stands_still() {
    let mut xen = pvh(4 * 512);
    xen.memory.promised = 2 * 512;
    let before = xen.memory.owned();
    assert_eq!(xen.inflate(&[run(BASE, 2 * 512)]).stopped, None);
    assert_eq!(xen.memory.owned(), before);
    assert_eq!(xen.memory.promised, 0);
}

/// Xen takes what it can use for the promises first, and then stops at a hole more
/// than there is: all is gone, and the extent not counted.
#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn under_populate_on_demand_what_is_gone_is_seen() {
    for (stops, refuses) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut xen = pvh(3 * 512);
        let hole = BASE + 512 + 7;
        xen.memory.promised = 4096;
        xen.memory.limit = FrameCount::new(8 * 512);
        if stops {
            // Frame by frame, as where there is nothing to be promised.
            xen.memory.promised = 0;
            xen.memory.faults = vec![Fault::Frames(512 + 7)].into();
        } else {
            xen.memory.punch(Pfn::new(hole));
            xen.memory.faults = vec![Fault::None].into();
        }
        if refuses {
            let refuse = Fault::Refuse(Errno::NotPermitted);
            xen.memory.faults.extend(vec![refuse; 8]);
        }
        let all = [run(BASE, 3 * 512)];
        let moved = xen.inflate(&all);
        assert_eq!((moved.frames.get(), moved.stopped), (3 * 512, None));
        for pfn in memory(3 * 512).frames() {
            assert!(!xen.memory.is_populated(pfn), "{pfn:?}");
        }
        assert_eq!(xen.deflate(&all).stopped, None);
        assert_eq!(xen.memory.breaches, Vec::<alloc::string::String>::new());
    }
}

/// Measured: 0 extents, and the domain is charged for one that is mapped nowhere.
#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn without_memory_for_tables_growing_stops_at_once() {
    let mut xen = pvh(4 * 512);
    let all = [run(BASE, 4 * 512)];
    assert_eq!(xen.inflate(&all).stopped, None);
    xen.memory.tables = 1;
    let moved = xen.deflate(&all);
    assert_eq!(moved.frames, FrameCount::new(512));
    assert_eq!(moved.stopped, Some(Stopped::NoTables));
    assert_eq!((xen.memory.lost, xen.counters().lost), (512, 512));
    // Whoever asks again loses a frame, not 529.
    let rest = [run(BASE + 512, 3 * 512)];
    for again in 1..4 {
        assert_eq!(xen.deflate(&rest).stopped, Some(Stopped::NoTables));
        assert_eq!(xen.memory.lost, 512 + again);
        assert_eq!(xen.counters().lost, 512 + again);
    }
    xen.memory.tables = u64::MAX;
    xen.memory.limit = FrameCount::new(5 * 512);
    let one = [run(BASE + 512, 512)];
    assert_eq!(xen.deflate(&one).stopped, None);
    assert_eq!(xen.counters().deflated.frames, 512, "with care");
    let leaves = xen.memory.leaves();
    assert_eq!(xen.deflate(&[run(BASE + 1024, 512)]).stopped, None);
    assert_eq!(xen.memory.leaves(), leaves + 1);
    assert_eq!(xen.memory.breaches, Vec::<alloc::string::String>::new());
}

/// A superpage may go where smaller extents would need a table.
#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn smaller_extents_that_were_lost_leave_takes_their_superpages() {
    for (frames, lost) in [(1, 1), (64, 16)] {
        let mut xen = pvh(2 * 512);
        xen.memory.limit = FrameCount::new(4 * 512);
        assert_eq!(xen.inflate(&[run(BASE, 2 * 512)]).stopped, None);
        (xen.memory.tables, xen.memory.superpages_cost) = (0, false);
        let small = [run(BASE, frames)];
        assert_eq!(xen.deflate(&small).stopped, Some(Stopped::NoTables));
        assert_eq!((xen.counters().lost, xen.memory.lost), (lost, lost));
        assert_eq!(xen.deflate(&small).stopped, Some(Stopped::NoTables));
        assert_eq!(xen.memory.lost, lost + 1, "a frame from then on");
        let moved = xen.deflate(&[run(BASE + 512, 512)]);
        assert_eq!((moved.frames.get(), moved.stopped), (512, None));
        assert_eq!(xen.memory.lost, lost + 1);
    }
}

/// What is mapped of a lost extent is mapped anew, and lost no second time.
#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn an_extent_mapped_in_part_is_lost_once() {
    let mut xen = pvh(2 * 512);
    xen.memory.limit = FrameCount::new(4 * 512);
    assert_eq!(xen.inflate(&[run(BASE, 2 * 512)]).stopped, None);
    (xen.memory.tables, xen.memory.maps_in_part) = (0, true);
    let one = [run(BASE, 512)];
    let moved = xen.deflate(&one);
    assert_eq!(
        (moved.frames.get(), moved.stopped),
        (0, Some(Stopped::NoTables))
    );
    xen.memory.tables = u64::MAX;
    let moved = xen.deflate(&one);
    assert_eq!((moved.frames.get(), moved.stopped), (512, None));
    assert_eq!((xen.memory.lost, xen.counters().lost), (512, 512));
    assert_eq!(xen.memory.owned(), FrameCount::new(2 * 512));
    assert!(xen.memory.breaches.is_empty(), "{:?}", xen.memory.breaches);
}

/// What the toolstack lets a domain own meanwhile, for promises or for devices, is no
/// extent of the guest's.
#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn what_the_toolstack_charges_meanwhile_is_no_loss() {
    // Before the populate that falls short, or before the reservation is read again.
    for (charge, after) in [(100, 1), (3000, 1), (1, 2), (513, 2), (511, 1)] {
        let mut xen = pvh(2 * 512);
        xen.memory.limit = FrameCount::new(4 * 512);
        assert_eq!(xen.inflate(&[run(BASE, 2 * 512)]).stopped, None);
        xen.memory.largest = cut::MEDIUM;
        xen.memory.faults = [Fault::None].repeat(after).into();
        xen.memory.faults.push_back(Fault::Charge(charge));
        let moved = xen.deflate(&[run(BASE, 512)]);
        assert_eq!((moved.frames.get(), moved.stopped), (512, None), "{charge}");
        assert_eq!(xen.counters().lost, 0);

        // It takes them away again while an extent is lost: the next one shows it.
        let lost = [Fault::None, Fault::NoRoom, Fault::Charge(-charge)];
        (xen.memory.largest, xen.memory.tables) = (Order::SUPERPAGE, 0);
        xen.memory.faults = lost.into();
        let moved = xen.deflate(&[run(BASE + 512, 512)]);
        assert_eq!(moved.stopped, Some(Stopped::NoTables), "{charge}");
        assert_eq!((xen.memory.lost, xen.counters().lost), (512 + 16, 16));
    }
}

#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn a_request_full_of_holes_ends_early_and_goes_on() {
    let frames = 16 * 512;
    let mut xen = pvh(frames);
    for pfn in (BASE..BASE + frames).step_by(2) {
        xen.memory.punch(Pfn::new(pfn));
    }
    let (mut at, mut requests) = (0, 0);
    while at < frames {
        let calls = xen.counters().hypercalls;
        let moved = xen.inflate(&[run(BASE + at, frames - at)]);
        assert!(xen.counters().hypercalls - calls < 3000);
        assert!(matches!(moved.stopped, None | Some(Stopped::Enough)));
        at += moved.frames.get();
        requests += 1;
    }
    assert!(requests > 1);
    assert_eq!(xen.memory.owned(), FrameCount::ZERO);
}

#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn what_the_guest_wrote_does_not_leave() {
    let kinds = [Kind::Pvh, Kind::Arm, Kind::Pv];
    for (kind, untouched) in kinds.into_iter().flat_map(|kind| [(kind, 0), (kind, 700)]) {
        let mut fake = FakeXen::new(kind, memory(3 * 512));
        for pfn in memory(3 * 512).frames().skip(untouched) {
            fake.write(pfn);
        }
        let written = (3 * 512 - untouched) as u64;
        let mut runs = vec![run(BASE + untouched as u64, written)];
        if untouched > 0 {
            runs.push(run(BASE, untouched as u64).untouched());
        }
        let (cleared, breaches) = match kind {
            Kind::Pvh => cleared(reservation(fake, Translated::<true>), &runs),
            Kind::Arm => cleared(reservation(fake, Translated::<false>), &runs),
            Kind::Pv => {
                let p2m = FakeP2m::of(&fake);
                cleared(reservation(fake, p2m), &runs)
            }
        };
        assert_eq!((cleared, breaches), (written, 0), "{kind:?}");
    }
    // By a kernel that opts out, or whose word is wrong, it does.
    let mut fake = FakeXen::new(Kind::Pvh, memory(512));
    fake.write(Pfn::new(BASE + 100));
    let mut xen = Reservation::new(fake, Translated::<true>, crate::Uncleared);
    xen.inflate(&[run(BASE, 512)]);
    assert_eq!(xen.memory.breaches.len(), 1);
    let mut fake = FakeXen::new(Kind::Pvh, memory(512));
    fake.write(Pfn::new(BASE + 100));
    let wrong = [run(BASE, 512).untouched()];
    assert_eq!(
        cleared(reservation(fake, Translated::<true>), &wrong),
        (0, 1)
    );
}

/// Frames cleared for these runs, and breaches.
fn cleared<F: FrameMap>(mut xen: Reservation<FakeXen, F, FakeClear>, runs: &[Run]) -> (u64, usize) {
    assert_eq!(xen.inflate(runs).stopped, None);
    (xen.counters().cleared, xen.memory.breaches.len())
}

/// What is promised holds nothing of the guest's, and to clear it would keep it. Of two
/// sources one cannot tell what is a promise.
#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn promises_are_given_untouched() {
    for tells in [true, false] {
        let mut fake = FakeXen::new(Kind::Pvh, memory(4 * 512));
        fake.promise(memory(3 * 512), FrameCount::new(512));
        let mut xen = reservation(fake, Translated::<true>);
        xen.promise_stands(!tells);
        let given = run(BASE, 2 * 512);
        let given = if tells { given.untouched() } else { given };
        assert_eq!(xen.inflate(&[given]).stopped, None);
        assert_eq!(xen.memory.promised, 0, "as much is ready as is promised");
        assert_eq!(xen.counters().cleared, 0);

        // The promise is kept: memory is touched, and leaves cleared.
        xen.promise_stands(false);
        xen.memory.write(Pfn::new(BASE + 2 * 512));
        xen.memory.write(Pfn::new(BASE + 3 * 512));
        assert_eq!(xen.inflate(&[run(BASE + 2 * 512, 2 * 512)]).stopped, None);
        assert_eq!(xen.counters().cleared, 2 * 512);
        assert!(xen.memory.breaches.is_empty(), "{:?}", xen.memory.breaches);
    }
}

#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn no_more_is_cleared_than_the_next_call_names() {
    let mut xen = pvh(3 * 512);
    xen.memory.faults.push_back(Fault::Refuse(Errno::Busy));
    // The single frames are another hypercall.
    let given = xen.inflate(&[run(BASE, 2 * 512 + 3)]);
    assert_eq!(given.stopped, Some(Stopped::Refused(Errno::Busy)));
    assert_eq!(xen.counters().cleared, 2 * 512);

    let mut fake = FakeXen::new(Kind::Pv, memory(512));
    (0..200).for_each(|n| fake.punch(Pfn::new(BASE + n)));
    fake.faults.push_back(Fault::Refuse(Errno::Busy));
    let p2m = FakeP2m::of(&fake);
    let mut xen = reservation(fake, p2m);
    assert!(
        xen.migrate(&[run(BASE, 200)], &[run(BASE + 300, 200)])
            .stopped
            .is_some()
    );
    assert_eq!(xen.counters().cleared, 64, "the pairs of one exchange");
}

/// Unless it is told of, a promise is memory like any other.
#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn who_does_not_tell_of_a_promise_clears_it() {
    let mut fake = FakeXen::new(Kind::Pvh, memory(4 * 512));
    fake.promise(memory(3 * 512), FrameCount::new(512));
    let mut xen = reservation(fake, Translated::<true>);
    assert_eq!(xen.inflate(&[run(BASE, 2 * 512)]).stopped, None);
    assert!(!xen.memory.breaches.is_empty());
}

#[test]
fn machine_frames_may_have_any_number() {
    let mut p2m = FakeP2m::of(&FakeXen::new(Kind::Pv, memory(512)));
    let last = Gmfn::new(u64::MAX - 3);
    deflate::note(&mut p2m, Pfn::new(BASE), last, Order::SUPERPAGE);
    assert_eq!(p2m.unmap(Pfn::new(BASE)), Some(last));
}

#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn a_pv_guest_keeps_its_table() {
    let fake = FakeXen::new(Kind::Pv, memory(3 * 512));
    let p2m = FakeP2m::of(&fake);
    let mut xen = reservation(fake, p2m);
    let runs = [run(BASE + 3, 1200)];
    assert_eq!(xen.inflate(&runs).frames, FrameCount::new(1200));
    assert!(xen.map.agrees_with(&xen.memory));
    assert_eq!(xen.counters().downgrades, 1, "the only whole one");
    assert_eq!(xen.deflate(&runs).frames, FrameCount::new(1200));
    assert_eq!(xen.counters().downgrades, 1, "which came back as such");
    assert!(xen.map.agrees_with(&xen.memory));
    assert!(xen.memory.breaches.is_empty(), "{:?}", xen.memory.breaches);
}

#[derive(Clone, Debug)]
enum Step {
    Give(usize, u64, u64),
    Take(usize),
    Punch(u64),
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        6 => Just(Fault::None),
        1 => (1u16..100).prop_map(|n| Fault::Refuse(Errno::from_number(n))),
        2 => (0usize..70).prop_map(Fault::Extents),
        2 => (0u64..1500).prop_map(Fault::Frames),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (1usize..5, 0u64..2000, 1u64..900).prop_map(|(n, at, len)| Step::Give(n, at, len)),
        5 => (1usize..5).prop_map(Step::Take),
        1 => (0u64..2048).prop_map(Step::Punch),
    ]
}

/// Frames of a set as at most `most` runs.
fn runs_of(frames: &BTreeSet<u64>, most: usize) -> Vec<Run> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for &pfn in frames {
        match runs.last_mut() {
            Some((start, count)) if *start + *count == pfn => *count += 1,
            _ => runs.push((pfn, 1)),
        }
    }
    runs.iter()
        .take(most)
        .map(|&(start, count)| run(start, count))
        .collect()
}

fn prefix(runs: &[Run], frames: FrameCount) -> Vec<u64> {
    let all = runs.iter().flat_map(|run| run.range().frames());
    let done = usize::try_from(frames.get()).unwrap();
    all.map(Pfn::get).take(done).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// The guest's idea of what the host has is the truth after any sequence of
    /// short counts, refusals, downgrades and holes it did not make.
    #[test]
    #[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
    fn books_agree(
        kind in prop_oneof![Just(Kind::Pvh), Just(Kind::Pv), Just(Kind::Arm)],
        steps in proptest::collection::vec((step(), proptest::collection::vec(fault(), 0..6)), 1..12),
        largest in prop_oneof![Just(9u8), Just(4), Just(0)],
        limit in 1024u64..4096,
    ) {
        let mut fake = FakeXen::new(kind, memory(2048));
        fake.largest = Order::new(largest).unwrap();
        fake.limit = FrameCount::new(limit);
        match kind {
            Kind::Pv => {
                let p2m = FakeP2m::of(&fake);
                let mut xen = reservation(fake, p2m);
                check(&mut xen, &steps, false)?;
                prop_assert!(xen.map.agrees_with(&xen.memory));
            }
            Kind::Pvh => check(&mut reservation(fake, Translated::<true>), &steps, true)?,
            Kind::Arm => check(&mut reservation(fake, Translated::<false>), &steps, true)?,
        }
    }
}

fn check<F: FrameMap>(
    xen: &mut Reservation<FakeXen, F, FakeClear>,
    steps: &[(Step, Vec<Fault>)],
    punches: bool,
) -> Result<(), TestCaseError> {
    let mut mine: BTreeSet<u64> = memory(2048).frames().map(Pfn::get).collect();
    let mut theirs = BTreeSet::new();
    // Gone without a request: to be found when it is given.
    let mut punched = BTreeSet::new();
    for (step, faults) in steps {
        // Where nothing is to be seen, what Xen does not take without a reason
        // counts as taken.
        let seen = !F::TRANSLATED || F::MIGRATION == Migration::Move;
        let seen = seen || !matches!(step, Step::Give(..));
        let faults = faults.iter().copied();
        xen.memory.faults = faults
            .filter(|fault| seen || matches!(fault, Fault::None | Fault::Refuse(_)))
            .collect();
        match *step {
            Step::Give(most, at, len) => {
                let wanted: BTreeSet<u64> =
                    mine.range(BASE + at..BASE + at + len).copied().collect();
                let runs = runs_of(&wanted, most);
                let moved = xen.inflate(&runs);
                for pfn in prefix(&runs, moved.frames) {
                    mine.remove(&pfn);
                    theirs.insert(pfn);
                }
            }
            Step::Take(most) => {
                let runs = runs_of(&theirs, most);
                let moved = xen.deflate(&runs);
                for pfn in prefix(&runs, moved.frames) {
                    theirs.remove(&pfn);
                    mine.insert(pfn);
                }
            }
            Step::Punch(at) if punches && mine.contains(&(BASE + at)) => {
                xen.memory.punch(Pfn::new(BASE + at));
                punched.insert(BASE + at);
            }
            Step::Punch(_) => {}
        }
        for &pfn in &theirs {
            prop_assert!(
                !xen.memory.is_populated(Pfn::new(pfn)),
                "{pfn:#x} is not given"
            );
        }
        prop_assert!(xen.memory.breaches.is_empty(), "{:?}", xen.memory.breaches);
        punched.retain(|pfn| mine.contains(pfn));
        for &pfn in mine.difference(&punched) {
            prop_assert!(xen.memory.is_populated(Pfn::new(pfn)), "{pfn:#x} is lost");
        }
    }
    Ok(())
}
