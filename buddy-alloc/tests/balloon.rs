//! The glue to `balloon-core`: its laws, what is kept, and looking by place.

use balloon_core as core_;
use balloon_core::testing::{
    check_frame_source_laws, check_ledger_laws, check_put_refuses_what_is_free,
};
use balloon_core::{FrameSource, Ledger, Pfn, RangeSink, Run, Shortage, TakeRequest};
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

/// Zones over these spans, all of their frames free.
fn zones<const N: usize>(spans: [(u64, u64); N]) -> Zones<'static, N> {
    let mut zones = Zones::new();
    for (start, count) in spans {
        let span = FrameRange::new(Frame::new(start), FrameCount::new(count));
        let memory = vec![0; Config::new().metadata_words(span)].leak();
        let zone = Zone::new(span, Config::new(), memory).expect("metadata");
        zones.add_zone(zone).expect("spans apart");
        zones
            .add_range(span, Backing::Populated)
            .expect("inside the span");
    }
    zones
}

#[test]
fn zones_side_by_side_keep_the_laws() {
    // The border lies within the frames that are taken first.
    check_frame_source_laws(&mut zones([(FIRST, 32), (FIRST + 32, 32)]));
    let mut zones = zones([(1600, 1000), (1000, 600), (2601, 100)]);
    check_put_refuses_what_is_free(&mut zones);
    let in_hand = range(1500, 300);
    FrameSource::take_at(&mut zones, in_hand).expect("free");
    check_ledger_laws(&mut zones, in_hand);
    let beyond = range(1500, 1200);
    let put = FrameSource::put(&mut zones, beyond, core_::Backing::Populated);
    assert_eq!(put, Err(beyond), "frame 2600 is in no zone");
    FrameSource::put(&mut zones, in_hand, core_::Backing::Populated).expect("in hand");
    assert_eq!(zones.free_frames().get(), 1700);
}

#[test]
fn a_frame_of_the_reserve_is_freed_like_any_other() {
    let shared: &'static core_::Shared<2> = Box::leak(Box::new(core_::Shared::new()));
    let mut zones = zones([(FIRST, 100), (FIRST + 100, 100)]);
    let mut policy = core_::Policy::DEFAULT;
    policy.emergency_pool = core_::FrameCount::new(4);
    let mut engine = core_::Engine::new(shared, policy);
    let mut host = core_::testing::FakeHost::plain();
    let now = core_::Nanos::ZERO;
    engine.step(&mut host, &mut zones, now, core_::Budget::SMALL);
    while let Some(reserved) = shared.take_emergency() {
        let frame = Frame::new(reserved.start().get());
        let state = zones.state(frame).map(|found| found.state);
        assert_eq!(state, Some(State::Used));
        assert_eq!(zones.free(frame, Order::FRAME), Ok(()));
    }
    assert_eq!(zones.free_frames().get(), 200);
}

#[test]
fn frames_above_the_limit_of_an_ask_are_out_of_reach() {
    const LIMIT: u64 = 1 << 32;
    let mut runs = [Run::new(range(0, 1)).expect("a run"); 64];
    // A zone on either side and one across.
    let mut three = zones([(LIMIT, 512), (LIMIT - 1024, 512), (LIMIT - 512, 512)]);
    let mut across = zones([(LIMIT - 1000, 2000)]);
    for (source, low) in [
        (&mut three as &mut dyn FrameSource, 1024),
        (&mut across, 1000),
    ] {
        let ask = TakeRequest::any(Pfn::new(LIMIT));
        let mut sink = RangeSink::new(&mut runs, core_::FrameCount::MAX);
        // Whole blocks first: none reaches across.
        let order = core_::Order::new(4).expect("an order");
        source.take(TakeRequest { order, ..ask }, &mut sink);
        assert_eq!(sink.frames().get(), low / 16 * 16);
        let end = sink.runs().iter().map(|run| run.range().end().get()).max();
        assert_eq!(end, Some(LIMIT));
        assert_eq!(source.take(ask, &mut sink), Shortage::OutOfReach);
        assert_eq!(sink.frames().get(), low);
        let mut sink = RangeSink::new(&mut runs, core_::FrameCount::MAX);
        assert_eq!(
            source.take(TakeRequest::any(Pfn::LIMIT), &mut sink),
            Shortage::Empty
        );
    }
}

#[test]
fn a_take_leaves_what_is_to_be_kept() {
    let mut memory = Vec::new();
    let mut zone = zone(&mut memory);
    let mut runs = [Run::new(range(0, 1)).expect("a run"); 64];
    let mut sink = RangeSink::new(&mut runs, core_::FrameCount::MAX);
    let ask = TakeRequest {
        min_free: core_::FrameCount::new(100),
        ..TakeRequest::any(Pfn::LIMIT)
    };
    assert_eq!(
        FrameSource::take(&mut zone, ask, &mut sink),
        Shortage::Floor
    );
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
                0 => Ledger::store(&mut zone, some, core_::Via::Inflate).expect("in hand"),
                1 => Ledger::store(&mut zone, some, core_::Via::Bulk).expect("in hand"),
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
            let Some((found, via)) = Ledger::next_held(&mut zone, rest) else { break };
            held.extend(found.frames().map(|pfn| (pfn.get(), via == core_::Via::Inflate)));
            at = rest.split_at(core_::FrameCount::new(found.end().get() - rest.start().get())).1;
        }
        let state = |frame: u64| zone.state(Frame::new(frame)).map(|block| block.state);
        let frames = || FIRST + from..FIRST + FRAMES;
        let expected: Vec<u64> = frames().filter(|&f| state(f) == Some(State::Free)).collect();
        prop_assert_eq!(free, expected);
        let ballooned: Vec<(u64, bool)> = frames()
            .filter_map(|f| match state(f) {
                Some(State::Ballooned(via)) => Some((f, via == Via::Inflate)),
                _ => None,
            })
            .collect();
        prop_assert_eq!(held, ballooned);
    }
}
