//! Free page hints: what a live migration need not copy.
//!
//! The host opens a round with a command in the configuration space; the guest
//! repeats the command on the hint queue, names free ranges, and closes the
//! round. Independent of the balloon's size and of its engine: a migration that
//! starts during an inflation does not wait for it.
//!
//! Safe by default. The specification lets a guest reuse a hinted frame at once;
//! on several devices that loses data. Here every hinted frame stays out of the
//! allocator until the device has answered *and* says DONE, or until memory is
//! short and the kernel calls [`Hinting::relieve`], which gives back answered
//! frames only. A round that the host stops keeps what it has: those frames are
//! untouched, so the next round need not name them again.
//!
//! QEMU shows no command any more once its round is open, and a new target in the
//! middle of a round makes that look like the command to stop: the round ends
//! early and what it did not name is copied. Firecracker tells of no change: a
//! command in the middle of a round is heard when everything is named.
//!
//! The hint queue sends no interrupts, as with other drivers: see
//! [`HintStep::wake_at`].

use balloon_core::{
    Backing, FrameCount, FrameSource, Kind, Ledger, Nanos, Order, Pfn, RangeSink, Run, Shared,
    TakeRequest, Transport, Via,
};

use crate::balloon::{POLL, VirtioBalloon, VirtioError};
use crate::lent::{Lent, Runs};
use crate::protocol::config::ConfigIo;
use crate::protocol::numbering::QueueId;
use crate::queues::Queues;

/// From a request to the first look for its answer.
const SOON: Nanos = Nanos::from_millis(1);

const STOP: u32 = 0;
const DONE: u32 = 1;

/// Where a round stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Round {
    /// None, or nothing more to name: frames are kept.
    Closed,
    /// To be opened with this command.
    Opening(u32),
    /// Naming ranges.
    Open,
    /// To be closed: nothing more to name, or the host stopped it.
    Closing,
    /// The host is done: frames go home.
    Releasing,
}

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HintStep {
    /// There is more to do at once.
    pub more: bool,
    /// When to step again even if nothing happens: no interrupt tells when the device has
    /// answered. A millisecond from now, and after as long again as it has been silent.
    pub wake_at: Option<Nanos>,
    /// Frames out of the allocator because of hints.
    pub held: FrameCount,
}

/// Names free memory to a migrating host, through up to `N` requests.
#[derive(Debug)]
pub struct Hinting<const N: usize = 16> {
    /// Commands, which name no frame, and ranges.
    lent: Lent<N, 1>,
    round: Round,
    /// The command acted on last.
    command: u32,
    min_free: FrameCount,
    hinted: FrameCount,
    rounds: u32,
    /// The last look found no device that is well, and the engine was told.
    doubtful: bool,
    /// Of the device's starts, the one hints are with.
    start: Option<u32>,
}

impl<const N: usize> Hinting<N> {
    /// Hinting that leaves `min_free` frames free for the kernel.
    #[must_use]
    pub const fn new(min_free: FrameCount) -> Self {
        const { assert!(N >= 2, "a command and a range") };
        Self {
            lent: Lent::new(),
            round: Round::Closed,
            command: STOP,
            min_free,
            hinted: FrameCount::ZERO,
            rounds: 0,
            doubtful: false,
            start: None,
        }
    }

    /// Frames named so far, over all rounds.
    #[must_use]
    pub const fn hinted(&self) -> FrameCount {
        self.hinted
    }

    /// Rounds opened so far, wrapping.
    #[must_use]
    pub const fn rounds(&self) -> u32 {
        self.rounds
    }

