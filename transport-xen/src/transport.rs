//! The reservation as the engine's transport.

use balloon_core::{
    Capabilities, Completer, FrameCount, GivePath, Kind, Limits, MAX_RUNS, Migrate, Migration,
    Order, Outcome, Pfn, Request, Run, SlotId, Trade, Transport, TransportError,
    TransportErrorKind,
};

use crate::errno::Errno;
use crate::frame_map::FrameMap;
use crate::hypercall::Memory;
use crate::reservation::{Moved, Reservation, Stopped};
use crate::store::Notice;
use crate::target::Target;
use crate::trade::total;

/// The balloon of a Xen domain.
///
/// Hypercalls answer at once, so a request is complete when it is submitted; but
/// for a trade that Xen refused half-way and will not show: it stays in flight, and
/// each `reap` asks again.
/// The target comes from the store by way of [`hear`](Self::hear), or from
/// anywhere else through [`target_mut`](Self::target_mut).
#[derive(Debug)]
pub struct XenBalloon<M, F> {
    reservation: Reservation<M, F>,
    target: Target,
    /// The target may have changed since the engine read it.
    unread: bool,
    size: FrameCount,
    unit: Order,
    migration: Migration,
    /// A trade in flight until Xen shows how far it got, and what it is known to
    /// have traded.
    undecided: Option<(SlotId, FrameCount)>,
}

/// Why the engine's request was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum XenError {
    /// Nothing of it was done.
    #[error("nothing was moved: {0}")]
    Nothing(Stopped),
    /// The request exceeds the limits.
    #[error("the request exceeds the limits")]
    TooLarge,
    /// There is no such path.
    #[error("no such path")]
    Unsupported,
}

impl TransportError for XenError {
    fn kind(&self) -> TransportErrorKind {
        match self {
            Self::Nothing(Stopped::Refused(errno)) => errno.kind(),
            Self::Nothing(_) => TransportErrorKind::Refused,
            Self::TooLarge => TransportErrorKind::TooLarge,
            Self::Unsupported => TransportErrorKind::Unsupported,
        }
    }
}

/// Frames of one request: 128 MiB, 64 superpages in one hypercall.
///
/// Xen works on a call until it is done, about 2 ms for each superpage under
/// emulation; interrupts are served between extents.
const REQUEST: FrameCount = FrameCount::new(64 * 512);

const LIMITS: Limits = Limits {
    frames: REQUEST,
    runs: MAX_RUNS,
    run: REQUEST,
    in_flight: 1,
    below: Pfn::LIMIT,
};

impl<M: Memory, F: FrameMap> XenBalloon<M, F> {
    /// A balloon of nothing.
    #[must_use]
    pub const fn new(reservation: Reservation<M, F>, target: Target) -> Self {
        Self {
            reservation,
            target,
            unread: false,
            size: FrameCount::ZERO,
            unit: Order::SUPERPAGE,
            migration: F::MIGRATION,
            undecided: None,
        }
    }

    /// Takes in what the store says; true if the target may have changed, so
    /// that the engine's `config_changed` is due.
    pub const fn hear(&mut self, notice: Notice) -> bool {
        match notice {
            Notice::Target(bytes) => self.target.set_target(bytes),
            // A PV guest's map holds exactly what the domain is charged for.
            Notice::StaticMax(_) if !F::TRANSLATED => return false,
            Notice::StaticMax(bytes) => self.target.set_static_max(bytes),
            Notice::VideoRam(bytes) => self.target.set_video_ram(bytes),
            Notice::BadTarget
            | Notice::Shutdown(_)
            | Notice::Acknowledged(_)
            | Notice::Withdrawn => return false,
        }
        self.unread = true;
        true
    }

    /// Whether the engine has read what [`hear`](Self::hear) took in last: what a
    /// domain about to be saved waits for.
    #[must_use]
    pub const fn is_target_read(&self) -> bool {
        !self.unread
    }

    /// Starts anew after a restore: another hypervisor may trade what the last
    /// one could not.
    pub const fn restored(&mut self) {
        self.migration = F::MIGRATION;
    }

    /// The target, for a domain without a store.
    pub const fn target_mut(&mut self) -> &mut Target {
        &mut self.target
    }

