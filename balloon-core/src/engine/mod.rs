//! The balloon itself: a state machine that owns no queue, lock, clock or heap.
//!
//! One entry, [`Engine::step`]: it looks at what the host said, settles what
//! was answered, moves at most a budget of frames towards the target, and says
//! when to come back. It never waits, so it may run with interrupts off, at the
//! end of an interrupt handler, or from a timer tick.
//!
//! Decisions rest on `ballooned + inflating - deflating`, never on what the host
//! has acknowledged alone: frames on their way count, so a target that changes
//! faster than the host answers makes neither overshoot nor ping-pong.
//!
//! ```text
//!  observe          settle               move                 publish
//!  target, used ──► answers → ledger ──► take → submit    ──► size, kick
//!                   answers → source     recall → submit
//! ```
//!
//! Beside the step: [`Engine::relieve`] for the out-of-memory path, and
//! [`Engine::quiesce`] and [`Engine::resume`] around suspend and reset.

mod deflate;
mod host;
mod inflate;
pub(crate) mod lifecycle;
pub(crate) mod migrating;
pub(crate) mod relief;
mod settle;
pub(crate) mod table;
mod unit;

use crate::backoff::{Backoff, SHORTEST, is_to_come};
use crate::events::{Event, Events};
use crate::policy::{Budget, Policy};
use crate::shared::{Entered, Shared};
use crate::slots::{Claimed, Kind};
use crate::source::{FrameSource, Ledger, Via};
use crate::status::{Blocked, Counters, Pace, Progress, Status, Step};
use crate::transport::{Capabilities, Transport};
use crate::units::{FrameCount, Nanos, Order, Pfn};

use lifecycle::Mode;
use migrating::Migrating;
use table::Table;
use unit::UnitState;

/// A balloon with up to `N` requests in flight per direction.
///
/// About `N` × 4 KiB of plain state ([`MAX_RUNS`](crate::MAX_RUNS) runs for each request), meant
/// for a `static` behind the kernel's own lock. All that interrupts and other
/// CPUs touch is in [`Shared`].
#[derive(Debug)]
pub struct Engine<const N: usize = 16> {
    /// `None` until it is started.
    shared: Option<&'static Shared<N>>,
    policy: Policy,
    mode: Mode,
    target: Option<FrameCount>,
    /// The host may want something else by now.
    stale: bool,
    /// No target is read before this moment.
    next_read: Nanos,
    /// The size the host was told last.
    published: Option<FrameCount>,
    inflating: Table<N>,
    deflating: Table<N>,
    /// Frames in hand because of migrations.
    migrating: Migrating,
    /// Waits for free frames.
    give: Backoff,
    /// Waits for a host that refuses.
    host: Backoff,
    /// Waits for a source that does not take frames back.
    source: Backoff,
    /// No inflation before this moment, after memory ran short.
    cool_until: Option<Nanos>,
    unit: UnitState,
    /// How long the host had been silent when it was told last of what it has; zero if it
    /// is not silent.
    rung: Nanos,
    /// Why the host is not spoken to any more.
    failed: Option<Blocked>,
    /// Requests in flight, of anybody, may not have been noticed by the host.
    unseen: bool,
    /// Moments are of the time before.
    restored: bool,
    /// Nobody has looked at the ledger.
    fresh: bool,
    /// Frames of relief that was asked for and waits for room.
    owed: FrameCount,
    /// No request of the transport can move what is to be moved.
    unsupported: bool,
    counters: Counters,
    events: Events,
    last: Progress,
    /// When the balloon began to move, and the frames moved before.
    started: (Nanos, FrameCount),
    now: Nanos,
}

/// What one step works with.
#[derive(Debug)]
struct Io<'a, T, S> {
    transport: &'a mut T,
    source: &'a mut S,
    caps: Capabilities,
    now: Nanos,
    budget: Budget,
}

