//! Suspend, snapshot, migration, device reset: stop, drain, go on.

use super::table::MAX_RUNS;
use super::{Engine, held};
use crate::backoff::Backoff;
use crate::policy::Budget;
use crate::run::Run;
use crate::slots::Completer;
use crate::slots::Request;
use crate::source::{FrameSource, Ledger};
use crate::status::{Blocked, Step};
use crate::transport::{Capabilities, Limits, Transport, TransportErrorKind};
use crate::units::{FrameCount, Nanos, Pfn};

/// Whether frames move, and which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mode {
    /// Nothing new starts; what is in flight is settled.
    quiesced: bool,
    /// The device was reset: it has forgotten what it was given, so all of it
    /// comes back without a request, and only then the target counts.
    resetting: bool,
}

impl Mode {
    pub(super) const RUNNING: Self = Self {
        quiesced: false,
        resetting: false,
    };

    pub(super) const fn is_quiesced(self) -> bool {
        self.quiesced
    }

    pub(super) const fn is_resetting(self) -> bool {
        self.resetting
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
    /// No target is read: the device may be asleep, and only who resumes finds out whether
    /// it is there.
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
        self.in_flight() + settling == 0 && !self.migrating.busy
    }

    /// Goes on, reading the target anew; the clock may be another one.
    pub fn resume(&mut self, how: Resume) {
        self.stale = true;
        self.published = None;
        self.rung = Nanos::ZERO;
        self.unit.expect_new_host();
        self.give = Backoff::Ready;
        // The same host that seems absent is not looked at sooner.
        if how == Resume::Reset || !self.seems_absent() {
            self.host = Backoff::Ready;
        }
        self.source = Backoff::Ready;
        self.cool_until = None;
        self.next_read = Nanos::ZERO;
        self.restored = true;
        self.fresh = false;
        self.mode.quiesced = false;
        if let Some(shared) = self.shared {
            shared.signal().config_changed();
        }
        // Whatever has become of the host, it hears of what it has.
        self.unseen = true;
        if how == Resume::Reset {
            self.failed = None;
            self.begin_reset();
        }
    }

    /// Takes every frame home without a transport: the device is gone, or was reset
    /// and is given up.
    ///
    /// Like a [`step`](Self::step), so to be called again as its result says; all is
    /// home once the [`status`](Self::status) counts no frame any more. Then neither
    /// transport nor device is needed; [`Resume::Reset`] begins anew with others. A
    /// compactor is stepped as well, as long as it has frames in hand.
    ///
    /// A transport that finds its device gone says so
    /// ([`TransportErrorKind::Gone`](crate::TransportErrorKind::Gone)), and steps do the
    /// same from then on.
    ///
    /// A device that still runs may discard what its requests in flight name: this is
    /// for one that does not.
    pub fn retire<S: FrameSource + Ledger>(
        &mut self,
        source: &mut S,
        now: Nanos,
        budget: Budget,
    ) -> Step {
        // What was to stay as it is for a device has none to stay for.
        self.mode.quiesced = false;
        self.lose(Blocked::DeviceGone);
        self.step(&mut Nobody, source, now, budget)
    }

    /// The host is not spoken to any more, for this reason.
    pub(super) fn lose(&mut self, reason: Blocked) {
        if self.failed == Some(Blocked::DeviceGone) {
            return;
        }
        if self.failed != Some(reason) {
            // Others have frames with the same host, and may have looked already.
            self.wake();
        }
        self.failed = Some(reason);
        self.stale = true;
        if reason == Blocked::DeviceGone {
            // Nobody is left who could write to what was on its way.
            self.target = None;
            self.host = Backoff::Ready;
            self.begin_reset();
        }
    }

    /// The host has forgotten what it was given: requests in flight are void, their
    /// frames the guest's.
    fn begin_reset(&mut self) {
        self.unseen = false;
        self.rung = Nanos::ZERO;
        self.mode.resetting = true;
        self.inflating.revoke_all(FrameCount::ZERO);
        self.deflating.revoke_all(FrameCount::MAX);
    }

    /// What a ledger holds when the first step looks was given by somebody before: the
    /// host knows nothing of it, unless a resume has said so.
    pub(super) fn begin(&mut self, ledger: &impl Ledger) {
        if core::mem::take(&mut self.fresh) && !held(ledger).is_zero() {
            self.begin_reset();
        }
    }

    /// Ends the reset once nothing of the old balloon is left.
    pub(super) fn finish_reset(&mut self) {
        if self.mode.resetting && self.is_drained() {
            self.mode.resetting = false;
            // The next step goes for the target, and migrations may start.
            self.wake();
        }
    }
}

/// In the place of a transport: nobody is there, and nobody is spoken to.
#[derive(Debug)]
struct Nobody;

impl Transport for Nobody {
    type Error = TransportErrorKind;

    fn capabilities(&self) -> Capabilities {
        let all = Limits {
            frames: FrameCount::MAX,
            runs: MAX_RUNS,
            run: Run::MAX,
            in_flight: usize::MAX,
            below: Pfn::LIMIT,
        };
        Capabilities::new(all, all)
    }

    fn read_target(&mut self) -> Result<FrameCount, Self::Error> {
        Err(TransportErrorKind::Gone)
    }

    fn write_actual(&mut self, _: FrameCount) -> Result<(), Self::Error> {
        Err(TransportErrorKind::Gone)
    }

    fn submit(&mut self, _: Request<'_>, _: Completer<'_>) -> Result<(), Self::Error> {
        Err(TransportErrorKind::Gone)
    }

    fn kick(&mut self, _: usize) -> Result<bool, Self::Error> {
        Err(TransportErrorKind::Gone)
    }

    fn reap(&mut self, _: Completer<'_>) -> Result<usize, Self::Error> {
        Err(TransportErrorKind::Gone)
    }
}
