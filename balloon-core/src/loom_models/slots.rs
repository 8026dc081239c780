//! Fillers, completers and cancellation over the response slots.

use loom::sync::Arc;
use loom::thread;

use super::{Content, Tally, UNORDERED, explore, failure};
use crate::slots::{Claimed, Completer, Exhausted, InFlight, Kind, Outcome, SlotId, Slots};
use crate::sync::Site;
use crate::units::FrameCount;

/// What the models need of a set of slots.
trait Buffers: Default + Send + Sync + 'static {
    fn claim(&self, kind: Kind) -> Result<Claimed<'_>, Exhausted>;
    fn completer(&self) -> Completer<'_>;
}

impl<const N: usize> Buffers for Slots<N> {
    fn claim(&self, kind: Kind) -> Result<Claimed<'_>, Exhausted> {
        self.claim(kind)
    }

    fn completer(&self) -> Completer<'_> {
        self.completer()
    }
}

/// The original design: balloon pages and unused pages share their buffers.
#[derive(Default)]
struct OneBuffer<const N: usize>(Slots<N>);

impl<const N: usize> Buffers for OneBuffer<N> {
    fn claim(&self, _: Kind) -> Result<Claimed<'_>, Exhausted> {
        self.0.claim(Kind::Inflate)
    }

    fn completer(&self) -> Completer<'_> {
        self.0.completer()
    }
}

/// Slots of one kind with the content that each guards.
struct Rig<B> {
    slots: B,
    contents: [Content; 2],
    /// Requests completed with success, by anybody.
    completed: Tally,
    /// Answers taken.
    answered: Tally,
    /// Requests revoked.
    revoked: Tally,
}

impl<B: Buffers> Rig<B> {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            slots: B::default(),
            contents: [Content::new(), Content::new()],
            completed: Tally::new(),
            answered: Tally::new(),
            revoked: Tally::new(),
        })
    }

    fn content(&self, slot: SlotId) -> &Content {
        &self.contents[slot.index()]
    }

    fn fill(&self, claimed: &Claimed<'_>, value: u32) {
        self.content(claimed.slot()).write(value);
    }

    /// The host's side, which learns of requests by no ordering of ours: it
    /// answers every slot, launched or not, with what it finds there.
    fn complete_all(&self, count: u16) -> u32 {
        let mut found = 0;
        for slot in (0..count).map(SlotId::new) {
            let outcome = || {
                let value = self.content(slot).read();
                assert_ne!(value, 0, "the completer sees what was filled in");
                // The owner of the slot may read and write: so may we.
                self.content(slot).write(value + 1);
                Outcome::Partial(FrameCount::new(value.into()))
            };
            let done = self.slots.completer();
            if done.complete_with(Kind::Inflate, slot, outcome).is_ok() {
                self.completed.count();
                found += 1;
            }
        }
        found
    }

    /// Takes the answer if there is one; it must be to `value`.
    fn take<'a>(&self, in_flight: InFlight<'a>, value: u32) -> Result<Claimed<'a>, InFlight<'a>> {
        let (claimed, outcome) = in_flight.answer()?;
        assert_eq!(outcome, Outcome::Partial(FrameCount::new(value.into())));
        let content = self.content(claimed.slot());
        assert_eq!(content.read(), value + 1, "we see what the completer did");
        content.write(0);
        self.answered.count();
        Ok(claimed)
    }
}

/// Two fillers and a completer: nobody touches a slot that is another's.
///
/// With one slot one of the fillers may lose the claim, or get the slot that
/// the other gave up.
fn two_fillers_one_completer<const N: usize>() {
    let rig = Rig::<Slots<N>>::new();
    let completer = {
        let rig = Arc::clone(&rig);
        thread::spawn(move || rig.complete_all(N as u16))
    };
    let fill = |rig: &Rig<Slots<N>>, value| {
        let Ok(claimed) = rig.slots.claim(Kind::Inflate) else {
            return (0, 0);
        };
        rig.fill(&claimed, value);
        match rig.take(claimed.launch(), value) {
            Ok(_) => (1, 1),
            // Left with the host.
            Err(_) => (1, 0),
        }
    };
    let filler = {
        let rig = Arc::clone(&rig);
        thread::spawn(move || fill(&rig, 10))
    };
    let (launched, answered) = fill(&rig, 20);
    let (more_launched, more_answered) = filler.join().unwrap();
    let completed = completer.join().unwrap();
    let launched = launched + more_launched;
    assert!(launched >= 1, "a free slot is claimed by somebody");
    assert!(N == 1 || launched == 2, "both find one of two slots");
    assert!(completed <= launched);
    assert!(
        answered + more_answered <= completed,
        "an answer came twice"
    );
}

