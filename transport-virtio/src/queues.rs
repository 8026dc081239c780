//! Plug level 1: the kernel brings virtqueues.
//!
//! Who already has a virtqueue implementation implements [`Queues`] and
//! [`ConfigIo`](crate::ConfigIo) over it, in safe code, and passes the object
//! to [`VirtioBalloon::attach`](crate::VirtioBalloon::attach). Who has not uses
//! [`Rings`](crate::Rings), which implements both over a register interface.

use core::fmt;

use balloon_core::{Kind, Run, SlotId};

use crate::protocol::chunks::HostRequest;
use crate::protocol::numbering::QueueId;

/// What a queue must hand back with the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId {
    /// The kind whose slot is in flight.
    pub kind: Kind,
    /// The slot.
    pub slot: SlotId,
}

/// What the device gets to see of a request.
#[derive(Clone, Copy, Debug)]
pub enum Body<'a> {
    /// A copy of these bytes, device-readable, [`MAX_BYTES`](crate::MAX_BYTES) to a descriptor:
    /// one, or two with [`DriverOptions::with_host_superpages`](crate::DriverOptions::with_host_superpages).
    Bytes(&'a [u8]),
    /// One device-writable descriptor per run: guest-physical address and
    /// length are the message. The memory itself must not be touched or mapped.
    Ranges(&'a [Run]),
}

/// How much a queue holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Descriptors in all, zero for an absent queue.
    pub descriptors: usize,
    /// Requests of [`Body::Bytes`] in flight at once, one descriptor each.
    pub requests: usize,
    /// Ranges a request of [`Body::Ranges`] may have at the cost of one
    /// descriptor; zero if each costs one.
    #[doc(alias = "VIRTIO_F_INDIRECT_DESC")]
    pub ranges: usize,
}

/// A request was not queued, or a queue is of no use any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum QueueError {
    /// No descriptor is free now.
    Full,
    /// The request can never fit the queue.
    TooLong,
    /// The device broke the queue: nothing it says about it can be believed.
    Broken,
}

impl fmt::Display for QueueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "no descriptor is free",
            Self::TooLong => "the request does not fit the queue",
            Self::Broken => "the device broke the queue",
        })
    }
}

impl core::error::Error for QueueError {}

/// The device's virtqueues.
///
/// * A failed [`submit`](Self::submit) leaves nothing with the device.
/// * [`pop`](Self::pop) yields each submitted request at most once, whatever
///   the device writes.
/// * No call waits for the device.
pub trait Queues {
    /// How much the queue holds; zeros if the device has no such queue.
    fn capacity(&self, queue: QueueId) -> Capacity;

    /// Whether the device has guest-physical addresses, and not those of an IOMMU: as
    /// [`Dma::bus_is_physical`](crate::Dma::bus_is_physical).
    fn bus_is_physical(&self) -> bool {
        false
    }

    /// Makes a request available to the device, which need not be notified
    /// before [`kick`](Self::kick).
    ///
    /// # Errors
    /// The device has not seen the request and never will.
    fn submit(
        &mut self,
        queue: QueueId,
        request: RequestId,
        body: Body<'_>,
    ) -> Result<(), QueueError>;

    /// Notifies the device of new requests if it wants to know, and asks for an
    /// interrupt once `wake_after` of those in flight are answered (or earlier).
    ///
    /// Returns whether that many are answered already, in which case no
    /// interrupt may come. Neither happens if nothing is in flight.
    fn kick(&mut self, queue: QueueId, wake_after: usize) -> bool;

    /// Notifies the device of what is in flight, whether it wants to know or not: it
    /// may have lost a notification.
    ///
    /// By default a [`kick`](Self::kick), which is enough for queues that notify at each.
    fn notify(&mut self, queue: QueueId) {
        self.kick(queue, 1);
    }

    /// The next answered request.
    ///
    /// Answers that make no sense are dropped and counted.
    ///
    /// # Errors
    /// [`QueueError::Broken`] if the queue is beyond repair.
    fn pop(&mut self, queue: QueueId) -> Result<Option<RequestId>, QueueError>;

    /// What happened on the queues so far.
    fn counters(&self) -> QueueCounters;
}

/// Queues of a device that speaks `CHUNK_TRANSFER`
/// ([`DriverOptions::with_chunk_transfer`](crate::DriverOptions::with_chunk_transfer)): the one
/// in the place of [`QueueId::Hint`] carries requests of the host as well.
pub trait HostRequestQueue: Queues {
    /// Offers the device a buffer for its next request: one device-writable
    /// descriptor of [`HostRequest::SIZE`] bytes. One at a time.
    ///
    /// # Errors
    /// The device has not seen the buffer and never will.
    fn offer(&mut self, request: RequestId) -> Result<(), QueueError>;

    /// What the device had written when [`pop`](Queues::pop) yielded the buffer
    /// offered last; once, and a copy that no longer changes.
    ///
    /// `None` if it wrote more or less than a request.
    fn take_host_request(&mut self) -> Option<[u8; HostRequest::SIZE]>;
}

/// What happened on a device's queues, wrapping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub struct QueueCounters {
    /// Notifications sent to the device.
    pub kicks: u32,
    /// Notifications the device did not need.
    pub kicks_saved: u32,
    /// Answers to requests in flight.
    pub answers: u32,
    /// Answers to nothing, dropped: an unknown id, or the same one twice.
    pub spurious_answers: u32,
    /// Answers that claim to have written more or less than they should, taken
    /// nevertheless; but a request of the host is then none.
    pub odd_lengths: u32,
    /// Queues whose index ran away, which ends their use.
    pub broken: u32,
}

impl<Q: Queues + ?Sized> Queues for &mut Q {
    fn capacity(&self, queue: QueueId) -> Capacity {
        (**self).capacity(queue)
    }

    fn bus_is_physical(&self) -> bool {
        (**self).bus_is_physical()
    }

    fn submit(
        &mut self,
        queue: QueueId,
        request: RequestId,
        body: Body<'_>,
    ) -> Result<(), QueueError> {
        (**self).submit(queue, request, body)
    }

    fn kick(&mut self, queue: QueueId, wake_after: usize) -> bool {
        (**self).kick(queue, wake_after)
    }

    fn notify(&mut self, queue: QueueId) {
        (**self).notify(queue);
    }

    fn pop(&mut self, queue: QueueId) -> Result<Option<RequestId>, QueueError> {
        (**self).pop(queue)
    }

    fn counters(&self) -> QueueCounters {
        (**self).counters()
    }
}
