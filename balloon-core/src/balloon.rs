//! A balloon as one object: the engine, its transport, and the kernel's frames.

use crate::engine::Engine;
use crate::engine::lifecycle::Resume;
use crate::engine::relief::{Need, Relief};
use crate::events::Events;
use crate::policy::{Budget, Policy};
use crate::shared::{Entered, Shared};
use crate::source::{FrameSource, Ledger};
use crate::status::{Status, Step};
use crate::transport::Transport;
use crate::units::Nanos;

/// An [`Engine`] with the transport and the frames that it works on.
///
/// It belongs into a `static` behind the kernel's lock. Before [`start`](Self::start) it is
/// all zeros, so it is no part of the kernel's image, and it does nothing.
///
/// ```
/// use balloon_core::testing::{FakeHost, FakeSource};
/// use balloon_core::*;
/// # use std::sync::Mutex;
///
/// static SHARED: Shared = Shared::new();
/// static BALLOON: Mutex<Balloon<FakeHost, FakeSource>> = Mutex::new(Balloon::new());
///
/// # let memory = FrameRange::new(Pfn::new(0), FrameCount::new(1000)).unwrap();
/// # let (frames, mut host) = (FakeSource::new(memory), FakeHost::plain());
/// # host.target = FrameCount::new(300);
/// # let now = Nanos::ZERO;
/// let mut balloon = BALLOON.lock().unwrap();
/// assert!(balloon.start(&SHARED, Policy::DEFAULT, host, frames).is_ok());
/// while balloon.step(now, Budget::LARGE).more {}
/// let status = balloon.status().unwrap();
/// assert_eq!((status.size.get(), status.progress), (300, Progress::Reached));
/// ```
#[derive(Debug)]
pub struct Balloon<T, S, const N: usize = 16> {
    engine: Engine<N>,
    ends: Ends<T, S>,
}

/// What an engine stands between.
///
/// The tag is a byte of its own, and zero for a balloon that is not started.
#[derive(Debug)]
#[repr(u8)]
enum Ends<T, S> {
    None,
    Some { transport: T, frames: S },
}

/// The parts of a balloon, for compactors and for services of the transport.
#[derive(Debug)]
pub struct Parts<'a, T, S, const N: usize = 16> {
    /// The engine, which compactors are stepped beside.
    pub engine: &'a mut Engine<N>,
    /// The way to the host.
    pub transport: &'a mut T,
    /// Free and ballooned frames.
    pub frames: &'a mut S,
}

/// The balloon runs already: what it was to be started with.
#[derive(Debug)]
pub struct AlreadyStarted<T, S> {
    /// The transport that is not used.
    pub transport: T,
    /// The frames that are not used.
    pub frames: S,
}

impl<T, S> core::fmt::Display for AlreadyStarted<T, S> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("the balloon runs already: stop it before it is started with other parts")
    }
}

impl<T: core::fmt::Debug, S: core::fmt::Debug> core::error::Error for AlreadyStarted<T, S> {}

impl<T, S, const N: usize> Balloon<T, S, N> {
    /// A balloon that is not started.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            engine: Engine::unstarted(),
            ends: Ends::None,
        }
    }

    /// The parts, if it is started.
    pub const fn parts(&mut self) -> Option<Parts<'_, T, S, N>> {
        match &mut self.ends {
            Ends::None => None,
            Ends::Some { transport, frames } => Some(Parts {
                engine: &mut self.engine,
                transport,
                frames,
            }),
        }
    }

    /// What the balloon works by.
    #[must_use]
    pub const fn policy(&self) -> &Policy {
        self.engine.policy()
    }

    /// As [`Engine::set_policy`].
    pub fn set_policy(&mut self, policy: Policy) {
        self.engine.set_policy(policy);
    }

    /// As [`Engine::take_events`].
    pub const fn take_events(&mut self) -> Events {
        self.engine.take_events()
    }

    /// As [`Engine::quiesce`].
    pub const fn quiesce(&mut self) {
        self.engine.quiesce();
    }

    /// As [`Engine::is_drained`].
    #[must_use]
    pub const fn is_drained(&self) -> bool {
        self.engine.is_drained()
    }

    /// As [`Engine::resume`].
    pub fn resume(&mut self, how: Resume) {
        self.engine.resume(how);
    }
}

impl<T: Transport, S: FrameSource + Ledger, const N: usize> Balloon<T, S, N> {
    /// Starts it: the next step reads the host's target.
    ///
    /// A ledger that is not empty is dealt with as [`Engine::new`] says.
    ///
    /// # Errors
    /// The balloon runs already; the parts are handed back.
    pub fn start(
        &mut self,
        shared: &'static Shared<N>,
        policy: Policy,
        transport: T,
        frames: S,
    ) -> Result<(), AlreadyStarted<T, S>> {
        if matches!(self.ends, Ends::Some { .. }) {
            return Err(AlreadyStarted { transport, frames });
        }
        self.engine.start(shared, policy);
        self.ends = Ends::Some { transport, frames };
        // A worker that sleeps until something happens: this is it.
        self.engine.wake();
        Ok(())
    }

    /// Ends it and hands the parts back: the device was unplugged, or another one comes.
    ///
    /// Frames that the host has stay in the ledger: [`retire`](Self::retire) brings them home
    /// first. `None` if it does not run, or if a request is still in flight
    /// ([`is_drained`](Self::is_drained)).
    pub fn stop(&mut self) -> Option<(T, S)> {
        if !self.engine.is_drained() {
            return None;
        }
        match core::mem::replace(&mut self.ends, Ends::None) {
            Ends::None => None,
            Ends::Some { transport, frames } => {
                self.engine.stop();
                Some((transport, frames))
            }
        }
    }

    /// As [`Engine::step`]; at rest before it is started.
    pub fn step(&mut self, now: Nanos, budget: Budget) -> Step {
        let Some(inside) = self.engine.enter() else {
            return Step {
                more: self.engine.is_started(),
                wake_at: None,
            };
        };
        let step = match &mut self.ends {
            Ends::None => Step::REST,
            Ends::Some { transport, frames } => self.engine.step(transport, frames, now, budget),
        };
        drop(inside);
        step
    }

    /// As [`Engine::relieve`]. `inside` proves that nobody is in the balloon, also to a kernel
    /// whose lock cannot tell: see [`Shared::enter`].
    pub fn relieve(&mut self, inside: Entered, need: Need, now: Nanos) -> Relief {
        let relief = match &mut self.ends {
            Ends::None => Relief::NONE,
            Ends::Some { transport, frames } => self.engine.relieve(transport, frames, need, now),
        };
        drop(inside);
        relief
    }

    /// As [`Engine::status`]; `None` before it is started.
    #[must_use]
    pub fn status(&self) -> Option<Status> {
        match &self.ends {
            Ends::None => None,
            Ends::Some { frames, .. } => Some(self.engine.status(frames)),
        }
    }

    /// As [`Engine::retire`].
    pub fn retire(&mut self, now: Nanos, budget: Budget) -> Step {
        match &mut self.ends {
            Ends::None => Step::REST,
            Ends::Some { frames, .. } => self.engine.retire(frames, now, budget),
        }
    }
}

impl<T, S, const N: usize> Default for Balloon<T, S, N> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, not(any(loom, miri))))]
mod tests;
