//! One batch of migrations and how far it is: the journal.
//!
//! ```text
//!            trade (exchange, move)
//!         ┌────────────────────────────────────────────┐
//!  idle ──┤                                            ├──► settling ──► idle
//!         └► first leg ──► trimming ──► second leg ────┘    (or answered)
//! ```
//!
//! Both sides of a batch are entries as the engine uses them, so what the host
//! did of each is known frame by frame. Whatever fails, each frame ends where
//! its side's answer puts it: an `old` the host returned is usable, any other is
//! ballooned; a `new` the host took is ballooned, any other is usable.

use crate::engine::Entry;
use crate::migrate::{Migrate, Migration, Trade};
use crate::slots::{InFlight, Kind, Slots};
use crate::source::{Backing, FrameSource, GivePath, Ledger};
use crate::transport::{TransportError, TransportErrorKind};
use crate::units::{FrameCount, FrameRange, Nanos};

/// A request of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leg {
    /// Both sides at once.
    Trade,
    /// The host takes the news.
    Give,
    /// The host returns the olds.
    Take,
}

impl Leg {
    /// The first request of a batch whose olds were given by `path`.
    pub(super) const fn first(path: GivePath, how: Migration) -> Self {
        match (path, how) {
            // Frames given in bulk are the guest's again without a request.
            (GivePath::Bulk, _) | (_, Migration::GiveFirst) => Self::Give,
            (_, Migration::Exchange | Migration::Move) => Self::Trade,
            (_, Migration::TakeFirst) => Self::Take,
        }
    }

    const fn kind(self) -> Kind {
        match self {
            Self::Trade => Kind::Migrate,
            Self::Give => Kind::Inflate,
            Self::Take => Kind::Deflate,
        }
    }
}

#[derive(Debug)]
pub(super) enum Phase {
    /// Not in use.
    Idle,
    /// Frames that the next leg does not need go back first.
    Trimming(Leg),
    /// The leg is to be submitted.
    Ready(Leg),
    /// The leg is with the host since.
    InFlight(Leg, InFlight<'static>, Nanos),
    /// Frames are put in their places.
    Settling,
    /// Settled; the kernel has not asked yet.
    Answered,
}

/// Who wants the batch, and so who gets its frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Client {
    /// The plan: frames come from the source and return to it.
    Plan,
    /// The kernel: it brought `new` and gets `old`.
    Kernel,
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) pairs: FrameCount,
    /// News the host took.
    pub(super) given: FrameCount,
    /// Olds it returned.
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
    Over(Tally),
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
pub(super) struct Lane {
    pub(super) olds: Side,
    pub(super) news: Side,
    pub(super) phase: Phase,
    pub(super) client: Client,
    /// Of the batch in hand, as far as it is known.
    pub(super) tally: Tally,
    /// What the host puts behind an old that it returns.
    backing: Backing,
    /// The host's refusal, for whoever paces further attempts.
    pub(super) refused: Option<TransportErrorKind>,
}

impl Lane {
    pub(super) const IDLE: Self = Self {
        olds: Side::EMPTY,
        news: Side::EMPTY,
        phase: Phase::Idle,
        client: Client::Plan,
        tally: Tally {
            pairs: FrameCount::ZERO,
            given: FrameCount::ZERO,
            taken: FrameCount::ZERO,
        },
        backing: Backing::Unknown,
        refused: None,
    };

