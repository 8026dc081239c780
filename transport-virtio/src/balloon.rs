//! The transport itself: requests of the engine become requests on queues.

mod agreed;
mod error;
mod presence;
mod share;

pub use error::VirtioError;

use core::sync::atomic::{AtomicU32, Ordering};

use balloon_core::{
    Capabilities, Completer, FrameCount, InFlight, Kind, Limits, Migrate, MigrateRequest,
    Migration, Nanos, Outcome, Request, Shared, Signal, SlotsId, Transport, Via,
};

use crate::protocol::config::{ConfigIo, HINT_COMMAND, NUM_PAGES, read_stable};
use crate::protocol::features::Features;
use crate::protocol::numbering::QueueId;
use crate::protocol::options::DriverOptions;
use crate::protocol::wire::MAX_BYTES;
use crate::queues::{Body, HostRequestQueue, QueueCounters, QueueError, Queues, RequestId};
use crate::shape::{Encoded, fits, page_numbers, response};
use agreed::Agreed;
use share::{QueueShare, Traffic};

/// The size as the device was told it, by which it is known again.
#[derive(Clone, Copy, Debug, Default)]
struct Published {
    /// Never `ONES`.
    pages: Option<u32>,
    /// The device was seen to remember one. Not all do.
    remembered: bool,
}

/// A virtio balloon over the queues `Q`, to be stepped by the engine.
///
/// * [`Via::Inflate`]: up to 256 page numbers in a descriptor of the inflate
///   queue, one descriptor a request (two on a host with unsplittable pages of
///   2 MiB), taken back through the deflate queue.
///   Under `CHUNK_TRANSFER`: up to 63 chunks instead.
/// * [`Via::Bulk`]: ranges through the reporting queue, where the device
///   and the [`DriverOptions`] allow it; the frames stay ballooned, and taking them
///   back needs no request.
#[derive(Debug)]
pub struct VirtioBalloon<Q> {
    queues: Q,
    options: DriverOptions,
    agreed: Agreed,
    published: Published,
    /// Why the device is not spoken to any more.
    lost: Option<VirtioError>,
    /// The target was read last from an empty place.
    suspected: bool,
    /// The hinting command as it was read last, and the configuration's generation
    /// before that.
    hint_read: Option<HintRead>,
    /// What is with the device, by share.
    shares: [Traffic; QueueShare::ALL.len()],
    /// Whose slots all of it is in.
    slots: Option<SlotsId>,
    /// Of all starts of a device, this one.
    start: u32,
    encoded: Encoded,
    counters: Counters,
}

/// A number that no other start of a device has.
fn next_start() -> u32 {
    static STARTS: AtomicU32 = AtomicU32::new(0);
    STARTS.fetch_add(1, Ordering::Relaxed)
}

/// The configuration's generation, and the hinting command read after it.
#[derive(Clone, Copy, Debug)]
struct HintRead {
    generation: u32,
    command: u32,
}

/// What happened so far, wrapping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// On the queues.
    pub queues: QueueCounters,
    /// Answers to requests whose slot was not waiting for one.
    pub unexpected_answers: u32,
    /// Readings of the target given up because it kept changing.
    pub unstable_reads: u32,
}

impl<Q: Queues + ConfigIo> VirtioBalloon<Q> {
    /// A balloon over queues that are set up, on a device whose features are
    /// negotiated. Touches no register.
    ///
    /// For kernels with virtqueues of their own: features from
    /// [`wanted_features`](crate::wanted_features), queue numbers from
    /// [`discover`](crate::discover). If `PAGE_POISON` is negotiated, they write
    /// [`DriverOptions::poison`] at [`POISON_VALUE`](crate::protocol::POISON_VALUE) before
    /// `DRIVER_OK`: a device that is not told discards what is reported.
    #[must_use]
    pub fn attach(queues: Q, negotiated: Features, options: &DriverOptions) -> Self {
        Self {
            agreed: Agreed::new(&queues, negotiated, options),
            options: *options,
            queues,
            published: Published::default(),
            lost: None,
            suspected: false,
            hint_read: None,
            shares: [Traffic::default(); QueueShare::ALL.len()],
            slots: None,
            start: next_start(),
            encoded: [0; MAX_BYTES * 2],
            counters: Counters::default(),
        }
    }

