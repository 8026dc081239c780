//! The glue to `balloon-core`: its laws, what is kept, and looking by place.

use balloon_core as core_;
use balloon_core::testing::{
    check_frame_source_laws, check_ledger_laws, check_put_refuses_what_is_free,
};
use balloon_core::{Ask, FrameSource, Ledger, Pfn, RangeSink, Run, Stop};
use buddy_alloc::*;
use proptest::prelude::*;

const FIRST: u64 = 0x321;
const FRAMES: u64 = 3000;

fn span() -> FrameRange {
    FrameRange::new(Frame::new(FIRST), FrameCount::new(FRAMES))
}

fn range(start: u64, count: u64) -> core_::FrameRange {
    core_::FrameRange::new(Pfn::new(start), core_::FrameCount::new(count)).expect("a range")
}

fn zone(memory: &mut Vec<u64>) -> Zone<'_> {
    memory.resize(Config::new().metadata_words(span()), 0);
    let mut zone = Zone::new(span(), Config::new(), memory).expect("metadata");
    zone.add_range(span(), Backing::Populated)
        .expect("inside the span");
    zone
}

#[test]
fn a_zone_keeps_the_laws_of_sources_and_ledgers() {
    let mut memory = Vec::new();
    let mut zone = zone(&mut memory);
    check_frame_source_laws(&mut zone);
    check_put_refuses_what_is_free(&mut zone);
    let in_hand = range(FIRST + 700, 300);
    FrameSource::take_at(&mut zone, in_hand).expect("free");
    check_ledger_laws(&mut zone, in_hand);
    FrameSource::put(&mut zone, in_hand, core_::Backing::Populated).expect("in hand");
    assert_eq!(zone.stats().free.get(), FRAMES);
}

#[test]
fn a_take_leaves_what_is_to_be_kept() {
    let mut memory = Vec::new();
    let mut zone = zone(&mut memory);
    let mut runs = [Run::new(range(0, 1)).expect("a run"); 64];
    let mut sink = RangeSink::new(&mut runs, core_::FrameCount::MAX);
    let ask = Ask {
        keep: core_::FrameCount::new(100),
        ..Ask::any(Pfn::LIMIT)
    };
    assert_eq!(FrameSource::take(&mut zone, ask, &mut sink), Stop::Floor);
    assert_eq!(zone.stats().free.get(), 100);
    assert_eq!(sink.frames().get(), FRAMES - 100);
}

proptest! {
    /// What is shown is what can be had, in order, and nothing is left out.
    #[test]
    fn looking_by_place_agrees_with_the_state_of_each_frame(
        taken in prop::collection::vec((0..FRAMES, 1..200u64, 0..3u8), 1..40),
        from in 0..FRAMES,
    ) {
        let mut memory = Vec::new();
        let mut zone = zone(&mut memory);
        for &(start, count, what) in &taken {
            let some = range(FIRST + start, count.min(FRAMES - start));
            if FrameSource::take_at(&mut zone, some).is_err() {
                continue;
            }
            match what {
                0 => Ledger::store(&mut zone, some, core_::GivePath::Told).expect("in hand"),
                1 => Ledger::store(&mut zone, some, core_::GivePath::Bulk).expect("in hand"),
                _ => {}
            }
        }
        let within = range(FIRST + from, FRAMES - from);
        let mut free = Vec::new();
        let mut held = Vec::new();
        let mut at = Some(within);
        while let Some(rest) = at {
            let Some(found) = FrameSource::next_free(&mut zone, rest) else { break };
            free.extend(found.frames().map(Pfn::get));
            at = rest.split_at(core_::FrameCount::new(found.end().get() - rest.start().get())).1;
        }
        at = Some(within);
        while let Some(rest) = at {
            let Some((found, path)) = Ledger::next_held(&mut zone, rest) else { break };
            held.extend(found.frames().map(|pfn| (pfn.get(), path == core_::GivePath::Told)));
            at = rest.split_at(core_::FrameCount::new(found.end().get() - rest.start().get())).1;
        }
        let state = |frame: u64| zone.state(Frame::new(frame)).map(|block| block.state);
        let frames = || FIRST + from..FIRST + FRAMES;
        let expected: Vec<u64> = frames().filter(|&f| state(f) == Some(State::Free)).collect();
        prop_assert_eq!(free, expected);
        let ballooned: Vec<(u64, bool)> = frames()
            .filter_map(|f| match state(f) {
                Some(State::Ballooned(path)) => Some((f, path == GivePath::Told)),
                _ => None,
            })
            .collect();
        prop_assert_eq!(held, ballooned);
    }
}
