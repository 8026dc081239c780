//! Response slots: each kind of request owns its own, lock-free.
//!
//! A request to the host occupies one slot from the moment it is filled until
//! its answer has been dealt with:
//!
//! ```text
//!        claim             launch              complete            answer
//!  free ──────► claimed ──────────► in flight ─────────► done ──────────► claimed
//!       ◄──────         ◄──────────
//!         drop            revoke
//! ```
//!
//! Kinds never share slots and never wait for each other, so a free-page hint
//! of a starting migration leaves while an inflation occupies all of its own
//! slots.
//!
//! At each moment a slot has one owner, and what its owner may do is what its
//! type offers: a [`Claimed`] slot may be filled, launched, or dropped; one
//! [`InFlight`] may be asked for its answer or revoked; neither can be launched
//! or answered twice. Only the host's side names slots by number, because the
//! numbers come from the host: [`Completer`] checks each.
//!
//! This is the only state that several CPUs touch. Whoever sees the host's
//! answer (the engine's own step, another CPU, an interrupt handler) completes;
//! where two may try, one compare-and-swap on one word decides. The word carries
//! the outcome too; the frames of the request stay with the engine, its DMA
//! bytes with the transport.
//!
//! # Models
//!
//! Every interleaving of fillers, completers, and cancellation is explored, with
//! this very code, by
//! `RUSTFLAGS="--cfg loom" cargo test -p balloon-core --profile loom --lib loom`.

use core::fmt;

use crate::run::Run;
use crate::source::Via;
use crate::sync::{AtomicU32, Ordering, Site, at};
use crate::units::FrameCount;

/// What a request is about; each kind owns its own slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Kind {
    /// Frames given to the host against the target.
    Inflate,
    /// Frames taken back.
    Deflate,
    /// Unused frames a live migration may skip.
    Hint,
    /// Free frames the host may discard; they stay the guest's.
    Report,
    /// Memory statistics.
    Statistics,
    /// Ballooned frames migrated for free ones in one go.
    Migrate,
}

impl Kind {
    /// Number of kinds.
    pub const COUNT: usize = 6;

    const fn index(self) -> usize {
        match self {
            Self::Inflate => 0,
            Self::Deflate => 1,
            Self::Hint => 2,
            Self::Report => 3,
            Self::Statistics => 4,
            Self::Migrate => 5,
        }
    }
}

/// One request: frames to be given by a path, or taken back.
///
/// Made by [`InFlight::request`]: no request can be
/// submitted whose slot is not in flight.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Request<'a> {
    /// What it is about, and whose slot it occupies.
    pub kind: Kind,
    /// The path of an inflation; [`Via::Inflate`] for every other kind.
    pub via: Via,
    /// The slot in flight.
    pub slot: SlotId,
    /// The frames, sorted by rising address, within the path's [`Limits`](crate::Limits).
    pub runs: &'a [Run],
}

/// One slot of a kind, `0..N`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct SlotId(u16);

impl SlotId {
    /// The slot with this index.
    #[must_use]
    pub const fn new(index: u16) -> Self {
        Self(index)
    }

    /// The index.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }

    /// The index, to address a table.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// How much of a request the host carried out, counted from its first frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// All of it.
    Whole,
    /// Only the first so many frames (Xen answers so); the rest is untouched.
    Partial(FrameCount),
    /// Of a migration: the first so many pairs, and of the next one the host has both
    /// frames. Xen takes the new frame out before it finds that it cannot put it in
    /// place of the old one; the rest is untouched.
    Torn(FrameCount),
}

impl Outcome {
    /// Frames carried out of a request over `asked` frames, never more.
    #[must_use]
    pub const fn frames(self, asked: FrameCount) -> FrameCount {
        match self {
            Self::Partial(done) | Self::Torn(done) if done.get() < asked.get() => done,
            Self::Whole | Self::Partial(_) | Self::Torn(_) => asked,
        }
    }

    /// Frames that the host got by a migration of `asked` pairs.
    pub(crate) fn given(self, asked: FrameCount) -> FrameCount {
        let torn = FrameCount::new(u64::from(matches!(self, Self::Torn(_))));
        self.frames(asked).saturating_add(torn).min(asked)
    }
}

/// All slots of the kind are busy: try again after a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Exhausted(pub Kind);

impl fmt::Display for Exhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "every {:?} slot is in use", self.0)
    }
}

impl core::error::Error for Exhausted {}

/// No such request is in flight: the host made it up, or answered twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NotInFlight;

impl fmt::Display for NotInFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no such request is in flight")
    }
}

impl core::error::Error for NotInFlight {}