    /// The device was started anew over the same queues: it has no request, and features
    /// may be others.
    pub(crate) fn renew(&mut self, negotiated: Features) {
        self.agreed = Agreed::new(&self.queues, negotiated, &self.options);
        self.published = Published::default();
        self.lost = None;
        self.suspected = false;
        self.hint_read = None;
        self.shares = [Traffic::default(); QueueShare::ALL.len()];
        self.slots = None;
        self.start = next_start();
    }

    /// What the kernel wants.
    pub(crate) const fn options(&self) -> &DriverOptions {
        &self.options
    }

    /// The features both sides agreed on.
    #[must_use]
    pub const fn negotiated(&self) -> Features {
        self.agreed.features
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        Counters {
            queues: self.queues.counters(),
            ..self.counters
        }
    }

    /// Requests with the device that it has not answered.
    #[must_use]
    pub fn in_flight(&self, queue: QueueId) -> usize {
        let shares = QueueShare::ALL.into_iter().zip(self.shares);
        let of_queue = shares.filter(|(share, _)| share.queue() == queue);
        of_queue.map(|(_, traffic)| traffic.in_flight).sum()
    }

    /// What one report may hold; `None` if free ranges are not reported.
    #[must_use]
    pub const fn report_limits(&self) -> Option<Limits> {
        self.agreed.report
    }

    /// What one hint may hold; `None` if the device takes none.
    #[must_use]
    pub const fn hint_limits(&self) -> Option<Limits> {
        self.agreed.hint
    }

    /// The hinting command; in the middle of a round only if the configuration
    /// changed since it was read.
    ///
    /// QEMU shows a command until the round is opened, and from then on what would
    /// mean to stop it, without a change it tells of. Firecracker tells of no
    /// change ever.
    pub(crate) fn hint_command(&mut self, in_round: bool) -> Result<Option<u32>, VirtioError> {
        if self.agreed.hint.is_none() {
            return Err(VirtioError::Unsupported);
        }
        self.find()?;
        let generation = self.queues.generation();
        let before = self.hint_read;
        if in_round && before.is_some_and(|before| before.generation == generation) {
            return Ok(None);
        }
        let command = read_stable(&mut self.queues, HINT_COMMAND);
        let command = command.map_err(|_| VirtioError::Unstable)?;
        if before.is_none_or(|before| before.command != command) {
            // News, unless nobody is there to tell any.
            self.examine(false)?;
        }
        // If it moved meanwhile, the next look reads once more.
        self.hint_read = Some(HintRead {
            generation,
            command,
        });
        Ok(Some(command))
    }

    /// Submits bytes on the statistics or the hint queue and notifies at once.
    pub(crate) fn tell(
        &mut self,
        queue: QueueId,
        slot: &InFlight<'_>,
        bytes: &[u8],
    ) -> Result<(), VirtioError> {
        self.find()?;
        let id = RequestId {
            kind: slot.kind(),
            slot: slot.slot(),
        };
        let share = QueueShare::of(queue, id.kind);
        self.queues
            .submit(queue, id, Body::Bytes(bytes))
            .map_err(|error| VirtioError::Queue(queue, error))?;
        self.share(share).send();
        Ok(())
    }

    const fn share(&mut self, share: QueueShare) -> &mut Traffic {
        let [inflate, deflate, statistics, hint, bulk, report] = &mut self.shares;
        match share {
            QueueShare::Inflate => inflate,
            QueueShare::Deflate => deflate,
            QueueShare::Statistics => statistics,
            QueueShare::Hint => hint,
            QueueShare::Bulk => bulk,
            QueueShare::Report => report,
        }
    }

    /// A service is stepped: whether what it has is from before the device was started
    /// anew, and void.
    pub(crate) fn enter<const N: usize>(
        &mut self,
        seen: &mut Option<u32>,
        shared: &Shared<N>,
    ) -> Result<bool, VirtioError> {
        self.admit(shared.slots().completer())?;
        Ok(seen
            .replace(self.start)
            .is_some_and(|seen| seen != self.start))
    }

    /// All requests with the device are in slots of one [`Shared`]: whoever takes up
    /// answers completes those of everybody.
    fn admit(&mut self, slots: Completer<'_>) -> Result<(), VirtioError> {
        let id = Some(slots.id());
        let others = self.shares.iter().any(|traffic| traffic.in_flight > 0);
        if others && self.slots != id {
            return Err(VirtioError::OtherShared);
        }
        self.slots = id;
        Ok(())
    }