/// By what a step that did something is told from one that did nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Snapshot {
    counters: Counters,
    held: FrameCount,
    inflating: FrameCount,
    deflating: FrameCount,
    /// Requests with the host, and to be settled: those whose frames were used early
    /// have none left.
    requests: [usize; 2],
    refused: usize,
    whole_below: Pfn,
    searches: u32,
}

impl<const N: usize> Engine<N> {
    /// An engine with an empty balloon.
    ///
    /// A ledger that is not empty is taken apart first, as after [`Resume::Reset`](crate::Resume::Reset):
    /// frames that a host still has from somebody before need [`resume`](Self::resume)
    /// with [`Resume::Kept`](crate::Resume::Kept) ahead of the first step.
    ///
    /// `shared` must not serve two engines: each would take the other's answers.
    #[must_use]
    pub const fn new(shared: &'static Shared<N>, policy: Policy) -> Self {
        let mut engine = Self::unstarted();
        engine.start(shared, policy);
        engine
    }

    /// An engine that does nothing until it is [started](Self::start): all zeros, so a
    /// `static` of it is no part of an image.
    #[must_use]
    pub(crate) const fn unstarted() -> Self {
        const { assert!(N >= 2, "one slot is kept for relief: at least two") };
        Self {
            shared: None,
            policy: Policy::ZERO,
            mode: Mode::RUNNING,
            target: None,
            stale: false,
            next_read: Nanos::ZERO,
            published: None,
            inflating: Table::new(),
            deflating: Table::new(),
            migrating: Migrating::NONE,
            give: Backoff::Ready,
            host: Backoff::Ready,
            source: Backoff::Ready,
            cool_until: None,
            unit: UnitState::new(),
            rung: Nanos::ZERO,
            failed: None,
            unseen: false,
            restored: false,
            fresh: false,
            owed: FrameCount::ZERO,
            unsupported: false,
            counters: Counters::ZERO,
            events: Events::new(),
            last: Progress::Idle,
            started: (Nanos::ZERO, FrameCount::ZERO),
            now: Nanos::ZERO,
        }
    }

    /// Begins the life of an engine that has no request: one that was not started, or stopped.
    pub(crate) const fn start(&mut self, shared: &'static Shared<N>, policy: Policy) {
        self.shared = Some(shared);
        self.policy = policy;
        self.mode = Mode::RUNNING;
        self.target = None;
        self.stale = true;
        self.next_read = Nanos::ZERO;
        self.published = None;
        self.migrating = Migrating::NONE;
        self.give = Backoff::Ready;
        self.host = Backoff::Ready;
        self.source = Backoff::Ready;
        self.cool_until = None;
        self.unit = UnitState::new();
        self.rung = Nanos::ZERO;
        self.failed = None;
        self.unseen = false;
        self.restored = true;
        self.fresh = true;
        self.owed = FrameCount::ZERO;
        self.unsupported = false;
        self.counters = Counters::ZERO;
        self.events = Events::new();
        self.last = Progress::Idle;
        self.started = (Nanos::ZERO, FrameCount::ZERO);
        self.now = Nanos::ZERO;
    }

    /// Ends the life of an engine without requests.
    pub(crate) const fn stop(&mut self) {
        self.shared = None;
    }

    /// There is something for a step to do.
    pub(crate) fn wake(&self) {
        if let Some(shared) = self.shared {
            shared.signal().used();
        }
    }

    pub(crate) const fn is_started(&self) -> bool {
        self.shared.is_some()
    }

    pub(crate) fn enter(&self) -> Option<Entered> {
        self.shared?.enter()
    }

    /// Whether somebody has said so, and no step has heard it.
    fn is_woken(&self) -> bool {
        self.shared.is_some_and(|shared| shared.signal().is_set())
    }

