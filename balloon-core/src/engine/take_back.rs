//! Deflation: ballooned frames become free again.

use super::table::Entry;
use super::{Engine, Io};
use crate::run::{RangeSink, Run};
use crate::slots::{Claimed, Kind};
use crate::source::{FrameSource, GivePath, Ledger, Stop};
use crate::transport::{Limits, Transport};
use crate::units::{FrameCount, Order};

impl<const N: usize> Engine<N> {
    /// Takes back until `surplus` frames are on their way.
    ///
    /// Frames given in bulk first: they cost no request.
    pub(super) fn take_back<T: Transport, S: FrameSource + Ledger>(
        &mut self,
        mut surplus: FrameCount,
        io: &mut Io<'_, T, S>,
    ) {
        let most = io.caps.deflate.in_flight.min(N - 1);
        let burst = self.deflating.in_flight() < most / 2 + 1;
        while !surplus.is_zero() {
            let Some(path) = self.next_path(io.source) else {
                return;
            };
            let told = path == GivePath::Told && !self.mode.is_forgetting();
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
            let Ok(claimed) = self.shared.slots().claim_but_last(Kind::Deflate) else {
                return;
            };
            let frames = self.recall(&claimed, path, surplus, io);
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
        self.finish_forgetting();
    }

    /// The path whose frames come back cheapest; `None` if all that is missing
    /// is still on its way to the host.
    pub(super) fn next_path(&self, ledger: &impl Ledger) -> Option<GivePath> {
        GivePath::ALL
            .into_iter()
            .find(|&path| !ledger.held(path).is_zero())
    }

    /// Ballooned → a claimed deflate slot, up to one request's worth: how many
    /// frames.
    ///
    /// Whole blocks first, and none is cut as long as as much is wanted: only in one
    /// piece do they bring back the host's large mapping.
    pub(super) fn recall<T: Transport, S: FrameSource + Ledger>(
        &mut self,
        claimed: &Claimed<'static>,
        path: GivePath,
        surplus: FrameCount,
        io: &mut Io<'_, T, S>,
    ) -> FrameCount {
        let limits = match path {
            GivePath::Bulk => Limits {
                frames: FrameCount::MAX,
                run: Run::MAX,
                ..io.caps.deflate
            },
            GivePath::Told => io.caps.deflate,
        };
        let unit = self.return_order(limits, &io.caps);
        let Some(entry) = self.deflating.entry_mut(claimed.slot()) else {
            return FrameCount::ZERO;
        };
        let stop = lay(entry, io.source, path, unit, limits, surplus);
        let left = surplus.saturating_sub(entry.frames());
        if unit > Order::FRAME && (stop != Stop::Enough || left < unit.frames()) {
            lay(entry, io.source, path, Order::FRAME, limits, surplus);
        }
        entry.seal(path, io.caps.deflate.run);
        let frames = entry.frames();
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
        self.deflating.settle(claimed, frames);
        self.place(Kind::Deflate, slot, source)
    }
}

/// Recalls blocks of `unit` until the entry holds `surplus` frames or one limit is
/// met.
fn lay(
    entry: &mut Entry,
    ledger: &mut impl Ledger,
    path: GivePath,
    unit: Order,
    limits: Limits,
    surplus: FrameCount,
) -> Stop {
    let most = limits.frames.min(surplus);
    let wanted = most.saturating_sub(entry.frames()).round_down(unit);
    let sink = RangeSink::new(entry.spare(limits.runs), wanted);
    let mut sink = sink.with_longest_run(limits.run.round_down(unit));
    if sink.is_full() {
        return Stop::Enough;
    }
    let stop = ledger.recall(path, unit, &mut sink);
    let laid = sink.into();
    entry.extend(laid);
    stop
}