    /// Whether the device has none of our requests: what must hold before a
    /// suspend or a reset that is to lose nothing.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.lent.is_empty()
    }

    /// Follows the host's command, takes up answers, names at most one range.
    ///
    /// `held` remembers hinted frames; it must not be the balloon's ledger.
    ///
    /// # Errors
    /// If the device takes no hints, broke the queue, keeps changing its command, or asks
    /// for a reset. Frames stay with the service. [`VirtioError::Gone`] once all are home
    /// from a device that is gone.
    pub fn step<Q: Queues + ConfigIo, const M: usize>(
        &mut self,
        balloon: &mut VirtioBalloon<Q>,
        shared: &'static Shared<M>,
        source: &mut impl FrameSource,
        held: &mut impl Ledger,
        now: Nanos,
    ) -> Result<HintStep, VirtioError> {
        if balloon.hint_limits().is_none() {
            return Err(VirtioError::Unsupported);
        }
        if balloon.enter(&mut self.start, shared)? {
            self.reset(source, held);
        }
        if balloon.lost() == Some(VirtioError::Gone) {
            return self.go_home(source, held, now);
        }
        let reaped = if self.is_drained() {
            Ok(())
        } else {
            balloon.collect(QueueId::Hint, Kind::Hint, shared)
        };
        self.settle(source, held);
        let silence = balloon.watch(QueueId::Hint, Kind::Hint, shared.signal(), now);
        reaped?;
        if let Some(command) = self.command(balloon, shared)? {
            self.observe(command);
        }
        let more = match self.round {
            Round::Closed => false,
            Round::Opening(command) => self.tell(command, balloon, shared)?,
            Round::Open => self.name(balloon, shared, source)?,
            Round::Closing => self.tell(STOP, balloon, shared)?,
            Round::Releasing => self.release(source, held),
        };
        let silent = balloon.silence(QueueId::Hint, Kind::Hint, now);
        let poll = silent.map(|silent| now.saturating_add(silent.max(SOON)));
        let wake_at = [silence, poll].into_iter().flatten().min();
        Ok(self.left(more, wake_at, held, now))
    }

    /// Looks for a command of the host.
    fn command<Q: Queues + ConfigIo, const M: usize>(
        &mut self,
        balloon: &mut VirtioBalloon<Q>,
        shared: &'static Shared<M>,
    ) -> Result<Option<u32>, VirtioError> {
        let in_round = !matches!(self.round, Round::Closed | Round::Releasing);
        let command = balloon.hint_command(in_round);
        let lost = |error| matches!(error, &VirtioError::Absent | &VirtioError::NeedsReset);
        let doubtful = command.as_ref().is_err_and(lost);
        if doubtful && !self.doubtful {
            // Whoever reads the target finds out, and all hear of it.
            shared.signal().config_changed();
        }
        self.doubtful = doubtful;
        command
    }

    fn left(&self, more: bool, wake_at: Option<Nanos>, held: &impl Ledger, now: Nanos) -> HintStep {
        // What the allocator refuses nobody else asks it to take.
        let refused = self.round == Round::Releasing && !more;
        let again = refused.then(|| now.saturating_add(POLL));
        HintStep {
            more,
            wake_at: [wake_at, again].into_iter().flatten().min(),
            held: out(held).saturating_add(self.lent.frames()),
        }
    }

    /// Lets go of what was named; whether some of it went.
    fn release(&mut self, source: &mut impl FrameSource, held: &mut impl Ledger) -> bool {
        let released = release(source, held, FrameCount::MAX);
        if released.is_zero() && self.is_drained() && out(held).is_zero() {
            self.round = Round::Closed;
        }
        !released.is_zero()
    }

    /// Brings home what a device had that is gone.
    fn go_home(
        &mut self,
        source: &mut impl FrameSource,
        held: &mut impl Ledger,
        now: Nanos,
    ) -> Result<HintStep, VirtioError> {
        self.reset(source, held);
        let more = self.release(source, held);
        if self.round == Round::Closed {
            return Err(VirtioError::Gone);
        }
        Ok(self.left(more, None, held, now))
    }

    /// Gives up to about `wanted` hinted frames back to the allocator at once.
    ///
    /// Only frames whose hint the device has answered: what the guest writes
    /// to them from now on is copied.
    ///
    /// Also for an inflation that finds nothing free because hints have it: call
    /// this, then step the engine before this service, which in an open round would
    /// name the frames again.
    pub fn relieve(
        &mut self,
        source: &mut impl FrameSource,
        held: &mut impl Ledger,
        wanted: FrameCount,
    ) -> FrameCount {
        release(source, held, wanted)
    }

    /// Takes up answers and names nothing: before a suspend or a reset that is to
    /// lose nothing. Whether the device has none of our requests; asks for no
    /// interrupt.
    ///
    /// # Errors
    /// If the device broke the queue.
    pub fn drain<Q: Queues + ConfigIo, const M: usize>(
        &mut self,
        balloon: &mut VirtioBalloon<Q>,
        shared: &'static Shared<M>,
        source: &mut impl FrameSource,
        held: &mut impl Ledger,
    ) -> Result<bool, VirtioError> {
        if balloon.enter(&mut self.start, shared)? {
            self.reset(source, held);
        }
        let collected = balloon.collect(QueueId::Hint, Kind::Hint, shared);
        self.settle(source, held);
        collected?;
        Ok(self.is_drained())
    }

    /// The device was reset: no request and no round is left.
    pub fn reset(&mut self, source: &mut impl FrameSource, held: &mut impl Ledger) {
        self.lent.revoke();
        self.command = STOP;
        self.round = Round::Releasing;
        self.settle(source, held);
    }

    /// A command acts once; a new one overtakes whatever round there is.
    fn observe(&mut self, command: u32) {
        if command == self.command {
            return;
        }
        self.command = command;
        self.round = match (command, self.round) {
            (STOP, Round::Open) => Round::Closing,
            (STOP, Round::Opening(_)) => Round::Closed,
            (STOP, round) => round,
            (DONE, _) => Round::Releasing,
            (round, _) => Round::Opening(round),
        };
    }

    /// Sends a command; whether to go on at once.
    fn tell<Q: Queues + ConfigIo, const M: usize>(
        &mut self,
        command: u32,
        balloon: &mut VirtioBalloon<Q>,
        shared: &'static Shared<M>,
    ) -> Result<bool, VirtioError> {
        let Some(place) = self.lent.vacant() else {
            return Ok(false);
        };
        let Ok(slot) = shared.slots().claim(Kind::Hint) else {
            return Ok(false);
        };
        place.lend(slot, Runs::new(), |slot, _| {
            balloon.tell(QueueId::Hint, slot, &command.to_le_bytes())
        })?;
        balloon.kick_queue(QueueId::Hint);
        if command == STOP {
            self.round = Round::Closed;
        } else {
            self.round = Round::Open;
            self.rounds = self.rounds.wrapping_add(1);
        }
        Ok(command != STOP)
    }

    /// Names one free range; whether to go on at once.
    fn name<Q: Queues + ConfigIo, const M: usize>(
        &mut self,
        balloon: &mut VirtioBalloon<Q>,
        shared: &'static Shared<M>,
        source: &mut impl FrameSource,
    ) -> Result<bool, VirtioError> {
        let Some(limits) = balloon.hint_limits() else {
            return Ok(false);
        };
        // The last place is for the command that closes the round.
        let busy = self.lent.len();
        if busy + 1 >= N || busy >= limits.in_flight {
            return Ok(false);
        }
        let Some(place) = self.lent.vacant() else {
            return Ok(false);
        };
        let Ok(slot) = shared.slots().claim(Kind::Hint) else {
            return Ok(false);
        };
        let mut runs = Runs::new();
        let mut sink = RangeSink::new(runs.spare(), limits.run).with_longest_run(limits.run);
        let ask = TakeRequest {
            min_free: self.min_free,
            ..TakeRequest::any(Pfn::LIMIT)
        };
        source.take(ask, &mut sink);
        let taken = sink.runs().len();
        runs.extend(taken);
        let frames = runs.frames();
        if frames.is_zero() {
            self.round = Round::Closing;
            return Ok(true);
        }
        place.lend(slot, runs, |slot, runs| {
            let request = slot.request(Via::Inflate, runs);
            balloon.submit(request, shared.slots().completer())
        })?;
        self.hinted = self.hinted.saturating_add(frames);
        balloon.kick_queue(QueueId::Hint);
        Ok(true)
    }

    /// Remembers the frames of answered hints.
    fn settle(&mut self, source: &mut impl FrameSource, held: &mut impl Ledger) {
        self.lent
            .settle(|run, told| remember(run, told, source, held));
    }
}

