//! The balloon of this kernel: engine, transport, and what there is to tell
//! about them.

use core::fmt;

use balloon_core::Step;
use balloon_core::{Blocked, Budget, Bytes, Engine, FrameCount, Nanos, Need, Policy, Progress};
use balloon_core::{Granularity, Relieved, Resume, Shared, Status};
use buddy_alloc::Zone;
use guest_rt::{BootInfo, Delay, now, println};
use qemu_guest::{Options, Poison, Ram, Watch, WatchLog};
use spin::{Mutex, MutexGuard};
use transport_virtio::{QueueError, QueueId, VirtioError};

use super::device::{self, DeviceError, Pulled, Running, Transport};
use super::services::{Services, ServicesStep};

/// Requests in flight per direction: half of them are submitted with one kick.
pub(super) const REQUESTS: usize = 128;

/// Between two steps at a slow pace, or after a service was refused.
const PAUSE: Nanos = Nanos::from_millis(1);

/// Between two looks into an empty slot.
const LOOK: Nanos = Nanos::from_millis(100);

/// What the interrupt handler touches.
pub(super) static SHARED: Shared<REQUESTS> = Shared::new();

/// Too large for a stack; locked once, for the kernel's whole life.
static ENGINE: Mutex<Engine<REQUESTS>> = Mutex::new(Engine::new(&SHARED, Policy::DEFAULT));

/// What the balloon of this machine goes by.
fn policy(boot: &BootInfo, options: &Options<'_>) -> Policy {
    let total = Bytes::new(boot.ram().bytes()).frames();
    let mut policy = if options.floor {
        Policy::for_memory(total)
    } else {
        Policy::DEFAULT
    };
    // Whole pages of the host first, where those are large.
    policy.granularity = Granularity::Adaptive;
    policy
}

/// A running balloon.
pub(super) struct Balloon {
    engine: MutexGuard<'static, Engine<REQUESTS>>,
    /// `None` while there is no device.
    running: Option<Running>,
    /// A device that was pulled out, and when to look for another one.
    pulled: Option<(Pulled, Nanos)>,
    poison: Option<Poison>,
    services: Services,
    /// A device that failed is not started anew before this.
    restart_at: Nanos,
    /// No step of the engine before this, at a slow pace.
    not_before: Option<Nanos>,
    /// Why the services beside it stand still.
    services_failed: Option<VirtioError>,
    log: WatchLog,
    told: Told,
}

