//! Migrations that the kernel asks for: isolate, migrate, put back.
//!
//! A kernel whose own compactor wants a range clear calls this for ballooned
//! frames in it, as it would for any movable page:
//!
//! 1. [`Compactor::isolate`]: the frame leaves the ledger, so nothing else moves
//!    it meanwhile;
//! 2. [`Compactor::migrate`] with a frame of the kernel's in its stead, then
//!    [`Compactor::step`] until [`Compactor::finish`] has an answer (at once where
//!    the host is a hypercall); or
//! 3. [`Compactor::put_back`].

use core::fmt;

use super::Compactor;
use super::batch::{Batch, Owner, Phase};
use crate::backing::Backing;
use crate::engine::Engine;
use crate::engine::table::Entry;
use crate::migrate::Migrate;
use crate::run::RangeSink;
use crate::source::{FrameSource, Ledger, Via};
use crate::units::{FrameCount, FrameRange, Nanos, Pfn};

/// A ballooned frame that only its holder can move; still the host's.
///
/// Dropping it keeps the frame out of the ledger for good: put it back.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "an isolated frame is migrated or put back"]
pub struct Isolated {
    frame: FrameRange,
    via: Via,
}

impl Isolated {
    /// The frame.
    #[must_use]
    pub const fn frame(&self) -> Pfn {
        self.frame.start()
    }
}

/// The frame is not ballooned, or moves already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NotBallooned;

impl fmt::Display for NotBallooned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the frame is not in the ledger")
    }
}

impl core::error::Error for NotBallooned {}

/// Why a migration did not start; nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum MigrateError {
    /// All batches are under way: step and try again.
    Busy,
    /// The engine is quiesced, or the device broken.
    Stopped,
    /// The ledger cannot remember `new`, or the host cannot name it.
    NotEligible,
}

impl fmt::Display for MigrateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Busy => "every batch is under way",
            Self::Stopped => "the balloon is quiesced or its device broken",
            Self::NotEligible => "the new frame cannot be ballooned",
        })
    }
}

impl core::error::Error for MigrateError {}

/// A migration under way, to be asked about with [`Compactor::finish`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the answer says whose the frames are"]
pub struct Ticket(usize);

/// Whose the two frames are now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Migrated {
    /// `old` is the kernel's, `new` is ballooned.
    Done,
    /// As before: `old` is ballooned and in the ledger, `new` is the kernel's.
    Unchanged,
    /// Both are ballooned and in the ledger; the balloon is one frame larger.
    BothHoles,
}

impl<M: AsMut<[u32]>, const L: usize> Compactor<M, L> {
    /// Takes a ballooned frame out of the ledger.
    ///
    /// # Errors
    /// [`NotBallooned`], also from a ledger that cannot recall by place.
    pub fn isolate<const N: usize>(
        &mut self,
        engine: &mut Engine<N>,
        ledger: &mut impl Ledger,
        old: Pfn,
    ) -> Result<Isolated, NotBallooned> {
        let frame = FrameRange::single(old).ok_or(NotBallooned)?;
        let held = Via::ALL.into_iter();
        let via = held
            .into_iter()
            .find(|&via| ledger.recall_at(frame, via).is_ok());
        let via = via.ok_or(NotBallooned)?;
        self.isolated = self.isolated.saturating_add(FrameCount::ONE);
        self.publish_in_hand(engine);
        Ok(Isolated { frame, via })
    }

    /// Returns an isolated frame to the ledger, ballooned as before.
    ///
    /// It sets the engine's signal: the frame may be what the engine is to take back.
    ///
    /// # Errors
    /// Hands it back if the ledger refuses it (now).
    pub fn put_back<const N: usize>(
        &mut self,
        engine: &mut Engine<N>,
        ledger: &mut impl Ledger,
        isolated: Isolated,
    ) -> Result<(), Isolated> {
        if ledger.store(isolated.frame, isolated.via).is_err() {
            return Err(isolated);
        }
        self.isolated = self.isolated.saturating_sub(FrameCount::ONE);
        self.publish_in_hand(engine);
        Ok(())
    }

