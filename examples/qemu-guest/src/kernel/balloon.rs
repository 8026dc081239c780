//! The balloon of this kernel: engine, transport, and what there is to tell
//! about them.

use core::fmt;

use balloon_core::Step;
use balloon_core::{Blocked, Budget, Engine, FrameCount, Nanos, Need, Policy, Progress};
use balloon_core::{Relieved, Shared, Status, Unit};
use buddy_alloc::Zone;
use guest_rt::{BootInfo, now, println};
use qemu_guest::{Interrupts, Options, Poison, Ram, Watch, WatchLog};
use spin::{Mutex, MutexGuard};
use transport_virtio::{QueueError, QueueId, VirtioError};

use super::beside::{Beside, BesideStep};
use super::device::{self, DeviceError, Running, Transport};

/// Requests in flight per direction: half of them are submitted with one kick.
pub(super) const REQUESTS: usize = 128;

/// Between two steps at a slow pace, or after a service was refused.
const PAUSE: Nanos = Nanos::from_millis(1);

/// What the interrupt handler touches.
pub(super) static SHARED: Shared<REQUESTS> = Shared::new();

/// Too large for a stack; locked once, for the kernel's whole life.
static ENGINE: Mutex<Engine<REQUESTS>> = Mutex::new(Engine::new(&SHARED, POLICY));

/// Whole pages of the host first, where those are large.
const POLICY: Policy = {
    let mut policy = Policy::DEFAULT;
    policy.unit = Unit::Adaptive;
    policy
};

/// A running balloon.
pub(super) struct Balloon {
    engine: MutexGuard<'static, Engine<REQUESTS>>,
    transport: Transport,
    interrupts: Interrupts,
    bus: &'static str,
    poison: Option<Poison>,
    beside: Beside,
    /// No step of the engine before this, at a slow pace.
    not_before: Option<Nanos>,
    /// Why the services beside it stand still.
    beside_failed: Option<VirtioError>,
    log: WatchLog,
    told: Told,
}

/// Something the host waits to hear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// The balloon has the size the host wants.
    Reached {
        actual: FrameCount,
        target: FrameCount,
    },
    /// Nothing moves any more.
    Blocked { reason: Blocked, actual: FrameCount },
    /// What blocked it is gone.
    Moving,
}

/// What the host was told last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Told {
    target: FrameCount,
    inflated: FrameCount,
    deflated: FrameCount,
    blocked: Option<Blocked>,
}

impl Balloon {
    /// Finds the device and starts it.
    pub(super) fn start(boot: &mut BootInfo, options: &Options<'_>) -> Result<Self, DeviceError> {
        let Running {
            transport,
            interrupts,
            bus,
        } = device::start(boot, options)?;
        let beside = Beside::start(options.beside, &transport, boot);
        defmt::info!("negotiated {=u64:#x}", transport.negotiated().bits());
        // An empty balloon is no news.
        let zero = FrameCount::ZERO;
        let told = Told {
            target: zero,
            inflated: zero,
            deflated: zero,
            blocked: None,
        };
        Ok(Self {
            engine: ENGINE.lock(),
            transport,
            interrupts,
            bus,
            poison: options.poison.map(Poison::new),
            beside,
            not_before: options.slow.then_some(Nanos::ZERO),
            beside_failed: None,
            log: WatchLog::new(),
            told,
        })
    }

    /// Whether the device has called.
    pub(super) fn called() -> bool {
        SHARED.signal().pending()
    }

    /// Does a bounded piece of work.
    pub(super) fn step(&mut self, zone: &mut Zone<'_>, ram: &mut dyn Ram) -> Step {
        let now = Nanos::new(now().as_nanos());
        let step = match &mut self.not_before {
            Some(moment) if now < *moment => Step {
                more: false,
                wake_at: Some(*moment),
            },
            not_before => {
                let budget = not_before.as_mut().map_or(Budget::LARGE, |moment| {
                    *moment = now.saturating_add(PAUSE);
                    Budget::SMALL
                });
                let mut source = Watch::new(zone, &mut self.log).poisoning(self.poison, ram);
                let engine = &mut self.engine;
                engine.step(&mut self.transport, &mut source, now, budget)
            }
        };
        let beside = self.step_beside(zone, now);
        Step {
            more: step.more || beside.more,
            wake_at: [step.wake_at, beside.wake_at].into_iter().flatten().min(),
        }
    }

