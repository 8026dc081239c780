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
    Ask, Backing, FrameCount, FrameSource, GivePath, InFlight, Kind, Ledger, Pfn, RangeSink, Run,
    Slots,
};

use crate::balloon::{VirtioBalloon, VirtioError};
use crate::hint::{out, release};
use crate::protocol::{CHUNKS_PER_RESPONSE, Command, ConfigIo, HostRequest, QueueId};
use crate::queues::{HostRequestQueue, MAX_BYTES, Queues};

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
    Forgetting,
}

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnusedStep {
    /// There is more to do at once. If not, the device interrupts when it asks or
    /// answers; a polled kernel steps as often as the host is to be heard.
    pub more: bool,
    /// Frames out of the allocator because of an answer.
    pub held: FrameCount,
}

#[derive(Debug)]
struct Response {
    with_device: Option<InFlight<'static>>,
    /// The queue took it; if not, its frames are as free as before.
    told: bool,
    runs: [Run; RUNS],
    len: usize,
}

impl Response {
    fn runs(&self) -> &[Run] {
        self.runs.get(..self.len).unwrap_or_default()
    }

    fn frames(&self) -> FrameCount {
        let sum = |sum: FrameCount, run: &Run| sum.saturating_add(run.count());
        self.runs().iter().fold(FrameCount::ZERO, sum)
    }
}

/// Answers the host's requests for unused pages, up to `N` responses at a time.
#[derive(Debug)]
pub struct UnusedPages<const N: usize = 2> {
    /// The buffer for the next request.
    buffer: Option<InFlight<'static>>,
    responses: [Option<Response>; N],
    stage: Stage,
    /// The first run of the next response.
    next: Option<Run>,
    keep: FrameCount,
    told: FrameCount,
    answers: u32,
}

