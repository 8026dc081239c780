//! Deflation: ballooned frames become free again.

use super::table::{Entry, MAX_RUNS};
use super::{Engine, Io};
use crate::run::{RangeSink, Run};
use crate::slots::{Claimed, Kind};
use crate::source::{FrameSource, Ledger, Shortage, Via};
use crate::transport::{Limits, Transport};
use crate::units::{FrameCount, Order, Pfn};

impl<const N: usize> Engine<N> {
    /// Takes back until `surplus` frames are on their way.
    ///
    /// Frames given in bulk first: they cost no request.
    pub(super) fn deflate<T: Transport, S: FrameSource + Ledger>(
        &mut self,
        mut surplus: FrameCount,
        io: &mut Io<'_, T, S>,
    ) {
        let most = io.caps.deflate.in_flight.min(N - 1);
        let burst = self.deflating.in_flight() < most / 2 + 1;
        while !surplus.is_zero() {
            let Some(via) = self.next_via(io.source) else {
                return;
            };
            let told = via == Via::Inflate && !self.mode.is_resetting();
            if told && !io.caps.deflate.hold(Order::FRAME) {
                self.unsupported = true;
                return;
            }
            let full = self.deflating.is_full_at(self.with_host());
            if told && (full || !burst || self.deflating.in_flight() >= most) {
                return;
            }
            if !io.budget.spend() {
                return;
            }
            // One slot is left for relief, which may need it while all are in use.
            let Some(claimed) = self.claim_but_last(Kind::Deflate) else {
                return;
            };
            let frames = self.fill_from_ledger(&claimed, via, surplus, false, io);
            let going = if told {
                self.send(claimed, io)
            } else {
                self.reclaim(claimed, io.source)
            };
            if !going || frames.is_zero() {
                return;
            }
            surplus = surplus.saturating_sub(frames);
        }
        self.finish_reset();
    }

    /// The path whose frames come back cheapest; `None` if all that is missing
    /// is still on its way to the host.
    pub(super) fn next_via(&self, ledger: &impl Ledger) -> Option<Via> {
        Via::ALL
            .into_iter()
            .find(|&via| !ledger.held(via).is_zero())
    }

    /// Ballooned → a claimed deflate slot, up to one request's worth: how many
    /// frames.
    ///
    /// Whole blocks first, and none is cut as long as as much is wanted: only in one
    /// piece do they bring back the host's large mapping. If it is `urgent`, a search for
    /// them that takes long is no reason to bring nothing.
    pub(super) fn fill_from_ledger<T: Transport, S: FrameSource + Ledger>(
        &mut self,
        claimed: &Claimed<'static>,
        via: Via,
        surplus: FrameCount,
        urgent: bool,
        io: &mut Io<'_, T, S>,
    ) -> FrameCount {
        // What needs no request needs no room for one.
        let told = io.caps.deflate;
        let limits = match via {
            Via::Inflate if told.hold(Order::FRAME) => told,
            _ => Limits {
                frames: FrameCount::MAX,
                runs: MAX_RUNS,
                run: Run::MAX,
                in_flight: 1,
                below: Pfn::LIMIT,
            },
        };
        let unit = self.return_order(limits, &io.caps);
        let Some(entry) = self.deflating.entry_mut(claimed.slot()) else {
            return FrameCount::ZERO;
        };
        let effort = io.budget.effort();
        let fill_with = |unit| Fill {
            via,
            unit,
            effort,
            frames: surplus,
        };
        let mut stop = fill_entry(entry, io.source, fill_with(unit), limits);
        while stop == Shortage::Again && entry.frames().is_zero() && io.budget.spend() {
            stop = fill_entry(entry, io.source, fill_with(unit), limits);
        }
        let left = surplus.saturating_sub(entry.frames());
        // A kernel of whole blocks has no use for part of one.
        let cuts = (left < unit.frames() || (urgent && entry.frames().is_zero()))
            && self.policy.granularity.smallest() == Order::FRAME;
        let gone = !matches!(stop, Shortage::None | Shortage::Again);
        if unit > Order::FRAME && (gone || cuts) {
            fill_entry(entry, io.source, fill_with(Order::FRAME), limits);
        }
        entry.seal(via, limits.run);
        let frames = entry.frames();
        self.goes_on(stop);
        self.forget_whole_blocks();
        frames
    }

    /// Frees the frames of a filled deflate slot without asking the host.
    pub(super) fn reclaim(
        &mut self,
        claimed: Claimed<'static>,
        source: &mut (impl FrameSource + Ledger),
    ) -> bool {
        let slot = claimed.slot();
        let Some(entry) = self.deflating.entry(slot) else {
            return false;
        };
        let frames = entry.frames();
        self.counters.deflated = self.counters.deflated.saturating_add(frames);
        self.deflating.answer(claimed, frames);
        self.settle_slot(Kind::Deflate, slot, source)
    }
}

/// What one request should bring back.
#[derive(Clone, Copy, Debug)]
struct Fill {
    via: Via,
    unit: Order,
    /// What it may cost the ledger.
    effort: u32,
    frames: FrameCount,
}

/// Recalls blocks until the entry holds what is wished for or one limit is met.
fn fill_entry(
    entry: &mut Entry,
    ledger: &mut impl Ledger,
    fill_with: Fill,
    limits: Limits,
) -> Shortage {
    let most = limits.frames.min(fill_with.frames);
    let wanted = most
        .saturating_sub(entry.frames())
        .round_down(fill_with.unit);
    let sink = RangeSink::new(entry.spare(limits.runs), wanted);
    let mut sink = sink
        .with_longest_run(limits.run.round_down(fill_with.unit))
        .with_effort(fill_with.effort, fill_with.unit);
    if sink.is_full() {
        return Shortage::None;
    }
    let stop = ledger.recall(fill_with.via, fill_with.unit, &mut sink);
    let laid = sink.into();
    entry.extend(laid);
    stop
}
