//! Compaction: holes move to the end, contiguous 2 MiB blocks appear.
//!
//! Ballooned frames scattered over memory break up what is left of it. They are
//! the most movable frames there are: nothing of theirs has to be kept. A
//! [`Compactor`] migrates them for free frames elsewhere ([`Migrate`]), on its own
//! plan within a [`Budget`] or frame by frame as the kernel's own compactor
//! wants.

mod batch;
mod block;
pub(crate) mod kernel;
mod plan;
pub(crate) mod report;

use core::fmt;

use crate::backing::Backing;
use crate::backoff::{Backoff, SHORTEST};
use crate::engine::Engine;
use crate::engine::migrating::Migrating;
use crate::engine::table::Entry;
use crate::migrate::Migrate;
use crate::policy::Budget;
use crate::run::RangeSink;
use crate::shared::Shared;
use crate::source::{FrameSource, Ledger, Via};
use crate::status::{Blocked, Step};
use crate::transport::{Capabilities, Limits};
use crate::units::{FrameCount, FrameRange, Nanos, Order};

use batch::{Advance, Batch, Outcomes, Owner, Phase, Stage};
use block::Map;
use plan::Plan;
use report::Report;

/// The storage holds fewer words than [`compactor_words`] asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TooFewWords;

impl fmt::Display for TooFewWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the storage is smaller than `compactor_words` asks for")
    }
}

impl core::error::Error for TooFewWords {}

/// Words of storage a [`Compactor`] of this zone takes: one for each 2 MiB.
#[must_use]
pub const fn compactor_words(zone: FrameRange) -> u64 {
    plan::words_of(zone)
}

/// A round that the host refuses, or has no room for, so often in a row is over,
/// and so is a request that waits for room; about half a minute by the default
/// delays.
const MAX_IN_VAIN: u32 = 8;

/// What migrations did since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub struct Migrations {
    /// Pairs that changed places.
    pub migrated: FrameCount,
    /// Pairs left as they were.
    pub unchanged: FrameCount,
    /// Pairs whose frames are both holes now.
    pub both_holes: FrameCount,
    /// Requests the host refused or carried out in part; wraps.
    pub refusals: u32,
}

/// Moves ballooned frames, stepped beside the [`Engine`] with the same transport
/// and source.
///
/// At most `L` batches of [`MAX_RUNS`](crate::MAX_RUNS) pairs are under way, each
/// in about 4 KiB of plain state. `M` yields one `u32` for each 2 MiB of the
/// zone ([`compactor_words`]).
///
/// # Why the two do not collide
///
/// * A frame moves only through the doors of the source and the ledger, which
///   both borrow exclusively. A frame that one of them has in hand is neither
///   free nor ballooned, so the other cannot take it.
/// * A request occupies a slot that its maker claimed; each takes only the
///   answers of its own.
/// * The engine's arithmetic counts the frames that migrations have in hand
///   ([`Engine`] sees what the host has and what will be ballooned in the end),
///   so a migration looks like no change of size. A failure that leaves the
///   balloon larger or smaller is an ordinary distance from the target, which
///   the engine closes.
///
/// # What a failure leaves
///
/// Migrations are made or not, pair by pair. In two steps, a host that refuses the
/// first request changes nothing. If it refuses the second, both frames are
/// holes; that is counted and, for the kernel's own migrations, said of the pair. A
/// domain that owns more than an enforced target gets nothing back, so there two
/// steps end with both as holes, on the way to where the target wants it anyway.
#[derive(Debug)]
pub struct Compactor<M, const L: usize = 2> {
    plan: Plan<M>,
    batches: [Batch; L],
    isolated: FrameCount,
    /// Waits for a host that refuses, or for room at it.
    host: Backoff,
    /// Waits for a source that does not take frames back.
    source: Backoff,
    /// Waits for the host in a row.
    in_vain: u32,
    stopping: bool,
    counters: Migrations,
}

