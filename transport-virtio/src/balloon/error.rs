//! What can go wrong between the engine and the queues.

use balloon_core::{TransportError, TransportErrorKind};

use crate::protocol::QueueId;
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
    /// The target kept changing while it was read.
    #[error("the target kept changing while it was read")]
    Unstable,
}

impl TransportError for VirtioError {
    fn kind(&self) -> TransportErrorKind {
        match self {
            Self::Queue(_, QueueError::Full) => TransportErrorKind::Full,
            Self::Queue(_, QueueError::TooLong) | Self::TooLarge => TransportErrorKind::TooLarge,
            Self::Queue(_, QueueError::Broken) => TransportErrorKind::Broken,
            Self::Unsupported => TransportErrorKind::Unsupported,
            Self::Unstable => TransportErrorKind::Unstable,
        }
    }
}
