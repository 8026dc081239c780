//! Who shares a limit with whom.

use balloon_core::Kind;

use crate::protocol::QueueId;

/// What shares a limit: a queue, or one party's part of a shared one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    Inflate,
    Deflate,
    Statistics,
    Hint,
    Bulk,
    Report,
}

impl Lane {
    pub(super) const ALL: [Self; 6] = [
        Self::Inflate,
        Self::Deflate,
        Self::Statistics,
        Self::Hint,
        Self::Bulk,
        Self::Report,
    ];

    /// The lane of an answer.
    pub(super) const fn of(queue: QueueId, kind: Kind) -> Self {
        match (queue, kind) {
            (QueueId::Inflate, _) => Self::Inflate,
            (QueueId::Deflate, _) => Self::Deflate,
            (QueueId::Statistics, _) => Self::Statistics,
            (QueueId::Hint, _) => Self::Hint,
            (QueueId::Reporting, Kind::Report) => Self::Report,
            (QueueId::Reporting, _) => Self::Bulk,
        }
    }

    pub(super) const fn queue(self) -> QueueId {
        match self {
            Self::Inflate => QueueId::Inflate,
            Self::Deflate => QueueId::Deflate,
            Self::Statistics => QueueId::Statistics,
            Self::Hint => QueueId::Hint,
            Self::Bulk | Self::Report => QueueId::Reporting,
        }
    }
}
