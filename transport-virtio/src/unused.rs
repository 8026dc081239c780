//! Unused pages on the host's request: what a migration need not copy, as the
//! `CHUNK_TRANSFER` dialect has it.
//!
//! The driver keeps one buffer with the device for a request. The answer is one
//! response or several, up to 63 chunks each, the last one marked; they have
//! buffers and slots of their own, so that a request that comes in the middle of
//! an inflation is answered with the next step.
//!
//! As with [`Hinting`](crate::Hinting) the frames stay out of the allocator
//! until the device has taken every response: it then knows which frames it
//! need not copy, and sees what is written to them afterwards.

use balloon_core::wire::chunks_v8::Responses;
use balloon_core::{
    Backing, FrameCount, FrameSource, InFlight, Kind, Ledger, Nanos, Pfn, RangeSink, Run, Shared,
    TakeRequest,
};

use crate::balloon::{POLL, VirtioBalloon, VirtioError};
use crate::hint::{out, release, remember};
use crate::lent::{Lent, Runs};
use crate::protocol::chunks::{CHUNKS_PER_RESPONSE, Command, HostRequest};
use crate::protocol::config::ConfigIo;
use crate::protocol::numbering::QueueId;
use crate::protocol::wire::MAX_BYTES;
use crate::queues::{HostRequestQueue, Queues};

/// Runs of a response, and the first of the next: only who knows that there is
/// one may say that more follows.
const RUNS: usize = CHUNKS_PER_RESPONSE + 1;

/// Where an answer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// No request.
    Waiting,
    /// Collecting frames for the request of this number.
    Answering(u16),
    /// The last response is on its way; frames go home when all are taken.
    Ending,
    /// The device was reset: frames go home.
    Resetting,
}

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnusedStep {
    /// There is more to do at once. If not, the device interrupts when it asks or
    /// answers; a polled kernel steps as often as the host is to be heard.
    pub more: bool,
    /// When to step again even if nothing happens: the allocator did not take frames
    /// back, or the device has been silent so long that it may have missed what it has.
    pub wake_at: Option<Nanos>,
    /// Frames out of the allocator because of an answer.
    pub held: FrameCount,
}

/// Answers the host's requests for unused pages, up to `N` responses at a time.
#[derive(Debug)]
pub struct UnusedPages<const N: usize = 2> {
    /// The buffer for the next request.
    buffer: Option<InFlight<'static>>,
    responses: Lent<N, RUNS>,
    stage: Stage,
    /// The first run of the next response.
    next: Option<Run>,
    min_free: FrameCount,
    told: FrameCount,
    answers: u32,
    /// Of the device's starts, the one buffer and responses are with.
    start: Option<u32>,
}

impl<const N: usize> UnusedPages<N> {
    /// A service that leaves `min_free` frames free for the kernel meanwhile.
    #[must_use]
    pub const fn new(min_free: FrameCount) -> Self {
        const { assert!(N >= 1, "a response") };
        Self {
            buffer: None,
            responses: Lent::new(),
            stage: Stage::Waiting,
            next: None,
            min_free,
            told: FrameCount::ZERO,
            answers: 0,
            start: None,
        }
    }

    /// Frames named so far, over all requests.
    #[must_use]
    pub const fn told(&self) -> FrameCount {
        self.told
    }

    /// Requests answered so far, wrapping.
    #[must_use]
    pub const fn answers(&self) -> u32 {
        self.answers
    }