/// A filler that cancels against a completer: one of the two wins.
fn revoke_against_complete<const N: usize>() {
    let rig = Rig::<Slots<N>>::new();
    let in_flight = |value| {
        let claimed = rig.slots.claim(Kind::Inflate).unwrap();
        rig.fill(&claimed, value);
        claimed.launch()
    };
    let flights: [_; N] = core::array::from_fn(|_| in_flight(7));
    let completers: [_; 2] = core::array::from_fn(|_| {
        let rig = Arc::clone(&rig);
        thread::spawn(move || rig.complete_all(N as u16))
    });
    let mut left = std::vec::Vec::new();
    for flight in flights {
        match flight.revoke() {
            Ok(claimed) => {
                rig.content(claimed.slot()).write(0);
                rig.revoked.count();
            }
            Err(flight) => left.push(flight),
        }
    }
    for completer in completers {
        completer.join().unwrap();
    }
    for flight in left {
        let taken = rig.take(flight, 7);
        assert!(taken.is_ok(), "what could not be revoked is answered");
    }
    assert_eq!(rig.answered.get(), rig.completed.get(), "a lost completion");
    assert_eq!(rig.answered.get() + rig.revoked.get(), N as u32);
    // All slots are free again.
    let free: [_; N] = core::array::from_fn(|_| rig.slots.claim(Kind::Inflate));
    assert!(free.iter().all(Result::is_ok));
}

/// Two completers of the same request, one of them an interrupt: one loses.
fn two_completers<const N: usize>() {
    let rig = Rig::<Slots<N>>::new();
    let interrupt = {
        let rig = Arc::clone(&rig);
        thread::spawn(move || rig.complete_all(N as u16))
    };
    let claimed = rig.slots.claim(Kind::Inflate).unwrap();
    rig.fill(&claimed, 5);
    let in_flight = claimed.launch();
    let other = {
        let rig = Arc::clone(&rig);
        thread::spawn(move || rig.complete_all(N as u16))
    };
    let waiting = rig.take(in_flight, 5).err();
    let won = interrupt.join().unwrap() + other.join().unwrap();
    assert_eq!(won, 1, "the last completer to look finds the request");
    if let Some(in_flight) = waiting {
        assert!(rig.take(in_flight, 5).is_ok(), "a completion was lost");
    }
    assert_eq!(rig.answered.get(), 1);
}

/// A slot passes from one filler to another by way of being free.
fn handed_over_free<const N: usize>() {
    let rig = Rig::<Slots<N>>::new();
    let fill_and_drop = |rig: &Rig<Slots<N>>| {
        for value in 1..=2 {
            if let Ok(claimed) = rig.slots.claim(Kind::Inflate) {
                rig.fill(&claimed, value);
            }
        }
    };
    let others: [_; 2] = core::array::from_fn(|_| {
        let rig = Arc::clone(&rig);
        thread::spawn(move || fill_and_drop(&rig))
    });
    fill_and_drop(&rig);
    for other in others {
        other.join().unwrap();
    }
    let free: [_; N] = core::array::from_fn(|_| rig.slots.claim(Kind::Inflate));
    assert!(free.iter().all(Result::is_ok));
}

const HINT_WAITS: &str = "the hint waits for an inflation";

/// A live migration starts while inflations come and go.
fn a_hint_can_always_start<B: Buffers, const N: usize>() {
    let rig = Rig::<B>::new();
    let inflations = {
        let rig = Arc::clone(&rig);
        thread::spawn(move || {
            for _ in 0..N {
                // In flight until the host answers, which may be never.
                rig.slots.claim(Kind::Inflate).map(Claimed::launch).ok();
            }
        })
    };
    let interrupt = {
        let rig = Arc::clone(&rig);
        thread::spawn(move || {
            let done = rig.slots.completer();
            for slot in (0..N as u16).map(SlotId::new) {
                done.complete(Kind::Inflate, slot, Outcome::Whole).ok();
            }
        })
    };
    let hint = rig.slots.claim(Kind::Hint);
    assert!(hint.is_ok(), "{HINT_WAITS}");
    drop(hint.map(Claimed::launch));
    interrupt.join().unwrap();
    inflations.join().unwrap();
}

#[test]
fn no_slot_has_two_owners() {
    explore(two_fillers_one_completer::<1>);
    explore(two_fillers_one_completer::<2>);
}

#[test]
fn a_cancelled_request_is_revoked_or_answered() {
    explore(revoke_against_complete::<1>);
    explore(revoke_against_complete::<2>);
}

#[test]
fn an_answer_is_delivered_once() {
    explore(two_completers::<1>);
    explore(two_completers::<2>);
}

#[test]
fn a_freed_slot_brings_nothing_along() {
    explore(handed_over_free::<1>);
    explore(handed_over_free::<2>);
}

#[test]
fn a_hint_starts_whatever_inflations_do() {
    explore(a_hint_can_always_start::<Slots<1>, 1>);
    explore(a_hint_can_always_start::<Slots<2>, 2>);
}

#[test]
fn a_hint_waits_where_kinds_share_a_buffer() {
    let models: [fn(); 2] = [
        a_hint_can_always_start::<OneBuffer<1>, 1>,
        a_hint_can_always_start::<OneBuffer<2>, 2>,
    ];
    for model in models {
        let failure = failure(None, move || explore(model));
        assert!(failure.contains(HINT_WAITS), "{failure:?}");
    }
}

#[test]
fn every_ordering_is_needed() {
    let models: [(Site, fn()); 6] = [
        (Site::Claim, handed_over_free::<1>),
        (Site::Free, handed_over_free::<1>),
        (Site::Launch, two_completers::<1>),
        (Site::Complete, two_completers::<1>),
        (Site::Done, two_completers::<1>),
        (Site::Answer, two_fillers_one_completer::<2>),
    ];
    for (site, model) in models {
        let failure = failure(Some(site), move || explore(model));
        assert!(failure.contains(UNORDERED), "{site:?}: {failure:?}");
    }
}