/// What the batches came to when each was looked at.
#[derive(Clone, Copy, Debug, Default)]
struct Scan {
    /// Something was asked of the host.
    submitted: bool,
    /// The source or the ledger refuses frames.
    stuck: bool,
    /// A request found no slot or no room.
    unsent: bool,
    /// A batch is over.
    over: bool,
}

/// What one step works with.
struct Io<'a, T, S, const N: usize> {
    engine: &'a mut Engine<N>,
    transport: &'a mut T,
    source: &'a mut S,
    caps: Capabilities,
    now: Nanos,
    budget: Budget,
}

impl<M: AsMut<[u32]>, const L: usize> Compactor<M, L> {
    /// A compactor of one zone, at rest.
    ///
    /// # Errors
    /// [`TooFewWords`].
    pub fn new(words: M, zone: FrameRange) -> Result<Self, TooFewWords> {
        Ok(Self {
            plan: Plan::new(words, zone).ok_or(TooFewWords)?,
            batches: [const { Batch::IDLE }; L],
            isolated: FrameCount::ZERO,
            host: Backoff::Ready,
            source: Backoff::Ready,
            in_vain: 0,
            stopping: false,
            counters: Migrations::default(),
        })
    }

    /// Begins a round: survey, plan, moves, survey.
    ///
    /// A host that refuses, or has no room, is asked ever less often, and then no
    /// more: the round ends early, the next one finds what is left. So it is where
    /// moving in two steps would touch what [`Policy::min_free`](crate::Policy::min_free)
    /// sets aside.
    ///
    /// A round under way goes on; it is false then.
    pub fn start(&mut self) -> bool {
        let idle = !self.is_running();
        if idle {
            self.stopping = false;
            self.in_vain = 0;
            self.host.reset();
            self.plan.start();
        }
        idle
    }

    /// Ends the round early: what is with the host is settled, then surveyed.
    pub const fn stop(&mut self) {
        self.stopping = true;
    }

    /// Whether a round is under way.
    #[must_use]
    pub fn is_running(&self) -> bool {
        !self.plan.is_idle()
    }