    /// Whether the device has none of our responses: what must hold before a
    /// suspend or a reset that is to lose nothing.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.responses.is_empty()
    }

    /// Takes up a request and what was answered, sends at most one response.
    ///
    /// `held` remembers named frames; it must not be the balloon's ledger.
    ///
    /// # Errors
    /// If the device makes no requests, broke the queue, or asks for a reset. Frames stay
    /// with the service. [`VirtioError::Gone`] once all are home from a device that is
    /// gone.
    pub fn step<Q: HostRequestQueue + ConfigIo, const M: usize>(
        &mut self,
        balloon: &mut VirtioBalloon<Q>,
        shared: &'static Shared<M>,
        source: &mut impl FrameSource,
        held: &mut impl Ledger,
        now: Nanos,
    ) -> Result<UnusedStep, VirtioError> {
        if !balloon.takes_host_requests() {
            return Err(VirtioError::Unsupported);
        }
        if balloon.enter(&mut self.start, shared)? {
            self.reset(source, held);
        }
        if balloon.lost() == Some(VirtioError::Gone) {
            return self.go_home(source, held, now);
        }
        let reaped = balloon.collect(QueueId::Hint, Kind::Hint, shared);
        self.settle(source, held);
        reaped?;
        let more = match self.stage {
            Stage::Waiting => self.listen(balloon, shared),
            Stage::Answering(id) => self.name(id, balloon, shared, source),
            Stage::Ending | Stage::Resetting => Ok(self.release(source, held)),
        };
        // Answers that were taken up have used the wish for an interrupt up.
        let answered = balloon.kick_queue(QueueId::Hint);
        let silence = balloon.watch(QueueId::Hint, Kind::Hint, shared.signal(), now);
        Ok(self.left(more? || answered, silence, held, now))
    }

    fn left(
        &self,
        more: bool,
        silence: Option<Nanos>,
        held: &impl Ledger,
        now: Nanos,
    ) -> UnusedStep {
        let releasing = matches!(self.stage, Stage::Ending | Stage::Resetting);
        // What the allocator refuses nobody else asks it to take.
        let refused = releasing && !more && self.responses.in_flight() == 0;
        let again = refused.then(|| now.saturating_add(POLL));
        UnusedStep {
            more,
            wake_at: [silence, again].into_iter().flatten().min(),
            held: self.in_flight().saturating_add(out(held)),
        }
    }

    /// Lets go of what was named once all of it was taken; whether to go on at once.
    fn release(&mut self, source: &mut impl FrameSource, held: &mut impl Ledger) -> bool {
        let drained = self.is_drained() && self.next.is_none();
        let moved = drained && !release(source, held, FrameCount::MAX).is_zero();
        let home = drained && out(held).is_zero();
        if home {
            let answered = u32::from(self.stage == Stage::Ending);
            self.answers = self.answers.wrapping_add(answered);
            self.stage = Stage::Waiting;
        }
        moved || home
    }

    /// Brings home what a device had that is gone.
    fn go_home(
        &mut self,
        source: &mut impl FrameSource,
        held: &mut impl Ledger,
        now: Nanos,
    ) -> Result<UnusedStep, VirtioError> {
        self.reset(source, held);
        let more = self.release(source, held);
        if self.stage == Stage::Waiting {
            return Err(VirtioError::Gone);
        }
        Ok(self.left(more, None, held, now))
    }

    /// Takes up answers and names nothing: before a suspend or a reset that is to
    /// lose nothing. Whether the device has none of our responses; asks for no
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

    /// The device was reset: no request and no response is left.
    pub fn reset(&mut self, source: &mut impl FrameSource, held: &mut impl Ledger) {
        // An answer that came before the reset frees the slot as well.
        self.buffer = self
            .buffer
            .take()
            .and_then(|slot| slot.revoke().err())
            .and_then(|slot| slot.answer().err());
        self.responses.revoke();
        self.stage = Stage::Resetting;
        self.settle(source, held);
    }

    /// Frames with the device, or about to be.
    fn in_flight(&self) -> FrameCount {
        let next = self.next.map_or(FrameCount::ZERO, |run| run.count());
        self.responses.frames().saturating_add(next)
    }

    /// Looks for a request, keeps a buffer with the device; whether to go on.
    fn listen<Q: HostRequestQueue + ConfigIo, const M: usize>(
        &mut self,
        balloon: &mut VirtioBalloon<Q>,
        shared: &'static Shared<M>,
    ) -> Result<bool, VirtioError> {
        if let Some(slot) = self.buffer.take() {
            match slot.answer() {
                Ok(_) => {
                    let request = balloon.queues_mut().take_host_request();
                    if let Some(HostRequest::UnusedPages(id)) =
                        request.and_then(HostRequest::decode)
                    {
                        self.stage = Stage::Answering(id);
                        // A buffer would take the only place of the response.
                        if balloon.queues().capacity(QueueId::Hint).requests < 2 {
                            return Ok(true);
                        }
                    }
                }
                Err(waiting) => {
                    self.buffer = Some(waiting);
                    return Ok(false);
                }
            }
        }
        let Ok(slot) = shared.slots().claim(Kind::Hint) else {
            return Ok(self.stage != Stage::Waiting);
        };
        let slot = slot.launch();
        if let Err(error) = balloon.offer(&slot) {
            self.buffer = slot.revoke().err();
            return Err(error);
        }
        self.buffer = Some(slot);
        Ok(self.stage != Stage::Waiting)
    }

    /// Sends a response; whether to go on at once.
    fn name<Q: HostRequestQueue + ConfigIo, const M: usize>(
        &mut self,
        id: u16,
        balloon: &mut VirtioBalloon<Q>,
        shared: &'static Shared<M>,
        source: &mut impl FrameSource,
    ) -> Result<bool, VirtioError> {
        let room = balloon.queues().capacity(QueueId::Hint).requests;
        if balloon.in_flight(QueueId::Hint) >= room {
            return Ok(false);
        }
        let Some(place) = self.responses.vacant() else {
            return Ok(false);
        };
        let Ok(slot) = shared.slots().claim(Kind::Hint) else {
            return Ok(false);
        };
        let mut runs = Runs::<RUNS>::new();
        if let (Some(next), Some(first)) = (self.next.take(), runs.spare().first_mut()) {
            *first = next;
            runs.extend(1);
        }
        let mut sink = RangeSink::new(runs.spare(), FrameCount::MAX);
        let ask = TakeRequest {
            min_free: self.min_free,
            ..TakeRequest::any(Pfn::LIMIT)
        };
        source.take(ask, &mut sink);
        let taken = sink.runs().len();
        runs.extend(taken);
        let mut buffer = [0; MAX_BYTES];
        let label = Command::Unused.label(id);
        let mut responses = Responses::new(label, runs.as_slice().iter().copied());
        let len = responses.fill(&mut buffer).unwrap_or(0);
        if runs.as_slice().len() == RUNS {
            self.next = runs.pop();
        }
        let frames = runs.frames();
        let bytes = buffer.get(..len).unwrap_or_default();
        place.lend(slot, runs, |slot, _| {
            balloon.tell(QueueId::Hint, slot, bytes)
        })?;
        self.told = self.told.saturating_add(frames);
        if self.next.is_none() {
            self.stage = Stage::Ending;
        }
        Ok(true)
    }

    /// Remembers the frames of responses that were taken.
    fn settle(&mut self, source: &mut impl FrameSource, held: &mut impl Ledger) {
        self.responses
            .settle(|run, told| remember(run, told, source, held));
        if matches!(self.stage, Stage::Ending | Stage::Resetting)
            && let Some(run) = self.next.take()
            && source.put(run.range(), Backing::Unknown).is_err()
        {
            self.next = Some(run);
        }
    }
}

// Safe code on safe memory: too slow for Miri, and nothing for it to find.
#[cfg(test)]
#[cfg(not(any(miri, loom)))]
mod tests;
