//! The transport itself: requests of the engine become requests on queues.

use balloon_core::{
    Capabilities, Completer, FrameCount, GivePath, Kind, Limits, Outcome, Pfn, Request, Transport,
    TransportError, TransportErrorKind,
};

use crate::protocol::{
    ACTUAL, BULK_RUN, ConfigIo, EncodeError, Features, NUM_PAGES, PFN_LIMIT, PFNS_PER_BUFFER,
    PfnArray, Policy, QueueId, bulk_allowed, read_stable,
};
use crate::queues::{Body, QueueCounters, QueueError, Queues, RequestId};

/// A virtio balloon over the queues `Q`, to be stepped by the engine.
///
/// * [`GivePath::Told`]: up to 256 page numbers in one descriptor of the
///   inflate queue, taken back through the deflate queue.
/// * [`GivePath::Bulk`]: ranges through the reporting queue, where the device
///   and the [`Policy`] allow it; the frames stay ballooned, and taking them
///   back needs no request.
#[derive(Debug)]
pub struct VirtioBalloon<Q> {
    queues: Q,
    negotiated: Features,
    capabilities: Capabilities,
    /// Requests with the device, by queue.
    in_flight: [usize; QueueId::COUNT],
    pfns: PfnArray,
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

/// Why a request was not made or an answer not found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VirtioError {
    /// The queue did not take a request, or is beyond repair.
    #[error("{0:?} queue: {1}")]
    Queue(QueueId, QueueError),
    /// The frames cannot be expressed as page numbers.
    #[error(transparent)]
    Encode(EncodeError),
    /// More or longer runs than one request may have, or none.
    #[error("the request exceeds the limits of its path")]
    TooLarge,
    /// The device or the policy has no queue for this.
    #[error("the device offers no such path")]
    Unsupported,
    /// The target kept changing while it was read.
    #[error("the target kept changing while it was read")]
    Unstable,
}

impl TransportError for VirtioError {
    fn kind(&self) -> TransportErrorKind {
        match self {
            Self::Queue(_, QueueError::Full) => TransportErrorKind::Full,
            Self::Queue(_, QueueError::TooLong) | Self::Encode(_) | Self::TooLarge => {
                TransportErrorKind::TooLarge
            }
            Self::Queue(_, QueueError::Broken) => TransportErrorKind::Broken,
            Self::Unsupported => TransportErrorKind::Unsupported,
            Self::Unstable => TransportErrorKind::Unstable,
        }
    }
}

impl<Q: Queues + ConfigIo> VirtioBalloon<Q> {
    /// A balloon over queues that are set up, on a device whose features are
    /// negotiated. Touches no register.
    ///
    /// For kernels with virtqueues of their own: features from
    /// [`wanted_features`](crate::wanted_features), queue numbers from
    /// [`discover`](crate::discover).
    #[must_use]
    pub fn attach(queues: Q, negotiated: Features, policy: &Policy) -> Self {
        let told = |queue| Limits {
            frames: FrameCount::new(PFNS_PER_BUFFER as u64),
            runs: PFNS_PER_BUFFER,
            run: FrameCount::new(PFNS_PER_BUFFER as u64),
            in_flight: queues.capacity(queue).requests,
            below: PFN_LIMIT,
        };
        let mut capabilities = Capabilities::new(told(QueueId::Inflate), told(QueueId::Deflate));
        capabilities.bulk = bulk_limits(queues.capacity(QueueId::Reporting).descriptors)
            .filter(|_| bulk_allowed(negotiated, policy));
        capabilities.interrupts = policy.interrupts();
        capabilities.must_tell_host = negotiated.contains(Features::MUST_TELL_HOST);
        capabilities.deflate_on_oom = negotiated.contains(Features::DEFLATE_ON_OOM);
        Self {
            queues,
            negotiated,
            capabilities,
            in_flight: [0; QueueId::COUNT],
            pfns: PfnArray::new(),
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
        self.in_flight.get(queue.index()).copied().unwrap_or(0)
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

    /// The queue of a request, and the limits it is under.
    fn route(&self, request: &Request<'_>) -> Result<(QueueId, Limits), VirtioError> {
        let capabilities = &self.capabilities;
        match (request.kind, request.path) {
            (Kind::Inflate, GivePath::Told) => Ok((QueueId::Inflate, capabilities.inflate)),
            (Kind::Inflate, GivePath::Bulk) => Ok((
                QueueId::Reporting,
                capabilities.bulk.ok_or(VirtioError::Unsupported)?,
            )),
            (Kind::Deflate, GivePath::Told) => Ok((QueueId::Deflate, capabilities.deflate)),
            _ => Err(VirtioError::Unsupported),
        }
    }

    fn collect(&mut self, queue: QueueId, done: Completer<'_>) -> Result<(), VirtioError> {
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
            if let Some(count) = self.in_flight.get_mut(queue.index()) {
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

/// What one bulk request may hold on a reporting queue of this size.
///
/// Two requests share the queue, so that the device has one to work on while
/// the other is answered and refilled.
fn bulk_limits(descriptors: usize) -> Option<Limits> {
    let runs = if descriptors >= 2 {
        descriptors / 2
    } else {
        descriptors
    };
    let frames = BULK_RUN.get().saturating_mul(runs as u64);
    (runs != 0).then(|| Limits {
        frames: FrameCount::new(frames),
        runs,
        run: BULK_RUN,
        in_flight: descriptors / runs,
        below: Pfn::LIMIT,
    })
}

/// The queues that carry requests of the engine.
const CARRIERS: [QueueId; 3] = [QueueId::Inflate, QueueId::Deflate, QueueId::Reporting];

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
        let (queue, limits) = self.route(&request)?;
        let id = RequestId {
            kind: request.kind,
            slot: request.slot,
        };
        let refused = |error| VirtioError::Queue(queue, error);
        let in_flight = self
            .in_flight
            .get_mut(queue.index())
            .ok_or(VirtioError::Unsupported)?;
        if *in_flight >= limits.in_flight {
            return Err(refused(QueueError::Full));
        }
        if request.runs.is_empty()
            || request.runs.len() > limits.runs
            || request.runs.iter().any(|run| run.count() > limits.run)
        {
            return Err(VirtioError::TooLarge);
        }
        let body = match queue {
            QueueId::Reporting => Body::Ranges(request.runs),
            _ => Body::Bytes(
                self.pfns
                    .encode(request.runs)
                    .map_err(VirtioError::Encode)?,
            ),
        };
        self.queues.submit(queue, id, body).map_err(refused)?;
        *in_flight += 1;
        Ok(())
    }

    fn kick(&mut self, wake_after: usize) -> Result<bool, VirtioError> {
        let mut answered = false;
        for queue in CARRIERS {
            if self.in_flight(queue) != 0 {
                answered |= self.queues.kick(queue, wake_after);
            }
        }
        Ok(answered)
    }

    fn reap(&mut self, done: Completer<'_>) -> Result<(), VirtioError> {
        // A broken queue must not keep the others from being heard.
        CARRIERS
            .into_iter()
            .map(|queue| self.collect(queue, done))
            .fold(Ok(()), Result::and)
    }
}