    /// Whether no migration has a frame in hand: safe to suspend.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.isolated.is_zero() && self.batches.iter().all(Batch::is_empty)
    }

    /// The last round, or the one under way; complete once it is over.
    #[must_use]
    pub const fn report(&self) -> Report {
        self.plan.report()
    }

    /// What migrations did since the start.
    #[must_use]
    pub const fn counters(&self) -> Migrations {
        self.counters
    }

    /// Does a bounded piece of work and says when to come back.
    ///
    /// `engine` must be the same one each time, and serve no other compactor;
    /// `transport` and `source` as for [`Engine::step`]. Step both whenever the
    /// host signals, this one first to save a round: what became of migrations is for
    /// the engine to mend and to tell the host. Frames that come to rest here, or by
    /// [`migrate`](Self::migrate) and [`put_back`](Self::put_back), set the
    /// [`Signal`](crate::Signal).
    pub fn step<T: Migrate, S: FrameSource + Ledger, const N: usize>(
        &mut self,
        engine: &mut Engine<N>,
        transport: &mut T,
        source: &mut S,
        now: Nanos,
        budget: Budget,
    ) -> Step {
        let caps = transport.capabilities();
        let mut io = Io {
            engine,
            transport,
            source,
            caps,
            now,
            // Choosing a hole and choosing its new place cost a unit each: with less
            // a round would plan for ever and move nothing.
            budget: budget.at_least(1 + usize::from(self.plan.is_moving())),
        };
        // What is with the host since later is of another clock.
        for batch in &mut self.batches {
            batch.restamp(now);
        }
        self.reap(&mut io);
        let mut submitted = self.advance(&mut io);
        let starting = self.may_start(&io);
        while starting && self.may_start(&io) && self.start_batch(&mut io) {
            submitted |= self.advance(&mut io);
        }
        let in_flight = self.in_flight();
        let early = submitted && in_flight > 0 && io.engine.kick(1, io.transport, io.now);
        self.publish_in_hand(io.engine);
        Step {
            more: early || (io.budget.is_spent() && self.may_start(&io)),
            wake_at: self.wake_at(&io),
        }
    }

    /// Whether the plan may go on now.
    fn may_start<T, S, const N: usize>(&self, io: &Io<'_, T, S, N>) -> bool {
        self.is_running() && io.engine.may_migrate() && !self.host.is_waiting(io.now)
    }

    fn reap<T: Migrate, S, const N: usize>(&mut self, io: &mut Io<'_, T, S, N>) {
        if self.in_flight() == 0 || io.engine.is_broken() {
            return;
        }
        let Some(shared) = io.engine.shared() else {
            return;
        };
        let before = self.answered();
        let reaped = io.transport.reap(shared.slots().completer());
        let reaped = io.engine.note_transport(reaped);
        let own = self.answered() - before;
        if reaped.map_or(io.engine.is_broken(), |answers| answers > own) {
            // Some are for others, who may have looked already.
            io.engine.wake();
        }
    }

    /// Gets every batch as far as it goes; true if something was asked of the
    /// host.
    fn advance<T: Migrate, S: FrameSource + Ledger, const N: usize>(
        &mut self,
        io: &mut Io<'_, T, S, N>,
    ) -> bool {
        let mut scan = self.scan(io);
        let mut submitted = scan.submitted;
        while scan.unsent && scan.over {
            // What is over left room.
            scan = self.scan(io);
            submitted |= scan.submitted;
        }
        if !scan.stuck {
            self.source.reset();
        } else if !self.source.is_waiting(io.now) {
            self.source
                .fail(io.now, io.engine.policy().retry, Blocked::SourceRefused);
        }
        submitted
    }

    /// Looks at each batch once.
    fn scan<T: Migrate, S: FrameSource + Ledger, const N: usize>(
        &mut self,
        io: &mut Io<'_, T, S, N>,
    ) -> Scan {
        let mut scan = Scan::default();
        let Some(slots) = io.engine.shared().map(Shared::slots) else {
            return scan;
        };
        for batch in &mut self.batches {
            loop {
                if io.engine.is_resetting() {
                    batch.void();
                } else if io.engine.is_broken() && matches!(batch.phase, Phase::Ready(_)) {
                    break;
                }
                let submits = matches!(batch.phase, Phase::Ready(_));
                let step = batch.advance(slots, io.transport, io.source, io.now);
                scan.submitted |= submits && step == Advance::Moved;
                let unsent = matches!((step, &batch.phase), (Advance::Waits, Phase::Ready(_)));
                let refused = batch.refused.take();
                if refused.is_some() {
                    self.counters.refusals = self.counters.refusals.wrapping_add(1);
                }
                if let Some(error) = refused.filter(|error| error.end().is_some()) {
                    io.engine.note_transport::<(), _>(Err(error));
                } else if (unsent || refused.is_some()) && !self.host.is_waiting(io.now) {
                    let delays = io.engine.policy().retry;
                    self.host.fail(io.now, delays, Blocked::HostRefused);
                    self.in_vain += 1;
                }
                match step {
                    Advance::Moved => {}
                    Advance::Waits if unsent && self.in_vain >= MAX_IN_VAIN => batch.give_up(),
                    Advance::Waits => {
                        scan.unsent |= unsent;
                        break;
                    }
                    Advance::Stuck => {
                        scan.stuck = true;
                        break;
                    }
                    Advance::Over(outcomes) => {
                        scan.over = true;
                        self.counters.add(outcomes);
                        if outcomes.given != outcomes.taken {
                            // The balloon is not as large as the engine made it.
                            io.engine.wake();
                        }
                        let migrated = outcomes.given.min(outcomes.taken);
                        if batch.owner == Owner::Plan {
                            self.plan.count_move(migrated);
                        }
                        if !migrated.is_zero() && migrated == outcomes.pairs {
                            self.host.reset();
                            self.in_vain = 0;
                        }
                    }
                }
            }
        }
        scan
    }

    /// Plans on and starts one more batch; false if none can start now.
    fn start_batch<T: Migrate, S: FrameSource + Ledger, const N: usize>(
        &mut self,
        io: &mut Io<'_, T, S, N>,
    ) -> bool {
        if !self.plan.prepare(io.source, &mut io.budget) || !self.plan.is_moving() {
            return false;
        }
        let busy = self
            .batches
            .iter()
            .any(|batch| !batch.is_idle() && batch.owner == Owner::Plan);
        self.stopping |= self.in_vain >= MAX_IN_VAIN;
        if self.stopping && !busy {
            self.stopping = false;
            self.plan.finish();
            return true;
        }
        let Some(batch) = self.batches.iter_mut().find(|batch| batch.is_idle()) else {
            return false;
        };
        if self.stopping {
            return false;
        }
        let Ok(next) = self.plan.next_source(io.source, &mut io.budget) else {
            return false;
        };
        let Some((via, holes)) = next.filter(|_| !self.plan.is_out_of_targets()) else {
            // What is in flight may come back as holes and free frames.
            if !busy {
                self.plan.finish();
            }
            return !busy;
        };
        let spare = spare(via, io);
        if spare.is_zero() {
            // What is in flight may bring some; nothing else of ours does.
            if !busy {
                self.plan.finish();
            }
            return !busy;
        }
        fill_to(&mut batch.to.entry, &mut self.plan, spare.min(holes), io);
        if batch.to.entry.frames().is_zero() {
            return !io.budget.is_spent();
        }
        if let Some(holes) = self.plan.holes() {
            let wanted = batch.to.entry.frames();
            fill_from(&mut batch.from.entry, wanted, holes, via, io);
        }
        self.plan.source_gave(!batch.from.entry.frames().is_zero());
        batch.begin(Owner::Plan, io.transport.migration());
        true
    }

    /// Requests whose answer nobody has taken yet.
    fn answered(&self) -> usize {
        self.batches
            .iter()
            .filter(|batch| batch.is_answered())
            .count()
    }

    fn in_flight(&self) -> usize {
        self.batches
            .iter()
            .filter(|batch| batch.in_flight_since().is_some())
            .count()
    }

    /// Tells the engine which frames are in hand.
    fn publish_in_hand<const N: usize>(&self, engine: &mut Engine<N>) {
        let mut with_host = self.isolated;
        let mut coming = self.isolated;
        for batch in &self.batches {
            let (host, later) = batch.account();
            with_host = with_host.saturating_add(host);
            coming = coming.saturating_add(later);
        }
        engine.set_migrating(Migrating {
            with_host,
            coming,
            requests: self.in_flight(),
            oldest: self.batches.iter().filter_map(Batch::in_flight_since).min(),
            waits: self.waits(engine),
            busy: !self.is_drained(),
        });
    }

    /// Whether it waits for something that the engine brings about.
    fn waits<const N: usize>(&self, engine: &Engine<N>) -> bool {
        self.has_unsent() || (self.is_running() && !engine.may_migrate())
    }

    /// Whether a request waits for a slot or for room.
    fn has_unsent(&self) -> bool {
        let unsent = |batch: &Batch| matches!(batch.phase, Phase::Ready(_));
        self.batches.iter().any(unsent)
    }

    fn wake_at<T, S, const N: usize>(&self, io: &Io<'_, T, S, N>) -> Option<Nanos> {
        if io.engine.is_broken() {
            return self.source.deadline(io.now).filter(|&at| at > io.now);
        }
        let policy = io.engine.policy();
        let waits = self.in_flight() > 0 && !io.caps.interrupts;
        let poll = waits.then(|| io.now.saturating_add(policy.poll.max(SHORTEST)));
        // An answer to somebody else makes room for what is unsent, and wakes us; this
        // is for the one that never comes.
        let waits = self.is_running() || self.has_unsent();
        let host = self.host.deadline(io.now).filter(|_| waits);
        let due = [poll, host, self.source.deadline(io.now)]
            .into_iter()
            .flatten();
        due.filter(|&at| at > io.now).min()
    }
}

