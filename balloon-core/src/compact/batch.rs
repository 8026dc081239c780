//! One batch of migrations and how far it is: the journal.
//!
//! ```text
//!           at once (exchange, move)
//!         ┌────────────────────────────────────────────┐
//!  idle ──┤                                            ├──► settling ──► idle
//!         └► first stage ──► trimming ──► second stage ┘    (or answered)
//! ```
//!
//! Both sides of a batch are entries as the engine uses them, so what the host
//! did of each is known frame by frame. Whatever fails, each frame ends where
//! its side's answer puts it: an `old` the host returned is usable, any other is
//! ballooned; a `new` the host took is ballooned, any other is usable.

use crate::backing::Backing;
use crate::engine::table::Entry;
use crate::migrate::{Migrate, MigrateRequest, Migration};
use crate::slots::{InFlight, Kind, Slots};
use crate::source::{FrameSource, Ledger, Via};
use crate::transport::{TransportError, TransportErrorKind};
use crate::units::{FrameCount, FrameRange, Nanos};

/// A request of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Both sides at once.
    Migrate,
    /// The host takes the free frames.
    Inflate,
    /// The host returns the ballooned frames.
    Deflate,
}

impl Stage {
    /// The first request of a batch whose ballooned frames were given by `via`.
    pub(super) const fn first(via: Via, how: Migration) -> Self {
        match (via, how) {
            // Frames given in bulk are the guest's again without a request.
            (Via::Bulk, _) | (_, Migration::InflateFirst) => Self::Inflate,
            (_, Migration::Exchange | Migration::Move) => Self::Migrate,
        }
    }

    const fn kind(self) -> Kind {
        match self {
            Self::Migrate => Kind::Migrate,
            Self::Inflate => Kind::Inflate,
            Self::Deflate => Kind::Deflate,
        }
    }
}

#[derive(Debug)]
pub(super) enum Phase {
    /// Not in use.
    Idle,
    /// Frames that the next stage does not need go back first.
    Trimming(Stage),
    /// The stage is to be submitted.
    Ready(Stage),
    /// The stage is with the host since.
    InFlight(Stage, InFlight<'static>, Nanos),
    /// Frames are put in their places.
    Settling,
    /// Settled; the kernel has not asked yet.
    Answered,
}

/// Who wants the batch, and so who gets its frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// The plan: frames come from the source and return to it.
    Plan,
    /// The kernel: it brought `new` and gets `old`.
    Kernel,
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcomes {
    pub(super) pairs: FrameCount,
    /// Frames the host took.
    pub(super) given: FrameCount,
    /// Frames it returned.
    pub(super) taken: FrameCount,
}

/// How an attempt to get on ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Advance {
    /// Something happened; look again.
    Moved,
    /// Waits for the host, a slot, or the kernel.
    Waits,
    /// The source or the ledger refuses frames.
    Stuck,
    /// The batch is over.
    Over(Outcomes),
}

/// The frames of one side.
#[derive(Debug)]
pub(super) struct Side {
    pub(super) entry: Entry,
    /// The host did the first so many of them.
    done: FrameCount,
}

impl Side {
    const EMPTY: Self = Self {
        entry: Entry::EMPTY,
        done: FrameCount::ZERO,
    };

    const fn frames(&self) -> FrameCount {
        self.entry.frames()
    }

    /// Of the frames still in hand, those that the host did and those it did
    /// not.
    fn split(&self) -> (FrameCount, FrameCount) {
        let done = self.done.min(self.frames());
        (done, self.frames().saturating_sub(done))
    }

    /// Puts frames in their places, the last first; `undone_only` leaves those
    /// that the host did. False if some are refused: they stay in hand.
    fn place(
        &mut self,
        undone_only: bool,
        mut place: impl FnMut(FrameRange, bool) -> Result<(), FrameRange>,
    ) -> bool {
        while let Some((range, done)) = self.entry.last_of(self.done) {
            if done && undone_only {
                break;
            }
            if place(range, done).is_err() {
                return false;
            }
            self.entry.pop(range);
        }
        true
    }
}

#[derive(Debug)]
pub(super) struct Batch {
    pub(super) from: Side,
    pub(super) to: Side,
    pub(super) phase: Phase,
    pub(super) owner: Owner,
    /// Of the batch in hand, as far as it is known.
    pub(super) outcomes: Outcomes,
    /// What the host puts behind a ballooned frame that it returns.
    backing: Backing,
    /// The host's refusal, for whoever paces further attempts.
    pub(super) refused: Option<TransportErrorKind>,
}

