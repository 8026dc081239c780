use alloc::collections::BTreeSet;
use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::frame_map::Translated;
use crate::testing::{FakeP2m, FakeXen, Fault, Kind};

const BASE: u64 = 4 * 512;

fn memory(frames: u64) -> FrameRange {
    FrameRange::new(Pfn::new(BASE), FrameCount::new(frames)).unwrap()
}

fn run(start: u64, count: u64) -> Run {
    Run::new(FrameRange::new(Pfn::new(start), FrameCount::new(count)).unwrap()).unwrap()
}

fn pvh(frames: u64) -> Reservation<FakeXen, Translated<true>> {
    Reservation::new(FakeXen::new(Kind::Pvh, memory(frames)), Translated)
}

#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn a_gibibyte_takes_few_calls_and_keeps_its_leaves() {
    let frames = 512 * 512;
    let mut xen = pvh(frames);
    let whole = [run(BASE, frames)];
    assert_eq!(
        xen.give(&whole),
        Moved {
            frames: FrameCount::new(frames),
            stopped: None
        }
    );
    assert_eq!(
        (xen.memory.owned(), xen.memory.leaves()),
        (FrameCount::ZERO, 0)
    );
    assert_eq!(xen.take(&whole).frames, FrameCount::new(frames));
    assert_eq!(xen.memory.leaves(), 512);
    let counters = xen.counters();
    assert_eq!((counters.hypercalls, counters.downgrades), (3, 0));
    assert_eq!(
        (counters.given.superpages, counters.taken.superpages),
        (512, 512)
    );
}

#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn unaligned_runs_are_cut_around_whole_superpages() {
    let mut xen = pvh(4 * 512);
    let runs = [run(BASE + 100, 2 * 512)];
    assert_eq!(xen.give(&runs).stopped, None);
    let given = xen.counters().given;
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
        let moved = xen.give(&all);
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
        assert_eq!(xen.take(&all).frames, FrameCount::new(3 * 512));
        assert_eq!(xen.memory.breaches, Vec::<alloc::string::String>::new());
    }
}

#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn where_no_frame_can_be_looked_at_the_reservation_tells() {
    let mut xen = Reservation::new(
        FakeXen::new(Kind::Arm, memory(3 * 512)),
        Translated::<false>,
    );
    xen.memory.punch(Pfn::new(BASE + 512 + 7));
    let moved = xen.give(&[run(BASE, 3 * 512)]);
    // The frames before the hole are gone; the hole itself cannot be told from a
    // refusal, so the request ends there.
    assert_eq!(moved.frames, FrameCount::new(512 + 7));
    assert_eq!(moved.stopped, Some(Stopped::NotServed));
    assert_eq!(xen.memory.owned(), FrameCount::new(3 * 512 - 1 - 512 - 7));
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
            // The reservation, and a decrease.
            let mut faults = vec![Fault::None, Fault::None];
            faults.extend((0..refusals).map(|_| refuse(errno)));
            xen.memory.faults = faults.into();
            let moved = xen.give(&[run(BASE, 3 * 512)]);
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
        xen.give(&[run(BASE, 512)]);
        xen.memory.largest = largest;
        assert_eq!(xen.take(&[run(BASE, 512)]).frames, FrameCount::new(512));
        let counters = xen.counters();
        assert_eq!(
            (counters.taken.medium, counters.taken.frames),
            (medium, frames)
        );
        assert_eq!(counters.downgrades, 1);
        assert_eq!(xen.memory.leaves(), 0);
        // Less than a superpage is none.
        let less = [run(BASE + 16, 64)];
        xen.give(&less);
        xen.memory.largest = Order::FRAME;
        assert_eq!(xen.take(&less).frames, FrameCount::new(64));
        assert_eq!(xen.counters().downgrades, 1);
    }
}

