//! The reservation as the engine's transport.

use balloon_core::{
    Capabilities, Completer, FrameCount, Kind, Limits, MAX_RUNS, Migrate, MigrateRequest,
    Migration, Order, Outcome, Pfn, Request, Run, SlotId, Transport, TransportError,
    TransportErrorKind, Via,
};

use crate::clear::Clear;
use crate::errno::Errno;
use crate::frame_map::FrameMap;
use crate::hypercall::calls::Memory;
use crate::migrate::total;
use crate::reservation::{Moved, Reservation, Stopped};
use crate::store::StoreEvent;
use crate::target::Target;

/// The balloon of a Xen domain.
///
/// Hypercalls answer at once, so a request is complete when it is submitted; but
/// for a migration that Xen refused half-way and will not show: it stays in flight, and
/// each `reap` asks again.
/// The target comes from the store by way of [`handle_event`](Self::handle_event), or from
/// anywhere else through [`target_mut`](Self::target_mut).
#[derive(Debug)]
pub struct XenBalloon<M, F, C> {
    reservation: Reservation<M, F, C>,
    target: Target,
    /// The target may have changed since the engine read it.
    unread: bool,
    size: FrameCount,
    unit: Order,
    migration: Migration,
    /// A migration in flight until Xen shows how far it got, and what it is known to
    /// have migrated.
    undecided: Option<(SlotId, FrameCount)>,
    /// The last take lost memory for want of tables, and served some: the next is
    /// not begun, so that the engine pauses as it does after one that served none.
    lost: bool,
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
            Self::Nothing(Stopped::NoTables) => TransportErrorKind::Exhausted,
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

impl<M: Memory, F: FrameMap, C: Clear> XenBalloon<M, F, C> {
    /// A balloon of nothing.
    #[must_use]
    pub const fn new(reservation: Reservation<M, F, C>, target: Target) -> Self {
        Self {
            reservation,
            target,
            unread: false,
            size: FrameCount::ZERO,
            unit: Order::SUPERPAGE,
            migration: F::MIGRATION,
            undecided: None,
            lost: false,
        }
    }

    /// Takes in what the store says; true if the target may have changed, so
    /// that the engine's `config_changed` is due.
    pub const fn handle_event(&mut self, event: StoreEvent) -> bool {
        match event {
            StoreEvent::Target(bytes) => self.target.set_target(bytes),
            // A PV guest's map holds exactly what the domain is charged for.
            StoreEvent::StaticMax(_) if !F::TRANSLATED => return false,
            StoreEvent::StaticMax(bytes) => self.target.set_static_max(bytes),
            StoreEvent::VideoRam(bytes) => self.target.set_video_ram(bytes),
            StoreEvent::BadTarget
            | StoreEvent::HotplugMax(_)
            | StoreEvent::Shutdown(_)
            | StoreEvent::Acknowledged(_)
            | StoreEvent::Withdrawn => return false,
        }
        self.unread = true;
        true
    }

    /// Whether the engine has read what [`handle_event`](Self::handle_event) took in last: what a
    /// domain about to be saved waits for.
    #[must_use]
    pub const fn is_target_read(&self) -> bool {
        !self.unread
    }

    /// Starts anew after a restore: another hypervisor may migrate what the last
    /// one could not, and forbid what it allowed.
    pub const fn restored(&mut self) {
        self.migration = F::MIGRATION;
        self.lost = false;
        self.reservation.restored();
    }

    /// The target: for a domain without a store, and for what of it cannot be had
    /// ([`Target::beyond`]).
    #[must_use]
    pub const fn target(&self) -> &Target {
        &self.target
    }

    /// The target, for a domain without a store.
    pub const fn target_mut(&mut self) -> &mut Target {
        &mut self.target
    }

    /// The domain's memory and what moving it has cost.
    #[must_use]
    pub const fn reservation(&self) -> &Reservation<M, F, C> {
        &self.reservation
    }

    /// The domain's memory.
    pub const fn reservation_mut(&mut self) -> &mut Reservation<M, F, C> {
        &mut self.reservation
    }

    /// The block size the engine gives in now: to be published, see
    /// [`BalloonNodes::publish_unit`](crate::store::BalloonNodes::publish_unit).
    #[must_use]
    pub const fn unit(&self) -> Order {
        self.unit
    }

    /// Takes memory back, unless the last request still owes its pause.
    fn deflate(&mut self, runs: &[Run]) -> Result<Moved, XenError> {
        if core::mem::take(&mut self.lost) {
            return Err(XenError::Nothing(Stopped::NoTables));
        }
        let moved = self.reservation.deflate(runs);
        self.lost = moved.stopped == Some(Stopped::NoTables) && !moved.frames.is_zero();
        Ok(moved)
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
            Some(Stopped::Torn) => Outcome::Torn(moved.frames),
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

impl<M: Memory, F: FrameMap, C: Clear> Transport for XenBalloon<M, F, C> {
    type Error = XenError;

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::new(LIMITS, LIMITS);
        capabilities.unit = Order::SUPERPAGE;
        // A domain may take back what its limit allows, whatever its target.
        capabilities.deflate_on_oom = true;
        // There is memory behind all of them, and these need no clearing.
        capabilities.unpopulated_first = true;
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
        let moved = match (request.kind, request.via) {
            (Kind::Inflate, Via::Inflate) => self.reservation.inflate(request.runs),
            (Kind::Deflate, _) => self.deflate(request.runs)?,
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

    fn reap(&mut self, done: Completer<'_>) -> Result<usize, XenError> {
        if let Some((slot, before)) = self.undecided
            && let Some(rest) = self.reservation.decide()
        {
            self.undecided = None;
            let migrated = before.saturating_add(rest.frames);
            let outcome = match rest.stopped {
                Some(Stopped::Torn) => Outcome::Torn(migrated),
                _ => Outcome::Partial(migrated),
            };
            let completed = done.complete(Kind::Migrate, slot, outcome);
            debug_assert!(completed.is_ok(), "the migration is in flight");
            return Ok(1);
        }
        Ok(0)
    }
}

impl<M: Memory, F: FrameMap, C: Clear> Migrate for XenBalloon<M, F, C> {
    fn migration(&self) -> Migration {
        self.migration
    }

    fn submit_migrate(
        &mut self,
        migrate: MigrateRequest<'_>,
        done: Completer<'_>,
    ) -> Result<(), XenError> {
        check(migrate.from)?;
        check(migrate.to)?;
        let moved = self.reservation.migrate(migrate.from, migrate.to);
        if moved.stopped == Some(Stopped::Undecided) {
            self.undecided = Some((migrate.slot, moved.frames));
            return Ok(());
        }
        if let Some(Stopped::Refused(errno)) = moved.stopped {
            let cannot = match errno {
                Errno::NotSupported | Errno::NotImplemented => true,
                // To be of the wrong kind is what a PV guest hears so.
                Errno::Access if !F::TRANSLATED => true,
                // A policy that lets nothing be seen, as often as it is asked.
                Errno::Access | Errno::NotPermitted => F::TRANSLATED && !self.reservation.looks,
                _ => false,
            };
            if cannot {
                // By two requests from now on.
                self.migration = Migration::InflateFirst;
            }
        }
        Self::complete(moved, Kind::Migrate, migrate.slot, done)
    }
}

#[cfg(test)]
mod tests;
