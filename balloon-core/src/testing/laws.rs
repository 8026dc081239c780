//! The laws of the traits as checks any implementation can be put through.

use alloc::collections::BTreeSet;
use alloc::vec;
use alloc::vec::Vec;

use crate::run::{RangeSink, Run};
use crate::slots::{Kind, Slots};
use crate::source::{Ask, Backing, FrameSource, GivePath, Ledger, Stop};
use crate::transport::{Limits, Transport};
use crate::units::{FrameCount, FrameRange, Pfn};

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
    for wanted in [1, 7, 16, 40] {
        let mut runs = vec![Run::ZERO; 8];
        let mut sink = RangeSink::new(&mut runs, FrameCount::new(wanted));
        let stop = source.take(ask, &mut sink);
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
    for pfn in owned {
        let range = FrameRange::single(pfn).expect("taken frames are in range");
        assert_eq!(
            source.put(range, Backing::Populated),
            Ok(()),
            "what was taken goes back"
        );
        assert_eq!(
            source.put(range, Backing::Populated),
            Err(range),
            "and only once"
        );
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
            let stop = ledger.recall(path, &mut sink);
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
        let mut waiting = Some(slot);
        for _ in 0..1000 {
            pump(transport);
            transport.reap(slots.completer()).expect("a live host");
            waiting = waiting.and_then(|slot| slot.answer().err());
            if waiting.is_none() {
                break;
            }
        }
        assert!(
            waiting.is_none(),
            "the {kind:?} by {path:?} was never answered"
        );
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

fn request_runs(frames: FrameRange, limits: Limits) -> Vec<Run> {
    let count = limits
        .frames
        .get()
        .min(limits.run.get())
        .min(frames.count().get());
    let (head, _) = frames.split_at(FrameCount::new(count));
    vec![head.and_then(Run::new).expect("a run within the limits")]
}