    /// A service was stepped that has requests of `kind` with the device: when to step it
    /// again if the device answers none.
    ///
    /// A silent one is told once more of what it has, which it may have missed, and
    /// whoever reads the target finds out whether it is there.
    pub(crate) fn watch(
        &mut self,
        queue: QueueId,
        kind: Kind,
        signal: &Signal,
        now: Nanos,
    ) -> Option<Nanos> {
        let rings = self.share(QueueShare::of(queue, kind)).rings(now);
        if rings.is_ok() && self.lost.is_none() {
            self.queues.notify(queue);
            signal.config_changed();
        }
        rings.err().flatten()
    }

    /// How long none of a service's requests was answered; `None` if it has none.
    pub(crate) fn silence(&mut self, queue: QueueId, kind: Kind, now: Nanos) -> Option<Nanos> {
        self.share(QueueShare::of(queue, kind)).silence(now)
    }

    /// Whether the host may ask for unused pages.
    #[must_use]
    pub const fn takes_host_requests(&self) -> bool {
        self.agreed.host_requests
    }

    /// Notifies the device of one queue's new requests, asks to be told of each
    /// answer; whether there is one already.
    pub(crate) fn kick_queue(&mut self, queue: QueueId) -> bool {
        self.lost.is_none() && self.queues.kick(queue, 1)
    }

    /// The queues.
    pub const fn queues(&self) -> &Q {
        &self.queues
    }

    /// The queues, to change something.
    pub const fn queues_mut(&mut self) -> &mut Q {
        &mut self.queues
    }

    /// Gives the queues back. Requests in flight are still with the device.
    #[must_use]
    pub fn into_queues(self) -> Q {
        self.queues
    }

    /// The share of a request, and the limits it is under.
    fn route(&self, request: &Request<'_>) -> Result<(QueueShare, Limits), VirtioError> {
        let capabilities = &self.agreed.capabilities;
        let (share, limits) = match (request.kind, request.via) {
            (Kind::Inflate, Via::Inflate) => (QueueShare::Inflate, Some(capabilities.inflate)),
            (Kind::Inflate, Via::Bulk) => (QueueShare::Bulk, capabilities.bulk),
            (Kind::Deflate, Via::Inflate) => (QueueShare::Deflate, Some(capabilities.deflate)),
            (Kind::Report, Via::Inflate) => (QueueShare::Report, self.agreed.report),
            (Kind::Hint, Via::Inflate) => (QueueShare::Hint, self.agreed.hint),
            _ => return Err(VirtioError::Unsupported),
        };
        Ok((share, limits.ok_or(VirtioError::Unsupported)?))
    }

    /// Completes the answered requests of one queue for a service that has those of
    /// `own` there.
    pub(crate) fn collect<const N: usize>(
        &mut self,
        queue: QueueId,
        own: Kind,
        shared: &Shared<N>,
    ) -> Result<(), VirtioError> {
        let mut others = false;
        let taken = self.take_up(queue, shared.slots().completer(), |kind| {
            others |= kind != own;
        });
        if others {
            // Whose answers they are may have looked already.
            shared.signal().used();
        }
        taken
    }

    /// Completes the answered requests of one queue and names the kind of each.
    ///
    /// They have used up the wish for an interrupt: it is renewed, for half of those
    /// that are left.
    fn take_up(
        &mut self,
        queue: QueueId,
        done: Completer<'_>,
        mut heard: impl FnMut(Kind),
    ) -> Result<(), VirtioError> {
        self.find()?;
        // As many answers as the queue can hold: a device that answers faster
        // than we look does not keep us here.
        let mut most = self.in_flight(queue);
        loop {
            let before = most;
            while most > 0
                && let Some(kind) = self.pop(queue, done)?
            {
                most -= 1;
                heard(kind);
            }
            let left = self.in_flight(queue);
            let wishes = most < before && left > 0;
            if !wishes || !self.queues.kick(queue, left.div_ceil(2)) {
                return Ok(());
            }
            // Some came too early for the wish.
        }
    }

    /// Completes the next answered request of a queue: its kind.
    fn pop(&mut self, queue: QueueId, done: Completer<'_>) -> Result<Option<Kind>, VirtioError> {
        let popped = self.queues.pop(queue);
        let popped = popped.map_err(|error| VirtioError::Queue(queue, error))?;
        let Some(RequestId { kind, slot }) = popped else {
            return Ok(None);
        };
        self.share(QueueShare::of(queue, kind)).answer();
        if done.complete(kind, slot, Outcome::Whole).is_err() {
            let count = &mut self.counters.unexpected_answers;
            *count = count.wrapping_add(1);
        }
        Ok(Some(kind))
    }
}

