//! Inflation: free frames become the host's.

use super::table::{Entry, MAX_RUNS};
use super::{Engine, Io};
use crate::run::RangeSink;
use crate::slots::Kind;
use crate::source::{Ask, FrameSource, GivePath, Ledger, Stop};
use crate::status::Blocked;
use crate::transport::{Capabilities, Limits, Transport};
use crate::units::{FrameCount, Order};

/// Mean run length in frames from which ranges beat a PFN array.
///
/// A host spends about as long on discarding a short range as on one PFN, but
/// each range takes a descriptor of a small ring.
const BULK_MEAN_RUN: u64 = 8;

impl<const N: usize> Engine<N> {
    /// Submits inflations until `deficit` frames are on their way.
    pub(super) fn give<T: Transport, S: FrameSource + Ledger>(
        &mut self,
        mut deficit: FrameCount,
        io: &mut Io<'_, T, S>,
    ) {
        if deficit.is_zero() {
            self.give.reset();
            return;
        }
        // The two queues know no order between them: a frame used before its return
        // was acknowledged must not be given again before that.
        let held_off =
            self.deflating.has_early() || self.cool_until.is_some() || self.give.is_waiting(io.now);
        let paths = [Some(io.caps.inflate), io.caps.bulk];
        let unit = self.policy.unit.smallest();
        if !paths.iter().flatten().any(|limits| limits.hold(unit)) {
            self.unsupported = true;
            return;
        }
        let full = self.inflating.is_full_at(self.with_host());
        if held_off || full || !self.may_give(&io.caps, true) {
            return;
        }
        self.expect_blocks();
        // Why blocks are given up: what is left is less than one.
        let mut shortage = Stop::Enough;
        // A look for blocks that found none belongs to the request that follows: each
        // step looks anew, and the smallest budget would get no further.
        let mut only_looked = false;
        while !deficit.is_zero() && self.may_give(&io.caps, false) {
            if !core::mem::take(&mut only_looked) && !io.budget.spend() {
                return;
            }
            let order = self.ask_order(deficit, &io.caps);
            let Ok(claimed) = self.shared.slots().claim(Kind::Inflate) else {
                return;
            };
            let Some(entry) = self.inflating.entry_mut(claimed.slot()) else {
                return;
            };
            let wish = Wish {
                order,
                keep: self.policy.keep,
                frames: deficit.round_down(order),
            };
            let stop = fill(entry, io.source, &io.caps, wish);
            let frames = entry.frames();
            deficit = deficit.saturating_sub(frames);
            if !frames.is_zero() {
                self.gave_in(order, shortage, io);
            }
            if !self.send(claimed, io) {
                return;
            }
            if stop == Stop::Enough && !frames.is_zero() {
                self.give.reset();
                continue;
            }
            if self.blocks_ran_out(order) {
                shortage = stop;
                only_looked = frames.is_zero();
                continue;
            }
            if deficit > self.policy.tolerance {
                let reason = match stop {
                    Stop::Fragmented => Blocked::Fragmented,
                    Stop::Floor if self.policy.keep.is_zero() => Blocked::Floor,
                    Stop::Floor => Blocked::Reserve,
                    Stop::Pinned => Blocked::Pinned,
                    // What is missing is less than a block.
                    Stop::Enough if wish.frames.is_zero() => Blocked::Fragmented,
                    Stop::Empty | Stop::Enough => Blocked::AllocatorEmpty,
                };
                self.give.fail(io.now, self.policy.retry, reason);
                self.counters.back_offs = self.counters.back_offs.wrapping_add(1);
            }
            return;
        }
    }

    /// Whether another inflation may start; a burst starts only once half of
    /// the slots are back, so that one kick carries many requests.
    fn may_give(&self, caps: &Capabilities, burst: bool) -> bool {
        let room = |path, limits: Limits| {
            let most = limits.in_flight.min(N);
            let ready = if burst { most / 2 + 1 } else { most };
            self.inflating.in_flight_by(path) < ready
        };
        room(GivePath::Told, caps.inflate)
            && caps.bulk.is_none_or(|bulk| room(GivePath::Bulk, bulk))
    }
}

/// What one request should carry.
#[derive(Clone, Copy, Debug)]
struct Wish {
    order: Order,
    keep: FrameCount,
    frames: FrameCount,
}

/// Takes one request's worth of frames and chooses its path.
fn fill(entry: &mut Entry, source: &mut impl FrameSource, caps: &Capabilities, wish: Wish) -> Stop {
    let plain = caps.inflate;
    let Some(bulk) = caps.bulk else {
        let stop = lay(entry, source, plain, wish);
        entry.seal(GivePath::Told, plain.run);
        return stop;
    };
    let mut stop = lay(entry, source, bulk, wish);
    let frames = entry.frames();
    let scattered = frames.get() < entry.runs().len() as u64 * BULK_MEAN_RUN;
    let fits_plain = frames <= plain.frames
        && entry
            .runs()
            .iter()
            .all(|run| run.range().end() <= plain.below);
    if !scattered || !fits_plain {
        entry.seal(GivePath::Bulk, bulk.run);
        return stop;
    }
    if stop == Stop::Enough {
        // The few descriptors of the bulk path are full: fill up a PFN array.
        stop = lay(entry, source, plain, wish);
    }
    entry.seal(GivePath::Told, plain.run);
    stop
}

/// Takes frames until the entry holds what is wished for or one limit is met.
fn lay(entry: &mut Entry, source: &mut impl FrameSource, limits: Limits, wish: Wish) -> Stop {
    let most = limits.frames.round_down(wish.order);
    let wanted = wish.frames.min(most).saturating_sub(entry.frames());
    let sink = RangeSink::new(entry.spare(limits.runs.min(MAX_RUNS)), wanted);
    let mut sink = sink.with_longest_run(limits.run.round_down(wish.order));
    if sink.is_full() {
        return Stop::Enough;
    }
    let stop = source.take(
        Ask {
            order: wish.order,
            below: limits.below,
            keep: wish.keep,
        },
        &mut sink,
    );
    let laid = sink.into();
    entry.extend(laid);
    stop
}
