//! Trading one frame for another: the primitive under compaction.

use crate::run::Run;
use crate::slots::{Completer, SlotId};
use crate::transport::Transport;

/// How a transport trades frames.
///
/// A migration makes `old`, a ballooned frame, usable and gives `new`, a usable
/// one, to the host in its stead; the balloon keeps its size, its holes change
/// place. What hosts offer for that differs:
///
/// | host | way | frames the guest owns meanwhile |
/// |---|---|---|
/// | Xen PV | [`Exchange`](Self::Exchange): one call, both or neither | unchanged |
/// | Xen HVM and PVH | [`Move`](Self::Move): the memory behind `new` goes to `old` | unchanged |
/// | virtio, Xen elsewhere | [`GiveFirst`](Self::GiveFirst): inflate `new`, then deflate `old` | one less |
/// | any with headroom | [`TakeFirst`](Self::TakeFirst): deflate `old`, then inflate `new` | one more |
///
/// The first two work for a domain that owns more than its target while the
/// host enforces the target: they neither need nor free anything. The two-step
/// ways go through the plain requests of [`Transport`] and may stop half-way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Migration {
    /// Atomically; `old` gets other memory than `new` had.
    #[doc(alias = "XENMEM_exchange")]
    Exchange,
    /// Atomically for each pair; `old` gets the memory of `new`, content and
    /// all.
    #[doc(alias = "XENMAPSPACE_gmfn")]
    Move,
    /// In two requests: the host takes `new`, then returns `old`.
    ///
    /// Needs no headroom. If the second request fails, both are holes.
    GiveFirst,
    /// In two requests: the host returns `old`, then takes `new`.
    ///
    /// Needs a host that lets the guest own more for a moment. If the second
    /// request fails, both are usable.
    TakeFirst,
}

/// Pairs to be traded at once: the first frame of `olds` for the first of
/// `news`, and so on; both hold equally many frames.
#[derive(Clone, Copy, Debug)]
pub struct Trade<'a> {
    /// The slot in flight, of [`Kind::Migrate`](crate::Kind::Migrate).
    pub slot: SlotId,
    /// Ballooned frames, to become the guest's.
    pub olds: &'a [Run],
    /// The guest's frames, to become the host's.
    pub news: &'a [Run],
}

/// What a [`Transport`] offers for migration.
///
/// Law, checked by `testing::check_migrate_laws`: a pair is traded or it is
/// not, and the answer says how many were, counted from the first.
pub trait Migrate: Transport {
    /// How this host trades frames.
    fn migration(&self) -> Migration;

    /// Hands over a trade; only with [`Migration::Exchange`] and
    /// [`Migration::Move`].
    ///
    /// Frames per trade are limited as those of an inflation are. A synchronous
    /// transport completes it right here.
    ///
    /// # Errors
    /// Nothing was traded and nothing will be.
    fn submit_trade(&mut self, trade: Trade<'_>, done: Completer<'_>) -> Result<(), Self::Error>;
}

impl<T: Migrate + ?Sized> Migrate for &mut T {
    fn migration(&self) -> Migration {
        (**self).migration()
    }

    fn submit_trade(&mut self, trade: Trade<'_>, done: Completer<'_>) -> Result<(), Self::Error> {
        (**self).submit_trade(trade, done)
    }
}
