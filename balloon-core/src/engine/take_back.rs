//! Deflation: ballooned frames become free again.

use super::{Engine, Io};
use crate::run::RangeSink;
use crate::source::{FrameSource, GivePath, Ledger};
use crate::transport::Transport;
use crate::units::FrameCount;

impl<const N: usize> Engine<N> {
    /// Takes back until `surplus` frames are on their way.
    ///
    /// Frames given in bulk first: they cost no request.
    pub(super) fn take_back<T: Transport, S: FrameSource + Ledger>(
        &mut self,
        mut surplus: FrameCount,
        io: &mut Io<'_, T, S>,
    ) {
        let most = io.caps.deflate.in_flight.min(N);
        let burst = self.deflating.in_flight() < most / 2 + 1;
        while !surplus.is_zero() {
            let bulk = !io.source.held(GivePath::Bulk).is_zero();
            let path = if bulk { GivePath::Bulk } else { GivePath::Told };
            if !bulk && (!burst || self.deflating.in_flight() >= most) {
                return;
            }
            if !io.budget.spend() {
                return;
            }
            let Ok(slot) = self.shared.slots().claim(self.deflating.kind()) else {
                return;
            };
            let Some(entry) = self.deflating.entry_mut(slot) else {
                return;
            };
            let limits = io.caps.deflate;
            let wanted = if bulk {
                surplus
            } else {
                surplus.min(limits.frames)
            };
            let sink = RangeSink::new(entry.spare(limits.runs), wanted);
            let mut sink = sink.with_longest_run(limits.run);
            io.source.recall(path, &mut sink);
            let laid = sink.into();
            entry.extend(laid);
            entry.seal(path, limits.run);
            let frames = entry.frames();
            surplus = surplus.saturating_sub(frames);
            let going = match path {
                GivePath::Bulk => {
                    self.deflating.settle(slot, frames);
                    self.place(self.deflating.kind(), slot, io.source)
                }
                GivePath::Told => self.send(self.deflating.kind(), slot, io),
            };
            // Nothing recalled: what is missing is still on its way to the host.
            if !going || frames.is_zero() {
                return;
            }
        }
    }
}
