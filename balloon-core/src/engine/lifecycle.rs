//! Suspend, snapshot, migration, device reset: stop, drain, go on.

use super::Engine;
use crate::backoff::Backoff;
use crate::units::FrameCount;

/// Whether frames move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Running,
    /// Nothing new starts; what is in flight is settled.
    Quiesced,
    /// The device was reset: it has forgotten what it was given, so all of it
    /// comes back without a request, and only then the target counts.
    Forgetting,
}

impl Mode {
    pub(super) const fn is_quiesced(self) -> bool {
        matches!(self, Self::Quiesced)
    }

    pub(super) const fn is_forgetting(self) -> bool {
        matches!(self, Self::Forgetting)
    }
}

/// What happened to the host's end while the engine was quiesced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// The host remembers what it was given: a snapshot, a migration, a
    /// cancelled suspend.
    Kept,
    /// The device was reset or replaced; requests in flight are void.
    ///
    /// Every ballooned frame returns to the allocator with unknown backing; the
    /// first size that is published is zero; then the target is followed anew.
    Reset,
}

impl<const N: usize> Engine<N> {
    /// Starts nothing new from here on.
    ///
    /// Keep stepping until [`is_drained`](Self::is_drained), then suspend: what the
    /// [`status`](Self::status) counts then stays as it is, and each frame is free
    /// or ballooned. A host that answers nothing keeps some in flight; they are void
    /// after [`Resume::Reset`] alone. A compactor is stopped and drained likewise.
    ///
    /// ```
    /// use balloon_core::testing::{FakeHost, FakeSource};
    /// use balloon_core::*;
    ///
    /// static SHARED: Shared = Shared::new();
    /// # let memory = FrameRange::new(Pfn::new(0), FrameCount::new(1000)).unwrap();
    /// # let (mut source, mut host) = (FakeSource::new(memory), FakeHost::plain());
    /// let mut engine = Engine::new(&SHARED, Policy::DEFAULT);
    /// # host.target = FrameCount::new(300);
    /// # let now = Nanos::ZERO;
    /// engine.step(&mut host, &mut source, now, Budget::LARGE);
    ///
    /// // The toolstack announces a suspend: stop, and drain.
    /// engine.quiesce();
    /// while !engine.is_drained() {
    ///     engine.step(&mut host, &mut source, now, Budget::LARGE);
    ///     // ... or wait for the host's signal, no longer than `Step::wake_at`
    /// }
    /// let frozen = engine.status(&source);
    /// assert_eq!((frozen.size, frozen.progress), (host.target, Progress::Quiesced));
    ///
    /// // Suspended, and awake again. A host that kept its books (a snapshot, a
    /// // migration, a suspend that was cancelled) may want another size by now.
    /// host.target = FrameCount::new(100);
    /// engine.resume(Resume::Kept);
    /// # let now = Nanos::from_secs(60);
    /// while engine.step(&mut host, &mut source, now, Budget::LARGE).more {}
    /// assert_eq!(engine.status(&source).size, host.target);
    /// ```
    pub fn quiesce(&mut self) {
        if self.mode == Mode::Running {
            self.mode = Mode::Quiesced;
        }
    }

    /// Whether no frame is between the guest and its host.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.inflating.frames().is_zero()
            && self.deflating.frames().is_zero()
            && self.migrating.drained
    }

    /// Goes on, reading the target anew.
    pub fn resume(&mut self, how: Resume) {
        self.stale = true;
        self.published = None;
        self.silent = false;
        self.unit.expect_new_host();
        self.give = Backoff::Ready;
        self.host = Backoff::Ready;
        match how {
            Resume::Kept => {
                if self.mode == Mode::Quiesced {
                    self.mode = Mode::Running;
                }
            }
            Resume::Reset => {
                self.broken = false;
                self.unseen = false;
                self.mode = Mode::Forgetting;
                // Requests in flight are void: their frames are the guest's.
                self.inflating.revoke_all(FrameCount::ZERO);
                self.deflating.revoke_all(FrameCount::MAX);
            }
        }
    }

    /// Ends forgetting once nothing of the old balloon is left.
    pub(super) fn finish_forgetting(&mut self) {
        if self.mode == Mode::Forgetting && self.is_drained() {
            self.mode = Mode::Running;
        }
    }
}
