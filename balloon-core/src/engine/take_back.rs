//! Deflation: ballooned frames become free again.

use super::{Engine, Io};
use crate::run::RangeSink;
use crate::slots::{Claimed, Kind};
use crate::source::{FrameSource, GivePath, Ledger};
use crate::transport::Transport;
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
    pub(super) fn recall<T: Transport, S: FrameSource + Ledger>(
        &mut self,
        claimed: &Claimed<'static>,
        path: GivePath,
        surplus: FrameCount,
        io: &mut Io<'_, T, S>,
    ) -> FrameCount {
        let Some(entry) = self.deflating.entry_mut(claimed.slot()) else {
            return FrameCount::ZERO;
        };
        let limits = io.caps.deflate;
        let wanted = match path {
            GivePath::Bulk => surplus,
            GivePath::Told => surplus.min(limits.frames),
        };
        let sink = RangeSink::new(entry.spare(limits.runs), wanted);
        let mut sink = match path {
            GivePath::Bulk => sink,
            GivePath::Told => sink.with_longest_run(limits.run),
        };
        io.source.recall(path, &mut sink);
        let laid = sink.into();
        entry.extend(laid);
        entry.seal(path, limits.run);
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
