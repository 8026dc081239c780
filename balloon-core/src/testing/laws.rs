//! The laws of the traits as checks any implementation can be put through.

use alloc::collections::BTreeSet;
use alloc::vec;
use alloc::vec::Vec;

use crate::migrate::{Migrate, Migration, Trade};
use crate::run::{RangeSink, Run};
use crate::slots::{InFlight, Kind, Outcome, Slots};
use crate::source::{Ask, Backing, FrameSource, GivePath, Ledger, Stop};
use crate::transport::{Limits, Transport};
use crate::units::{FrameCount, FrameRange, Order, Pfn};

fn frames(runs: &[Run]) -> Vec<Pfn> {
    runs.iter().flat_map(|run| run.range().frames()).collect()
}

/// Checks [`FrameSource`]'s laws; the source needs at least 64 free frames and
/// gets all of them back.
///
/// # Panics
/// If a law is broken.
pub fn check_frame_source_laws(source: &mut impl FrameSource) {
    let ask = Ask::any(Pfn::LIMIT);
    let mut owned = BTreeSet::new();
    let counted = source.available();
    for wanted in [1, 7, 16, 40] {
        let mut runs = vec![Run::ZERO; 8];
        let mut sink = RangeSink::new(&mut runs, FrameCount::new(wanted));
        let before = source.available();
        let stop = source.take(ask, &mut sink);
        let left = before.map(|before| before.saturating_sub(sink.frames()));
        assert_eq!(source.available(), left, "less by what was taken");
        assert!(sink.frames().get() <= wanted, "more than was wanted");
        if stop == Stop::Enough {
            assert!(sink.is_full(), "`Enough` means that the sink is full");
        }
        for pfn in frames(sink.runs()) {
            assert!(owned.insert(pfn), "{pfn:?} was handed out twice");
        }
    }
    assert!(
        !owned.is_empty(),
        "the source has free frames and hands out none"
    );
    // Nothing below the lowest frame: an empty ask takes nothing.
    let mut runs = vec![Run::ZERO; 8];
    let mut sink = RangeSink::new(&mut runs, FrameCount::ONE);
    assert_ne!(source.take(Ask::any(Pfn::new(0)), &mut sink), Stop::Enough);
    assert!(sink.runs().is_empty(), "a frame above the limit of the ask");
    // Nothing of what is to be kept.
    let kept = Ask {
        keep: FrameCount::MAX,
        ..ask
    };
    assert_ne!(source.take(kept, &mut sink), Stop::Enough);
    assert!(sink.runs().is_empty(), "a frame that was to be kept");
    let place = hull(&owned);
    check_taking_by_place(source, &owned, place);
    for pfn in owned {
        let range = FrameRange::single(pfn).expect("taken frames are in range");
        assert!(source.take_at(range).is_err(), "{pfn:?} is in hand");
        assert_eq!(
            source.put(range, Backing::Populated),
            Ok(()),
            "what was taken goes back"
        );
    }
    assert_eq!(source.available(), counted, "all is back");
}

/// Checks that a source that knows which frames are in hand takes no other ones.
///
/// Allocators without that knowledge trust their callers, and cannot be checked.
///
/// # Panics
/// If a frame is taken back twice.
pub fn check_put_refuses_what_is_free(source: &mut impl FrameSource) {
    let mut runs = vec![Run::ZERO; 8];
    let mut sink = RangeSink::new(&mut runs, FrameCount::new(16));
    source.take(Ask::any(Pfn::LIMIT), &mut sink);
    assert!(!sink.runs().is_empty(), "the source hands out none");
    for pfn in frames(sink.runs()) {
        let range = FrameRange::single(pfn).expect("taken frames are in range");
        assert_eq!(source.put(range, Backing::Populated), Ok(()));
        let again = source.put(range, Backing::Populated);
        assert_eq!(again, Err(range), "only once");
    }
}

/// The frames from the first of them to the last.
fn hull(frames: &BTreeSet<Pfn>) -> FrameRange {
    let (first, last) = (frames.first().expect("some"), frames.last().expect("some"));
    let count = last.get() - first.get() + 1;
    FrameRange::new(*first, FrameCount::new(count)).expect("taken frames are in range")
}