/// `N` slots for each [`Kind`]; shared by reference between CPUs.
///
/// Each kind owns as many. A slot is one word here, so a number for each kind would
/// save a kind with few requests some words, and cost every type that names slots
/// five more parameters. What is large follows the queue and not `N`: the engine's
/// tables exist for inflations and deflations only, and a transport has buffers for
/// as many requests as its [`Limits`](crate::Limits) let through.
#[derive(Debug)]
pub struct Slots<const N: usize> {
    words: [[AtomicU32; N]; Kind::COUNT],
}

const FREE: u32 = 0;
const CLAIMED: u32 = 1;
const IN_FLIGHT: u32 = 2;
/// A completer looks at the request.
const COMPLETING: u32 = 3;
/// Answered; the outcome stands in the bits above.
const DONE: u32 = 4;
const STATE_BITS: u32 = 3;
const STATE_MASK: u32 = (1 << STATE_BITS) - 1;
const WHOLE: u32 = u32::MAX >> STATE_BITS;
/// Beside a number of pairs.
const TORN: u32 = (WHOLE >> 1) + 1;

impl<const N: usize> Slots<N> {
    /// All slots free.
    #[cfg(not(loom))]
    #[must_use]
    pub const fn new() -> Self {
        const { assert!(N >= 1 && N <= 1 << 15, "1 to 32768 slots for each kind") };
        Self {
            words: [const { [const { AtomicU32::new(FREE) }; N] }; Kind::COUNT],
        }
    }

    /// All slots free.
    #[cfg(loom)]
    #[must_use]
    pub fn new() -> Self {
        Self {
            words: core::array::from_fn(|_| core::array::from_fn(|_| AtomicU32::new(FREE))),
        }
    }

    /// Free → claimed.
    ///
    /// # Errors
    /// [`Exhausted`] if no slot of this kind is free. Other kinds do not
    /// matter.
    pub fn claim(&self, kind: Kind) -> Result<Claimed<'_>, Exhausted> {
        let words = self.words.get(kind.index()).into_iter().flatten();
        (0u16..)
            .zip(words)
            // Acquire: the last owner is done with the content before we write it.
            .find(|(_, word)| swap(word, FREE, CLAIMED, at(Site::Claim, Ordering::Acquire)))
            .map(|(index, word)| {
                let slot = SlotId(index);
                Claimed(Place { word, kind, slot })
            })
            .ok_or(Exhausted(kind))
    }

    /// Free → claimed, unless it is the last free slot of the kind: that one is
    /// kept for whoever cannot wait.
    ///
    /// Exact as long as one CPU claims slots of this kind, as the engine does.
    pub(crate) fn claim_but_last(&self, kind: Kind) -> Result<Claimed<'_>, Exhausted> {
        let claimed = self.claim(kind)?;
        self.claim(kind).map(|_last| claimed)
    }

    /// The half for whoever sees the host's answers.
    pub const fn completer(&self) -> Completer<'_> {
        Completer {
            words: self.words.as_flattened(),
            per_kind: N,
        }
    }
}

impl<const N: usize> Default for Slots<N> {
    fn default() -> Self {
        Self::new()
    }
}

#[derive(Clone, Copy, Debug)]
struct Place<'a> {
    word: &'a AtomicU32,
    kind: Kind,
    slot: SlotId,
}

/// A slot that is the holder's own, with whatever belongs to it.
///
/// Dropping it frees the slot.
#[derive(Debug)]
pub struct Claimed<'a>(Place<'a>);

impl<'a> Claimed<'a> {
    /// Whose slot it is.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.0.kind
    }

    /// Which of the kind's slots.
    #[must_use]
    pub const fn slot(&self) -> SlotId {
        self.0.slot
    }

    /// Claimed → in flight; call it *before* the host can see the request.
    pub fn launch(self) -> InFlight<'a> {
        let place = self.0;
        // Dropping would free it.
        core::mem::forget(self);
        // Release: whoever completes sees what was filled in. Nobody else
        // changes the word of a claimed slot.
        let release = at(Site::Launch, Ordering::Release);
        place.word.store(IN_FLIGHT, release);
        InFlight(place)
    }
}

impl Drop for Claimed<'_> {
    fn drop(&mut self) {
        // Release: pairs with the next claim.
        let release = at(Site::Free, Ordering::Release);
        self.0.word.store(FREE, release);
    }
}

/// A slot whose request the host has, or is about to get.
///
/// Dropping it loses the slot: the host may still answer, so it is never free.
#[must_use = "only its holder can take the answer"]
#[derive(Debug)]
pub struct InFlight<'a>(Place<'a>);

