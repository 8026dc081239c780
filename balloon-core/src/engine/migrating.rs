//! What the engine knows of migrations, which are made beside it.

use super::{Engine, held};
use crate::shared::Shared;
use crate::source::Ledger;
use crate::transport::TransportError;
use crate::units::{FrameCount, Nanos};

/// Frames that migrations have in hand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Migrating {
    /// The host has them, the ledger does not show them.
    pub(crate) with_host: FrameCount,
    /// Ballooned when all migrations are over, not in the ledger now.
    pub(crate) coming: FrameCount,
    /// Requests in flight; they share the transport's room.
    pub(crate) requests: usize,
    /// When the one that has waited longest was launched.
    pub(crate) oldest: Option<Nanos>,
    /// Something waits until it may start, or for a slot or room.
    pub(crate) waits: bool,
    /// Some frame is in hand.
    pub(crate) busy: bool,
}

impl Migrating {
    pub(super) const NONE: Self = Self {
        with_host: FrameCount::ZERO,
        coming: FrameCount::ZERO,
        requests: 0,
        oldest: None,
        waits: false,
        busy: false,
    };
}

impl<const N: usize> Engine<N> {
    pub(crate) fn set_migrating(&mut self, migrating: Migrating) {
        let (before, full) = (self.migrating, self.is_full());
        self.migrating = migrating;
        let rest = migrating.coming < before.coming || (before.busy && !migrating.busy);
        if rest || (full && !self.is_full()) {
            // Frames that came to rest can be taken back, and the room that requests
            // leave is there for others: either may be what we wait for.
            self.wake();
        }
    }

    /// An answer was taken up: a slot is free, or a frame no longer used early.
    pub(super) fn wake_migrations(&self) {
        if self.migrating.waits {
            self.wake();
        }
    }

    /// Whether requests wait for room at the host.
    const fn is_full(&self) -> bool {
        let requests = self.with_host();
        self.inflating.is_full_at(requests) || self.deflating.is_full_at(requests)
    }

    pub(crate) const fn shared(&self) -> Option<&'static Shared<N>> {
        self.shared
    }

    pub(crate) const fn is_broken(&self) -> bool {
        self.failed.is_some()
    }

    /// Whether the device was reset and what it had comes back.
    pub(crate) const fn is_resetting(&self) -> bool {
        self.mode.is_resetting()
    }

    /// Whether a migration may start.
    pub(crate) const fn may_migrate(&self) -> bool {
        !(self.failed.is_some()
            || self.mode.is_quiesced()
            || self.is_resetting()
            || self.deflating.has_early())
    }

    /// Counts a failed call that a migration made.
    pub(crate) fn note_transport<R, E: TransportError>(
        &mut self,
        result: Result<R, E>,
    ) -> Option<R> {
        result
            .inspect_err(|error| {
                self.counters.transport_errors = self.counters.transport_errors.wrapping_add(1);
                if let Some(reason) = error.kind().end() {
                    self.lose(reason);
                }
            })
            .ok()
    }

    /// Frames the host has, acknowledged.
    pub(super) fn size(&self, ledger: &impl Ledger) -> FrameCount {
        held(ledger).saturating_add(self.migrating.with_host)
    }
}