/// What is shown inside `place` can be had, is free, and is clipped; sources
/// that cannot look or take by place show or refuse all alike.
fn check_taking_by_place(
    source: &mut impl FrameSource,
    in_hand: &BTreeSet<Pfn>,
    place: FrameRange,
) {
    let mut taken = Vec::new();
    while let Some(shown) = source.next_free(place) {
        assert_eq!(place.intersection(shown), Some(shown), "not clipped");
        assert!(
            !shown.frames().any(|pfn| in_hand.contains(&pfn)),
            "{shown} is shown as free and in hand"
        );
        assert!(source.take_at(shown).is_ok(), "{shown} is shown as free");
        assert_eq!(source.take_at(shown), Err(shown), "{shown} was taken");
        taken.push(shown);
    }
    for shown in taken {
        // One frame of it, beside others that are not free.
        let (frame, rest) = shown.split_at(FrameCount::ONE);
        let frame = frame.expect("one frame");
        assert_eq!(source.put(frame, Backing::Unknown), Ok(()));
        if rest.is_some() {
            assert_eq!(
                source.take_at(shown),
                Err(shown),
                "{shown} is in hand in part"
            );
        }
        assert_eq!(
            source.next_free(frame),
            Some(frame),
            "a refusal changes nothing, and what was put back is shown"
        );
        if let Some(rest) = rest {
            assert_eq!(source.put(rest, Backing::Unknown), Ok(()));
        }
    }
}

/// Checks [`Ledger`]'s laws with frames `in_hand`, at least 32 in a row that
/// the ledger may hold; they are in hand again at the end.
///
/// # Panics
/// If a law is broken.
pub fn check_ledger_laws(ledger: &mut impl Ledger, in_hand: FrameRange) {
    assert!(in_hand.count().get() >= 32, "too few frames to check with");
    let (head, tail) = in_hand.split_at(FrameCount::new(20));
    let (told, bulk) = (head.expect("20 frames"), tail.expect("at least 12 frames"));
    assert_eq!(ledger.store(told, GivePath::Told), Ok(()));
    assert_eq!(ledger.store(bulk, GivePath::Bulk), Ok(()));
    assert_eq!(
        ledger.store(in_hand, GivePath::Told),
        Err(in_hand),
        "held already"
    );
    for (path, range) in [(GivePath::Told, told), (GivePath::Bulk, bulk)] {
        assert_eq!(ledger.held(path), range.count());
        let mut back = BTreeSet::new();
        loop {
            let mut runs = vec![Run::ZERO; 2];
            let mut sink = RangeSink::new(&mut runs, FrameCount::new(3));
            let stop = ledger.recall(path, Order::FRAME, &mut sink);
            let got = frames(sink.runs());
            assert!(got.len() <= 3, "more than was wanted");
            assert!(got.iter().all(|&pfn| back.insert(pfn)), "recalled twice");
            if got.is_empty() {
                assert_eq!(stop, Stop::Empty);
                break;
            }
        }
        assert!(
            back.into_iter().eq(range.frames()),
            "recalled other frames than were stored"
        );
        assert_eq!(ledger.held(path), FrameCount::ZERO);
    }
    check_recalling_blocks(ledger, told, bulk);
    check_recalling_by_place(ledger, told, bulk);
}

/// Whole blocks of a unit come back as such, and frames that make none stay.
fn check_recalling_blocks(ledger: &mut impl Ledger, told: FrameRange, bulk: FrameRange) {
    for unit in (0..=4).rev().filter_map(Order::new) {
        assert_eq!(ledger.store(told, GivePath::Told), Ok(()));
        assert_eq!(ledger.store(bulk, GivePath::Bulk), Ok(()));
        for (path, range) in [(GivePath::Told, told), (GivePath::Bulk, bulk)] {
            let size = unit.frames().get();
            let (mut back, mut blocks) = (BTreeSet::new(), 0);
            loop {
                let mut runs = vec![Run::ZERO; 2];
                // Part of a block is not to be had for the rest.
                let mut sink = RangeSink::new(&mut runs, FrameCount::new(2 * size - 1));
                let stop = ledger.recall(path, unit, &mut sink);
                for run in sink.runs().iter().map(|run| run.range()) {
                    assert!(run.start().is_aligned(unit), "{run} starts inside a block");
                    assert!(run.end().is_aligned(unit), "{run} ends inside a block");
                    assert!(run.frames().all(|pfn| back.insert(pfn)), "recalled twice");
                    blocks += run.count().get() / size;
                }
                if sink.frames().is_zero() {
                    assert_ne!(stop, Stop::Enough, "nothing was recalled");
                    break;
                }
            }
            let (start, end) = (range.start().get(), range.end().get());
            let whole = (end / size).saturating_sub(start.div_ceil(size));
            // A ledger may have no blocks, but not some.
            assert!(blocks == whole || blocks == 0, "{blocks} of {whole} blocks");
            let left = range.frames().filter(|pfn| !back.contains(pfn));
            let left: Vec<_> = left.collect();
            assert_eq!(ledger.held(path).get(), left.len() as u64);
            let mut runs = vec![Run::ZERO; left.len() + 1];
            let wanted = range.count().saturating_add(FrameCount::ONE);
            let mut sink = RangeSink::new(&mut runs, wanted);
            assert_eq!(ledger.recall(path, Order::FRAME, &mut sink), Stop::Empty);
            assert!(frames(sink.runs()).into_iter().eq(left), "frames are left");
        }
    }
}

