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
//! [`HintStep::waiting`].

use balloon_core::{
    Ask, Backing, FrameCount, FrameSource, GivePath, InFlight, Kind, Ledger, Order, Pfn, RangeSink,
    Run, Slots, Transport,
};

use crate::balloon::{VirtioBalloon, VirtioError};
use crate::protocol::{ConfigIo, QueueId};
use crate::queues::Queues;

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
    /// The device has requests of ours: step again soon, a millisecond from now
    /// say. No interrupt tells when they are answered.
    pub waiting: bool,
    /// Frames out of the allocator because of hints.
    pub held: FrameCount,
}

#[derive(Debug)]
struct Hint {
    with_device: Option<InFlight<'static>>,
    /// `None` for a command.
    run: Option<Run>,
}

/// Names free memory to a migrating host, through up to `N` requests.
#[derive(Debug)]
pub struct Hinting<const N: usize = 16> {
    hints: [Option<Hint>; N],
    round: Round,
    /// The command acted on last.
    command: u32,
    keep: FrameCount,
    hinted: FrameCount,
    rounds: u32,
}

impl<const N: usize> Hinting<N> {
    /// Hinting that leaves `keep` frames free for the kernel.
    #[must_use]
    pub const fn new(keep: FrameCount) -> Self {
        const { assert!(N >= 2, "a command and a range") };
        Self {
            hints: [const { None }; N],
            round: Round::Closed,
            command: STOP,
            keep,
            hinted: FrameCount::ZERO,
            rounds: 0,
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
        self.hints.iter().all(Option::is_none)
    }

    /// Follows the host's command, takes up answers, names at most one range.
    ///
    /// `held` remembers hinted frames; it must not be the balloon's ledger.
    ///
    /// # Errors
    /// If the device takes no hints, broke the queue, or keeps changing its
    /// command. Frames stay with the service.
    pub fn step<Q: Queues + ConfigIo, const M: usize>(
        &mut self,
        balloon: &mut VirtioBalloon<Q>,
        slots: &'static Slots<M>,
        source: &mut impl FrameSource,
        held: &mut impl Ledger,
    ) -> Result<HintStep, VirtioError> {
        if balloon.hint_limits().is_none() {
            return Err(VirtioError::Unsupported);
        }
        let reaped = if self.is_drained() {
            Ok(())
        } else {
            balloon.collect(QueueId::Hint, slots.completer())
        };
        self.settle(source, held);
        reaped?;
        let in_round = !matches!(self.round, Round::Closed | Round::Releasing);
        if let Some(command) = balloon.hint_command(in_round)? {
            self.observe(command);
        }
        let more = match self.round {
            Round::Closed => false,
            Round::Opening(command) => self.tell(command, balloon, slots)?,
            Round::Open => self.name(balloon, slots, source)?,
            Round::Closing => self.tell(STOP, balloon, slots)?,
            Round::Releasing => {
                let released = release(source, held, FrameCount::MAX);
                if released.is_zero() && self.is_drained() && out(held).is_zero() {
                    self.round = Round::Closed;
                }
                !released.is_zero()
            }
        };
        Ok(HintStep {
            more,
            waiting: !self.is_drained(),
            held: out(held).saturating_add(self.in_flight()),
        })
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
        slots: &'static Slots<M>,
        source: &mut impl FrameSource,
        held: &mut impl Ledger,
    ) -> Result<bool, VirtioError> {
        let collected = balloon.collect(QueueId::Hint, slots.completer());
        self.settle(source, held);
        collected?;
        Ok(self.is_drained())
    }

    /// The device was reset: no request and no round is left.
    pub fn reset(&mut self, source: &mut impl FrameSource, held: &mut impl Ledger) {
        for hint in self.hints.iter_mut().flatten() {
            if let Some(slot) = hint.with_device.take() {
                hint.with_device = slot.revoke().err();
            }
        }
        self.command = STOP;
        self.round = Round::Releasing;
        self.settle(source, held);
    }

    /// Frames with the device.
    fn in_flight(&self) -> FrameCount {
        let runs = self.hints.iter().flatten().filter_map(|hint| hint.run);
        runs.fold(FrameCount::ZERO, |sum, run| sum.saturating_add(run.count()))
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
        slots: &'static Slots<M>,
    ) -> Result<bool, VirtioError> {
        let Some(place) = self.hints.iter_mut().find(|hint| hint.is_none()) else {
            return Ok(false);
        };
        let Ok(slot) = slots.claim(Kind::Hint) else {
            return Ok(false);
        };
        let slot = slot.launch();
        let told = balloon.tell(QueueId::Hint, &slot, &command.to_le_bytes());
        if let Err(error) = told {
            let with_device = slot.revoke().err();
            *place = with_device.map(|slot| Hint {
                with_device: Some(slot),
                run: None,
            });
            return Err(error);
        }
        *place = Some(Hint {
            with_device: Some(slot),
            run: None,
        });
        balloon.notify(QueueId::Hint);
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
        slots: &'static Slots<M>,
        source: &mut impl FrameSource,
    ) -> Result<bool, VirtioError> {
        let Some(limits) = balloon.hint_limits() else {
            return Ok(false);
        };
        // The last place is for the command that closes the round.
        let busy = self.hints.iter().flatten().count();
        if busy + 1 >= N || busy >= limits.in_flight {
            return Ok(false);
        }
        let Some(place) = self.hints.iter_mut().find(|hint| hint.is_none()) else {
            return Ok(false);
        };
        let Ok(slot) = slots.claim(Kind::Hint) else {
            return Ok(false);
        };
        let mut runs = [Run::default()];
        let mut sink = RangeSink::new(&mut runs, limits.run).with_longest_run(limits.run);
        let ask = Ask {
            keep: self.keep,
            ..Ask::any(Pfn::LIMIT)
        };
        source.take(ask, &mut sink);
        let Some(&run) = sink.runs().first() else {
            self.round = Round::Closing;
            return Ok(true);
        };
        let slot = slot.launch();
        let request = slot.request(GivePath::Told, &runs);
        let submitted = balloon.submit(request, slots.completer());
        let with_device = match submitted {
            Ok(()) => Some(slot),
            Err(_) => slot.revoke().err(),
        };
        *place = Some(Hint {
            with_device,
            run: Some(run),
        });
        submitted?;
        self.hinted = self.hinted.saturating_add(run.count());
        balloon.notify(QueueId::Hint);
        Ok(true)
    }

    /// Remembers the frames of answered hints.
    fn settle(&mut self, source: &mut impl FrameSource, held: &mut impl Ledger) {
        for place in &mut self.hints {
            let Some(hint) = place else { continue };
            if let Some(slot) = hint.with_device.take()
                && let Err(waiting) = slot.answer()
            {
                hint.with_device = Some(waiting);
                continue;
            }
            let stored = hint.run.is_none_or(|run| {
                let range = run.range();
                held.store(range, GivePath::Told).is_ok()
                    || source.put(range, Backing::Unknown).is_ok()
            });
            if stored {
                *place = None;
            }
        }
    }
}

pub(crate) fn out(held: &impl Ledger) -> FrameCount {
    held.held(GivePath::Told)
}

/// Moves a bounded number of remembered frames back to the allocator.
pub(crate) fn release(
    source: &mut impl FrameSource,
    held: &mut impl Ledger,
    wanted: FrameCount,
) -> FrameCount {
    let mut runs = [Run::default(); 16];
    let mut sink = RangeSink::new(&mut runs, wanted);
    held.recall(GivePath::Told, Order::FRAME, &mut sink);
    let mut released = FrameCount::ZERO;
    for range in sink.runs().iter().map(|run| run.range()) {
        if source.put(range, Backing::Unknown).is_ok() {
            released = released.saturating_add(range.count());
        } else {
            let kept = held.store(range, GivePath::Told);
            debug_assert!(kept.is_ok(), "recalled from there a moment ago");
        }
    }
    released
}

// Safe code on safe memory: too slow for Miri, and nothing for it to find.
#[cfg(test)]
#[cfg(not(any(miri, loom)))]
mod tests;
