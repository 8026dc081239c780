//! The transport itself: requests of the engine become requests on queues.

mod error;
mod lane;

pub use error::VirtioError;

use balloon_core::{
    Capabilities, Completer, FrameCount, GivePath, InFlight, Kind, Limits, Migrate, Migration,
    Order, Outcome, Request, Trade, Transport,
};

use crate::protocol::{
    ACTUAL, CHUNK_TRANSFER, ConfigIo, Features, HINT_COMMAND, HOST_REQUESTS, NUM_PAGES, Policy,
    QueueId, bulk_allowed, read_stable, reporting_allowed,
};
use crate::queues::{
    Body, Capacity, HostRequestQueue, MAX_BYTES, QueueCounters, QueueError, Queues, RequestId,
};
use crate::shape::{
    Encoded, chunk_limits, fits, hint_limits, page_numbers, range_limits, response, told_limits,
};
use lane::Lane;

/// A virtio balloon over the queues `Q`, to be stepped by the engine.
///
/// * [`GivePath::Told`]: up to 256 page numbers in a descriptor of the inflate
///   queue, one descriptor a request (two on a host with unsplittable pages of
///   2 MiB), taken back through the deflate queue.
///   Under `CHUNK_TRANSFER`: up to 63 chunks instead.
/// * [`GivePath::Bulk`]: ranges through the reporting queue, where the device
///   and the [`Policy`] allow it; the frames stay ballooned, and taking them
///   back needs no request.
#[derive(Debug)]
pub struct VirtioBalloon<Q> {
    queues: Q,
    negotiated: Features,
    capabilities: Capabilities,
    /// Of the services beside the engine, where the device has them.
    report: Option<Limits>,
    hint: Option<Limits>,
    /// The configuration's generation when the hinting command was read.
    hint_generation: Option<u32>,
    /// Frames are told in chunks, and the host may ask for unused ones.
    chunks: bool,
    host_requests: bool,
    /// Requests with the device, by lane.
    in_flight: [usize; Lane::ALL.len()],
    encoded: Encoded,
    counters: Counters,
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
    /// [`Policy::poison`] at [`POISON_VALUE`](crate::protocol::POISON_VALUE) before
    /// `DRIVER_OK`: a device that is not told discards what is reported.
    #[must_use]
    pub fn attach(queues: Q, negotiated: Features, policy: &Policy) -> Self {
        let chunks = policy.chunk_transfer() && negotiated.contains(CHUNK_TRANSFER);
        let told = |queue| {
            let requests = queues.capacity(queue).requests;
            if chunks {
                chunk_limits(requests)
            } else {
                told_limits(requests, policy)
            }
        };
        let mut capabilities = Capabilities::new(told(QueueId::Inflate), told(QueueId::Deflate));
        if policy.host_superpages() {
            capabilities.unit = Order::SUPERPAGE;
        }
        let bulk = bulk_allowed(negotiated, policy);
        let report = reporting_allowed(negotiated, policy);
        let Capacity {
            descriptors: shared,
            ranges,
            ..
        } = queues.capacity(QueueId::Reporting);
        let reports = match (bulk, report) {
            (true, true) => shared / 2,
            (false, true) => shared,
            (_, false) => 0,
        };
        capabilities.bulk = range_limits(shared - reports, ranges).filter(|_| bulk);
        capabilities.interrupts = policy.interrupts();
        capabilities.must_tell_host = negotiated.contains(Features::MUST_TELL_HOST);
        capabilities.deflate_on_oom = negotiated.contains(Features::DEFLATE_ON_OOM);
        Self {
            negotiated,
            capabilities,
            report: range_limits(reports, ranges),
            hint_generation: None,
            hint: hint_limits(queues.capacity(QueueId::Hint).descriptors)
                .filter(|_| !policy.chunk_transfer()),
            chunks,
            host_requests: policy.chunk_transfer() && negotiated.contains(HOST_REQUESTS),
            queues,
            in_flight: [0; Lane::ALL.len()],
            encoded: [0; MAX_BYTES * 2],
            counters: Counters::default(),
        }
    }

