//! A transport whose targets and sizes are written down, and one that replays
//! them.

use alloc::vec::Vec;

use crate::migrate::{Migrate, MigrateRequest, Migration};
use crate::slots::Completer;
use crate::slots::Request;
use crate::transport::{Capabilities, Transport};
use crate::units::{FrameCount, Nanos, Order};

/// What was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// The host wants a balloon of this size.
    Target(FrameCount),
    /// The guest published this size.
    Size(FrameCount),
}

/// What host and guest said to each other, each change once, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recording {
    /// When, and what.
    pub entries: Vec<(Nanos, Said)>,
}

impl Recording {
    /// A host that changes its mind at these times.
    #[must_use]
    pub fn of_targets(targets: impl IntoIterator<Item = (Nanos, FrameCount)>) -> Self {
        let entry = |(at, target)| (at, Said::Target(target));
        Self {
            entries: targets.into_iter().map(entry).collect(),
        }
    }

    /// The targets.
    pub fn targets(&self) -> impl Iterator<Item = (Nanos, FrameCount)> {
        self.entries.iter().filter_map(|&(at, said)| match said {
            Said::Target(target) => Some((at, target)),
            Said::Size(_) => None,
        })
    }

    /// The sizes.
    pub fn sizes(&self) -> impl Iterator<Item = (Nanos, FrameCount)> {
        self.entries.iter().filter_map(|&(at, said)| match said {
            Said::Size(size) => Some((at, size)),
            Said::Target(_) => None,
        })
    }

    /// The target in force at `now`; none before the first.
    #[must_use]
    pub fn target_at(&self, now: Nanos) -> Option<FrameCount> {
        let passed = self.targets().take_while(|&(at, _)| at <= now);
        passed.last().map(|(_, target)| target)
    }

    /// The size published last at `now`; none before the first.
    #[must_use]
    pub fn size_at(&self, now: Nanos) -> Option<FrameCount> {
        let passed = self.sizes().take_while(|&(at, _)| at <= now);
        passed.last().map(|(_, size)| size)
    }
}

/// The transport `T` with a [`Recording`] of what went over it.
///
/// Transports know no time: say it before each step.
///
/// ```
/// use balloon_core::testing::{FakeHost, FakeSource, Recorder, Replay};
/// use balloon_core::{Budget, Engine, FrameCount, FrameRange, Nanos, Pfn, Policy, Shared};
///
/// static SHARED: Shared<16> = Shared::new();
///
/// let mut engine = Engine::new(&SHARED, Policy::DEFAULT);
/// let memory = FrameRange::new(Pfn::new(0), FrameCount::new(1000)).unwrap();
/// let mut source = FakeSource::new(memory);
/// let mut host = Recorder::new(FakeHost::plain());
/// host.inner_mut().target = FrameCount::new(300);
/// for second in 0..3 {
///     let now = Nanos::from_secs(second);
///     host.now = now;
///     engine.step(&mut host, &mut source, now, Budget::LARGE);
/// }
/// let recording = host.into_recording();
/// assert_eq!(recording.target_at(Nanos::ZERO), Some(FrameCount::new(300)));
/// assert_eq!(recording.sizes().last().unwrap().1, FrameCount::new(300));
///
/// // The same wishes to another guest.
/// let again = Replay::new(FakeHost::bulk(), recording);
/// # let _ = again;
/// ```
#[derive(Clone, Debug)]
pub struct Recorder<T> {
    inner: T,
    recording: Recording,
    target: Option<FrameCount>,
    size: Option<FrameCount>,
    /// The time of what comes next.
    pub now: Nanos,
}

impl<T> Recorder<T> {
    /// Records what goes over `inner`.
    #[must_use]
    pub const fn new(inner: T) -> Self {
        Self {
            inner,
            recording: Recording {
                entries: Vec::new(),
            },
            target: None,
            size: None,
            now: Nanos::ZERO,
        }
    }

    /// What was recorded so far.
    #[must_use]
    pub const fn recording(&self) -> &Recording {
        &self.recording
    }

    /// Ends the recording.
    #[must_use]
    pub fn into_recording(self) -> Recording {
        self.recording
    }

    /// The transport.
    pub const fn inner(&self) -> &T {
        &self.inner
    }