impl Batch {
    pub(super) const IDLE: Self = Self {
        from: Side::EMPTY,
        to: Side::EMPTY,
        phase: Phase::Idle,
        owner: Owner::Plan,
        outcomes: Outcomes {
            pairs: FrameCount::ZERO,
            given: FrameCount::ZERO,
            taken: FrameCount::ZERO,
        },
        backing: Backing::Unknown,
        refused: None,
    };

    /// Starts with what is laid down in both sides; surplus of one goes back.
    pub(super) fn begin(&mut self, owner: Owner, how: Migration) {
        let pairs = self.from.frames().min(self.to.frames());
        self.owner = owner;
        self.refused = None;
        self.outcomes = Outcomes {
            pairs,
            ..Outcomes::default()
        };
        let first = Stage::first(self.from.entry.via(), how);
        self.backing = if first == Stage::Migrate {
            Backing::Populated
        } else {
            Backing::Unpopulated
        };
        self.from.done = pairs;
        self.to.done = pairs;
        self.phase = Phase::Trimming(first);
    }

    pub(super) const fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Idle)
    }

    /// Whether no frame is in hand.
    pub(super) const fn is_empty(&self) -> bool {
        matches!(self.phase, Phase::Idle | Phase::Answered)
    }

    pub(super) const fn in_flight_since(&self) -> Option<Nanos> {
        match self.phase {
            Phase::InFlight(_, _, since) => Some(since),
            _ => None,
        }
    }

    /// A request in flight was launched at the latest then.
    pub(super) fn restamp(&mut self, latest: Nanos) {
        if let Phase::InFlight(_, _, since) = &mut self.phase {
            *since = (*since).min(latest);
        }
    }

    /// Whether the host has answered and nobody has looked.
    pub(super) fn is_answered(&self) -> bool {
        matches!(&self.phase, Phase::InFlight(_, slot, _) if slot.is_answered())
    }

    /// Frames out of the ledger that the host has, and frames that will be
    /// ballooned when the batch is over.
    pub(super) fn account(&self) -> (FrameCount, FrameCount) {
        let (_, unreturned) = self.from.split();
        let (given, _) = self.to.split();
        match self.phase {
            Phase::Idle | Phase::Answered => (FrameCount::ZERO, FrameCount::ZERO),
            Phase::Settling => {
                let ballooned = unreturned.saturating_add(given);
                (ballooned, ballooned)
            }
            // What the first stage did is known; each pair left ends as one hole.
            Phase::Trimming(_) | Phase::Ready(_) | Phase::InFlight(..) => {
                let mut with_host = self.from.frames();
                if !self.outcomes.given.is_zero() {
                    with_host = with_host.saturating_add(given);
                }
                (with_host, self.from.frames())
            }
        }
    }

    /// Does the next thing that can be done without waiting.
    pub(super) fn advance<T: Migrate, S: FrameSource + Ledger, const N: usize>(
        &mut self,
        slots: &'static Slots<N>,
        transport: &mut T,
        source: &mut S,
        now: Nanos,
    ) -> Advance {
        match core::mem::replace(&mut self.phase, Phase::Settling) {
            idle @ (Phase::Idle | Phase::Answered) => {
                self.phase = idle;
                Advance::Waits
            }
            Phase::Trimming(next) => {
                if !self.place(source, true) {
                    self.phase = Phase::Trimming(next);
                    return Advance::Stuck;
                }
                if !self.from.frames().is_zero() {
                    self.phase = Phase::Ready(next);
                }
                Advance::Moved
            }
            Phase::Ready(stage) => self.submit(stage, slots, transport, now),
            Phase::InFlight(stage, in_flight, since) => match in_flight.answer() {
                Ok((_, outcome)) => {
                    let asked = self.outcomes.pairs_left();
                    self.answered(stage, outcome.frames(asked));
                    if stage == Stage::Migrate {
                        self.outcomes.given = outcome.given(asked);
                        self.to.done = self.outcomes.given;
                    }
                    Advance::Moved
                }
                Err(in_flight) => {
                    self.phase = Phase::InFlight(stage, in_flight, since);
                    Advance::Waits
                }
            },
            Phase::Settling => {
                if !self.place(source, false) {
                    return Advance::Stuck;
                }
                self.from.entry.clear();
                self.to.entry.clear();
                self.phase = match self.owner {
                    Owner::Plan => Phase::Idle,
                    Owner::Kernel => Phase::Answered,
                };
                Advance::Over(self.outcomes)
            }
        }
    }

    /// The host will never answer: it was reset and forgot the balloon.
    ///
    /// What was given or not yet returned counts as ballooned, as all the
    /// ledger holds; the engine takes it back from there without a request.
    pub(super) fn void(&mut self) {
        match core::mem::replace(&mut self.phase, Phase::Settling) {
            Phase::InFlight(stage, in_flight, since) => match in_flight.revoke() {
                Ok(_) => self.end_with(stage, FrameCount::ZERO),
                Err(in_flight) => self.phase = Phase::InFlight(stage, in_flight, since),
            },
            Phase::Ready(stage) => self.end_with(stage, FrameCount::ZERO),
            other => self.phase = other,
        }
    }

    /// Ends a batch whose request finds no way to the host: as if it were refused.
    pub(super) fn give_up(&mut self) {
        if let Phase::Ready(stage) = self.phase {
            self.end_with(stage, FrameCount::ZERO);
        }
    }

    fn submit<T: Migrate, const N: usize>(
        &mut self,
        stage: Stage,
        slots: &'static Slots<N>,
        transport: &mut T,
        now: Nanos,
    ) -> Advance {
        let (from, to) = (&self.from.entry, &self.to.entry);
        if stage == Stage::Deflate && from.via() == Via::Bulk {
            self.answered(stage, self.outcomes.pairs_left());
            return Advance::Moved;
        }
        // The last slot to take frames back by is for relief.
        let claimed = match stage {
            Stage::Deflate => slots.claim_but_last(stage.kind()),
            Stage::Inflate | Stage::Migrate => slots.claim(stage.kind()),
        };
        let Ok(claimed) = claimed else {
            self.phase = Phase::Ready(stage);
            return Advance::Waits;
        };
        let in_flight = claimed.launch();
        let (slot, done) = (in_flight.slot(), slots.completer());
        let (from, to) = (from.runs(), to.runs());
        let submitted = match stage {
            Stage::Migrate => transport.submit_migrate(MigrateRequest { slot, from, to }, done),
            Stage::Inflate => transport.submit(in_flight.request(Via::Inflate, to), done),
            Stage::Deflate => transport.submit(in_flight.request(Via::Inflate, from), done),
        };
        let Err(error) = submitted else {
            self.phase = Phase::InFlight(stage, in_flight, now);
            return Advance::Moved;
        };
        if let Err(in_flight) = in_flight.revoke() {
            // It was answered all the same: the answer counts.
            self.phase = Phase::InFlight(stage, in_flight, now);
            return Advance::Moved;
        }
        self.refused = Some(error.kind());
        if error.kind() == TransportErrorKind::Full {
            // Nothing was decided: the same stage again later.
            self.phase = Phase::Ready(stage);
            return Advance::Waits;
        }
        self.answered(stage, FrameCount::ZERO);
        Advance::Moved
    }

    /// The host did the first `done` frames of a stage.
    fn answered(&mut self, stage: Stage, done: FrameCount) {
        if done < self.outcomes.pairs_left() && self.refused.is_none() {
            self.refused = Some(TransportErrorKind::Refused);
        }
        if stage != Stage::Inflate || done.is_zero() {
            self.end_with(stage, done);
            return;
        }
        self.outcomes.given = done;
        self.from.done = done;
        self.to.done = done;
        self.phase = Phase::Trimming(Stage::Deflate);
    }

    /// No further stage after this one.
    fn end_with(&mut self, stage: Stage, done: FrameCount) {
        if stage != Stage::Deflate {
            self.outcomes.given = done;
        }
        if stage != Stage::Inflate {
            self.outcomes.taken = done;
        }
        self.from.done = self.outcomes.taken;
        self.to.done = self.outcomes.given;
        self.phase = Phase::Settling;
    }

    /// Puts frames where the answers leave them.
    fn place<S: FrameSource + Ledger>(&mut self, source: &mut S, undone_only: bool) -> bool {
        let kernel = self.owner == Owner::Kernel;
        let (via, backing) = (self.from.entry.via(), self.backing);
        let from = self.from.place(undone_only, |range, done| match done {
            true if kernel => Ok(()),
            true => source.put(range, backing),
            false => source.store(range, via),
        });
        let to = self.to.place(undone_only, |range, done| match done {
            true => source.store(range, Via::Inflate),
            false if kernel => Ok(()),
            false => source.put(range, Backing::Unknown),
        });
        from && to
    }
}

impl Outcomes {
    /// Pairs the next answer is about.
    fn pairs_left(self) -> FrameCount {
        if self.given.is_zero() {
            self.pairs
        } else {
            self.given
        }
    }
}