    /// The features both sides agreed on.
    #[must_use]
    pub const fn negotiated(&self) -> Features {
        self.negotiated
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
        let lanes = Lane::ALL.into_iter().zip(self.in_flight);
        let of_queue = lanes.filter(|(lane, _)| lane.queue() == queue);
        of_queue.map(|(_, requests)| requests).sum()
    }

    /// What one report may hold; `None` if free ranges are not reported.
    #[must_use]
    pub const fn report_limits(&self) -> Option<Limits> {
        self.report
    }

    /// What one hint may hold; `None` if the device takes none.
    #[must_use]
    pub const fn hint_limits(&self) -> Option<Limits> {
        self.hint
    }

    /// The hinting command; in the middle of a round only if the configuration
    /// changed since it was read.
    ///
    /// QEMU shows a command until the round is opened, and from then on what would
    /// mean to stop it, without a change it tells of. Firecracker tells of no
    /// change ever.
    pub(crate) fn hint_command(&mut self, in_round: bool) -> Result<Option<u32>, VirtioError> {
        if self.hint.is_none() {
            return Err(VirtioError::Unsupported);
        }
        let generation = Some(self.queues.generation());
        if in_round && self.hint_generation == generation {
            return Ok(None);
        }
        let command = read_stable(&mut self.queues, HINT_COMMAND);
        let command = command.map_err(|_| VirtioError::Unstable)?;
        // If it moved meanwhile, the next look reads once more.
        self.hint_generation = generation;
        Ok(Some(command))
    }

    /// Submits bytes on the statistics or the hint queue and notifies at once.
    pub(crate) fn tell(
        &mut self,
        queue: QueueId,
        slot: &InFlight<'_>,
        bytes: &[u8],
    ) -> Result<(), VirtioError> {
        let id = RequestId {
            kind: slot.kind(),
            slot: slot.slot(),
        };
        let lane = Lane::of(queue, id.kind);
        self.queues
            .submit(queue, id, Body::Bytes(bytes))
            .map_err(|error| VirtioError::Queue(queue, error))?;
        self.count(lane);
        Ok(())
    }

    /// One more request is with the device.
    fn count(&mut self, lane: Lane) {
        if let Some(count) = self.in_flight.get_mut(lane as usize) {
            *count += 1;
        }
    }

    /// Whether the host may ask for unused pages.
    #[must_use]
    pub const fn takes_host_requests(&self) -> bool {
        self.host_requests
    }

    /// Notifies the device of one queue's new requests, asks to be told of each
    /// answer; whether there is one already.
    pub(crate) fn notify(&mut self, queue: QueueId) -> bool {
        self.queues.kick(queue, 1)
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

    /// The lane of a request, and the limits it is under.
    fn route(&self, request: &Request<'_>) -> Result<(Lane, Limits), VirtioError> {
        let capabilities = &self.capabilities;
        let (lane, limits) = match (request.kind, request.path) {
            (Kind::Inflate, GivePath::Told) => (Lane::Inflate, Some(capabilities.inflate)),
            (Kind::Inflate, GivePath::Bulk) => (Lane::Bulk, capabilities.bulk),
            (Kind::Deflate, GivePath::Told) => (Lane::Deflate, Some(capabilities.deflate)),
            (Kind::Report, GivePath::Told) => (Lane::Report, self.report),
            (Kind::Hint, GivePath::Told) => (Lane::Hint, self.hint),
            _ => return Err(VirtioError::Unsupported),
        };
        Ok((lane, limits.ok_or(VirtioError::Unsupported)?))
    }

    /// Completes the answered requests of one queue.
    pub(crate) fn collect(
        &mut self,
        queue: QueueId,
        done: Completer<'_>,
    ) -> Result<(), VirtioError> {
        // As many answers as the queue can hold: a device that answers faster
        // than we look does not keep us here.
        for _ in 0..self.in_flight(queue) {
            let popped = self
                .queues
                .pop(queue)
                .map_err(|e| VirtioError::Queue(queue, e))?;
            let Some(RequestId { kind, slot }) = popped else {
                break;
            };
            let lane = Lane::of(queue, kind);
            if let Some(count) = self.in_flight.get_mut(lane as usize) {
                *count = count.saturating_sub(1);
            }
            if done.complete(kind, slot, Outcome::Whole).is_err() {
                let count = &mut self.counters.unexpected_answers;
                *count = count.wrapping_add(1);
            }
        }
        Ok(())
    }
}

impl<Q: HostRequestQueue + ConfigIo> VirtioBalloon<Q> {
    /// Offers the host a buffer for its next request.
    pub(crate) fn offer(&mut self, slot: &InFlight<'_>) -> Result<(), VirtioError> {
        let id = RequestId {
            kind: slot.kind(),
            slot: slot.slot(),
        };
        self.queues
            .offer(id)
            .map_err(|error| VirtioError::Queue(QueueId::Hint, error))?;
        self.count(Lane::Hint);
        Ok(())
    }
}

/// The queues the engine kicks; services kick their own.
const ENGINE: [QueueId; 3] = [QueueId::Inflate, QueueId::Deflate, QueueId::Reporting];

impl<Q: Queues + ConfigIo> Transport for VirtioBalloon<Q> {
    type Error = VirtioError;

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn read_target(&mut self) -> Result<FrameCount, VirtioError> {
        match read_stable(&mut self.queues, NUM_PAGES) {
            Ok(pages) => Ok(FrameCount::new(pages.into())),
            Err(_) => {
                self.counters.unstable_reads = self.counters.unstable_reads.wrapping_add(1);
                Err(VirtioError::Unstable)
            }
        }
    }

