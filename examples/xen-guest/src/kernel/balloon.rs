//! The balloon of this kernel: engine, transport, and the client in the store.

mod toolstack;

use balloon_core::{
    Blocked, Budget, Compactor, Engine, FrameCount, FrameRange, Granularity, Ledger as _, MAX_RUNS,
    Migrate as _, Migration, Nanos, Pfn, Policy, Progress, Report, Run, Shared, Status,
};
use buddy_alloc::Zone;
use guest_rt::now;
use heapless::Vec;
use qemu_guest::{Watch, WatchLog};
use spin::{Mutex, MutexGuard};
use transport_xen::hypercall::Woken;
use transport_xen::store::{BalloonNodes, Client, NodesConfig};
use transport_xen::suspend::Suspension;
use transport_xen::{Counters, FrameMap, MappedPage, Reservation, Target, XenBalloon};

use super::scrub::Scrub;

use super::xen::{self, Ties, Xen, XenError};
use toolstack::Save;

/// Hypercalls answer at once: more would never be in flight.
const REQUESTS: usize = 2;

/// Room for the plan of a compaction, in 2 MiB: domains of up to 4 GiB.
const WORDS: usize = 2048;

/// Frames that the `move` command migrates: a superpage's worth.
const MIGRATION: u64 = 512;

static SHARED: Shared<REQUESTS> = Shared::new();

/// Superpages while there are any; some frames stay for the kernel itself.
const POLICY: Policy = {
    let mut policy = Policy::DEFAULT;
    policy.granularity = Granularity::Adaptive;
    policy.min_free = FrameCount::new(64);
    policy
};

/// Too large for a stack; locked once, for the kernel's whole life.
static ENGINE: Mutex<Engine<REQUESTS>> = Mutex::new(Engine::new(&SHARED, POLICY));

/// A running balloon.
pub(super) struct Balloon<F> {
    engine: MutexGuard<'static, Engine<REQUESTS>>,
    transport: XenBalloon<Xen, F, Scrub>,
    nodes: Option<BalloonNodes<MappedPage>>,
    managed: FrameCount,
    ties: Ties,
    suspension: Suspension,
    save: Save,
    /// Between two steps, to be caught in the middle; and when the next is due.
    pace: Nanos,
    next: Nanos,
    compactor: Option<Compactor<[u32; WORDS]>>,
    /// When the round of compaction under way began.
    compacting: Option<Nanos>,
    /// When the last target was heard.
    heard: Nanos,
    log: WatchLog,
    told: Option<(FrameCount, FrameCount, FrameCount)>,
    blocked: Option<Blocked>,
}

/// Something the host waits to hear.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    /// The balloon has the size the host wants, so long after it said so.
    Reached {
        actual: FrameCount,
        target: FrameCount,
        nanos: Nanos,
    },
    /// A round of compaction is over, and took so long.
    Compacted { report: Report, nanos: Nanos },
    /// Nothing moves any more.
    Blocked { reason: Blocked, actual: FrameCount },
    /// About to be saved, with a balloon of this size on its way to another.
    Saving {
        actual: FrameCount,
        target: FrameCount,
    },
    /// Back from a suspend, with a balloon of this size on its way to another.
    Woken {
        how: Woken,
        actual: FrameCount,
        target: FrameCount,
    },
    /// The store says nonsense.
    BadTarget,
    /// The target is larger than this domain's memory by so much.
    Beyond(FrameCount),
    /// The store is gone for good.
    StoreGone,
}

/// What a step leaves to do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Left {
    pub(super) more: bool,
    pub(super) wake_at: Option<Nanos>,
}

/// The time, as the balloon counts it.
pub(super) fn time() -> Nanos {
    Nanos::new(now().as_nanos())
}

/// Whether the store has called.
pub(super) fn called() -> bool {
    xen::store_called() || SHARED.signal().is_set()
}

