//! What can go wrong between the engine and the queues.

use balloon_core::{TransportError, TransportErrorKind};

use crate::protocol::numbering::QueueId;
use crate::queues::QueueError;

/// Why a request was not made or an answer not found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VirtioError {
    /// The queue did not take a request, or is beyond repair.
    #[error("{0:?} queue: {1}")]
    Queue(QueueId, QueueError),
    /// More, longer or higher runs than one request may have, or none.
    #[error("the request exceeds the limits of its path")]
    TooLarge,
    /// The device or the policy has no queue for this.
    #[error("the device offers no such path")]
    Unsupported,
    /// The slots are of another [`Shared`](balloon_core::Shared) than those of the requests
    /// with the device: engine and services have one together.
    #[error("engine and services have one `Shared` together, and this is another one")]
    OtherShared,
    /// The target kept changing while it was read.
    #[error("the target kept changing while it was read")]
    Unstable,
    /// The device has failed and asks for a reset.
    #[error("the device asks for a reset")]
    NeedsReset,
    /// Nobody seems to be there: whoever reads the target next, a second later, finds out.
    #[error("the registers read as those of an empty place")]
    Absent,
    /// There is no device any more.
    #[error("the device is gone")]
    Gone,
}

impl TransportError for VirtioError {
    fn kind(&self) -> TransportErrorKind {
        match self {
            Self::Queue(_, QueueError::Full) => TransportErrorKind::Full,
            Self::Queue(_, QueueError::TooLong) | Self::TooLarge => TransportErrorKind::TooLarge,
            Self::Queue(_, QueueError::Broken) => TransportErrorKind::Broken,
            Self::Unsupported | Self::OtherShared => TransportErrorKind::Unsupported,
            Self::Unstable => TransportErrorKind::Unstable,
            Self::NeedsReset => TransportErrorKind::NeedsReset,
            Self::Absent => TransportErrorKind::Absent,
            Self::Gone => TransportErrorKind::Gone,
        }
    }
}