impl<const N: usize> UnusedPages<N> {
    /// A service that leaves `keep` frames free for the kernel meanwhile.
    #[must_use]
    pub const fn new(keep: FrameCount) -> Self {
        const { assert!(N >= 1, "a response") };
        Self {
            buffer: None,
            responses: [const { None }; N],
            stage: Stage::Waiting,
            next: None,
            keep,
            told: FrameCount::ZERO,
            answers: 0,
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
        self.responses.iter().all(Option::is_none)
    }

    /// Takes up a request and what was answered, sends at most one response.
    ///
    /// `held` remembers named frames; it must not be the balloon's ledger.
    ///
    /// # Errors
    /// If the device makes no requests or broke the queue. Frames stay with the
    /// service.
    pub fn step<Q: HostRequestQueue + ConfigIo, const M: usize>(
        &mut self,
        balloon: &mut VirtioBalloon<Q>,
        slots: &'static Slots<M>,
        source: &mut impl FrameSource,
        held: &mut impl Ledger,
    ) -> Result<UnusedStep, VirtioError> {
        if !balloon.takes_host_requests() {
            return Err(VirtioError::Unsupported);
        }
        let reaped = balloon.collect(QueueId::Hint, slots.completer());
        self.settle(source, held);
        reaped?;
        let more = match self.stage {
            Stage::Waiting => self.listen(balloon, slots),
            Stage::Answering(id) => self.name(id, balloon, slots, source),
            Stage::Ending | Stage::Forgetting => {
                let drained = self.is_drained();
                let moved = drained && !release(source, held, FrameCount::MAX).is_zero();
                let home = drained && out(held).is_zero();
                if home {
                    let answered = u32::from(self.stage == Stage::Ending);
                    self.answers = self.answers.wrapping_add(answered);
                    self.stage = Stage::Waiting;
                }
                Ok(moved || home)
            }
        };
        // Answers that were taken up have used the wish for an interrupt up.
        let answered = balloon.notify(QueueId::Hint);
        Ok(UnusedStep {
            more: more? || answered,
            held: self.in_flight().saturating_add(out(held)),
        })
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
        slots: &'static Slots<M>,
        source: &mut impl FrameSource,
        held: &mut impl Ledger,
    ) -> Result<bool, VirtioError> {
        let collected = balloon.collect(QueueId::Hint, slots.completer());
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
        for response in self.responses.iter_mut().flatten() {
            if let Some(slot) = response.with_device.take() {
                response.with_device = slot.revoke().err();
            }
        }
        self.stage = Stage::Forgetting;
        self.settle(source, held);
    }

    /// Frames with the device, or about to be.
    fn in_flight(&self) -> FrameCount {
        let responses = self.responses.iter().flatten().map(Response::frames);
        let next = self.next.map_or(FrameCount::ZERO, |run| run.count());
        responses.fold(next, FrameCount::saturating_add)
    }

    /// Looks for a request, keeps a buffer with the device; whether to go on.
    fn listen<Q: HostRequestQueue + ConfigIo, const M: usize>(
        &mut self,
        balloon: &mut VirtioBalloon<Q>,
        slots: &'static Slots<M>,
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
        let Ok(slot) = slots.claim(Kind::Hint) else {
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
        slots: &'static Slots<M>,
        source: &mut impl FrameSource,
    ) -> Result<bool, VirtioError> {
        let room = balloon.queues().capacity(QueueId::Hint).requests;
        if balloon.in_flight(QueueId::Hint) >= room {
            return Ok(false);
        }
        let Some(place) = self.responses.iter_mut().find(|place| place.is_none()) else {
            return Ok(false);
        };
        let Ok(slot) = slots.claim(Kind::Hint) else {
            return Ok(false);
        };
        let mut response = Response {
            with_device: None,
            told: false,
            runs: [Run::default(); RUNS],
            len: 0,
        };
        if let (Some(next), Some(first)) = (self.next.take(), response.runs.first_mut()) {
            *first = next;
            response.len = 1;
        }
        let spare = response.runs.get_mut(response.len..).unwrap_or_default();
        let mut sink = RangeSink::new(spare, FrameCount::MAX);
        let ask = Ask {
            keep: self.keep,
            ..Ask::any(Pfn::LIMIT)
        };
        source.take(ask, &mut sink);
        response.len += sink.runs().len();
        let mut buffer = [0; MAX_BYTES];
        let mut responses =
            Responses::new(Command::Unused.label(id), response.runs().iter().copied());
        let len = responses.fill(&mut buffer).unwrap_or(0);
        if response.len == RUNS {
            response.len = CHUNKS_PER_RESPONSE;
            self.next = response.runs.last().copied();
        }
        let bytes = buffer.get(..len).unwrap_or_default();
        let slot = slot.launch();
        let submitted = balloon.tell(QueueId::Hint, &slot, bytes);
        response.with_device = match submitted {
            Ok(()) => Some(slot),
            Err(_) => slot.revoke().err(),
        };
        response.told = submitted.is_ok();
        let frames = response.frames();
        *place = Some(response);
        submitted?;
        self.told = self.told.saturating_add(frames);
        if self.next.is_none() {
            self.stage = Stage::Ending;
        }
        Ok(true)
    }

    /// Remembers the frames of responses that were taken.
    fn settle(&mut self, source: &mut impl FrameSource, held: &mut impl Ledger) {
        for place in &mut self.responses {
            let Some(response) = place else { continue };
            if let Some(slot) = response.with_device.take()
                && let Err(waiting) = slot.answer()
            {
                response.with_device = Some(waiting);
                continue;
            }
            while let Some(run) = response.runs().last() {
                let range = run.range();
                let stored = (response.told && held.store(range, GivePath::Told).is_ok())
                    || source.put(range, Backing::Unknown).is_ok();
                if !stored {
                    break;
                }
                response.len -= 1;
            }
            if response.len == 0 {
                *place = None;
            }
        }
        if matches!(self.stage, Stage::Ending | Stage::Forgetting)
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
