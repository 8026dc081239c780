//! Migrating a ballooned page: the primitive under compaction.

use crate::run::Run;
use crate::slots::{Completer, SlotId};
use crate::transport::Transport;

/// How a transport migrates frames.
///
/// A migration makes `old`, a ballooned frame, usable and gives `new`, a usable
/// one, to the host in its stead; the balloon keeps its size, its holes change
/// place. What hosts offer for that differs:
///
/// | host | way | frames the guest owns meanwhile |
/// |---|---|---|
/// | Xen PV | [`Exchange`](Self::Exchange): one call, both or neither | unchanged |
/// | Xen HVM and PVH | [`Move`](Self::Move): the memory behind `new` goes to `old` | unchanged |
/// | virtio, Xen elsewhere | [`InflateFirst`](Self::InflateFirst): inflate `new`, then deflate `old` | one less |
///
/// The first two work for a domain that owns more than its target while the
/// host enforces the target: they neither need nor free anything. The third
/// goes through the plain requests of [`Transport`] and may stop half-way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Migration {
    /// Atomically; `old` gets other memory than `new` had.
    #[doc(alias = "XENMEM_exchange")]
    Exchange,
    /// Pair by pair; `old` gets the memory of `new`, content and all. Without room
    /// in the host's tables both end as holes.
    #[doc(alias = "XENMAPSPACE_gmfn")]
    Move,
    /// In two requests: the host takes `new`, then returns `old`.
    ///
    /// Needs no headroom. If the second request fails, both are holes.
    InflateFirst,
}

/// Pairs to be migrated at once: the first frame of `from` for the first of
/// `to`, and so on; both hold equally many frames.
#[derive(Clone, Copy, Debug)]
pub struct MigrateRequest<'a> {
    /// The slot in flight, of [`Kind::Migrate`](crate::Kind::Migrate).
    pub slot: SlotId,
    /// Ballooned frames, to become the guest's.
    pub from: &'a [Run],
    /// The guest's frames, to become the host's.
    pub to: &'a [Run],
}

/// What a [`Transport`] offers for migration.
///
/// Law, checked by `testing::check_migrate_laws`: a pair is migrated or it is
/// not, and the answer says how many were, counted from the first. Where a host
/// fails in between, one pair may be [torn](crate::Outcome::Torn).
pub trait Migrate: Transport {
    /// How this host migrates frames.
    fn migration(&self) -> Migration;

    /// Hands over a migration; only with [`Migration::Exchange`] and
    /// [`Migration::Move`].
    ///
    /// Frames per migration are limited as those of an inflation are. A synchronous
    /// transport completes it right here.
    ///
    /// # Errors
    /// Nothing was migrated and nothing will be.
    fn submit_migrate(
        &mut self,
        request: MigrateRequest<'_>,
        done: Completer<'_>,
    ) -> Result<(), Self::Error>;
}

impl<T: Migrate + ?Sized> Migrate for &mut T {
    fn migration(&self) -> Migration {
        (**self).migration()
    }

    fn submit_migrate(
        &mut self,
        request: MigrateRequest<'_>,
        done: Completer<'_>,
    ) -> Result<(), Self::Error> {
        (**self).submit_migrate(request, done)
    }
}