/// What is shown can be recalled by its path, and by no other.
fn check_recalling_by_place(ledger: &mut impl Ledger, told: FrameRange, bulk: FrameRange) {
    let all = told.joined(bulk).expect("two parts of a range");
    assert_eq!(ledger.next_held(all), None, "nothing is held");
    assert_eq!(ledger.store(told, GivePath::Told), Ok(()));
    assert_eq!(ledger.store(bulk, GivePath::Bulk), Ok(()));
    let mut recalled = BTreeSet::new();
    while let Some((shown, path)) = ledger.next_held(all) {
        let (stored, other) = match path {
            GivePath::Told => (told, GivePath::Bulk),
            GivePath::Bulk => (bulk, GivePath::Told),
        };
        assert_eq!(
            stored.intersection(shown),
            Some(shown),
            "stored as {path:?}"
        );
        assert_eq!(ledger.recall_at(shown, other), Err(shown), "another path");
        let held = ledger.held(path);
        assert_eq!(ledger.recall_at(shown, path), Ok(()), "{shown} is shown");
        assert_eq!(
            ledger.recall_at(shown, path),
            Err(shown),
            "recalled already"
        );
        assert_eq!(ledger.held(path), held.saturating_sub(shown.count()));
        assert!(
            shown.frames().all(|pfn| recalled.insert(pfn)),
            "{shown} was recalled twice"
        );
    }
    if recalled.is_empty() {
        // A ledger that cannot look.
        for path in GivePath::ALL {
            let mut runs = vec![Run::ZERO; 2];
            let mut sink = RangeSink::new(&mut runs, all.count());
            ledger.recall(path, Order::FRAME, &mut sink);
        }
        return;
    }
    assert!(
        recalled.into_iter().eq(all.frames()),
        "shown other frames than were stored"
    );
}

/// Checks [`Transport`]'s laws over a host that answers everything.
///
/// `frames` are given and taken back, at least 512 of them in a row; `pump` lets
/// the host work between calls.
///
/// # Panics
/// If a law is broken.
pub fn check_transport_laws<T: Transport>(
    transport: &mut T,
    frames: FrameRange,
    mut pump: impl FnMut(&mut T),
) {
    let slots = Slots::<4>::new();
    let caps = transport.capabilities();
    let mut paths = vec![(Kind::Inflate, GivePath::Told, caps.inflate)];
    paths.push((Kind::Deflate, GivePath::Told, caps.deflate));
    if let Some(bulk) = caps.bulk {
        paths.push((Kind::Inflate, GivePath::Bulk, bulk));
    }
    for (kind, path, limits) in paths {
        let runs = request_runs(frames, limits);
        let slot = slots.claim(kind).expect("a free slot").launch();
        transport
            .submit(slot.request(path, &runs), slots.completer())
            .expect("within the limits");
        transport.kick(1).expect("a live host");
        await_answer(transport, &slots, slot, &mut pump);
        // Beyond the limits: refused, and nothing is in flight.
        let slot = slots.claim(kind).expect("a free slot").launch();
        let beyond = vec![runs.first().copied().expect("a run"); limits.runs + 1];
        let refused = transport.submit(slot.request(path, &beyond), slots.completer());
        assert!(refused.is_err(), "beyond the limits");
        assert!(transport.reap(slots.completer()).is_ok());
        assert!(slot.revoke().is_ok(), "a refused request is not answered");
    }
    transport
        .write_actual(FrameCount::ZERO)
        .expect("a live host");
    transport.read_target().expect("a live host");
}

