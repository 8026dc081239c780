//! What runs beside the balloon: statistics, hints for a migration, free page reports.

use balloon_core::{BitmapLedger, FrameCount, FrameRange, Nanos, Pfn};
use buddy_alloc::Zone;
use guest_rt::BootInfo;
use qemu_guest::Services as Wanted;
use transport_virtio::{Features, Hinting, ReportPace, Reporting, Statistics, Tag, VirtioError};

use super::balloon::SHARED;
use super::device::Transport;

/// What this kernel knows.
const TAGS: &[Tag] = &[Tag::FREE, Tag::TOTAL, Tag::AVAILABLE];
const FRAME: u64 = 4096;

/// Remembers hinted frames.
type Held = BitmapLedger<&'static mut [u64]>;

/// The services the host wants and the device offers.
#[derive(Default)]
pub(super) struct Services {
    statistics: Option<Statistics>,
    hinting: Option<(Hinting, Held)>,
    reporting: Option<Reporting>,
    /// Frames out of the allocator because of hints.
    hinted: FrameCount,
    /// Frames hinted while the balloon was inflating: neither waits for the other.
    hinted_while_inflating: FrameCount,
}

/// What a step leaves to do.
#[derive(Clone, Copy, Default)]
pub(super) struct ServicesStep {
    pub(super) more: bool,
    pub(super) wake_at: Option<Nanos>,
}

impl Services {
    /// Starts what is wanted, as far as the device can.
    pub(super) fn start(wanted: Wanted, transport: &Transport, boot: &mut BootInfo) -> Self {
        let can = |feature| transport.negotiated().contains(feature);
        let mut services = Self::default();
        if wanted.statistics && can(Features::STATS_VQ) {
            services.statistics = Some(Statistics::new(TAGS));
        }
        if wanted.hints && can(Features::FREE_PAGE_HINT) {
            let ledger = ledger(boot);
            services.hinting = ledger.map(|held| (Hinting::new(FrameCount::ZERO), held));
        }
        if wanted.reports && can(Features::PAGE_REPORTING) {
            services.reporting = Some(Reporting::new(ReportPace::DEFAULT));
        }
        services
    }

    /// A bounded piece of work of each service, up to one that fails.
    pub(super) fn step(
        &mut self,
        transport: &mut Transport,
        zone: &mut Zone<'_>,
        inflating: bool,
        now: Nanos,
    ) -> Result<ServicesStep, VirtioError> {
        let mut left = ServicesStep::default();
        if let Some(statistics) = &mut self.statistics {
            let stats = zone.stats();
            let step = statistics.step(transport, &SHARED, now, |tag| match tag {
                Tag::TOTAL => stats.managed.get() * FRAME,
                _ => stats.free.get() * FRAME,
            });
            left.wake_at = unless_lost(step)?.and_then(|step| step.wake_at);
        }
        if let Some((hinting, held)) = &mut self.hinting {
            let before = hinting.hinted();
            let step = hinting.step(transport, &SHARED, zone, held, now);
            let still_held = match step {
                Ok(step) => step.held,
                Err(VirtioError::Gone) => FrameCount::ZERO,
                Err(_) => self.hinted,
            };
            let step = unless_lost(step)?;
            left.more |= step.is_some_and(|step| step.more);
            let at = step.and_then(|step| step.wake_at);
            left.wake_at = [left.wake_at, at].into_iter().flatten().min();
            // What the host let go of is free again.
            if still_held < self.hinted
                && let Some(reporting) = &mut self.reporting
            {
                reporting.look_again();
            }
            self.hinted = still_held;
            if inflating {
                let new = hinting.hinted().saturating_sub(before);
                self.hinted_while_inflating = self.hinted_while_inflating.saturating_add(new);
            }
        }
        if let Some(reporting) = &mut self.reporting {
            let step = unless_lost(reporting.step(transport, &SHARED, zone, now))?;
            left.more |= step.is_some_and(|step| step.more);
            let at = step.and_then(|step| step.wake_at);
            left.wake_at = [left.wake_at, at].into_iter().flatten().min();
        }
        Ok(left)
    }

    /// Much was freed: it need not wait for the next look.
    pub(super) fn freed(&mut self) {
        if let Some(reporting) = &mut self.reporting {
            reporting.look_again();
        }
    }

    /// Frames that neither the allocator nor the balloon has.
    pub(super) fn out(&self) -> FrameCount {
        let reported = self
            .reporting
            .as_ref()
            .map_or(FrameCount::ZERO, Reporting::held);
        self.hinted.saturating_add(reported)
    }

    /// Frames hinted so far.
    pub(super) fn hinted(&self) -> FrameCount {
        let hinting = self.hinting.as_ref();
        hinting.map_or(FrameCount::ZERO, |(hinting, _)| hinting.hinted())
    }

    /// Those among them that were hinted while the balloon was inflating.
    pub(super) const fn hinted_while_inflating(&self) -> FrameCount {
        self.hinted_while_inflating
    }

    /// Frames reported so far.
    pub(super) fn reported(&self) -> FrameCount {
        let reporting = self.reporting.as_ref();
        reporting.map_or(FrameCount::ZERO, Reporting::reported)
    }
}

/// Nothing from a service whose device is gone or has failed: another one follows, or
/// the same one is started anew.
fn unless_lost<T>(step: Result<T, VirtioError>) -> Result<Option<T>, VirtioError> {
    match step {
        Err(VirtioError::Absent | VirtioError::NeedsReset | VirtioError::Gone) => Ok(None),
        other => other.map(Some),
    }
}

/// A ledger over all memory of this machine.
fn ledger(boot: &mut BootInfo) -> Option<Held> {
    let start = boot.free().iter().next()?.start().get() / FRAME;
    let end = boot.free().iter().last()?.end().get() / FRAME;
    let all = FrameRange::new(Pfn::new(start), FrameCount::new(end - start))?;
    let words = usize::try_from(BitmapLedger::words(all.count())).ok()?;
    BitmapLedger::new(boot.carve_words(words)?, &[all]).ok()
}
