//! Suspend, snapshot, migration, device reset: stop, drain, go on.

use super::Engine;
use crate::backoff::Backoff;
use crate::units::FrameCount;

/// Whether frames move, and which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mode {
    /// Nothing new starts; what is in flight is settled.
    quiesced: bool,
    /// The device was reset: it has forgotten what it was given, so all of it
    /// comes back without a request, and only then the target counts.
    forgetting: bool,
}

impl Mode {
    pub(super) const RUNNING: Self = Self {
        quiesced: false,
        forgetting: false,
    };

    pub(super) const fn is_quiesced(self) -> bool {
        self.quiesced
    }

    pub(super) const fn is_forgetting(self) -> bool {
        self.forgetting
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
    pub const fn quiesce(&mut self) {
        self.mode.quiesced = true;
    }

    /// Whether no frame is between the guest and its host, and no request either:
    /// of one whose frames were used early the host is still to be heard.
    #[must_use]
    pub const fn is_drained(&self) -> bool {
        let settling = self.inflating.settling() + self.deflating.settling();
        self.in_flight() + settling == 0 && self.migrating.drained
    }

    /// Goes on, reading the target anew.
    pub fn resume(&mut self, how: Resume) {
        self.stale = true;
        self.published = None;
        self.silent = false;
        self.unit.expect_new_host();
        self.give = Backoff::Ready;
        self.host = Backoff::Ready;
        self.mode.quiesced = false;
        if how == Resume::Reset {
            self.broken = false;
            self.unseen = false;
            self.mode.forgetting = true;
            // Requests in flight are void: their frames are the guest's.
            self.inflating.revoke_all(FrameCount::ZERO);
            self.deflating.revoke_all(FrameCount::MAX);
        }
    }

    /// Ends forgetting once nothing of the old balloon is left.
    pub(super) fn finish_forgetting(&mut self) {
        if self.mode.forgetting && self.is_drained() {
            self.mode.forgetting = false;
            // The next step goes for the target.
            self.shared.signal().used();
        }
    }
}
