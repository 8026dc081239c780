//! Who shares a limit with whom, and how long each has waited.

use balloon_core::{Kind, Nanos, Policy};

use crate::protocol::numbering::QueueId;

/// What shares a limit: a queue, or one party's part of a shared one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QueueShare {
    Inflate,
    Deflate,
    Statistics,
    Hint,
    Bulk,
    Report,
}

impl QueueShare {
    pub(super) const ALL: [Self; 6] = [
        Self::Inflate,
        Self::Deflate,
        Self::Statistics,
        Self::Hint,
        Self::Bulk,
        Self::Report,
    ];

    /// The share of an answer.
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

/// A device that answers nothing for so long may have missed a notification, or be gone.
const SILENCE: Nanos = Policy::DEFAULT.silent_after;

/// What one share has with the device.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Traffic {
    /// Requests.
    pub(super) in_flight: usize,
    /// Since when nothing was answered, as far as somebody looked.
    since: Option<Nanos>,
    /// How long it had been when the device was told last of what it has.
    rung: Nanos,
}

impl Traffic {
    pub(super) const fn send(&mut self) {
        self.in_flight += 1;
    }

    pub(super) const fn answer(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.since = None;
        self.rung = Nanos::ZERO;
    }

    /// How long nothing was answered; `None` if nothing is to be.
    pub(super) fn silence(&mut self, now: Nanos) -> Option<Nanos> {
        if self.in_flight == 0 {
            return None;
        }
        // The clock may be another one after a restore.
        let since = self.since.map_or(now, |since| since.min(now));
        self.since = Some(since);
        Some(now.saturating_sub(since))
    }

    /// Whether the device is to be told once more of what it has, and if not, when: after a
    /// while, then whenever the silence is twice as long.
    pub(super) fn rings(&mut self, now: Nanos) -> Result<(), Option<Nanos>> {
        let silence = self.silence(now).ok_or(None)?;
        let next = SILENCE.max(self.rung.saturating_add(self.rung));
        if silence < next {
            let left = next.saturating_sub(silence);
            return Err(Some(now.saturating_add(left)));
        }
        self.rung = silence;
        Ok(())
    }
}