impl<Q: HostRequestQueue + ConfigIo> VirtioBalloon<Q> {
    /// Offers the host a buffer for its next request.
    pub(crate) fn offer(&mut self, slot: &InFlight<'_>) -> Result<(), VirtioError> {
        self.find()?;
        let id = RequestId {
            kind: slot.kind(),
            slot: slot.slot(),
        };
        self.queues
            .offer(id)
            .map_err(|error| VirtioError::Queue(QueueId::Hint, error))?;
        self.share(QueueShare::Hint).send();
        Ok(())
    }
}

/// Between two looks for what no interrupt tells of.
pub(crate) const POLL: Nanos = Nanos::from_millis(10);

/// The queues the engine kicks; services kick their own.
const ENGINE: [QueueId; 3] = [QueueId::Inflate, QueueId::Deflate, QueueId::Reporting];

impl<Q: Queues + ConfigIo> Transport for VirtioBalloon<Q> {
    type Error = VirtioError;

    fn capabilities(&self) -> Capabilities {
        self.agreed.capabilities
    }

    fn read_target(&mut self) -> Result<FrameCount, VirtioError> {
        self.find()?;
        let read = read_stable(&mut self.queues, NUM_PAGES);
        self.examine(true)?;
        match read {
            Ok(pages) => Ok(FrameCount::new(pages.into())),
            Err(_) => {
                self.counters.unstable_reads = self.counters.unstable_reads.wrapping_add(1);
                Err(VirtioError::Unstable)
            }
        }
    }

    fn write_actual(&mut self, size: FrameCount) -> Result<(), VirtioError> {
        self.find()?;
        self.publish(u32::try_from(size.get()).unwrap_or(u32::MAX));
        Ok(())
    }

    fn submit(&mut self, request: Request<'_>, done: Completer<'_>) -> Result<(), VirtioError> {
        self.find()?;
        self.admit(done)?;
        let (share, limits) = self.route(&request)?;
        let queue = share.queue();
        let id = RequestId {
            kind: request.kind,
            slot: request.slot,
        };
        let refused = |error| VirtioError::Queue(queue, error);
        if self.share(share).in_flight >= limits.in_flight {
            return Err(refused(QueueError::Full));
        }
        if !fits(request.runs, limits) {
            return Err(VirtioError::TooLarge);
        }
        let body = match share {
            QueueShare::Inflate | QueueShare::Deflate => {
                let bytes = if self.agreed.chunks {
                    response(id, request.runs, &mut self.encoded)
                } else {
                    page_numbers(request.runs, &mut self.encoded)
                };
                Body::Bytes(bytes.ok_or(VirtioError::TooLarge)?)
            }
            _ => Body::Ranges(request.runs),
        };
        self.queues.submit(queue, id, body).map_err(refused)?;
        self.share(share).send();
        Ok(())
    }

    fn kick(&mut self, wake_after: usize) -> Result<bool, VirtioError> {
        self.find()?;
        let mut answered = false;
        for queue in ENGINE {
            if self.in_flight(queue) != 0 {
                answered |= self.queues.kick(queue, wake_after);
            }
        }
        Ok(answered)
    }

    fn notify(&mut self) -> Result<(), VirtioError> {
        for queue in QueueId::ALL {
            if self.in_flight(queue) != 0 {
                self.queues.notify(queue);
            }
        }
        Ok(())
    }

    fn reap(&mut self, done: Completer<'_>) -> Result<usize, VirtioError> {
        self.find()?;
        self.admit(done)?;
        let (mut result, mut answers) = (Ok(()), 0);
        for queue in QueueId::ALL {
            let collected = self.take_up(queue, done, |_| answers += 1);
            // A broken queue must not keep the others from being heard, and one
            // of a service not the balloon from going on: the service looks at
            // its queue itself.
            if ENGINE.contains(&queue) {
                result = result.and(collected);
            }
        }
        result.map(|()| answers)
    }
}

/// The device has no exchange: the compactor inflates the new frame and then
/// deflates the old one, by plain requests.
impl<Q: Queues + ConfigIo> Migrate for VirtioBalloon<Q> {
    fn migration(&self) -> Migration {
        Migration::InflateFirst
    }

    fn submit_migrate(
        &mut self,
        _: MigrateRequest<'_>,
        _: Completer<'_>,
    ) -> Result<(), VirtioError> {
        Err(VirtioError::Unsupported)
    }
}