impl Migrations {
    fn add(&mut self, outcomes: Outcomes) {
        let Outcomes {
            pairs,
            given,
            taken,
        } = outcomes;
        let more = |sum: &mut FrameCount, frames| *sum = sum.saturating_add(frames);
        more(&mut self.migrated, taken);
        more(&mut self.unchanged, pairs.saturating_sub(given));
        more(&mut self.both_holes, given.saturating_sub(taken));
    }
}

/// What both sides of a batch must fit into.
fn limits(caps: &Capabilities) -> Limits {
    let (give, take) = (caps.inflate, caps.deflate);
    Limits {
        frames: give.frames.min(take.frames),
        runs: give.runs.min(take.runs),
        run: give.run.min(take.run),
        ..give
    }
}

/// How many free frames a batch for holes given by `via` may have in hand.
///
/// A migration brings as many as it takes, in one go. Two steps do not: what is set
/// aside stays free meanwhile, and whatever becomes of the second step.
fn spare<T: Migrate, S: FrameSource, const N: usize>(
    via: Via,
    io: &mut Io<'_, T, S, N>,
) -> FrameCount {
    let min_free = io.engine.policy().min_free;
    if Stage::first(via, io.transport.migration()) == Stage::Migrate {
        return FrameCount::MAX;
    }
    match io.source.available() {
        Some(free) => free.saturating_sub(min_free),
        None if min_free.is_zero() => FrameCount::MAX,
        None => FrameCount::ZERO,
    }
}

