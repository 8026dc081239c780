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

mod give;
mod host;
mod lifecycle;
mod migrating;
mod relief;
mod settle;
mod table;
mod take_back;
mod unit;

use crate::backoff::Backoff;
use crate::events::{Event, Events};
use crate::policy::{Budget, Policy};
use crate::shared::Shared;
use crate::slots::Kind;
use crate::source::{FrameSource, GivePath, Ledger};
use crate::status::{Blocked, Counters, Pace, Progress, Status, Step};
use crate::transport::{Capabilities, Transport};
use crate::units::{FrameCount, Nanos, Order, Pfn};

pub use lifecycle::Resume;
pub(crate) use migrating::Migrating;
pub use relief::{Need, Relieved};
pub(crate) use table::Entry;
pub use table::MAX_RUNS;

use lifecycle::Mode;
use table::Table;
use unit::UnitState;

/// A balloon with up to `N` requests in flight per direction.
///
/// About `N` × 4 KiB of plain state ([`MAX_RUNS`] runs for each request), meant
/// for a `static` behind the kernel's own lock. All that interrupts and other
/// CPUs touch is in [`Shared`].
#[derive(Debug)]
pub struct Engine<const N: usize = 16> {
    shared: &'static Shared<N>,
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
    silent: bool,
    broken: bool,
    /// Requests in flight may not have been noticed by the host.
    unseen: bool,
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
struct Standing {
    counters: Counters,
    held: FrameCount,
    inflating: FrameCount,
    deflating: FrameCount,
    /// Requests with the host, and to be settled: those whose frames were used early
    /// have none left.
    requests: [usize; 2],
    refused: usize,
    whole_below: Pfn,
}

impl<const N: usize> Engine<N> {
    /// An engine with an empty balloon.
    ///
    /// `shared` must not serve two engines: each would take the other's answers.
    #[must_use]
    pub const fn new(shared: &'static Shared<N>, policy: Policy) -> Self {
        const { assert!(N >= 2, "one slot is kept for relief: at least two") };
        Self {
            shared,
            policy,
            mode: Mode::RUNNING,
            target: None,
            stale: true,
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
            silent: false,
            broken: false,
            unseen: false,
            unsupported: false,
            counters: Counters::ZERO,
            events: Events::new(),
            last: Progress::Idle,
            started: (Nanos::ZERO, FrameCount::ZERO),
            now: Nanos::ZERO,
        }
    }

    /// Does a bounded piece of work and says when to come back.
    ///
    /// `now` must not run backwards. Calling more often than asked is harmless.
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
        self.now = now;
        self.shared.signal().take_used();
        let (before, standing) = (self.counters, self.standing(io.source));
        self.cool_until = self.cool_until.filter(|&until| now < until);
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
        self.fill_reserve(&mut io);
        self.publish(&mut io);
        self.announce_unit(&mut io);
        let submitted = self.counters.requests != before.requests;
        let rearm = (submitted || answered || late) && self.in_flight() > 0;
        let again = self.unseen && self.with_host() > 0 && !self.host.is_waiting(now);
        // At least one: those of a migration may be the only ones.
        let wake_after = self.in_flight().div_ceil(2).max(1);
        let early = (rearm || again) && self.kick(wake_after, io.transport, now);
        // Not while the host may still refuse what was tried after a refusal.
        let heard = self.in_flight() == 0 || self.moved() != before.moved();
        if heard
            && self.counters.transport_errors == before.transport_errors
            && !self.host.is_waiting(now)
        {
            self.host.reset();
        }
        self.observe_progress(io.source);
        // A budget spent on nothing would be spent on nothing again.
        let unfinished = io.budget.is_spent() && self.standing(io.source) != standing;
        Step {
            // Late answers leave room that nothing else will announce.
            more: unfinished || early || late || self.shared.signal().pending(),
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

    /// Shows an observer what happened since the last call, oldest first.
    ///
    /// To be called after a step or a relief, when and where it may take a while:
    /// sixteen events are kept, and [`Event::Lost`] says how many were not.
    ///
    /// ```
    /// # use balloon_core::{Engine, Policy, Shared};
    /// # static SHARED: Shared = Shared::new();
    /// # let mut engine = Engine::new(&SHARED, Policy::DEFAULT);
    /// engine.drain_events(|event| println!("{event}"));
    /// # #[cfg(feature = "log")]
    /// engine.drain_events(balloon_core::Event::log); // with the feature `log` or `defmt`
    /// ```
    pub fn drain_events(&mut self, observer: impl FnMut(Event)) {
        self.events.drain(observer);
    }

    /// The size to go for: the target, clamped and rounded.
    fn goal(&self) -> Option<FrameCount> {
        if self.mode.is_forgetting() {
            return Some(FrameCount::ZERO);
        }
        let clamped = self.target?.min(self.policy.max_size);
        let unit = self.policy.unit.smallest();
        Some(clamped.round_down(self.policy.round_to.max(unit)))
    }

    /// Starts what moves the balloon towards its goal.
    fn approach_goal<T: Transport, S: FrameSource + Ledger>(&mut self, io: &mut Io<'_, T, S>) {
        self.unsupported = false;
        let Some(goal) = self.goal() else { return };
        if self.mode.is_quiesced() || self.broken || self.host.is_waiting(io.now) {
            return;
        }
        // Frames being taken back have left the ledger already.
        let expected = held(io.source)
            .saturating_add(self.inflating.frames())
            .saturating_add(self.migrating.coming);
        self.give(goal.saturating_sub(expected), io);
        if !self.source.is_waiting(io.now) {
            self.take_back(expected.saturating_sub(goal), io);
        }
        if goal == expected {
            self.look_for_upgrade(io);
        }
    }

    fn progress(&self, size: FrameCount) -> Progress {
        let moving = !(self.inflating.frames().is_zero() && self.deflating.frames().is_zero());
        let Some(goal) = self.goal() else {
            return self.obstacle().map_or(Progress::Idle, Progress::Blocked);
        };
        let missed = goal.saturating_sub(size).max(size.saturating_sub(goal));
        if self.mode.is_quiesced() && !self.broken {
            Progress::Quiesced
        } else if let Some(reason) = self
            .obstacle()
            .filter(|_| moving || self.stale || missed > self.policy.tolerance)
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
        if self.broken {
            return Some(Blocked::DeviceBroken);
        }
        let silent = self.silent.then_some(Blocked::DeviceSilent);
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

    fn wake_at<T, S>(&self, io: &Io<'_, T, S>) -> Option<Nanos> {
        if self.broken {
            return None;
        }
        let poll = (!io.caps.interrupts).then(|| io.now.saturating_add(self.policy.poll));
        let read = self.stale.then_some(self.next_read);
        let silence = self.oldest().filter(|_| !self.silent);
        let silence = silence.map(|since| since.saturating_add(self.policy.silent_after));
        // Nothing can be given to a host that refuses.
        let give = self.give.deadline();
        let retries = [
            give.filter(|_| !self.host.is_waiting(io.now)),
            self.host.deadline(),
            self.source.deadline(),
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
    fn standing(&self, ledger: &impl Ledger) -> Standing {
        Standing {
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
        }
    }

    fn oldest(&self) -> Option<Nanos> {
        [self.inflating.oldest(), self.deflating.oldest()]
            .into_iter()
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
        .held(GivePath::Told)
        .saturating_add(ledger.held(GivePath::Bulk))
}

// Miri: their oracles walk all of memory after each step, and no code is unsafe.
#[cfg(all(test, not(any(loom, miri))))]
mod tests;
