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

mod give;
mod table;
mod take_back;

use crate::backoff::Backoff;
use crate::policy::{Budget, Policy};
use crate::shared::Shared;
use crate::slots::{Kind, SlotId};
use crate::source::{Backing, FrameSource, GivePath, Ledger};
use crate::status::{Blocked, Counters, Progress, Status, Step};
use crate::transport::{Capabilities, Request, Transport, TransportError, TransportErrorKind};
use crate::units::{FrameCount, Nanos};

pub use table::MAX_RUNS;
use table::Table;

/// A balloon with up to `N` requests in flight per direction.
///
/// About `N` × 4 KiB of plain state ([`MAX_RUNS`] runs for each request), meant
/// for a `static` behind the kernel's own lock. All that interrupts and other
/// CPUs touch is in [`Shared`].
#[derive(Debug)]
pub struct Engine<const N: usize = 16> {
    shared: &'static Shared<N>,
    policy: Policy,
    target: Option<FrameCount>,
    /// The host may want something else by now.
    stale: bool,
    /// The size the host was told last.
    published: Option<FrameCount>,
    inflating: Table<N>,
    deflating: Table<N>,
    /// Waits for free frames.
    give: Backoff,
    /// Waits for a host that refuses.
    host: Backoff,
    /// Waits for a source that does not take frames back.
    source: Backoff,
    silent: bool,
    broken: bool,
    counters: Counters,
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

impl<const N: usize> Engine<N> {
    /// An engine with an empty balloon.
    ///
    /// `shared` must not serve two engines: each would take the other's answers.
    #[must_use]
    pub const fn new(shared: &'static Shared<N>, policy: Policy) -> Self {
        Self {
            shared,
            policy,
            target: None,
            stale: true,
            published: None,
            inflating: Table::new(Kind::Inflate),
            deflating: Table::new(Kind::Deflate),
            give: Backoff::Ready,
            host: Backoff::Ready,
            source: Backoff::Ready,
            silent: false,
            broken: false,
            counters: Counters::ZERO,
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
        let caps = transport.capabilities();
        let mut io = Io {
            transport,
            source,
            caps,
            now,
            budget,
        };
        self.shared.signal().take_used();
        let errors = self.counters.transport_errors;
        let answered = self.collect(&mut io);
        self.observe_target(&mut io);
        self.settle(&mut io);
        let requests = self.counters.requests;
        self.approach_target(&mut io);
        // A synchronous host has answered by now; refused requests settle too.
        let late = self.collect(&mut io);
        self.settle(&mut io);
        self.publish(&mut io);
        let submitted = self.counters.requests != requests;
        let early = (submitted || answered || late) && self.in_flight() > 0 && self.kick(&mut io);
        if self.counters.transport_errors == errors && !self.host.is_waiting(now) {
            self.host.reset();
        }
        Step {
            // Late answers leave room that nothing else will announce.
            more: io.budget.is_spent() || early || late || self.shared.signal().pending(),
            wake_at: self.wake_at(&io),
        }
    }

    /// Where the balloon stands and why; `ledger` as passed to
    /// [`step`](Self::step).
    #[must_use]
    pub fn status(&self, ledger: &impl Ledger) -> Status {
        let size = held(ledger);
        let (inflating, deflating) = (self.inflating.frames(), self.deflating.frames());
        let moving = !(inflating.is_zero() && deflating.is_zero());
        let blocked = if self.broken {
            Some(Blocked::DeviceBroken)
        } else if self.silent {
            Some(Blocked::DeviceSilent)
        } else {
            self.host
                .reason()
                .or(self.source.reason())
                .or(self.give.reason())
        };
        let progress = match (self.target, blocked) {
            (_, Some(blocked)) => Progress::Blocked(blocked),
            (None, None) => Progress::Idle,
            (Some(target), None) if target == size && !moving => Progress::Reached,
            (Some(_), None) => Progress::Working,
        };
        let counters = self.counters;
        Status {
            target: self.target,
            size,
            inflating,
            deflating,
            progress,
            counters,
        }
    }

    /// Reads the target if the host may have changed it.
    fn observe_target<T: Transport, S: Ledger>(&mut self, io: &mut Io<'_, T, S>) {
        // Cleared before reading: a change that comes later is read again.
        self.stale |= self.shared.signal().take_config() || !io.caps.interrupts;
        if !self.stale || self.broken || self.host.is_waiting(io.now) {
            return;
        }
        let read = io.transport.read_target();
        let Some(target) = self.note(read, io.now) else {
            return;
        };
        self.stale = false;
        if self.target != Some(target) {
            self.target = Some(target);
            self.counters.target_changes = self.counters.target_changes.wrapping_add(1);
            self.give.reset();
        }
    }

    /// Starts what moves the balloon towards its target.
    fn approach_target<T: Transport, S: FrameSource + Ledger>(&mut self, io: &mut Io<'_, T, S>) {
        let Some(target) = self.target else { return };
        if self.broken || self.host.is_waiting(io.now) {
            return;
        }
        // Frames being taken back have left the ledger already.
        let expected = held(io.source).saturating_add(self.inflating.frames());
        self.give(target.saturating_sub(expected), io);
        if !self.source.is_waiting(io.now) {
            self.take_back(expected.saturating_sub(target), io);
        }
    }

    /// Submits the sealed request of a claimed slot, or releases an empty one.
    ///
    /// False if the host does not take it: its frames wait to be settled.
    fn send<T: Transport, S>(&mut self, kind: Kind, slot: SlotId, io: &mut Io<'_, T, S>) -> bool {
        let slots = self.shared.slots();
        let table = if kind == Kind::Inflate {
            &mut self.inflating
        } else {
            &mut self.deflating
        };
        let empty = table
            .entry(slot)
            .is_none_or(|entry| entry.frames().is_zero());
        let owned = if empty {
            slots.release(kind, slot)
        } else {
            slots.launch(kind, slot)
        };
        debug_assert!(owned.is_ok(), "a claimed slot is the engine's own");
        if empty {
            return true;
        }
        let alone = self.in_flight() == 0;
        let table = if kind == Kind::Inflate {
            &mut self.inflating
        } else {
            &mut self.deflating
        };
        table.launched(slot, io.now);
        let Some(entry) = table.entry(slot) else {
            return false;
        };
        let request = Request {
            kind,
            path: entry.path(),
            slot,
            runs: entry.runs(),
        };
        let submitted = io.transport.submit(request, slots.completer());
        let Err(error) = submitted else {
            self.counters.requests = self.counters.requests.wrapping_add(1);
            return true;
        };
        // An answer to a refused request would be taken as the truth.
        if slots.revoke(kind, slot).is_ok() {
            table.settle(slot, FrameCount::ZERO);
        }
        match error.kind() {
            // Room comes with the next answer, which wakes us.
            TransportErrorKind::Full if !alone => {}
            _ => {
                self.note::<(), _>(Err(error), io.now);
            }
        }
        false
    }

    /// Looks for answers; true if there were any.
    fn collect<T: Transport, S>(&mut self, io: &mut Io<'_, T, S>) -> bool {
        let before = self.in_flight();
        if before == 0 {
            return false;
        }
        if !self.broken {
            let reaped = io.transport.reap(self.shared.slots().completer());
            self.note(reaped, io.now);
        }
        let counters = &mut self.counters;
        self.inflating.collect(self.shared.slots(), |entry, done| {
            counters.inflated = counters.inflated.saturating_add(done);
            counters.useful = counters.useful.saturating_add(entry.populated().min(done));
        });
        self.deflating.collect(self.shared.slots(), |_, done| {
            counters.deflated = counters.deflated.saturating_add(done);
        });
        let answered = self.in_flight() < before;
        let overdue = |since: Nanos| io.now.saturating_sub(since) >= self.policy.silent_after;
        self.silent = !answered && self.oldest().is_some_and(overdue);
        answered
    }

    /// Puts the frames of answered and refused requests in their places.
    fn settle<T, S: FrameSource + Ledger>(&mut self, io: &mut Io<'_, T, S>) {
        let mut refused = false;
        for kind in [Kind::Inflate, Kind::Deflate] {
            let mut from = 0;
            while let Some(slot) = self.table(kind).next_settling(from) {
                if !io.budget.spend() {
                    return;
                }
                refused |= !self.place(kind, slot, io.source);
                from = slot.index() + 1;
            }
        }
        if !refused {
            self.source.reset();
        } else if !self.source.is_waiting(io.now) {
            self.source
                .fail(io.now, self.policy.retry, Blocked::SourceRefused);
        }
    }

    /// Settles one request; false if the source keeps refusing some frames.
    fn place(
        &mut self,
        kind: Kind,
        slot: SlotId,
        source: &mut (impl FrameSource + Ledger),
    ) -> bool {
        let slots = self.shared.slots();
        match kind {
            Kind::Inflate => self.inflating.place(slots, slot, |range, given, path| {
                if given {
                    source.store(range, path)
                } else {
                    source.put(range, Backing::Unknown)
                }
            }),
            _ => self.deflating.place(slots, slot, |range, returned, path| {
                if returned {
                    source.put(range, Backing::Unpopulated)
                } else {
                    source.store(range, path)
                }
            }),
        }
    }

    /// Tells the host the size if it changed.
    fn publish<T: Transport, S: Ledger>(&mut self, io: &mut Io<'_, T, S>) {
        // Frames being deflated are the host's until it answers.
        let size = held(io.source).saturating_add(self.deflating.in_flight_frames());
        if self.broken || self.published == Some(size) || self.host.is_waiting(io.now) {
            return;
        }
        let written = io.transport.write_actual(size);
        if self.note(written, io.now).is_some() {
            self.published = Some(size);
        }
    }

    /// Makes requests visible and asks for the next signal; true if it is due
    /// already.
    fn kick<T: Transport, S>(&mut self, io: &mut Io<'_, T, S>) -> bool {
        if self.broken {
            return false;
        }
        let kicked = io.transport.kick(self.in_flight().div_ceil(2));
        self.note(kicked, io.now).unwrap_or(false)
    }

    /// Books a transport's answer; `None` if it failed.
    fn note<R, E: TransportError>(&mut self, result: Result<R, E>, now: Nanos) -> Option<R> {
        let error = match result {
            Ok(value) => return Some(value),
            Err(error) => error.kind(),
        };
        self.counters.transport_errors = self.counters.transport_errors.wrapping_add(1);
        if error == TransportErrorKind::Broken {
            self.broken = true;
        } else {
            self.host.fail(now, self.policy.retry, Blocked::HostRefused);
            self.counters.back_offs = self.counters.back_offs.wrapping_add(1);
        }
        None
    }

    fn wake_at<T, S>(&self, io: &Io<'_, T, S>) -> Option<Nanos> {
        if self.broken {
            return None;
        }
        let poll = (!io.caps.interrupts).then(|| io.now.saturating_add(self.policy.poll));
        let silence = self.oldest().filter(|_| !self.silent);
        let silence = silence.map(|since| since.saturating_add(self.policy.silent_after));
        let deadlines = [
            self.give.deadline(),
            self.host.deadline(),
            self.source.deadline(),
        ];
        // A deadline that has passed waits for something else by now.
        deadlines
            .into_iter()
            .chain([poll, silence])
            .flatten()
            .filter(|&at| at > io.now)
            .min()
    }

    const fn in_flight(&self) -> usize {
        self.inflating.in_flight() + self.deflating.in_flight()
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
}

fn held(ledger: &impl Ledger) -> FrameCount {
    ledger
        .held(GivePath::Told)
        .saturating_add(ledger.held(GivePath::Bulk))
}

#[cfg(all(test, not(loom)))]
mod tests;