/// Ballooned frames, at most as many as one migration takes.
pub(super) fn some_held(zone: &mut Zone<'_>) -> Option<FrameRange> {
    let all = FrameRange::new(Pfn::new(0), FrameCount::new(Pfn::LIMIT.get()))?;
    let (held, _) = zone.next_held(all)?;
    held.split_at(FrameCount::new(MIGRATION)).0
}

impl<F: FrameMap> Balloon<F> {
    /// Opens the store and starts with an empty balloon.
    pub(super) fn start(
        (xen, map, scrub): (Xen, F, Scrub),
        ties: Ties,
        managed: FrameCount,
    ) -> Result<Self, XenError> {
        let nodes = match ties.store() {
            Some(store) => {
                let client = Client::new(xen::page(store.frame)?);
                let policy = NodesConfig {
                    // A PV guest's page tables are full of machine frames.
                    offer_suspend: F::TRANSLATED,
                    ..NodesConfig::DEFAULT
                };
                Some(BalloonNodes::new(client, policy))
            }
            None => None,
        };
        let reservation = Reservation::new(xen, map, scrub);
        Ok(Self {
            engine: ENGINE.lock(),
            transport: XenBalloon::new(reservation, Target::new(managed)),
            nodes,
            managed,
            ties,
            suspension: Suspension::new(),
            save: Save::Unasked,
            pace: Nanos::ZERO,
            next: Nanos::ZERO,
            compactor: None,
            compacting: None,
            heard: Nanos::ZERO,
            log: WatchLog::new(),
            told: None,
            blocked: None,
        })
    }

    /// Whether there is anybody to say a target.
    pub(super) const fn has_store(&self) -> bool {
        self.nodes.is_some()
    }

    /// Sets the balloon's size, where no store sets a target.
    pub(super) fn aim(&mut self, size: FrameCount) {
        let target = self.managed.saturating_sub(size);
        self.transport.target_mut().set_target(target.bytes());
        self.heard = time();
        SHARED.signal().config_changed();
    }

    /// Makes it ready to compact the allocator's memory, if that is not too large.
    pub(super) fn watch_over(&mut self, zone: &Zone<'_>) {
        let span = zone.span();
        let first = Pfn::new(span.start().get());
        let zone = FrameRange::new(first, FrameCount::new(span.count().get()));
        self.compactor = zone.and_then(|zone| Compactor::new([0; WORDS], zone).ok());
    }

    /// Begins a round of compaction.
    pub(super) fn compact(&mut self) {
        let begun = self.compactor.as_mut().is_some_and(Compactor::start);
        self.compacting = begun.then(time);
    }

    /// Whether a migration brings the content along.
    pub(super) fn keeps_content(&self) -> bool {
        self.transport.migration() == Migration::Move
    }

    /// The domain's memory, past the engine.
    pub(super) const fn reservation(&mut self) -> &mut Reservation<Xen, F, Scrub> {
        self.transport.reservation_mut()
    }

    /// The domain's hypercalls, past the balloon.
    pub(super) fn hypercalls(&mut self) -> &mut Xen {
        self.transport.reservation_mut().memory_mut()
    }

