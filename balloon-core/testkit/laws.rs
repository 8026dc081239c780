//! The laws of the traits as checks any implementation can be put through.

use alloc::collections::BTreeSet;
use alloc::vec;
use alloc::vec::Vec;

use crate::backing::Backing;
use crate::migrate::{Migrate, MigrateRequest, Migration};
use crate::run::{RangeSink, Run};
use crate::slots::{InFlight, Kind, Outcome, Slots};
use crate::source::{FrameSource, Ledger, Shortage, TakeRequest, Via};
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
    let ask = TakeRequest::any(Pfn::LIMIT);
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
        if stop == Shortage::None {
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
    assert_ne!(
        source.take(TakeRequest::any(Pfn::new(0)), &mut sink),
        Shortage::None
    );
    assert!(sink.runs().is_empty(), "a frame above the limit of the ask");
    // Nothing of what is to be kept.
    let kept = TakeRequest {
        min_free: FrameCount::MAX,
        ..ask
    };
    assert_ne!(source.take(kept, &mut sink), Shortage::None);
    assert!(sink.runs().is_empty(), "a frame that was to be kept");
    let place = hull(&owned);
    check_taking_by_place(source, &owned, place);
    for &pfn in &owned {
        let range = FrameRange::single(pfn).expect("taken frames are in range");
        assert!(source.take_at(range).is_err(), "{pfn:?} is in hand");
    }
    for range in joined(owned) {
        assert_eq!(
            source.put(range, Backing::Populated),
            Ok(()),
            "neighbours go back together, whichever answers they came in"
        );
    }
    let mut runs = vec![Run::ZERO; 8];
    let mut sink = RangeSink::new(&mut runs, FrameCount::new(16));
    source.take(ask, &mut sink);
    for pfn in frames(sink.runs()) {
        let range = FrameRange::single(pfn).expect("taken frames are in range");
        assert_eq!(
            source.put(range, Backing::Populated),
            Ok(()),
            "each frame goes back by itself, too"
        );
    }
    check_preference(source);
    assert_eq!(source.available(), counted, "all is back");
}

/// A source that tells what is unpopulated hands it out first if asked to.
fn check_preference(source: &mut impl FrameSource) {
    let any = TakeRequest::any(Pfn::LIMIT);
    let mut runs = vec![Run::ZERO; 64];
    let mut sink = RangeSink::new(&mut runs, FrameCount::new(16));
    source.take(any, &mut sink);
    let half = frames(sink.runs()).len() / 2;
    for (nth, pfn) in frames(sink.runs()).into_iter().enumerate() {
        let backing = match nth < half {
            true => Backing::Unpopulated,
            false => Backing::Populated,
        };
        let range = FrameRange::single(pfn).expect("taken frames are in range");
        assert_eq!(source.put(range, backing), Ok(()));
    }
    let mut sink = RangeSink::new(&mut runs, FrameCount::new(half as u64));
    let ask = TakeRequest {
        unpopulated_first: true,
        ..any
    };
    source.take(ask, &mut sink);
    let populated = sink.populated();
    let mut taken = frames(sink.runs());
    let mut tells = populated < sink.frames();
    while !tells {
        let mut sink = RangeSink::new(&mut runs, FrameCount::MAX);
        source.take(any, &mut sink);
        if sink.runs().is_empty() {
            break;
        }
        tells = sink.populated() < sink.frames();
        taken.extend(frames(sink.runs()));
    }
    assert!(
        !tells || populated.is_zero(),
        "{populated} of {half} frames are populated, though there are others"
    );
    for range in taken.into_iter().filter_map(FrameRange::single) {
        assert_eq!(source.put(range, Backing::Populated), Ok(()));
    }
}