impl<'a> InFlight<'a> {
    /// Whose slot it is.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.0.kind
    }

    /// Which of the kind's slots.
    #[must_use]
    pub const fn slot(&self) -> SlotId {
        self.0.slot
    }

    /// Whether there is an answer to take.
    #[must_use]
    pub fn is_answered(&self) -> bool {
        self.0.word.load(Ordering::Relaxed) & STATE_MASK == DONE
    }

    /// The request to submit; there is no other way to make one.
    #[must_use]
    pub const fn request<'r>(&self, via: Via, runs: &'r [Run]) -> Request<'r> {
        Request {
            kind: self.0.kind,
            via,
            slot: self.0.slot,
            runs,
        }
    }

    /// Done → claimed, if the request is answered: what the host did.
    ///
    /// # Errors
    /// Hands the slot back if there is no answer yet.
    pub fn answer(self) -> Result<(Claimed<'a>, Outcome), Self> {
        // Acquire: pairs with the completer's release.
        let word = self.0.word.load(at(Site::Answer, Ordering::Acquire));
        if word & STATE_MASK != DONE {
            return Err(self);
        }
        // The word stays as it is: only we could have changed it, and nobody
        // else can do anything with an answered slot.
        let outcome = match word >> STATE_BITS {
            WHOLE => Outcome::Whole,
            torn if torn & TORN != 0 => Outcome::Torn(FrameCount::new((torn - TORN).into())),
            frames => Outcome::Partial(FrameCount::new(frames.into())),
        };
        Ok((Claimed(self.0), outcome))
    }

    /// In flight → claimed: the host refused the request, or can never answer
    /// it any more (device reset).
    ///
    /// # Errors
    /// Hands the slot back if the answer came first, or is just coming: take it.
    pub fn revoke(self) -> Result<Claimed<'a>, Self> {
        // Relaxed: what we find is our own launch, or it fails.
        if swap(self.0.word, IN_FLIGHT, CLAIMED, Ordering::Relaxed) {
            Ok(Claimed(self.0))
        } else {
            Err(self)
        }
    }
}

/// Marks slots as answered; all an interrupt handler or another CPU may do.
#[derive(Clone, Copy, Debug)]
pub struct Completer<'a> {
    words: &'a [AtomicU32],
    per_kind: usize,
}

/// By which two [`Completer`]s are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotsId(usize);

impl Completer<'_> {
    /// Whose slots these are, for a transport whose requests are to be in the same ones.
    #[must_use]
    pub fn id(&self) -> SlotsId {
        SlotsId(self.words.as_ptr().addr())
    }

    /// In flight → done.
    ///
    /// Partial outcomes from 2^28 frames up read as [`Outcome::Whole`]: a
    /// transport that answers partially limits its requests to fewer.
    ///
    /// # Errors
    /// [`NotInFlight`]; nothing was changed.
    pub fn complete(self, kind: Kind, slot: SlotId, outcome: Outcome) -> Result<(), NotInFlight> {
        self.complete_with(kind, slot, || outcome)
    }

    /// [`complete`](Self::complete) for who has to look at the request first.
    ///
    /// While `outcome` runs the slot is the caller's alone: what belongs to it
    /// is as it was launched, and nobody else completes or reuses it.
    ///
    /// # Errors
    /// [`NotInFlight`]; `outcome` was not called.
    pub fn complete_with(
        self,
        kind: Kind,
        slot: SlotId,
        outcome: impl FnOnce() -> Outcome,
    ) -> Result<(), NotInFlight> {
        if slot.index() >= self.per_kind {
            return Err(NotInFlight);
        }
        let index = kind.index() * self.per_kind + slot.index();
        let word = self.words.get(index).ok_or(NotInFlight)?;
        // Acquire: pairs with the launch.
        let acquire = at(Site::Complete, Ordering::Acquire);
        if !swap(word, IN_FLIGHT, COMPLETING, acquire) {
            return Err(NotInFlight);
        }
        let frames = match outcome() {
            Outcome::Whole => WHOLE,
            Outcome::Partial(done) => number(done).unwrap_or(WHOLE),
            Outcome::Torn(done) => number(done).map_or(WHOLE, |frames| TORN | frames),
        };
        // Release: who takes the answer has the content to itself. Nobody else
        // changes the word of a slot being completed.
        let release = at(Site::Done, Ordering::Release);
        word.store(frames << STATE_BITS | DONE, release);
        Ok(())
    }
}

/// Frames of an answer, if a word can tell them.
fn number(frames: FrameCount) -> Option<u32> {
    let frames = u32::try_from(frames.get()).ok();
    frames.filter(|&frames| frames < TORN && (TORN | frames) != WHOLE)
}

/// The decision where two may try: true for the one that wins.
fn swap(word: &AtomicU32, from: u32, to: u32, success: Ordering) -> bool {
    word.compare_exchange(from, to, success, Ordering::Relaxed)
        .is_ok()
}

#[cfg(all(test, not(loom)))]
mod tests;