    fn claim(&self, kind: Kind) -> Option<Claimed<'static>> {
        self.shared?.slots().claim(kind).ok()
    }

    /// A slot that is not the last free one.
    fn claim_but_last(&self, kind: Kind) -> Option<Claimed<'static>> {
        self.shared?.slots().claim_but_last(kind).ok()
    }

    /// Does a bounded piece of work and says when to come back.
    ///
    /// `now` runs forwards, but for what the clocks of two processors differ by, and
    /// for a restore by which the guest gets another clock. Calling more often than asked is harmless.
    /// `transport` and `source` must be the same ones each time.
    pub fn step<T: Transport, S: FrameSource + Ledger>(
        &mut self,
        transport: &mut T,
        source: &mut S,
        now: Nanos,
        budget: Budget,
    ) -> Step {
        let mut caps = transport.capabilities();
        caps.bulk = caps.bulk.filter(|limits| limits.hold(Order::FRAME));
        let mut io = Io {
            caps,
            transport,
            source,
            now,
            budget,
        };
        self.begin(io.source);
        let resetting = self.mode.is_resetting();
        let (before, snapshot) = (self.counters, self.snapshot(io.source));
        let cool_down = self.policy.cool_down;
        self.cool_until = self
            .cool_until
            .filter(|&until| is_to_come(until, cool_down, now));
        self.set_clock(now);
        self.observe_target(&mut io);
        // Before answers are looked at: a synchronous host may have left some
        // frames where they were, and the way to the goal depends on it.
        self.honour_relief_request(&mut io);
        let answered = self.collect(&mut io);
        self.settle(&mut io);
        self.approach_goal(&mut io);
        // A synchronous host has answered by now; refused requests settle too.
        let late = self.collect(&mut io);
        self.settle(&mut io);
        self.fill_emergency_pool(&mut io);
        self.publish(&mut io);
        self.announce_unit(&mut io);
        let submitted = self.counters.requests != before.requests && self.in_flight() > 0;
        let again = self.unseen && !self.host.is_waiting(now);
        if again {
            self.notify(io.transport, now);
        }
        // At least one: those of a migration may be the only ones.
        let wake_after = self.in_flight().div_ceil(2).max(1);
        let early = (submitted || again) && self.kick(wake_after, io.transport, now);
        if answered || late {
            self.wake_migrations();
        }
        // Not while the host may still refuse what was tried after a refusal.
        let heard = self.in_flight() == 0 || self.moved() != before.moved();
        if heard
            && self.counters.transport_errors == before.transport_errors
            && !self.host.is_waiting(now)
        {
            self.host.reset();
        }
        let silent = self.watch_silence(answered || late, now);
        self.observe_progress(io.source);
        // A budget spent on nothing would be spent on nothing again.
        let unfinished = io.budget.is_spent() && self.snapshot(io.source) != snapshot;
        // The old balloon is forgotten: the next step goes for the target.
        let forgot = resetting && !self.mode.is_resetting();
        Step {
            // Late answers leave room that nothing else will announce.
            more: unfinished || early || late || forgot || silent || self.is_called(),
            wake_at: self.wake_at(&io),
        }
    }

    /// Where the balloon stands and why; `ledger` as passed to
    /// [`step`](Self::step).
    #[must_use]
    pub fn status(&self, ledger: &impl Ledger) -> Status {
        let size = self.size(ledger);
        let progress = self.progress(size);
        let pace = (progress == Progress::Working).then(|| {
            let goal = self.goal().unwrap_or(size);
            let left = goal.saturating_sub(size).max(size.saturating_sub(goal));
            let (since, before) = self.started;
            let moved = self.moved().saturating_sub(before);
            Pace::new(moved, self.now.saturating_sub(since), left)
        });
        Status {
            target: self.target,
            goal: self.goal(),
            size,
            inflating: self.inflating.frames(),
            deflating: self.deflating.frames(),
            unit: self.unit.order(),
            progress,
            pace,
            counters: self.counters,
        }
    }

    /// What the engine works by.
    #[must_use]
    pub const fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Works by another policy from the next step on: memory was added, and the clamp
    /// rises with it.
    ///
    /// Sets the signal: the goal may be another now. Frames above a smaller
    /// [`Policy::emergency_pool`] stay there until they are taken.
    ///
    /// ```
    /// # use balloon_core::{Bytes, Engine, Policy, Shared};
    /// # static SHARED: Shared = Shared::new();
    /// let boot = Bytes::new(128 << 20).frames();
    /// let mut engine = Engine::new(&SHARED, Policy::for_memory(boot));
    /// // 384 MiB more were plugged in.
    /// let now = Bytes::new(512 << 20).frames();
    /// let max_size = Policy::for_memory(now).max_size;
    /// let mut policy = *engine.policy();
    /// policy.max_size = max_size;
    /// engine.set_policy(policy);
    /// assert!(SHARED.signal().is_set());
    /// ```
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
        self.give.reset();
        self.forget_whole_blocks();
        self.wake();
    }

    /// What happened since the last call, for an observer, who needs no lock any more.
    ///
    /// ```
    /// # use balloon_core::{Engine, Policy, Shared};
    /// # static SHARED: Shared = Shared::new();
    /// # let mut engine = Engine::new(&SHARED, Policy::DEFAULT);
    /// for (event, times) in engine.take_events().iter() {
    ///     println!("{event} ({times})");
    ///     # #[cfg(feature = "log")]
    ///     event.log(); // with the feature `log` or `defmt`
    /// }
    /// ```
    pub const fn take_events(&mut self) -> Events {
        core::mem::replace(&mut self.events, Events::new())
    }

    /// The size to go for: the target, clamped and rounded.
    fn goal(&self) -> Option<FrameCount> {
        if self.mode.is_resetting() {
            return Some(FrameCount::ZERO);
        }
        let clamped = self.target?.min(self.policy.max_size);
        let unit = self.policy.granularity.smallest();
        Some(clamped.round_down(self.policy.round_to.max(unit)))
    }

    /// Starts what moves the balloon towards its goal.
    fn approach_goal<T: Transport, S: FrameSource + Ledger>(&mut self, io: &mut Io<'_, T, S>) {
        self.unsupported = false;
        let Some(goal) = self.goal() else { return };
        let failed = self.failed.is_some() && !self.mode.is_resetting();
        if self.mode.is_quiesced() || failed || self.host.is_waiting(io.now) {
            return;
        }
        // Frames being taken back have left the ledger already.
        let expected = held(io.source)
            .saturating_add(self.inflating.frames())
            .saturating_add(self.migrating.coming);
        self.inflate(goal.saturating_sub(expected), io);
        if !self.source.is_waiting(io.now) {
            self.deflate(expected.saturating_sub(goal), io);
        }
        if goal == expected {
            self.look_for_upgrade(io);
        }
    }

    /// Whether somebody wants something that this step did not see.
    fn is_called(&self) -> bool {
        self.shared.is_some_and(|shared| {
            let relief = shared.is_relief_requested() && !self.mode.is_quiesced();
            relief || shared.signal().is_config_set()
        })
    }

    fn progress(&self, size: FrameCount) -> Progress {
        let moving = !(self.inflating.frames().is_zero() && self.deflating.frames().is_zero());
        let Some(goal) = self.goal() else {
            return self.obstacle().map_or(Progress::Idle, Progress::Blocked);
        };
        let missed = goal.saturating_sub(size).max(size.saturating_sub(goal));
        let waits = moving || self.migrating.requests > 0;
        if self.mode.is_quiesced() && self.failed.is_none() {
            Progress::Quiesced
        } else if let Some(reason) = self
            .obstacle()
            .filter(|_| waits || self.stale || missed > self.policy.tolerance)
        {
            Progress::Blocked(reason)
        } else if moving {
            Progress::Working
        } else if missed.is_zero()
            && self
                .target
                .is_some_and(|target| target > self.policy.max_size)
        {
            Progress::Blocked(Blocked::Floor)
        } else if missed.is_zero() {
            Progress::Reached
        } else if missed <= self.policy.tolerance {
            Progress::WithinTolerance
        } else {
            Progress::Working
        }
    }

    /// What keeps the balloon from moving.
    fn obstacle(&self) -> Option<Blocked> {
        if self.failed.is_some() {
            return self.failed;
        }
        let silent = self.is_silent().then_some(Blocked::DeviceSilent);
        let unsupported = self.unsupported.then_some(Blocked::Unsupported);
        let cooling = self.cool_until.map(|_| Blocked::CoolDown);
        silent
            .or(self.host.reason())
            .or(self.source.reason())
            .or(unsupported)
            .or(cooling)
            .or(self.give.reason())
    }

    fn observe_progress(&mut self, ledger: &impl Ledger) {
        let progress = self.progress(self.size(ledger));
        if progress != self.last {
            if progress == Progress::Working {
                self.started = (self.now, self.moved());
            }
            self.last = progress;
            self.events.push(Event::Progress(progress));
        }
    }

    /// It is `now`. What is with the host since later, or since before a restore, is
    /// there since now.
    fn set_clock(&mut self, now: Nanos) {
        let earliest = if core::mem::take(&mut self.restored) {
            now
        } else {
            Nanos::ZERO
        };
        self.inflating.restamp(earliest, now);
        self.deflating.restamp(earliest, now);
        self.started.0 = self.started.0.clamp(earliest, now);
        self.now = now;
    }

    fn wake_at<T, S>(&self, io: &Io<'_, T, S>) -> Option<Nanos> {
        if self.failed.is_some() {
            // No host tells of anything, but the source may take frames by then.
            return self.source.deadline(io.now).filter(|&at| at > io.now);
        }
        let poll = self.policy.poll.max(SHORTEST);
        let poll = (!io.caps.interrupts).then(|| io.now.saturating_add(poll));
        let read = self.stale.then_some(self.next_read);
        let read = read.filter(|&at| is_to_come(at, self.policy.min_read_interval, io.now));
        let silence = self.oldest();
        let silence = silence.map(|since| since.saturating_add(self.next_bell()));
        // Nothing can be given to a host that refuses.
        let give = self.give.deadline(io.now);
        let retries = [
            give.filter(|_| !self.host.is_waiting(io.now)),
            self.host.deadline(io.now),
            self.source.deadline(io.now),
        ];
        // A deadline that has passed waits for something else by now.
        let due = retries
            .into_iter()
            .chain([poll, read, silence, self.cool_until])
            .flatten();
        due.filter(|&at| at > io.now).min()
    }

    fn moved(&self) -> FrameCount {
        self.counters.moved()
    }

    const fn in_flight(&self) -> usize {
        self.inflating.in_flight() + self.deflating.in_flight()
    }

    /// Requests in flight, those of migrations too: they share the room.
    const fn with_host(&self) -> usize {
        self.in_flight() + self.migrating.requests
    }

    /// What changes with every piece of work.
    fn snapshot(&self, ledger: &impl Ledger) -> Snapshot {
        Snapshot {
            counters: self.counters,
            held: held(ledger),
            inflating: self.inflating.frames(),
            deflating: self.deflating.frames(),
            requests: [
                self.in_flight(),
                self.inflating.settling() + self.deflating.settling(),
            ],
            refused: self.inflating.refused() + self.deflating.refused(),
            whole_below: self.unit.whole_below(),
            searches: self.unit.searches(),
        }
    }

    fn oldest(&self) -> Option<Nanos> {
        let own = [self.inflating.oldest(), self.deflating.oldest()];
        own.into_iter()
            .chain([self.migrating.oldest])
            .flatten()
            .min()
    }

    const fn table(&self, kind: Kind) -> &Table<N> {
        match kind {
            Kind::Inflate => &self.inflating,
            _ => &self.deflating,
        }
    }

    const fn table_mut(&mut self, kind: Kind) -> &mut Table<N> {
        match kind {
            Kind::Inflate => &mut self.inflating,
            _ => &mut self.deflating,
        }
    }
}

fn held(ledger: &impl Ledger) -> FrameCount {
    ledger
        .held(Via::Inflate)
        .saturating_add(ledger.held(Via::Bulk))
}

// Miri: their oracles walk all of memory after each step, and no code is unsafe.
#[cfg(all(test, not(any(loom, miri))))]
mod tests;
