//! Talking to the host: what it wants, what it is told, what it refuses.

use super::{Engine, Io};
use crate::backoff::is_to_come;
use crate::events::Event;
use crate::slots::Claimed;
use crate::source::Ledger;
use crate::status::Blocked;
use crate::transport::{Transport, TransportError, TransportErrorKind};
use crate::units::{FrameCount, Nanos};

/// From one look at a host that seems absent to the next: moving a device or waking it
/// takes less.
const ABSENCE: Nanos = Nanos::from_secs(1);

impl<const N: usize> Engine<N> {
    /// Reads the target if the host may have changed it.
    pub(super) fn observe_target<T: Transport, S>(&mut self, io: &mut Io<'_, T, S>) {
        // Cleared before reading: a change that comes later is read again.
        if self
            .shared
            .is_some_and(|shared| shared.signal().take_config())
        {
            self.stale = true;
            // Whoever sets a target expects something of it: what was refused may
            // be granted now, also if the balloon is to have the same size, and what
            // was missed be seen.
            // Whether a host is there needs its time all the same.
            if !self.seems_absent() {
                self.host.hasten(io.now);
            }
            self.unseen |= self.is_silent();
        }
        self.stale |= !io.caps.interrupts;
        let rests = is_to_come(self.next_read, self.policy.min_read_interval, io.now);
        // A quiesced device may be asleep: what its registers show then says nothing of
        // it, and no target is followed.
        let unasked = self.mode.is_quiesced() || self.failed.is_some();
        if !self.stale || unasked || self.host.is_waiting(io.now) || rests {
            return;
        }
        self.next_read = io.now.saturating_add(self.policy.min_read_interval);
        let read = io.transport.read_target();
        let Some(target) = self.note(read, io.now) else {
            return;
        };
        self.stale = false;
        if self.target != Some(target) {
            self.target = Some(target);
            self.counters.target_changes = self.counters.target_changes.wrapping_add(1);
            self.events.push(Event::Target(target));
            self.give.reset();
        }
    }

    /// Submits the sealed request of a slot; frees the slot if it is empty.
    ///
    /// False if the host does not take it: its frames wait to be settled.
    pub(super) fn send<T: Transport, S>(
        &mut self,
        claimed: Claimed<'static>,
        io: &mut Io<'_, T, S>,
    ) -> bool {
        let (kind, slot) = (claimed.kind(), claimed.slot());
        let in_flight = self.with_host();
        let Some(shared) = self.shared else {
            return false;
        };
        let completer = shared.slots().completer();
        let table = self.table_mut(kind);
        if table
            .entry(slot)
            .is_none_or(|entry| entry.frames().is_zero())
        {
            return true;
        }
        let Some(request) = table.launch(claimed, io.now) else {
            return false;
        };
        let Err(error) = io.transport.submit(request, completer) else {
            table.set_full_at(0);
            self.counters.requests = self.counters.requests.wrapping_add(1);
            return true;
        };
        table.revoke(slot, FrameCount::ZERO);
        match error.kind() {
            // Room comes with the next answer, which wakes us.
            TransportErrorKind::Full if in_flight > 0 => table.set_full_at(in_flight),
            _ => {
                self.note::<(), _>(Err(error), io.now);
            }
        }
        false
    }

    /// Tells the host the size if it changed.
    pub(super) fn publish<T: Transport, S: Ledger>(&mut self, io: &mut Io<'_, T, S>) {
        let Some(size) = self.unpublished(io.source, io.now) else {
            return;
        };
        let written = io.transport.write_actual(size);
        if self.note(written, io.now).is_some() {
            self.published = Some(size);
        }
    }

    /// The size, if the host is to be told of it now.
    fn unpublished(&self, ledger: &impl Ledger, now: Nanos) -> Option<FrameCount> {
        // Frames being deflated are the host's until it answers. After a reset it
        // has none, whatever is left to take back.
        let size = if self.mode.is_resetting() {
            FrameCount::ZERO
        } else {
            self.size(ledger)
                .saturating_add(self.deflating.in_flight_frames())
        };
        let known =
            self.failed.is_some() || self.published == Some(size) || self.host.is_waiting(now);
        (!known).then_some(size)
    }

    /// Looks whether the host has been silent for too long; whether that is news. The
    /// next step tells it once more of what it has, which it may have missed: the first
    /// time after [`Policy::silent_after`](crate::Policy::silent_after), then whenever the
    /// silence is twice as long.
    pub(super) fn watch_silence(&mut self, answered: bool, now: Nanos) -> bool {
        let since = self.oldest().filter(|_| !answered);
        let silence = since.map_or(Nanos::ZERO, |since| now.saturating_sub(since));
        if since.is_none() || silence < self.policy.silent_after {
            self.rung = Nanos::ZERO;
            return false;
        }
        let to = silence >= self.next_bell();
        if to {
            self.rung = silence.max(Nanos::new(1));
            self.unseen = true;
            // Whoever is asked for the target finds out if there is no host any more.
            self.stale = true;
            self.next_read = Nanos::ZERO;
        }
        to
    }

    pub(super) fn is_silent(&self) -> bool {
        self.rung > Nanos::ZERO
    }

    /// After how long a silence the host is told of what it has, once more.
    pub(super) fn next_bell(&self) -> Nanos {
        self.policy
            .silent_after
            .max(self.rung.saturating_add(self.rung))
    }

    /// Tells the host once more of all that it has, if it may have missed some.
    pub(super) fn notify<T: Transport>(&mut self, transport: &mut T, now: Nanos) {
        if self.failed.is_none() {
            let notified = transport.notify();
            self.unseen = notified.is_err();
            self.note(notified, now);
        }
    }

    /// Makes requests visible and asks for a signal after so many answers; true
    /// if it is due already. One that fails is made again by a later step.
    pub(crate) fn kick<T: Transport>(
        &mut self,
        wake_after: usize,
        transport: &mut T,
        now: Nanos,
    ) -> bool {
        if self.failed.is_some() {
            return false;
        }
        let kicked = transport.kick(wake_after);
        // No more than that: what was missed before is seen by a notification alone.
        self.unseen |= kicked.is_err();
        self.note(kicked, now).unwrap_or(false)
    }

    /// Whether the host is let alone because nobody seems to be there.
    pub(super) fn seems_absent(&self) -> bool {
        self.host.reason() == Some(Blocked::DeviceSilent)
    }

    /// Books a transport's answer; `None` if it failed.
    pub(super) fn note<R, E: TransportError>(
        &mut self,
        result: Result<R, E>,
        now: Nanos,
    ) -> Option<R> {
        let error = match result {
            Ok(value) => return Some(value),
            Err(error) => error.kind(),
        };
        self.counters.transport_errors = self.counters.transport_errors.wrapping_add(1);
        if let Some(reason) = error.end() {
            self.lose(reason);
        } else {
            let mut delays = self.policy.retry;
            let mut reason = Blocked::HostRefused;
            match error {
                TransportErrorKind::Exhausted => delays.first = delays.cap,
                TransportErrorKind::Absent => {
                    (delays.first, delays.cap) = (ABSENCE, ABSENCE);
                    reason = Blocked::DeviceSilent;
                }
                _ => {}
            }
            self.host.fail(now, delays, reason);
            self.counters.back_offs = self.counters.back_offs.wrapping_add(1);
        }
        None
    }
}