    /// Starts with what is laid down in both sides; surplus of one goes back.
    pub(super) fn begin(&mut self, client: Client, how: Migration) {
        let pairs = self.olds.frames().min(self.news.frames());
        self.client = client;
        self.refused = None;
        self.tally = Tally {
            pairs,
            ..Tally::default()
        };
        let first = Leg::first(self.olds.entry.path(), how);
        self.backing = if first == Leg::Trade {
            Backing::Populated
        } else {
            Backing::Unpopulated
        };
        self.olds.done = pairs;
        self.news.done = pairs;
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

    /// Frames out of the ledger that the host has, and frames that will be
    /// ballooned when the batch is over.
    pub(super) fn account(&self) -> (FrameCount, FrameCount) {
        let (returned, unreturned) = self.olds.split();
        let (given, _) = self.news.split();
        match self.phase {
            Phase::Idle | Phase::Answered => (FrameCount::ZERO, FrameCount::ZERO),
            Phase::Settling => {
                let ballooned = unreturned.saturating_add(given);
                (ballooned, ballooned)
            }
            // What the first leg did is known; each pair left ends as one hole.
            Phase::Trimming(_) | Phase::Ready(_) | Phase::InFlight(..) => {
                let mut with_host = self.olds.frames();
                if !self.tally.taken.is_zero() {
                    with_host = with_host.saturating_sub(returned);
                }
                if !self.tally.given.is_zero() {
                    with_host = with_host.saturating_add(given);
                }
                (with_host, self.olds.frames())
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
                if !self.olds.frames().is_zero() {
                    self.phase = Phase::Ready(next);
                }
                Advance::Moved
            }
            Phase::Ready(leg) => self.submit(leg, slots, transport, now),
            Phase::InFlight(leg, in_flight, since) => match in_flight.answer() {
                Ok((_, outcome)) => {
                    self.answered(leg, outcome.frames(self.tally.pairs_left()));
                    Advance::Moved
                }
                Err(in_flight) => {
                    self.phase = Phase::InFlight(leg, in_flight, since);
                    Advance::Waits
                }
            },
            Phase::Settling => {
                if !self.place(source, false) {
                    return Advance::Stuck;
                }
                self.olds.entry.clear();
                self.news.entry.clear();
                self.phase = match self.client {
                    Client::Plan => Phase::Idle,
                    Client::Kernel => Phase::Answered,
                };
                Advance::Over(self.tally)
            }
        }
    }

    /// The host will never answer: it was reset and forgot the balloon.
    ///
    /// What was given or not yet returned counts as ballooned, as all the
    /// ledger holds; the engine takes it back from there without a request.
    pub(super) fn void(&mut self) {
        match core::mem::replace(&mut self.phase, Phase::Settling) {
            Phase::InFlight(leg, in_flight, since) => match in_flight.revoke() {
                Ok(_) => self.end_with(leg, FrameCount::ZERO),
                Err(in_flight) => self.phase = Phase::InFlight(leg, in_flight, since),
            },
            Phase::Ready(leg) => self.end_with(leg, FrameCount::ZERO),
            other => self.phase = other,
        }
    }

    /// Ends a batch whose request finds no way to the host: as if it were refused.
    pub(super) fn give_up(&mut self) {
        if let Phase::Ready(leg) = self.phase {
            self.end_with(leg, FrameCount::ZERO);
        }
    }

    fn submit<T: Migrate, const N: usize>(
        &mut self,
        leg: Leg,
        slots: &'static Slots<N>,
        transport: &mut T,
        now: Nanos,
    ) -> Advance {
        let (olds, news) = (&self.olds.entry, &self.news.entry);
        if leg == Leg::Take && olds.path() == GivePath::Bulk {
            self.answered(leg, self.tally.pairs_left());
            return Advance::Moved;
        }
        // The last slot to take frames back by is for relief.
        let claimed = match leg {
            Leg::Take => slots.claim_but_last(leg.kind()),
            Leg::Give | Leg::Trade => slots.claim(leg.kind()),
        };
        let Ok(claimed) = claimed else {
            self.phase = Phase::Ready(leg);
            return Advance::Waits;
        };
        let in_flight = claimed.launch();
        let (slot, done) = (in_flight.slot(), slots.completer());
        let (olds, news) = (olds.runs(), news.runs());
        let submitted = match leg {
            Leg::Trade => transport.submit_trade(Trade { slot, olds, news }, done),
            Leg::Give => transport.submit(in_flight.request(GivePath::Told, news), done),
            Leg::Take => transport.submit(in_flight.request(GivePath::Told, olds), done),
        };
        let Err(error) = submitted else {
            self.phase = Phase::InFlight(leg, in_flight, now);
            return Advance::Moved;
        };
        if let Err(in_flight) = in_flight.revoke() {
            // It was answered all the same: the answer counts.
            self.phase = Phase::InFlight(leg, in_flight, now);
            return Advance::Moved;
        }
        self.refused = Some(error.kind());
        if error.kind() == TransportErrorKind::Full {
            // Nothing was decided: the same leg again later.
            self.phase = Phase::Ready(leg);
            return Advance::Waits;
        }
        self.answered(leg, FrameCount::ZERO);
        Advance::Moved
    }

    /// The host did the first `done` frames of a leg.
    fn answered(&mut self, leg: Leg, done: FrameCount) {
        if done < self.tally.pairs_left() && self.refused.is_none() {
            self.refused = Some(TransportErrorKind::Refused);
        }
        let first = self.tally.given.is_zero() && self.tally.taken.is_zero();
        if leg == Leg::Trade || !first || done.is_zero() {
            self.end_with(leg, done);
            return;
        }
        let next = if leg == Leg::Give {
            self.tally.given = done;
            Leg::Take
        } else {
            self.tally.taken = done;
            Leg::Give
        };
        self.olds.done = done;
        self.news.done = done;
        self.phase = Phase::Trimming(next);
    }

    /// No further leg after this one.
    fn end_with(&mut self, leg: Leg, done: FrameCount) {
        if leg != Leg::Take {
            self.tally.given = done;
        }
        if leg != Leg::Give {
            self.tally.taken = done;
        }
        self.olds.done = self.tally.taken;
        self.news.done = self.tally.given;
        self.phase = Phase::Settling;
    }

    /// Puts frames where the answers leave them.
    fn place<S: FrameSource + Ledger>(&mut self, source: &mut S, undone_only: bool) -> bool {
        let kernel = self.client == Client::Kernel;
        let (path, backing) = (self.olds.entry.path(), self.backing);
        let olds = self.olds.place(undone_only, |range, done| match done {
            true if kernel => Ok(()),
            true => source.put(range, backing),
            false => source.store(range, path),
        });
        let news = self.news.place(undone_only, |range, done| match done {
            true => source.store(range, GivePath::Told),
            false if kernel => Ok(()),
            false => source.put(range, Backing::Unknown),
        });
        olds && news
    }
}

impl Tally {
    /// Pairs the next answer is about.
    fn pairs_left(self) -> FrameCount {
        let first = self.given.max(self.taken);
        if first.is_zero() { self.pairs } else { first }
    }
}