    fn write_actual(&mut self, size: FrameCount) -> Result<(), VirtioError> {
        // Beyond 16 TiB the field can only say "a lot".
        let pages = u32::try_from(size.get()).unwrap_or(u32::MAX);
        self.queues.write_config(ACTUAL, pages);
        Ok(())
    }

    fn submit(&mut self, request: Request<'_>, _: Completer<'_>) -> Result<(), VirtioError> {
        let (lane, limits) = self.route(&request)?;
        let queue = lane.queue();
        let id = RequestId {
            kind: request.kind,
            slot: request.slot,
        };
        let refused = |error| VirtioError::Queue(queue, error);
        let in_flight = self.in_flight.get_mut(lane as usize);
        let in_flight = in_flight.ok_or(VirtioError::Unsupported)?;
        if *in_flight >= limits.in_flight {
            return Err(refused(QueueError::Full));
        }
        if !fits(request.runs, limits) {
            return Err(VirtioError::TooLarge);
        }
        let body = match lane {
            Lane::Inflate | Lane::Deflate => {
                let bytes = if self.chunks {
                    response(id, request.runs, &mut self.encoded)
                } else {
                    page_numbers(request.runs, &mut self.encoded)
                };
                Body::Bytes(bytes.ok_or(VirtioError::TooLarge)?)
            }
            _ => Body::Ranges(request.runs),
        };
        self.queues.submit(queue, id, body).map_err(refused)?;
        *in_flight += 1;
        Ok(())
    }

    fn kick(&mut self, wake_after: usize) -> Result<bool, VirtioError> {
        let mut answered = false;
        for queue in ENGINE {
            if self.in_flight(queue) != 0 {
                answered |= self.queues.kick(queue, wake_after);
            }
        }
        Ok(answered)
    }

    fn reap(&mut self, done: Completer<'_>) -> Result<(), VirtioError> {
        let mut result = Ok(());
        for queue in QueueId::ALL {
            let collected = self.collect(queue, done);
            // A broken queue must not keep the others from being heard, and one
            // of a service not the balloon from going on: the service looks at
            // its queue itself.
            if ENGINE.contains(&queue) {
                result = result.and(collected);
            }
        }
        result
    }
}

/// The device has no exchange: the compactor inflates the new frame and then
/// deflates the old one, by plain requests.
impl<Q: Queues + ConfigIo> Migrate for VirtioBalloon<Q> {
    fn migration(&self) -> Migration {
        Migration::GiveFirst
    }

    fn submit_trade(&mut self, _: Trade<'_>, _: Completer<'_>) -> Result<(), VirtioError> {
        Err(VirtioError::Unsupported)
    }
}