    /// The transport, to change something.
    pub const fn inner_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

/// The transport `T` whose host wants what a [`Recording`] says, at its times.
///
/// Its own target is not read; everything else is the transport's.
#[derive(Clone, Debug)]
pub struct Replay<T> {
    inner: T,
    recording: Recording,
    now: Nanos,
}

impl<T> Replay<T> {
    /// Replays from the beginning.
    #[must_use]
    pub const fn new(inner: T, recording: Recording) -> Self {
        Self {
            inner,
            recording,
            now: Nanos::ZERO,
        }
    }

    /// Goes on to `now`; true if the target is another one since, so that
    /// [`Signal::config_changed`](crate::Signal::config_changed) is due.
    pub fn advance(&mut self, now: Nanos) -> bool {
        let before = self.recording.target_at(self.now);
        self.now = now;
        before != self.recording.target_at(now)
    }

    /// When the host next changes its mind.
    #[must_use]
    pub fn next_change(&self) -> Option<Nanos> {
        let later = |&(at, _): &(Nanos, _)| at > self.now;
        self.recording.targets().find(later).map(|(at, _)| at)
    }

    /// The transport.
    pub const fn inner(&self) -> &T {
        &self.inner
    }

    /// The transport, to change something.
    pub const fn inner_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

/// Passes on what has no part in the record.
macro_rules! pass_on {
    () => {
        fn capabilities(&self) -> Capabilities {
            self.inner.capabilities()
        }

        fn submit(&mut self, request: Request<'_>, done: Completer<'_>) -> Result<(), Self::Error> {
            self.inner.submit(request, done)
        }

        fn kick(&mut self, wake_after: usize) -> Result<bool, Self::Error> {
            self.inner.kick(wake_after)
        }

        fn notify(&mut self) -> Result<(), Self::Error> {
            self.inner.notify()
        }

        fn announce_unit(&mut self, unit: Order) -> Result<(), Self::Error> {
            self.inner.announce_unit(unit)
        }

        fn reap(&mut self, done: Completer<'_>) -> Result<usize, Self::Error> {
            self.inner.reap(done)
        }
    };
}

/// Notes a change.
fn note(
    recording: &mut Recording,
    now: Nanos,
    last: &mut Option<FrameCount>,
    value: FrameCount,
    said: fn(FrameCount) -> Said,
) {
    if last.replace(value) != Some(value) {
        recording.entries.push((now, said(value)));
    }
}

impl<T: Transport> Transport for Recorder<T> {
    type Error = T::Error;

    fn read_target(&mut self) -> Result<FrameCount, Self::Error> {
        let target = self.inner.read_target()?;
        let (recording, last) = (&mut self.recording, &mut self.target);
        note(recording, self.now, last, target, Said::Target);
        Ok(target)
    }

    fn write_actual(&mut self, size: FrameCount) -> Result<(), Self::Error> {
        self.inner.write_actual(size)?;
        let (recording, last) = (&mut self.recording, &mut self.size);
        note(recording, self.now, last, size, Said::Size);
        Ok(())
    }

    pass_on!();
}

impl<T: Transport> Transport for Replay<T> {
    type Error = T::Error;

    fn read_target(&mut self) -> Result<FrameCount, Self::Error> {
        Ok(self.recording.target_at(self.now).unwrap_or_default())
    }

    fn write_actual(&mut self, size: FrameCount) -> Result<(), Self::Error> {
        self.inner.write_actual(size)
    }

    pass_on!();
}

impl<T: Migrate> Migrate for Recorder<T> {
    fn migration(&self) -> Migration {
        self.inner.migration()
    }

    fn submit_migrate(
        &mut self,
        request: MigrateRequest<'_>,
        done: Completer<'_>,
    ) -> Result<(), Self::Error> {
        self.inner.submit_migrate(request, done)
    }
}

impl<T: Migrate> Migrate for Replay<T> {
    fn migration(&self) -> Migration {
        self.inner.migration()
    }

    fn submit_migrate(
        &mut self,
        request: MigrateRequest<'_>,
        done: Completer<'_>,
    ) -> Result<(), Self::Error> {
        self.inner.submit_migrate(request, done)
    }
}