/// The frames in as few ranges as there can be.
fn joined(frames: impl IntoIterator<Item = Pfn>) -> Vec<FrameRange> {
    let mut ranges: Vec<FrameRange> = Vec::new();
    for range in frames.into_iter().filter_map(FrameRange::single) {
        let longer = ranges.last().and_then(|last| last.joined(range));
        match (ranges.last_mut(), longer) {
            (Some(last), Some(longer)) => *last = longer,
            _ => ranges.push(range),
        }
    }
    ranges
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
    source.take(TakeRequest::any(Pfn::LIMIT), &mut sink);
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
    let together = joined(taken.iter().flat_map(|shown| shown.frames()));
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
    for range in together {
        assert!(
            source.take_at(range).is_ok(),
            "{range} was shown as free, maybe in several answers"
        );
        assert_eq!(source.put(range, Backing::Unknown), Ok(()));
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
    assert_eq!(ledger.store(told, Via::Inflate), Ok(()));
    assert_eq!(ledger.store(bulk, Via::Bulk), Ok(()));
    assert_eq!(
        ledger.store(in_hand, Via::Inflate),
        Err(in_hand),
        "held already"
    );
    for (via, range) in [(Via::Inflate, told), (Via::Bulk, bulk)] {
        assert_eq!(ledger.held(via), range.count());
        let mut back = BTreeSet::new();
        loop {
            let mut runs = vec![Run::ZERO; 2];
            let mut sink = RangeSink::new(&mut runs, FrameCount::new(3));
            let stop = ledger.recall(via, Order::FRAME, &mut sink);
            let got = frames(sink.runs());
            assert!(got.len() <= 3, "more than was wanted");
            assert!(got.iter().all(|&pfn| back.insert(pfn)), "recalled twice");
            if got.is_empty() {
                assert_eq!(stop, Shortage::Empty);
                break;
            }
        }
        assert!(
            back.into_iter().eq(range.frames()),
            "recalled other frames than were stored"
        );
        assert_eq!(ledger.held(via), FrameCount::ZERO);
    }
    check_recalling_blocks(ledger, told, bulk);
    check_recalling_by_place(ledger, told, bulk);
    check_joining(ledger, in_hand);
}

/// What was stored in pieces comes back as one range, and the other way round; one
/// frame that does not belong to it refuses the whole.
fn check_joining(ledger: &mut impl Ledger, in_hand: FrameRange) {
    let via = Via::Inflate;
    let pieces: Vec<FrameRange> = in_hand
        .frames()
        .collect::<Vec<_>>()
        .chunks(7)
        .flat_map(|piece| joined(piece.iter().copied()))
        .collect();
    let (last, others) = pieces.split_last().expect("many pieces");
    assert_eq!(ledger.store(*last, via), Ok(()));
    assert_eq!(ledger.store(in_hand, via), Err(in_hand), "held in part");
    assert_eq!(ledger.held(via), last.count(), "a refusal changes nothing");
    for &piece in others {
        assert_eq!(ledger.store(piece, via), Ok(()), "a refusal holds nothing");
    }
    if ledger.recall_at(*last, via).is_err() {
        // A ledger that cannot recall by place.
        let mut runs = vec![Run::ZERO; pieces.len() + 1];
        let wanted = in_hand.count().saturating_add(FrameCount::ONE);
        let mut sink = RangeSink::new(&mut runs, wanted);
        assert_eq!(ledger.recall(via, Order::FRAME, &mut sink), Shortage::Empty);
        return;
    }
    assert_eq!(
        ledger.recall_at(in_hand, via),
        Err(in_hand),
        "a piece is missing"
    );
    assert_eq!(
        ledger.store(*last, via),
        Ok(()),
        "a refusal changes nothing"
    );
    assert_eq!(
        ledger.recall_at(in_hand, via),
        Ok(()),
        "neighbours come back together, however they were stored"
    );
    assert_eq!(ledger.store(in_hand, via), Ok(()));
    for piece in pieces {
        assert_eq!(ledger.recall_at(piece, via), Ok(()), "and apart");
    }
    assert_eq!(ledger.held(via), FrameCount::ZERO);
}

/// Whole blocks of a unit come back as such, and frames that make none stay.
fn check_recalling_blocks(ledger: &mut impl Ledger, told: FrameRange, bulk: FrameRange) {
    for unit in (0..=4).rev().filter_map(Order::new) {
        assert_eq!(ledger.store(told, Via::Inflate), Ok(()));
        assert_eq!(ledger.store(bulk, Via::Bulk), Ok(()));
        for (via, range) in [(Via::Inflate, told), (Via::Bulk, bulk)] {
            let size = unit.frames().get();
            let (mut back, mut blocks) = (BTreeSet::new(), 0);
            loop {
                let mut runs = vec![Run::ZERO; 2];
                // Part of a block is not to be had for the rest.
                let mut sink = RangeSink::new(&mut runs, FrameCount::new(2 * size - 1));
                let stop = ledger.recall(via, unit, &mut sink);
                for run in sink.runs().iter().map(|run| run.range()) {
                    assert!(run.start().is_aligned(unit), "{run} starts inside a block");
                    assert!(run.end().is_aligned(unit), "{run} ends inside a block");
                    assert!(run.frames().all(|pfn| back.insert(pfn)), "recalled twice");
                    blocks += run.count().get() / size;
                }
                if sink.frames().is_zero() && stop != Shortage::Again {
                    assert_ne!(stop, Shortage::None, "nothing was recalled");
                    break;
                }
            }
            let (start, end) = (range.start().get(), range.end().get());
            let whole = (end / size).saturating_sub(start.div_ceil(size));
            // A ledger may have no blocks, but not some.
            assert!(blocks == whole || blocks == 0, "{blocks} of {whole} blocks");
            let left = range.frames().filter(|pfn| !back.contains(pfn));
            let left: Vec<_> = left.collect();
            assert_eq!(ledger.held(via).get(), left.len() as u64);
            let mut runs = vec![Run::ZERO; left.len() + 1];
            let wanted = range.count().saturating_add(FrameCount::ONE);
            let mut sink = RangeSink::new(&mut runs, wanted);
            assert_eq!(ledger.recall(via, Order::FRAME, &mut sink), Shortage::Empty);
            let rest: BTreeSet<Pfn> = frames(sink.runs()).into_iter().collect();
            assert!(rest.into_iter().eq(left), "frames are left");
        }
    }
}

/// What is shown can be recalled by its path, and by no other.
fn check_recalling_by_place(ledger: &mut impl Ledger, told: FrameRange, bulk: FrameRange) {
    let all = told.joined(bulk).expect("two parts of a range");
    assert_eq!(ledger.next_held(all), None, "nothing is held");
    assert_eq!(ledger.store(told, Via::Inflate), Ok(()));
    assert_eq!(ledger.store(bulk, Via::Bulk), Ok(()));
    let mut recalled = BTreeSet::new();
    while let Some((shown, via)) = ledger.next_held(all) {
        let (stored, other) = match via {
            Via::Inflate => (told, Via::Bulk),
            Via::Bulk => (bulk, Via::Inflate),
        };
        assert_eq!(stored.intersection(shown), Some(shown), "stored as {via:?}");
        assert_eq!(ledger.recall_at(shown, other), Err(shown), "another path");
        let held = ledger.held(via);
        assert_eq!(ledger.recall_at(shown, via), Ok(()), "{shown} is shown");
        assert_eq!(ledger.recall_at(shown, via), Err(shown), "recalled already");
        assert_eq!(ledger.held(via), held.saturating_sub(shown.count()));
        assert!(
            shown.frames().all(|pfn| recalled.insert(pfn)),
            "{shown} was recalled twice"
        );
    }
    if recalled.is_empty() {
        // A ledger that cannot look.
        for via in Via::ALL {
            let mut runs = vec![Run::ZERO; 2];
            let mut sink = RangeSink::new(&mut runs, all.count());
            ledger.recall(via, Order::FRAME, &mut sink);
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
    let mut paths = vec![(Kind::Inflate, Via::Inflate, caps.inflate)];
    paths.push((Kind::Deflate, Via::Inflate, caps.deflate));
    if let Some(bulk) = caps.bulk {
        paths.push((Kind::Inflate, Via::Bulk, bulk));
    }
    for (kind, via, limits) in paths {
        let runs = request_runs(frames, limits);
        let slot = slots.claim(kind).expect("a free slot").launch();
        transport
            .submit(slot.request(via, &runs), slots.completer())
            .expect("within the limits");
        transport.kick(1).expect("a live host");
        await_answer(transport, &slots, slot, &mut pump);
        // Beyond the limits: refused, and nothing is in flight.
        let slot = slots.claim(kind).expect("a free slot").launch();
        let beyond = vec![runs.first().copied().expect("a run"); limits.runs + 1];
        let refused = transport.submit(slot.request(via, &beyond), slots.completer());
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
/// guest's; the first half is given and migrated for the second. `pump` lets the
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
    let (from, to) = frames.split_at(half);
    let from = request_runs(from.expect("a half"), transport.capabilities().inflate);
    let count = from.first().expect("a run").count();
    let (to, _) = to.expect("the other half").split_at(count);
    let to = vec![to.and_then(Run::new).expect("as many")];
    let pump: &mut dyn FnMut(&mut T) = &mut pump;
    let ask = |transport: &mut T, pump: &mut dyn FnMut(&mut T), kind, runs: &[Run]| {
        let slot = slots.claim(kind).expect("a free slot").launch();
        let request = slot.request(Via::Inflate, runs);
        transport
            .submit(request, slots.completer())
            .expect("within the limits");
        transport.kick(1).expect("a live host");
        await_answer(transport, &slots, slot, pump).frames(count)
    };
    assert_eq!(
        ask(transport, pump, Kind::Inflate, &from),
        count,
        "the first half is ballooned"
    );
    let slot = slots.claim(Kind::Migrate).expect("a free slot").launch();
    let request = MigrateRequest {
        slot: slot.slot(),
        from: &from,
        to: &to,
    };
    let submitted = transport.submit_migrate(request, slots.completer());
    if !matches!(transport.migration(), Migration::Exchange | Migration::Move) {
        assert!(submitted.is_err(), "a host that cannot migrate");
        assert!(slot.revoke().is_ok(), "a refused migration is not answered");
        assert_eq!(
            ask(transport, pump, Kind::Deflate, &from),
            count,
            "nothing was migrated"
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
        ask(transport, pump, Kind::Deflate, &to),
        count,
        "the second half is ballooned"
    );
    // Beyond the limits: refused, and nothing is in flight.
    let slot = slots.claim(Kind::Migrate).expect("a free slot").launch();
    let limits = transport.capabilities().inflate;
    let beyond = vec![from.first().copied().expect("a run"); limits.runs + 1];
    let request = MigrateRequest {
        slot: slot.slot(),
        from: &beyond,
        to: &beyond,
    };
    let refused = transport.submit_migrate(request, slots.completer());
    assert!(refused.is_err(), "beyond the limits");
    assert!(transport.reap(slots.completer()).is_ok());
    assert!(slot.revoke().is_ok(), "a refused migration is not answered");
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