    /// Makes an isolated frame usable and gives `new` in its stead.
    ///
    /// `new` must be the caller's alone and in hand in the sense of the source:
    /// taken by [`FrameSource::take_at`], or any frame of the kernel's if the
    /// ledger keeps a bitmap of its own. On success `old` is in hand likewise.
    ///
    /// # Errors
    /// Hands the isolated frame back if the migration did not start.
    pub fn migrate<T: Migrate, S: FrameSource + Ledger, const N: usize>(
        &mut self,
        engine: &mut Engine<N>,
        transport: &mut T,
        source: &mut S,
        isolated: Isolated,
        new: Pfn,
        now: Nanos,
    ) -> Result<Ticket, (MigrateError, Isolated)> {
        if !engine.may_migrate() {
            return Err((MigrateError::Stopped, isolated));
        }
        let caps = transport.capabilities();
        let eligible = FrameRange::single(new)
            .filter(|new| new.end() <= caps.inflate.below && *new != isolated.frame)
            // Asked before the host: a refusal later would leave it in hand.
            .filter(|&new| source.store(new, Via::Inflate).is_ok())
            .filter(|&new| source.recall_at(new, Via::Inflate).is_ok());
        let Some(new) = eligible else {
            return Err((MigrateError::NotEligible, isolated));
        };
        let Some(at) = self.batches.iter().position(Batch::is_idle) else {
            return Err((MigrateError::Busy, isolated));
        };
        let Some(batch) = self.batches.get_mut(at) else {
            return Err((MigrateError::Busy, isolated));
        };
        lay(&mut batch.from.entry, isolated.frame, isolated.via);
        lay(&mut batch.to.entry, new, Via::Inflate);
        batch.begin(Owner::Kernel, transport.migration());
        if self.plan.is_idle() {
            // What a round met with is long ago.
            self.host.reset();
            self.in_vain = 0;
        }
        self.isolated = self.isolated.saturating_sub(FrameCount::ONE);
        let mut io = super::Io {
            engine,
            transport,
            source,
            caps,
            now,
            budget: crate::policy::Budget::SMALL,
        };
        let submitted = self.advance(&mut io);
        let early = submitted && self.in_flight() > 0 && io.engine.kick(1, io.transport, io.now);
        if early {
            io.engine.wake();
        }
        self.publish_in_hand(io.engine);
        Ok(Ticket(at))
    }

    /// What became of a migration, once it is settled.
    ///
    /// An answer that nobody takes occupies one of the batches: once it is taken, a
    /// round that waits for one goes on with the next step.
    ///
    /// # Errors
    /// Hands the ticket back while it is under way: step first.
    pub fn finish(&mut self, ticket: Ticket) -> Result<Migrated, Ticket> {
        let batch = self.batches.get_mut(ticket.0);
        let Some(batch) = batch.filter(|batch| matches!(batch.phase, Phase::Answered)) else {
            return Err(ticket);
        };
        batch.phase = Phase::Idle;
        let (given, taken) = (
            !batch.outcomes.given.is_zero(),
            !batch.outcomes.taken.is_zero(),
        );
        Ok(match (given, taken) {
            (false, _) => Migrated::Unchanged,
            (true, false) => Migrated::BothHoles,
            (true, true) => Migrated::Done,
        })
    }
}

fn lay(entry: &mut Entry, frame: FrameRange, via: Via) {
    let mut sink = RangeSink::new(entry.spare(1), FrameCount::ONE);
    let laid = sink.push(frame, Backing::Unknown);
    debug_assert!(laid.is_ok(), "an idle batch has room for one frame");
    let laid = sink.into();
    entry.extend(laid);
    entry.seal(via, FrameCount::ONE);
}
