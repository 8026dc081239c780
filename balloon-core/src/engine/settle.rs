//! What the host answered: frames go to the place the answer gives them.

use super::{Engine, Io};
use crate::backing::Backing;
use crate::slots::{Kind, SlotId};
use crate::source::{FrameSource, Ledger};
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
        // What others took up first is not among what is taken up here.
        self.take_answers(io.now);
        let waiting = self.in_flight();
        if let (Some(shared), None) = (self.shared, self.failed) {
            let reaped = io.transport.reap(shared.slots().completer());
            let reaped = self.note(reaped, io.now);
            self.take_answers(io.now);
            let own = waiting - self.in_flight();
            if reaped.map_or(self.failed.is_some(), |answers| answers > own) {
                // Some are for others, who may have looked already.
                self.wake();
            }
        }
        self.in_flight() < before
    }

    /// Takes up what is answered of the engine's own requests.
    fn take_answers(&mut self, now: Nanos) {
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
        if refused && !self.host.is_waiting(now) {
            self.host.fail(now, self.policy.retry, Blocked::HostRefused);
            // What was missing when this was asked for is told anew then.
            self.give.reset();
            self.counters.back_offs = self.counters.back_offs.wrapping_add(1);
        }
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
                refused |= !self.settle_slot(kind, slot, io.source);
                from = slot.index() + 1;
            }
        }
        if self.inflating.settling() + self.deflating.settling() == 0 {
            self.source.reset();
        } else if refused {
            self.source_refuses(io.now);
        }
    }

    /// The source did not take frames: it is asked again later.
    pub(super) fn source_refuses(&mut self, now: Nanos) {
        if !self.source.is_waiting(now) {
            self.source
                .fail(now, self.policy.retry, Blocked::SourceRefused);
        }
    }

    /// Settles one request; false if the source keeps refusing some frames.
    pub(super) fn settle_slot(
        &mut self,
        kind: Kind,
        slot: SlotId,
        source: &mut (impl FrameSource + Ledger),
    ) -> bool {
        let returned_as = self.returned_as();
        self.table_mut(kind)
            .place(slot, |range, done, via| match (kind, done) {
                (Kind::Inflate, true) | (Kind::Deflate, false) => source.store(range, via),
                (Kind::Inflate, false) => source.put(range, Backing::Unknown),
                _ => source.put(range, returned_as),
            })
    }

    /// What is known of frames that come back.
    pub(super) const fn returned_as(&self) -> Backing {
        // After a reset nobody knows what the host did with them.
        if self.mode.is_resetting() {
            Backing::Unknown
        } else {
            Backing::Unpopulated
        }
    }
}