/// Remembers frames that the device knows of; those that it does not are free at once.
pub(crate) fn remember(
    run: Run,
    told: bool,
    source: &mut impl FrameSource,
    held: &mut impl Ledger,
) -> bool {
    let range = run.range();
    (told && held.store(range, Via::Inflate).is_ok()) || source.put(range, Backing::Unknown).is_ok()
}

pub(crate) fn out(held: &impl Ledger) -> FrameCount {
    held.held(Via::Inflate)
}

/// Moves a bounded number of remembered frames back to the allocator.
pub(crate) fn release(
    source: &mut impl FrameSource,
    held: &mut impl Ledger,
    wanted: FrameCount,
) -> FrameCount {
    let mut runs = [Run::default(); 16];
    let mut sink = RangeSink::new(&mut runs, wanted);
    held.recall(Via::Inflate, Order::FRAME, &mut sink);
    let mut released = FrameCount::ZERO;
    for range in sink.runs().iter().map(|run| run.range()) {
        if source.put(range, Backing::Unknown).is_ok() {
            released = released.saturating_add(range.count());
        } else {
            let kept = held.store(range, Via::Inflate);
            debug_assert!(kept.is_ok(), "recalled from there a moment ago");
        }
    }
    released
}

// Safe code on safe memory: too slow for Miri, and nothing for it to find.
#[cfg(test)]
#[cfg(not(any(miri, loom)))]
mod tests;
