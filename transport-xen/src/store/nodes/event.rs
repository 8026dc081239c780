//! What the store tells.

use balloon_core::Bytes;

use crate::suspend::ShutdownRequest;

/// What the store tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreEvent {
    /// The size the toolstack wants the domain to have.
    Target(Bytes),
    /// The target node holds no number: the last target stands.
    BadTarget,
    /// The size the domain can have at most. Told again when it has changed: it is
    /// read anew with each target.
    StaticMax(Bytes),
    /// The size it could have if the kernel added memory (`memory/hotplug-max`); told
    /// as [`StaticMax`](Self::StaticMax) is.
    HotplugMax(Bytes),
    /// Video memory, which the target leaves out and the maximum does not.
    VideoRam(Bytes),
    /// The domain is to stop, for this reason.
    Shutdown(ShutdownRequest),
    /// This request to stop is acknowledged, and the domain may stop now: the
    /// one that stood in the store then, be it another than was told before.
    Acknowledged(ShutdownRequest),
    /// There is no request to acknowledge any more, or the store does not let
    /// it be done: the domain goes on. One that still stands is told again: in
    /// the latter case when [`NodesConfig::max_retry`](crate::store::NodesConfig::max_retry) is over, if not by an event.
    Withdrawn,
}