    /// Does a bounded piece of work; what there is to tell goes to `tell`.
    pub(super) fn step(&mut self, zone: &mut Zone<'_>, mut tell: impl FnMut(Change)) -> Left {
        xen::take_store_called();
        let now = time();
        self.read_store(now, &mut tell);
        let asked = self.prepare_save(zone, now, &mut tell);
        let store = self.nodes.as_ref().and_then(BalloonNodes::wake_at);
        let asked = [asked, store].into_iter().flatten().min();
        if now < self.next && self.save != Save::Settling {
            return Left {
                more: false,
                wake_at: [Some(self.next), asked].into_iter().flatten().min(),
            };
        }
        let budget = if self.pace == Nanos::ZERO {
            Budget::LARGE
        } else {
            self.next = now.saturating_add(self.pace);
            // To find no whole block, to give single frames, to note them.
            Budget::requests(3)
        };
        let mut source = Watch::new(zone, &mut self.log);
        let _signalled = SHARED.signal().take();
        let step = self
            .engine
            .step(&mut self.transport, &mut source, now, budget);
        let (mut more, mut wake_at) = (step.more, step.wake_at);
        if let Some(compactor) = &mut self.compactor {
            let engine = &mut self.engine;
            let step = compactor.step(engine, &mut self.transport, &mut source, now, budget);
            more |= step.more;
            wake_at = [wake_at, step.wake_at].into_iter().flatten().min();
            if !compactor.is_running()
                && let Some(begun) = self.compacting.take()
            {
                tell(Change::Compacted {
                    report: compactor.report(),
                    nanos: time().saturating_sub(begun),
                });
            }
        }
        if let Some(nodes) = &mut self.nodes {
            nodes.publish_unit(self.transport.unit());
            if !more {
                nodes.publish_downgrades(self.transport.reservation().counters().downgrades);
            }
            wake_at = [wake_at, nodes.wake_at()].into_iter().flatten().min();
        }
        wake_at = [wake_at, asked].into_iter().flatten().min();
        if self.save == Save::Settling && self.engine.is_drained() {
            more = true;
            if let Some(how) = self.suspend() {
                let status = self.status(zone);
                tell(Change::Woken {
                    how,
                    actual: status.size,
                    target: status.target.unwrap_or(status.size),
                });
            }
        } else if let Some(change) = self.change(zone) {
            tell(change);
        }
        Left { more, wake_at }
    }

    /// Takes so long between two steps from now on; zero for no time at all.
    pub(super) const fn set_pace(&mut self, pace: Nanos) {
        self.pace = pace;
        self.next = Nanos::ZERO;
    }

    /// Makes `from` hold what `to` held, and holes of those, the last one for
    /// the first if `apart`; whether all went.
    pub(super) fn migrate(&mut self, from: FrameRange, to: FrameRange, apart: bool) -> bool {
        let reservation = self.transport.reservation_mut();
        if !apart {
            let (Some(old), Some(new)) = (Run::new(from), Run::new(to)) else {
                return false;
            };
            return reservation.migrate(&[old], &[new]).frames == from.count();
        }
        let single = |n| FrameRange::new(Pfn::new(n), FrameCount::ONE).and_then(Run::new);
        let mut from = (from.start().get()..from.end().get()).filter_map(single);
        let mut to = (to.start().get()..to.end().get()).rev().filter_map(single);
        loop {
            let batch: [Vec<Run, MAX_RUNS>; 2] = [
                from.by_ref().take(MAX_RUNS).collect(),
                to.by_ref().take(MAX_RUNS).collect(),
            ];
            let [from, to] = &batch;
            if from.is_empty() {
                return true;
            }
            if reservation.migrate(from, to).stopped.is_some() {
                return false;
            }
        }
    }

    /// Where it stands.
    pub(super) fn status(&self, zone: &Zone<'_>) -> Status {
        self.engine.status(zone)
    }

    /// What changed since the last call that the host should hear of.
    fn change(&mut self, zone: &Zone<'_>) -> Option<Change> {
        let status = self.status(zone);
        match status.progress {
            Progress::Reached => {
                let target = status.target?;
                let counters = status.counters;
                let told = Some((target, counters.inflated, counters.deflated));
                self.blocked = None;
                let changed = self.told != told;
                self.told = told;
                changed.then_some(Change::Reached {
                    actual: status.size,
                    target,
                    nanos: time().saturating_sub(self.heard),
                })
            }
            Progress::Blocked(reason) => {
                let changed = self.blocked != Some(reason);
                self.blocked = Some(reason);
                changed.then_some(Change::Blocked {
                    reason,
                    actual: status.size,
                })
            }
            _ => None,
        }
    }

    /// What passed between the allocator and the balloon.
    pub(super) const fn log(&mut self) -> &mut WatchLog {
        &mut self.log
    }

    /// Requests that the store has not answered in time.
    pub(super) fn unanswered(&self) -> u32 {
        self.nodes.as_ref().map_or(0, BalloonNodes::timeouts)
    }

    /// What moving memory has cost.
    pub(super) const fn counters(&self) -> Counters {
        self.transport.reservation().counters()
    }
}
