//! The end: everybody behaves, and all must come to rest where it belongs.

use anyhow::{Context as _, Result, ensure};
use balloon_core::{Ledger, Nanos, Resume, Via};
use buddy_alloc::{Frame, State};
use transport_virtio::{Hinting, QueueId, Reporting, UnusedPages};

use super::{FRAMES, World};

/// Time in which a guest that is woken comes to rest.
const REST: Nanos = Nanos::from_millis(100_000);
/// Looks in a row at which all is answered and nobody was told.
const UNHEARD: u32 = 20;

impl World<'_> {
    /// From now on everybody behaves. One that sleeps steps only when woken.
    pub(super) fn calm_down(&mut self, asleep: bool) -> Result<()> {
        self.engine.resume(Resume::Kept);
        self.compactor.stop();
        self.put_back_all()?;
        if self.services.hinting.is_some() {
            let device = self.balloon()?.queues_mut().device_mut();
            device.set_hint_command(1);
        }
        self.device.behave();
        self.free(500)?;
        let unused = FRAMES - self.used.len() as u64;
        let wanted = self.rng.below(unused + 200);
        self.trace
            .say(|| format!("everybody calms down, asleep {asleep}"));
        self.set_target(wanted)?;
        if self.rng.chance(300) {
            self.compactor.start();
        }
        self.awake = true;
        let until = self.now.saturating_add(REST);
        let mut unheard = 0;
        while !self.is_calm(wanted)? {
            let woken = self.listen()
                || !asleep
                || self.awake
                || self.shared.signal().is_set()
                || self.wake_at.is_some_and(|at| at <= self.now);
            if woken {
                self.step_all()?;
                self.check_heard()?;
            }
            if self.rng.chance(300) {
                self.work(5, false)?;
            }
            self.finish()?;
            unheard = if asleep && self.is_unheard()? {
                unheard + 1
            } else {
                0
            };
            self.now = self.now.saturating_add(Nanos::from_millis(1));
            ensure!(
                unheard < UNHEARD && self.now < until,
                "{}: {wanted} are wanted, {} held, {} told, wake at {:?}, now {}, reserved {}, \
                 engine drained {}, compactor drained {} and runs {}, services idle {}, {:?}",
                if unheard < UNHEARD {
                    "never at rest"
                } else {
                    "answers are unheard, and the guest sleeps"
                },
                self.held(),
                self.actual()?,
                self.wake_at.map(Nanos::get),
                self.now.get(),
                self.shared.emergency_frames(),
                self.engine.is_drained(),
                self.compactor.is_drained(),
                self.compactor.is_running(),
                self.services_are_idle(),
                self.engine.status(&self.zones)
            );
        }
        self.check_books()?;
        self.device.speak();
        Ok(())
    }

    /// Interrupts are wanted, all is answered, and none came.
    fn is_unheard(&mut self) -> Result<bool> {
        if !self.virtio.interrupts() || self.shared.signal().is_set() || self.awake {
            return Ok(false);
        }
        let balloon = self.balloon.as_mut().context("the device is being reset")?;
        Ok(!self.device.unheard(balloon).is_empty())
    }

    /// The guest goes to sleep: nobody waits for an answer that somebody else has taken up.
    pub(super) fn check_heard(&self) -> Result<()> {
        let balloon = self.balloon.as_ref().context("the device is being reset")?;
        let none = |queues: &[QueueId]| queues.iter().all(|&queue| balloon.in_flight(queue) == 0);
        let reporting = self.services.reporting.as_ref();
        let reports = none(&[QueueId::Reporting]) && reporting.is_some_and(|r| !r.is_idle());
        let engine = none(&[QueueId::Inflate, QueueId::Deflate, QueueId::Reporting])
            && self.compactor.is_drained()
            && !self.engine.is_drained();
        ensure!(
            !(reports || engine) || self.shared.signal().is_set() || !self.virtio.interrupts(),
            "the guest sleeps, and answers that were taken up are unheard: of the engine {engine}, \
             of a report {reports}"
        );
        Ok(())
    }

    fn actual(&mut self) -> Result<u64> {
        Ok(self.balloon()?.queues_mut().device_mut().actual().into())
    }

    fn services_are_idle(&self) -> bool {
        let services = &self.services;
        let home = |held: &super::Remembered| held.held(Via::Inflate).is_zero();
        let hinting = services.hinting.as_ref();
        let unused = services.unused.as_ref();
        services.reporting.as_ref().is_none_or(Reporting::is_idle)
            && hinting.is_none_or(|(service, held)| Hinting::is_drained(service) && home(held))
            && unused.is_none_or(|(service, held)| UnusedPages::is_drained(service) && home(held))
    }

    /// Nothing is under way, and the balloon has the size that is wanted, or all
    /// that it may take.
    fn is_calm(&mut self, wanted: u64) -> Result<bool> {
        let heard = !self.awake && !self.shared.signal().is_set();
        let idle = heard
            && self.kernel.is_idle()
            && self.engine.is_drained()
            && self.compactor.is_drained()
            && !self.compactor.is_running()
            && self.services_are_idle();
        let unused = FRAMES - self.used.len() as u64;
        let reserve = self.policy.emergency_pool.get();
        let most = unused - reserve.min(unused);
        let most = most - self.policy.min_free.get().min(most);
        let (held, actual) = (self.held(), self.actual()?);
        let reachable = wanted <= most;
        // Page numbers do not reach what lies above, nor does every path.
        let beyond = !self.ground.is_low();
        let there = if reachable {
            held == wanted || (beyond && held <= wanted)
        } else {
            (held >= most || beyond) && held <= wanted.min(most + reserve)
        };
        let kept = !reachable || self.shared.emergency_frames() == self.policy.emergency_pool;
        Ok(idle && there && kept && actual == held)
    }

    /// What the device has by name is what the allocator calls so.
    fn check_books(&self) -> Result<()> {
        let told = Ledger::held(&self.zones, Via::Inflate).get();
        ensure!(
            self.device.told.count() == told,
            "the device has {} frames by name, the guest knows of {told}",
            self.device.told.count()
        );
        for pfn in self.ground.all()?.frames() {
            let state = self.zones.state(Frame::new(pfn.get()));
            let state = state.context("a frame that nobody knows")?.state;
            let given = state == State::Ballooned(buddy_alloc::Via::Inflate);
            ensure!(
                self.device.told.contains(pfn) == given,
                "frame {pfn:?} is {state:?}, and the device has it: {}",
                !given
            );
        }
        let in_hand: u64 = self.zones.iter().map(|z| z.stats().in_hand.get()).sum();
        ensure!(
            in_hand == 0,
            "{in_hand} frames are in hand, and nobody is at work"
        );
        Ok(())
    }
}