    fn step_beside(&mut self, zone: &mut Zone<'_>, now: Nanos) -> BesideStep {
        if self.beside_failed.is_some() {
            return BesideStep::default();
        }
        let inflating = !self.status(zone).inflating.is_zero();
        match self.beside.step(&mut self.transport, zone, inflating, now) {
            Ok(step) => step,
            // Of the moment: a full queue empties, a configuration settles.
            Err(VirtioError::Unstable | VirtioError::Queue(_, QueueError::Full)) => BesideStep {
                more: false,
                wake_at: Some(now.saturating_add(PAUSE)),
            },
            Err(error) => {
                defmt::error!("a service beside the balloon failed");
                println!("@status beside: {error}");
                self.beside_failed = Some(error);
                BesideStep::default()
            }
        }
    }

    /// Takes frames back at once, for an allocation that failed.
    pub(super) fn relieve(
        &mut self,
        zone: &mut Zone<'_>,
        ram: &mut dyn Ram,
        frames: FrameCount,
    ) -> Relieved {
        let now = Nanos::new(now().as_nanos());
        let mut source = Watch::new(zone, &mut self.log).poisoning(self.poison, ram);
        let need = Need::frames(frames);
        self.engine
            .relieve(&mut self.transport, &mut source, need, now)
    }

    /// Says what was agreed on with the device.
    pub(super) fn tell_device(&self) {
        println!(
            "@device bus={} features={} interrupts={} interrupted={} statistics={} hint={} \
             reporting={}",
            self.bus,
            self.transport.negotiated().bits(),
            self.interrupts,
            device::interrupts(),
            Place(&self.transport, QueueId::Statistics),
            Place(&self.transport, QueueId::Hint),
            Place(&self.transport, QueueId::Reporting),
        );
    }

    /// Where it stands.
    pub(super) fn status(&self, zone: &Zone<'_>) -> Status {
        self.engine.status(zone)
    }

    /// What changed since the last call that the host should hear of.
    pub(super) fn news(&mut self, zone: &Zone<'_>) -> Option<News> {
        let status = self.status(zone);
        let counters = status.counters;
        match status.progress {
            Progress::Reached => {
                let target = status.target?;
                let told = Told {
                    target,
                    inflated: counters.inflated,
                    deflated: counters.deflated,
                    blocked: None,
                };
                let news = self.told != told;
                self.told = told;
                news.then_some(News::Reached {
                    actual: status.size,
                    target,
                })
            }
            // What is on its way still gets there, unless the device is at fault.
            Progress::Blocked(reason)
                if !matches!(reason, Blocked::DeviceSilent | Blocked::DeviceBroken)
                    && status.inflating.get() + status.deflating.get() > 0 =>
            {
                None
            }
            Progress::Blocked(reason) => {
                let news = self.told.blocked != Some(reason);
                self.told.blocked = Some(reason);
                news.then_some(News::Blocked {
                    reason,
                    actual: status.size,
                })
            }
            _ => {
                let news = self.told.blocked.is_some();
                self.told.blocked = None;
                news.then_some(News::Moving)
            }
        }
    }

    /// What passed between the allocator and the balloon.
    pub(super) const fn log(&mut self) -> &mut WatchLog {
        &mut self.log
    }

    /// What runs beside it.
    pub(super) const fn beside(&mut self) -> &mut Beside {
        &mut self.beside
    }

    /// Frames the balloon and what runs beside it keep from the allocator.
    pub(super) fn out(&self, zone: &Zone<'_>) -> FrameCount {
        let status = self.status(zone);
        [status.inflating, status.deflating, self.beside.out()]
            .into_iter()
            .fold(status.size, FrameCount::saturating_add)
    }

    /// Notifications sent to the device.
    pub(super) fn kicks(&self) -> u32 {
        self.transport.counters().queues.kicks
    }
}

/// Where a queue is.
struct Place<'a>(&'a Transport, QueueId);

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.queues().map().index(self.1) {
            Some(index) => index.get().fmt(f),
            None => f.write_str("none"),
        }
    }
}
