//! Response slots: each kind of request owns its own, lock-free.
//!
//! A request to the host occupies one slot from the moment it is filled until
//! its answer has been dealt with:
//!
//! ```text
//!        claim            launch              complete
//!  free ──────► filling ─────────► in flight ─────────► done
//!       ◄──────         ◄─────────                        │
//!       release    ▲      revoke                          │
//!                  └─────────────── answer ───────────────┘
//! ```
//!
//! Kinds never share slots and never wait for each other, so a free-page hint
//! of a starting migration leaves while an inflation occupies all of its own
//! slots. This is the only state that several CPUs touch: the engine claims,
//! launches and takes answers; whoever sees the host's answer (the engine's own
//! step, another CPU, an interrupt handler) completes. Every transition is one
//! compare-and-swap on one word, so exactly one party wins each.
//!
//! The word carries the outcome too; the frames of the request stay with the
//! engine, its DMA bytes with the transport.

use core::fmt;

use crate::sync::{AtomicU32, Ordering};
use crate::units::FrameCount;

/// What a request is about; each kind owns its own slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    /// Ballooned frames traded for free ones in one go.
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
}

impl Outcome {
    /// Frames carried out of a request over `asked` frames, never more.
    #[must_use]
    pub const fn frames(self, asked: FrameCount) -> FrameCount {
        match self {
            Self::Partial(done) if done.get() < asked.get() => done,
            Self::Whole | Self::Partial(_) => asked,
        }
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

/// The slot is not in the state the call needs; nothing was changed.
///
/// From [`Completer::complete`] it means that the host answered a request that
/// was never made, or twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WrongState;

impl fmt::Display for WrongState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the slot is not in the state this call needs")
    }
}

impl core::error::Error for WrongState {}

/// `N` slots for each [`Kind`]; shared by reference between CPUs.
#[derive(Debug)]
pub struct Slots<const N: usize> {
    words: [[AtomicU32; N]; Kind::COUNT],
}

const FREE: u32 = 0;
const FILLING: u32 = 1;
const IN_FLIGHT: u32 = 2;
const DONE: u32 = 3;
const STATE_BITS: u32 = 2;
const WHOLE: u32 = u32::MAX >> STATE_BITS;

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

    /// Free → filling: the caller owns the slot until it launches or releases it.
    ///
    /// # Errors
    /// [`Exhausted`] if no slot of this kind is free. Other kinds do not
    /// matter.
    pub fn claim(&self, kind: Kind) -> Result<SlotId, Exhausted> {
        (0u16..)
            .zip(self.of(kind))
            // Acquire: pairs with the release that freed the slot, so that its
            // content can be overwritten.
            .find(|(_, word)| step(word, FREE, FILLING, Ordering::Acquire).is_ok())
            .map(|(index, _)| SlotId(index))
            .ok_or(Exhausted(kind))
    }

    /// Filling → in flight; call it *before* the host can see the request.
    ///
    /// # Errors
    /// [`WrongState`] if the slot was not being filled.
    pub fn launch(&self, kind: Kind, slot: SlotId) -> Result<(), WrongState> {
        // Release: whoever completes sees what was filled in.
        step(
            self.word(kind, slot)?,
            FILLING,
            IN_FLIGHT,
            Ordering::Release,
        )
    }

    /// Filling → free: the request is not made, or its answer is dealt with.
    ///
    /// # Errors
    /// [`WrongState`] if the slot was not the caller's.
    pub fn release(&self, kind: Kind, slot: SlotId) -> Result<(), WrongState> {
        step(self.word(kind, slot)?, FILLING, FREE, Ordering::Release)
    }

    /// In flight → filling: the host refused the request, or can never answer
    /// it any more (device reset).
    ///
    /// # Errors
    /// [`WrongState`] if the answer came first: take it.
    pub fn revoke(&self, kind: Kind, slot: SlotId) -> Result<(), WrongState> {
        step(
            self.word(kind, slot)?,
            IN_FLIGHT,
            FILLING,
            Ordering::Acquire,
        )
    }

    /// Done → filling, if the request is answered: what the host did.
    ///
    /// The caller owns the slot and its content until it [`release`]s it.
    ///
    /// [`release`]: Self::release
    pub fn answer(&self, kind: Kind, slot: SlotId) -> Option<Outcome> {
        let word = self.word(kind, slot).ok()?;
        let value = word.load(Ordering::Relaxed);
        if value & ((1 << STATE_BITS) - 1) != DONE {
            return None;
        }
        // Acquire: pairs with the completer's release. Of two CPUs that saw the
        // same answer one takes it.
        step(word, value, FILLING, Ordering::Acquire).ok()?;
        Some(match value >> STATE_BITS {
            WHOLE => Outcome::Whole,
            frames => Outcome::Partial(FrameCount::new(frames.into())),
        })
    }

    /// The half for whoever sees the host's answers.
    pub const fn completer(&self) -> Completer<'_> {
        Completer {
            words: self.words.as_flattened(),
            per_kind: N,
        }
    }

    fn of(&self, kind: Kind) -> &[AtomicU32] {
        self.words
            .get(kind.index())
            .map_or(&[], |words| words.as_slice())
    }

    fn word(&self, kind: Kind, slot: SlotId) -> Result<&AtomicU32, WrongState> {
        self.of(kind).get(slot.index()).ok_or(WrongState)
    }
}

impl<const N: usize> Default for Slots<N> {
    fn default() -> Self {
        Self::new()
    }
}

/// Marks slots as answered; all an interrupt handler or another CPU may do.
#[derive(Clone, Copy, Debug)]
pub struct Completer<'a> {
    words: &'a [AtomicU32],
    per_kind: usize,
}

impl Completer<'_> {
    /// In flight → done.
    ///
    /// # Errors
    /// [`WrongState`] if no such request is in flight: the host made it up, or
    /// answered twice.
    pub fn complete(self, kind: Kind, slot: SlotId, outcome: Outcome) -> Result<(), WrongState> {
        if slot.index() >= self.per_kind {
            return Err(WrongState);
        }
        let index = kind.index() * self.per_kind + slot.index();
        let word = self.words.get(index).ok_or(WrongState)?;
        let frames = match outcome {
            Outcome::Whole => WHOLE,
            Outcome::Partial(done) => u32::try_from(done.get()).unwrap_or(WHOLE).min(WHOLE),
        };
        // AcqRel: sees what was filled in, publishes the outcome.
        step(
            word,
            IN_FLIGHT,
            frames << STATE_BITS | DONE,
            Ordering::AcqRel,
        )
    }
}

fn step(word: &AtomicU32, from: u32, to: u32, success: Ordering) -> Result<(), WrongState> {
    word.compare_exchange(from, to, success, Ordering::Relaxed)
        .map(drop)
        .map_err(|_| WrongState)
}

#[cfg(all(test, not(loom)))]
mod tests;