/// Checks [`Migrate`]'s laws over a host that answers everything.
///
/// `frames`, at least 16 of them in a row and a multiple of two, are the
/// guest's; the first half is given and traded for the second. `pump` lets the
/// host work between calls.
///
/// # Panics
/// If a law is broken.
pub fn check_migrate_laws<T: Migrate>(
    transport: &mut T,
    frames: FrameRange,
    mut pump: impl FnMut(&mut T),
) {
    let slots = Slots::<4>::new();
    let half = FrameCount::new(frames.count().get() / 2);
    let (olds, news) = frames.split_at(half);
    let olds = request_runs(olds.expect("a half"), transport.capabilities().inflate);
    let count = olds.first().expect("a run").count();
    let (news, _) = news.expect("the other half").split_at(count);
    let news = vec![news.and_then(Run::new).expect("as many")];
    let pump: &mut dyn FnMut(&mut T) = &mut pump;
    let ask = |transport: &mut T, pump: &mut dyn FnMut(&mut T), kind, runs: &[Run]| {
        let slot = slots.claim(kind).expect("a free slot").launch();
        let request = slot.request(GivePath::Told, runs);
        transport
            .submit(request, slots.completer())
            .expect("within the limits");
        transport.kick(1).expect("a live host");
        await_answer(transport, &slots, slot, pump).frames(count)
    };
    assert_eq!(
        ask(transport, pump, Kind::Inflate, &olds),
        count,
        "the olds are given"
    );
    let slot = slots.claim(Kind::Migrate).expect("a free slot").launch();
    let trade = Trade {
        slot: slot.slot(),
        olds: &olds,
        news: &news,
    };
    let submitted = transport.submit_trade(trade, slots.completer());
    if !matches!(transport.migration(), Migration::Exchange | Migration::Move) {
        assert!(submitted.is_err(), "a host that cannot trade");
        assert!(slot.revoke().is_ok(), "a refused trade is not answered");
        assert_eq!(
            ask(transport, pump, Kind::Deflate, &olds),
            count,
            "nothing was traded"
        );
        return;
    }
    submitted.expect("within the limits");
    transport.kick(1).expect("a live host");
    let outcome = await_answer(transport, &slots, slot, pump);
    assert_eq!(
        outcome.frames(count),
        count,
        "nothing stands in the way of a pair"
    );
    // The host has the news now, and gives back those.
    assert_eq!(
        ask(transport, pump, Kind::Deflate, &news),
        count,
        "the news are held"
    );
    // Beyond the limits: refused, and nothing is in flight.
    let slot = slots.claim(Kind::Migrate).expect("a free slot").launch();
    let limits = transport.capabilities().inflate;
    let beyond = vec![olds.first().copied().expect("a run"); limits.runs + 1];
    let trade = Trade {
        slot: slot.slot(),
        olds: &beyond,
        news: &beyond,
    };
    let refused = transport.submit_trade(trade, slots.completer());
    assert!(refused.is_err(), "beyond the limits");
    assert!(transport.reap(slots.completer()).is_ok());
    assert!(slot.revoke().is_ok(), "a refused trade is not answered");
}

/// Waits until the host has answered.
fn await_answer<T: Transport, const N: usize>(
    transport: &mut T,
    slots: &Slots<N>,
    mut slot: InFlight<'_>,
    pump: &mut dyn FnMut(&mut T),
) -> Outcome {
    for _ in 0..1000 {
        pump(transport);
        transport.reap(slots.completer()).expect("a live host");
        match slot.answer() {
            Ok((_, outcome)) => return outcome,
            Err(waiting) => slot = waiting,
        }
    }
    panic!("the {:?} was never answered", slot.kind());
}

fn request_runs(frames: FrameRange, limits: Limits) -> Vec<Run> {
    let count = limits
        .frames
        .get()
        .min(limits.run.get())
        .min(frames.count().get());
    let (head, _) = frames.split_at(FrameCount::new(count));
    vec![head.and_then(Run::new).expect("a run within the limits")]
}
