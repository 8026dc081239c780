//! What the host answered: frames go to the place the answer gives them.

use super::{Engine, Io};
use crate::slots::{Kind, SlotId};
use crate::source::{Backing, FrameSource, Ledger};
use crate::status::Blocked;
use crate::transport::Transport;
use crate::units::Nanos;

impl<const N: usize> Engine<N> {
    /// Looks for answers; true if there were any.
    pub(super) fn collect<T: Transport, S>(&mut self, io: &mut Io<'_, T, S>) -> bool {
        let before = self.in_flight();
        if before == 0 {
            return false;
        }
        if !self.broken {
            let reaped = io.transport.reap(self.shared.slots().completer());
            self.note(reaped, io.now);
        }
        let counters = &mut self.counters;
        let mut refused = false;
        self.inflating.collect(|entry, done| {
            refused |= done.is_zero() && !entry.frames().is_zero();
            counters.inflated = counters.inflated.saturating_add(done);
            counters.useful = counters.useful.saturating_add(entry.populated().min(done));
        });
        self.deflating.collect(|entry, done| {
            refused |= done.is_zero() && !entry.frames().is_zero();
            counters.deflated = counters.deflated.saturating_add(done);
        });
        // An answer that carries nothing out is a refusal: without a pause the
        // same request would come and go for ever.
        if refused && !self.host.is_waiting(io.now) {
            self.host
                .fail(io.now, self.policy.retry, Blocked::HostRefused);
            // What was missing when this was asked for is told anew then.
            self.give.reset();
            self.counters.back_offs = self.counters.back_offs.wrapping_add(1);
        }
        let answered = self.in_flight() < before;
        let overdue = |since: Nanos| io.now.saturating_sub(since) >= self.policy.silent_after;
        let silent = !answered && self.oldest().is_some_and(overdue);
        // Once more, in case the host was not told.
        self.unseen |= silent && !self.silent;
        self.silent = silent;
        answered
    }

    /// Puts the frames of answered and refused requests in their places.
    pub(super) fn settle<T, S: FrameSource + Ledger>(&mut self, io: &mut Io<'_, T, S>) {
        if !self.source.is_waiting(io.now) {
            self.inflating.ask_again();
            self.deflating.ask_again();
        }
        let mut refused = false;
        for kind in [Kind::Inflate, Kind::Deflate] {
            let mut from = 0;
            while let Some(slot) = self.table(kind).next_settling(from) {
                if !io.budget.spend() {
                    break;
                }
                refused |= !self.place(kind, slot, io.source);
                from = slot.index() + 1;
            }
        }
        if self.inflating.settling() + self.deflating.settling() == 0 {
            self.source.reset();
        } else if refused && !self.source.is_waiting(io.now) {
            self.source
                .fail(io.now, self.policy.retry, Blocked::SourceRefused);
        }
    }

    /// Settles one request; false if the source keeps refusing some frames.
    pub(super) fn place(
        &mut self,
        kind: Kind,
        slot: SlotId,
        source: &mut (impl FrameSource + Ledger),
    ) -> bool {
        let returned_as = self.returned_as();
        self.table_mut(kind)
            .place(slot, |range, done, path| match (kind, done) {
                (Kind::Inflate, true) | (Kind::Deflate, false) => source.store(range, path),
                (Kind::Inflate, false) => source.put(range, Backing::Unknown),
                _ => source.put(range, returned_as),
            })
    }

    /// What is known of frames that come back.
    pub(super) const fn returned_as(&self) -> Backing {
        // After a reset nobody knows what the host did with them.
        if self.mode.is_forgetting() {
            Backing::Unknown
        } else {
            Backing::Unpopulated
        }
    }
}