    /// The domain's memory and what moving it has cost.
    #[must_use]
    pub const fn reservation(&self) -> &Reservation<M, F> {
        &self.reservation
    }

    /// The domain's memory.
    pub const fn reservation_mut(&mut self) -> &mut Reservation<M, F> {
        &mut self.reservation
    }

    /// The block size the engine gives in now: to be published, see
    /// [`Desk::publish_unit`](crate::store::Desk::publish_unit).
    #[must_use]
    pub const fn unit(&self) -> Order {
        self.unit
    }

    /// Completes a request as far as it got; an error if that is nowhere.
    fn complete(
        moved: Moved,
        kind: Kind,
        slot: SlotId,
        done: Completer<'_>,
    ) -> Result<(), XenError> {
        let outcome = match moved.stopped {
            None => Outcome::Whole,
            Some(stopped) if moved.frames.is_zero() => return Err(XenError::Nothing(stopped)),
            Some(_) => Outcome::Partial(moved.frames),
        };
        let completed = done.complete(kind, slot, outcome);
        debug_assert!(completed.is_ok(), "the engine submits what is in flight");
        Ok(())
    }
}

fn check(runs: &[Run]) -> Result<(), XenError> {
    if runs.len() > MAX_RUNS || total(runs) > REQUEST {
        return Err(XenError::TooLarge);
    }
    Ok(())
}

impl<M: Memory, F: FrameMap> Transport for XenBalloon<M, F> {
    type Error = XenError;

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::new(LIMITS, LIMITS);
        capabilities.unit = Order::SUPERPAGE;
        // A domain may take back what its limit allows, whatever its target.
        capabilities.deflate_on_oom = true;
        capabilities
    }

    fn read_target(&mut self) -> Result<FrameCount, XenError> {
        self.unread = false;
        Ok(self.target.balloon(self.size))
    }

    fn write_actual(&mut self, size: FrameCount) -> Result<(), XenError> {
        // Xen counts by itself; the size is what an unknown target stands for.
        self.size = size;
        Ok(())
    }

    fn submit(&mut self, request: Request<'_>, done: Completer<'_>) -> Result<(), XenError> {
        check(request.runs)?;
        let moved = match (request.kind, request.path) {
            (Kind::Inflate, GivePath::Told) => self.reservation.give(request.runs),
            (Kind::Deflate, _) => self.reservation.take(request.runs),
            _ => return Err(XenError::Unsupported),
        };
        Self::complete(moved, request.kind, request.slot, done)
    }

    fn kick(&mut self, _: usize) -> Result<bool, XenError> {
        Ok(false)
    }

    fn announce_unit(&mut self, unit: Order) -> Result<(), XenError> {
        self.unit = unit;
        Ok(())
    }

    fn reap(&mut self, done: Completer<'_>) -> Result<(), XenError> {
        if let Some((slot, before)) = self.undecided
            && let Some(rest) = self.reservation.decide()
        {
            self.undecided = None;
            let traded = Outcome::Partial(before.saturating_add(rest));
            let completed = done.complete(Kind::Migrate, slot, traded);
            debug_assert!(completed.is_ok(), "the trade is in flight");
        }
        Ok(())
    }
}

impl<M: Memory, F: FrameMap> Migrate for XenBalloon<M, F> {
    fn migration(&self) -> Migration {
        self.migration
    }

    fn submit_trade(&mut self, trade: Trade<'_>, done: Completer<'_>) -> Result<(), XenError> {
        check(trade.olds)?;
        check(trade.news)?;
        let moved = self.reservation.trade(trade.olds, trade.news);
        if moved.stopped == Some(Stopped::Undecided) {
            self.undecided = Some((trade.slot, moved.frames));
            return Ok(());
        }
        if let Some(Stopped::Refused(errno)) = moved.stopped {
            let cannot = match errno {
                Errno::NotSupported | Errno::NotImplemented => true,
                // To be of the wrong kind is what a PV guest hears so.
                Errno::Access => !F::TRANSLATED,
                _ => false,
            };
            if cannot {
                // By two requests from now on.
                self.migration = Migration::GiveFirst;
            }
        }
        Self::complete(moved, Kind::Migrate, trade.slot, done)
    }
}

#[cfg(test)]
mod tests;
