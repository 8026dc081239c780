//! What the engine knows of migrations, which are made beside it.

use super::{Engine, held};
use crate::policy::Policy;
use crate::shared::Shared;
use crate::source::Ledger;
use crate::transport::{TransportError, TransportErrorKind};
use crate::units::FrameCount;

/// Frames that migrations have in hand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Migrating {
    /// The host has them, the ledger does not show them.
    pub(crate) with_host: FrameCount,
    /// Ballooned when all migrations are over, not in the ledger now.
    pub(crate) coming: FrameCount,
    /// Requests in flight; they share the transport's room.
    pub(crate) requests: usize,
    /// No frame is in hand.
    pub(crate) drained: bool,
}

impl Migrating {
    pub(super) const NONE: Self = Self {
        with_host: FrameCount::ZERO,
        coming: FrameCount::ZERO,
        requests: 0,
        drained: true,
    };
}

impl<const N: usize> Engine<N> {
    pub(crate) fn set_migrating(&mut self, migrating: Migrating) {
        let (before, full) = (self.migrating, self.is_full());
        self.migrating = migrating;
        let rest = migrating.coming < before.coming || (migrating.drained && !before.drained);
        if rest || (full && !self.is_full()) {
            // Frames that came to rest can be taken back, and the room that requests
            // leave is there for others: either may be what we wait for.
            self.shared.signal().used();
        }
    }

    /// Whether requests wait for room at the host.
    const fn is_full(&self) -> bool {
        let requests = self.with_host();
        self.inflating.is_full_at(requests) || self.deflating.is_full_at(requests)
    }

    pub(crate) const fn shared(&self) -> &'static Shared<N> {
        self.shared
    }

    pub(crate) const fn policy(&self) -> &Policy {
        &self.policy
    }

    pub(crate) const fn is_broken(&self) -> bool {
        self.broken
    }

    /// Whether the device was reset and what it had comes back.
    pub(crate) const fn is_forgetting(&self) -> bool {
        self.mode.is_forgetting()
    }

    /// Whether a migration may start.
    pub(crate) const fn may_migrate(&self) -> bool {
        !(self.broken
            || self.mode.is_quiesced()
            || self.is_forgetting()
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
                self.broken |= error.kind() == TransportErrorKind::Broken;
            })
            .ok()
    }

    /// Frames the host has, acknowledged.
    pub(super) fn size(&self, ledger: &impl Ledger) -> FrameCount {
        held(ledger).saturating_add(self.migrating.with_host)
    }
}
