//! What both sides agreed on.

use balloon_core::{Capabilities, Limits, Order};

use crate::protocol::features::Features;
use crate::protocol::features::{CHUNK_TRANSFER, HOST_REQUESTS};
use crate::protocol::negotiation::{bulk_allowed, reporting_allowed};
use crate::protocol::numbering::QueueId;
use crate::protocol::options::DriverOptions;
use crate::queues::{Capacity, Queues};
use crate::shape::{chunk_limits, hint_limits, inflate_limits, range_limits};

/// What features, policy and queues allow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Agreed {
    pub(super) features: Features,
    pub(super) capabilities: Capabilities,
    /// Of the services beside the engine, where the device has them.
    pub(super) report: Option<Limits>,
    pub(super) hint: Option<Limits>,
    /// Frames are told in chunks, and the host may ask for unused ones.
    pub(super) chunks: bool,
    pub(super) host_requests: bool,
}

impl Agreed {
    pub(super) fn new(queues: &impl Queues, features: Features, options: &DriverOptions) -> Self {
        let chunks = options.chunk_transfer() && features.contains(CHUNK_TRANSFER);
        let told = |queue| {
            let requests = queues.capacity(queue).requests;
            if chunks {
                chunk_limits(requests)
            } else {
                inflate_limits(requests, options)
            }
        };
        let mut capabilities = Capabilities::new(told(QueueId::Inflate), told(QueueId::Deflate));
        if options.host_superpages() {
            capabilities.unit = Order::SUPERPAGE;
        }
        // Where the platform translates addresses, those of free frames mean nothing.
        let ranged = queues.bus_is_physical() || !features.contains(Features::ACCESS_PLATFORM);
        let bulk = ranged && bulk_allowed(features, options);
        let report = ranged && reporting_allowed(features, options);
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
        capabilities.interrupts = options.interrupts();
        capabilities.must_tell_host = features.contains(Features::MUST_TELL_HOST);
        capabilities.deflate_on_oom = features.contains(Features::DEFLATE_ON_OOM);
        Self {
            features,
            capabilities,
            report: range_limits(reports, ranges),
            hint: hint_limits(queues.capacity(QueueId::Hint).descriptors)
                .filter(|_| ranged && !options.chunk_transfer()),
            chunks,
            host_requests: options.chunk_transfer() && features.contains(HOST_REQUESTS),
        }
    }
}
