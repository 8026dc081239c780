//! Talking to the host: what it wants, what it is told, what it refuses.

use super::{Engine, Io};
use crate::events::Event;
use crate::slots::Claimed;
use crate::source::Ledger;
use crate::status::Blocked;
use crate::transport::{Transport, TransportError, TransportErrorKind};
use crate::units::{FrameCount, Nanos};

impl<const N: usize> Engine<N> {
    /// Reads the target if the host may have changed it.
    pub(super) fn observe_target<T: Transport, S>(&mut self, io: &mut Io<'_, T, S>) {
        // Cleared before reading: a change that comes later is read again.
        if self.shared.signal().take_config() {
            self.stale = true;
            // Whoever sets a target expects something of it: what was refused may
            // be granted now, also if the balloon is to have the same size.
            self.host.hasten(io.now);
        }
        self.stale |= !io.caps.interrupts;
        if !self.stale || self.broken || self.host.is_waiting(io.now) || io.now < self.next_read {
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
        let completer = self.shared.slots().completer();
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
            table.set_full_at(usize::MAX);
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
        let size = if self.mode.is_forgetting() {
            FrameCount::ZERO
        } else {
            self.size(ledger)
                .saturating_add(self.deflating.in_flight_frames())
        };
        let known = self.broken || self.published == Some(size) || self.host.is_waiting(now);
        (!known).then_some(size)
    }

    /// Makes requests visible and asks for a signal after so many answers; true
    /// if it is due already. One that fails is made again by a later step.
    pub(crate) fn kick<T: Transport>(
        &mut self,
        wake_after: usize,
        transport: &mut T,
        now: Nanos,
    ) -> bool {
        if self.broken {
            return false;
        }
        let kicked = transport.kick(wake_after);
        self.unseen = kicked.is_err();
        self.note(kicked, now).unwrap_or(false)
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
        if error == TransportErrorKind::Broken {
            self.broken = true;
        } else {
            self.host.fail(now, self.policy.retry, Blocked::HostRefused);
            self.counters.back_offs = self.counters.back_offs.wrapping_add(1);
        }
        None
    }
}