/// Something the host waits to hear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
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
        let running = device::start(boot, options)?;
        let services = Services::start(options.services, &running.transport, boot);
        let negotiated = running.transport.negotiated();
        defmt::info!("negotiated {=u64:#x}", negotiated.bits());
        // An empty balloon is no news.
        let zero = FrameCount::ZERO;
        let told = Told {
            target: zero,
            inflated: zero,
            deflated: zero,
            blocked: None,
        };
        let mut engine = ENGINE.lock();
        engine.set_policy(policy(boot, options));
        Ok(Self {
            engine,
            running: Some(running),
            pulled: None,
            poison: options.poison.map(Poison::new),
            services,
            restart_at: Nanos::ZERO,
            not_before: options.slow.then_some(Nanos::ZERO),
            services_failed: None,
            log: WatchLog::new(),
            told,
        })
    }

    /// Whether the device has called.
    pub(super) fn called() -> bool {
        SHARED.signal().is_set()
    }

    /// Does a bounded piece of work.
    pub(super) fn step(&mut self, zone: &mut Zone<'_>, ram: &mut dyn Ram) -> Step {
        let now = Nanos::new(now().as_nanos());
        let Some(running) = &mut self.running else {
            return self.look(now);
        };
        if matches!(
            self.engine.status(zone).progress,
            Progress::Blocked(Blocked::DeviceNeedsReset | Blocked::DeviceBroken)
        ) {
            return self.restart(now);
        }
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
                let _signalled = SHARED.signal().take();
                engine.step(&mut running.transport, &mut source, now, budget)
            }
        };
        let services = self.step_services(zone, now);
        self.let_go(zone, now);
        Step {
            more: step.more || services.more,
            wake_at: [step.wake_at, services.wake_at].into_iter().flatten().min(),
        }
    }

    /// Starts a device anew that failed or broke the protocol, with all that was beside it.
    fn restart(&mut self, now: Nanos) -> Step {
        let _nobody = SHARED.signal().take();
        let mut wake_at = Some(self.restart_at).filter(|&at| now < at);
        if wake_at.is_none()
            && let Some(running) = &mut self.running
        {
            match running.transport.restart(&mut self.engine, &mut Delay) {
                Ok(()) => {
                    println!("@status the balloon device was started anew");
                    self.services_failed = None;
                }
                Err(error) => {
                    println!("@status the balloon device does not start anew: {error}");
                    self.restart_at = now.saturating_add(LOOK);
                    wake_at = Some(self.restart_at);
                }
            }
        }
        Step {
            more: wake_at.is_none(),
            wake_at,
        }
    }

    /// Lets go of a device that was pulled out once all its frames are home.
    fn let_go(&mut self, zone: &Zone<'_>, now: Nanos) {
        let gone = Progress::Blocked(Blocked::DeviceGone);
        if self.status(zone).progress == gone
            && self.out(zone).is_zero()
            && let Some(running) = self.running.take()
        {
            self.pulled = Some((running.pulled(), now));
        }
    }

    /// Looks whether a device was plugged in in place of the one that was pulled out.
    fn look(&mut self, now: Nanos) -> Step {
        let _nobody = SHARED.signal().take();
        let Some((pulled, at)) = self.pulled.take() else {
            return Step {
                more: false,
                wake_at: None,
            };
        };
        let left = if now < at {
            Err((pulled, at))
        } else {
            let later = now.saturating_add(LOOK);
            pulled.start().map_err(|pulled| (pulled, later))
        };
        match left {
            Ok(running) => {
                println!("@status a balloon device was plugged in");
                self.running = Some(running);
                self.engine.resume(Resume::Reset);
            }
            Err(pulled) => self.pulled = Some(pulled),
        }
        Step {
            more: self.running.is_some(),
            wake_at: self.pulled.as_ref().map(|(_, at)| *at),
        }
    }

    /// Lets go of the device that the host wants out of its slot. The driver hears
    /// nothing of it.
    pub(super) fn eject(&self) {
        match self.running.as_ref().and_then(|running| running.port) {
            Some(port) => device::eject(port),
            None => println!("the balloon device is in no slot"),
        }
    }

    fn step_services(&mut self, zone: &mut Zone<'_>, now: Nanos) -> ServicesStep {
        if self.services_failed.is_some() {
            return ServicesStep::default();
        }
        let inflating = !self.status(zone).inflating.is_zero();
        let Some(running) = &mut self.running else {
            return ServicesStep::default();
        };
        let transport = &mut running.transport;
        match self.services.step(transport, zone, inflating, now) {
            Ok(step) => step,
            // Of the moment: a full queue empties, a configuration settles.
            Err(VirtioError::Unstable | VirtioError::Queue(_, QueueError::Full)) => ServicesStep {
                more: false,
                wake_at: Some(now.saturating_add(PAUSE)),
            },
            Err(error) => {
                defmt::error!("a service beside the balloon failed");
                println!("@status services: {error}");
                self.services_failed = Some(error);
                ServicesStep::default()
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
        let Some(running) = &mut self.running else {
            // Nobody has any.
            return Relieved::default();
        };
        self.engine
            .relieve(&mut running.transport, &mut source, need, now)
            // The main loop steps as long as the signal is set.
            .wake(|| {})
    }

    /// Says what was agreed on with the device.
    pub(super) fn tell_device(&self) {
        let Some(running) = &self.running else {
            println!("@device none");
            return;
        };
        let transport = &running.transport;
        println!(
            "@device bus={} features={} interrupts={} interrupted={} statistics={} hint={} \
             reporting={}",
            running.bus,
            transport.negotiated().bits(),
            running.interrupts,
            device::interrupts(),
            Place(transport, QueueId::Statistics),
            Place(transport, QueueId::Hint),
            Place(transport, QueueId::Reporting),
        );
    }

    /// Where it stands.
    pub(super) fn status(&self, zone: &Zone<'_>) -> Status {
        self.engine.status(zone)
    }

    /// What changed since the last call that the host should hear of.
    pub(super) fn change(&mut self, zone: &Zone<'_>) -> Option<Change> {
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
                let changed = self.told != told;
                self.told = told;
                changed.then_some(Change::Reached {
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
                let changed = self.told.blocked != Some(reason);
                self.told.blocked = Some(reason);
                changed.then_some(Change::Blocked {
                    reason,
                    actual: status.size,
                })
            }
            _ => {
                let changed = self.told.blocked.is_some();
                self.told.blocked = None;
                changed.then_some(Change::Moving)
            }
        }
    }

    /// What passed between the allocator and the balloon.
    pub(super) const fn log(&mut self) -> &mut WatchLog {
        &mut self.log
    }

    /// What runs beside it.
    pub(super) const fn services(&mut self) -> &mut Services {
        &mut self.services
    }

    /// Frames the balloon and what runs beside it keep from the allocator.
    pub(super) fn out(&self, zone: &Zone<'_>) -> FrameCount {
        let status = self.status(zone);
        [status.inflating, status.deflating, self.services.out()]
            .into_iter()
            .fold(status.size, FrameCount::saturating_add)
    }

    /// Notifications sent to the device.
    pub(super) fn kicks(&self) -> u32 {
        let running = self.running.as_ref();
        running.map_or(0, |running| running.transport.counters().queues.kicks)
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