/// Takes free frames from the end of the zone, up to `wanted`.
fn fill_to<M: AsMut<[u32]>, T, S: FrameSource + Ledger, const N: usize>(
    to: &mut Entry,
    plan: &mut Plan<M>,
    wanted: FrameCount,
    io: &mut Io<'_, T, S, N>,
) {
    let limits = limits(&io.caps);
    let wanted = wanted.min(limits.frames);
    let sink = RangeSink::new(to.spare(limits.runs), wanted);
    let mut sink = sink
        .with_longest_run(limits.run)
        .with_effort(io.budget.effort_for_pairs(), Order::FRAME);
    while !sink.is_full() {
        let Some(part) = plan.target(&mut io.budget) else {
            break;
        };
        let (mut map, complete) = Map::read_free(io.source, part, &mut io.budget);
        while let Some(range) = map.pop_last_free(sink.wanted()) {
            // What the host cannot name, or the source keeps, is passed over.
            if range.end() <= limits.below
                && let Ok(backing) = io.source.take_at(range)
            {
                let laid = sink.push(range, backing);
                debug_assert!(laid.is_ok(), "no longer than wanted");
            }
            if sink.is_full() {
                break;
            }
        }
        if !complete {
            break;
        }
        if map.free.count() == 0 {
            plan.skip_target();
        }
    }
    let laid = sink.into();
    to.extend(laid);
    to.seal(Via::Inflate, limits.run);
}

/// Takes `wanted` holes out of the ledger.
fn fill_from<T, S: Ledger, const N: usize>(
    from: &mut Entry,
    wanted: FrameCount,
    holes: &mut Map,
    via: Via,
    io: &mut Io<'_, T, S, N>,
) {
    let limits = limits(&io.caps);
    let sink = RangeSink::new(from.spare(limits.runs), wanted);
    let mut sink = sink.with_longest_run(limits.run);
    while !sink.is_full()
        && let Some(range) = holes.pop_first_held(via, sink.wanted())
    {
        if io.source.recall_at(range, via).is_ok() {
            let laid = sink.push(range, Backing::Unpopulated);
            debug_assert!(laid.is_ok(), "no longer than wanted");
        }
    }
    let laid = sink.into();
    from.extend(laid);
    from.seal(via, limits.run);
}

// Miri: their oracles walk all of memory after each step, and no code is unsafe.
#[cfg(all(test, not(any(loom, miri))))]
mod tests;