#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn the_limit_is_reached_in_smaller_extents() {
    let mut xen = pvh(2 * 512);
    let all = [run(BASE, 2 * 512)];
    xen.give(&all);
    xen.memory.limit = FrameCount::new(512 + 100);
    let moved = xen.take(&all);
    assert_eq!(moved.frames, FrameCount::new(512 + 100));
    assert_eq!(moved.stopped, Some(Stopped::AtLimit));
    assert_eq!((xen.memory.leaves(), xen.counters().downgrades), (1, 1));
    let taken = xen.counters().taken;
    assert_eq!((taken.medium, taken.frames), (6, 4));
    // No more calls than it takes to see that there is no room.
    let calls = xen.counters().hypercalls;
    let moved = xen.take(&[run(BASE + 512 + 100, 412)]);
    assert_eq!(moved.stopped, Some(Stopped::AtLimit));
    assert_eq!(moved.frames, FrameCount::ZERO);
    assert!(xen.counters().hypercalls <= calls + 3);
}

#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn every_errno_leaves_an_exact_prefix() {
    for number in 1..=100 {
        let errno = Errno::from_number(number);
        for way in [Way::Give, Way::Take] {
            let mut xen = pvh(2 * 512);
            let runs = [run(BASE + 1, 2 * 512 - 1)];
            if way == Way::Take {
                xen.give(&runs);
            }
            let before = xen.memory.owned();
            xen.memory.faults = vec![Fault::None, Fault::Refuse(errno)].into();
            let moved = xen.transfer(way, &runs);
            assert_eq!(moved.stopped, Some(Stopped::Refused(errno)));
            let after = xen.memory.owned();
            let moved_frames = before
                .saturating_sub(after)
                .max(after.saturating_sub(before));
            assert_eq!(moved.frames, moved_frames, "{way:?} {errno:?}");
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn under_populate_on_demand_the_reservation_stands_still() {
    let mut xen = pvh(4 * 512);
    xen.memory.promised = 2 * 512;
    let before = xen.memory.owned();
    assert_eq!(xen.give(&[run(BASE, 2 * 512)]).stopped, None);
    assert_eq!(xen.memory.owned(), before);
    assert_eq!(xen.memory.promised, 0);
}

#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn a_pv_guest_keeps_its_table() {
    let fake = FakeXen::new(Kind::Pv, memory(3 * 512));
    let p2m = FakeP2m::of(&fake);
    let mut xen = Reservation::new(fake, p2m);
    let runs = [run(BASE + 3, 1200)];
    assert_eq!(xen.give(&runs).frames, FrameCount::new(1200));
    assert!(xen.map.agrees_with(&xen.memory));
    assert_eq!(xen.counters().downgrades, 1, "the only whole one");
    assert_eq!(xen.take(&runs).frames, FrameCount::new(1200));
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
                let mut xen = Reservation::new(fake, p2m);
                check(&mut xen, &steps, false)?;
                prop_assert!(xen.map.agrees_with(&xen.memory));
            }
            Kind::Pvh => check(&mut Reservation::new(fake, Translated::<true>), &steps, true)?,
            Kind::Arm => check(&mut Reservation::new(fake, Translated::<false>), &steps, true)?,
        }
    }
}

fn check<F: FrameMap>(
    xen: &mut Reservation<FakeXen, F>,
    steps: &[(Step, Vec<Fault>)],
    punches: bool,
) -> Result<(), TestCaseError> {
    let mut mine: BTreeSet<u64> = memory(2048).frames().map(Pfn::get).collect();
    let mut theirs = BTreeSet::new();
    // Gone without a request: to be found when it is given.
    let mut punched = BTreeSet::new();
    for (step, faults) in steps {
        xen.memory.faults = faults.iter().copied().collect();
        match *step {
            Step::Give(most, at, len) => {
                let wanted: BTreeSet<u64> =
                    mine.range(BASE + at..BASE + at + len).copied().collect();
                let runs = runs_of(&wanted, most);
                let moved = xen.give(&runs);
                for pfn in prefix(&runs, moved.frames) {
                    mine.remove(&pfn);
                    theirs.insert(pfn);
                }
            }
            Step::Take(most) => {
                let runs = runs_of(&theirs, most);
                let moved = xen.take(&runs);
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
