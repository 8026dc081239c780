//! Inflation: free frames become the host's.

use super::table::{Entry, MAX_RUNS};
use super::{Engine, Io};
use crate::run::RangeSink;
use crate::slots::Kind;
use crate::source::{FrameSource, Ledger, Shortage, TakeRequest, Via};
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
    pub(super) fn inflate<T: Transport, S: FrameSource + Ledger>(
        &mut self,
        mut deficit: FrameCount,
        io: &mut Io<'_, T, S>,
    ) {
        if deficit.is_zero() {
            self.give.reset();
            return;
        }
        if self.shared.is_some_and(|shared| !shared.is_short()) {
            // Frames were freed since the last look: the next one is soon.
            self.give.start_over(self.policy.retry);
        }
        // The two queues know no order between them: a frame used before its return
        // was acknowledged must not be given again before that.
        let held_off =
            self.deflating.has_early() || self.cool_until.is_some() || self.give.is_waiting(io.now);
        let paths = [Some(io.caps.inflate), io.caps.bulk];
        let unit = self.policy.granularity.smallest();
        if !paths.iter().flatten().any(|limits| limits.hold(unit)) {
            self.unsupported = true;
            return;
        }
        let full = self.inflating.is_full_at(self.with_host());
        if held_off || full || !self.may_inflate(&io.caps, true) {
            return;
        }
        self.expect_blocks();
        // Why blocks are given up: what is left is less than one.
        let mut shortage = Shortage::None;
        // A look for blocks that found none belongs to the request that follows: each
        // step looks anew, and the smallest budget would get no further.
        let mut only_looked = false;
        while !deficit.is_zero() && self.may_inflate(&io.caps, false) {
            if !core::mem::take(&mut only_looked) && !io.budget.spend() {
                return;
            }
            // Before the look: what is freed behind its back is heard of.
            self.expect_freed(true);
            let order = self.ask_order(deficit, &io.caps);
            let Some(claimed) = self.claim(Kind::Inflate) else {
                return;
            };
            let Some(entry) = self.inflating.entry_mut(claimed.slot()) else {
                return;
            };
            let fill_with = Fill {
                order,
                min_free: self.policy.min_free,
                unpopulated_first: io.caps.unpopulated_first,
                effort: io.budget.effort(),
                frames: deficit.round_down(order),
            };
            let stop = fill(entry, io.source, &io.caps, fill_with);
            let frames = entry.frames();
            deficit = deficit.saturating_sub(frames);
            if !frames.is_zero() {
                self.note_inflated(order, shortage, io);
            }
            if !self.send(claimed, io) {
                return;
            }
            if stop == Shortage::None && !frames.is_zero() {
                self.expect_freed(false);
                self.give.reset();
                continue;
            }
            if self.goes_on(stop) {
                continue;
            }
            if self.blocks_ran_out(order) {
                shortage = stop;
                only_looked = frames.is_zero();
                continue;
            }
            if deficit > self.policy.tolerance {
                let reason = match stop {
                    Shortage::Fragmented | Shortage::Again => Blocked::Fragmented,
                    Shortage::Floor if self.policy.min_free.is_zero() => Blocked::Floor,
                    Shortage::Floor => Blocked::Reserve,
                    Shortage::OutOfReach => Blocked::OutOfReach,
                    Shortage::Pinned => Blocked::Pinned,
                    // What is missing is less than a block.
                    Shortage::None if fill_with.frames.is_zero() => Blocked::Fragmented,
                    Shortage::Empty | Shortage::None => Blocked::AllocatorEmpty,
                };
                self.give.fail(io.now, self.policy.retry, reason);
                self.counters.back_offs = self.counters.back_offs.wrapping_add(1);
            }
            return;
        }
    }

    fn expect_freed(&self, short: bool) {
        if let Some(shared) = self.shared {
            shared.set_short(short);
        }
    }

    /// Whether another inflation may start; a burst starts only once half of
    /// the slots are back, so that one kick carries many requests.
    fn may_inflate(&self, caps: &Capabilities, burst: bool) -> bool {
        let room = |via, limits: Limits| {
            let most = limits.in_flight.min(N);
            let ready = if burst { most / 2 + 1 } else { most };
            self.inflating.in_flight_by(via) < ready
        };
        // A path without room is no path.
        let told = !caps.inflate.hold(Order::FRAME) || room(Via::Inflate, caps.inflate);
        told && caps.bulk.is_none_or(|bulk| room(Via::Bulk, bulk))
    }
}

/// What one request should carry.
#[derive(Clone, Copy, Debug)]
struct Fill {
    order: Order,
    min_free: FrameCount,
    unpopulated_first: bool,
    /// What they may cost the source.
    effort: u32,
    frames: FrameCount,
}

/// Takes one request's worth of frames and chooses its path.
fn fill(
    entry: &mut Entry,
    source: &mut impl FrameSource,
    caps: &Capabilities,
    fill_with: Fill,
) -> Shortage {
    let plain = caps.inflate;
    let Some(bulk) = caps.bulk else {
        let stop = fill_entry(entry, source, plain, fill_with);
        entry.seal(Via::Inflate, plain.run);
        return stop;
    };
    let mut stop = fill_entry(entry, source, bulk, fill_with);
    if !plain.hold(Order::FRAME) {
        entry.seal(Via::Bulk, bulk.run);
        return stop;
    }
    let frames = entry.frames();
    let scattered = frames.get() < entry.runs().len() as u64 * BULK_MEAN_RUN;
    let fits_plain = frames <= plain.frames
        && entry
            .runs()
            .iter()
            .all(|run| run.range().end() <= plain.below);
    if !scattered || !fits_plain {
        entry.seal(Via::Bulk, bulk.run);
        return stop;
    }
    if stop == Shortage::None {
        // The few descriptors of the bulk path are full: fill up a PFN array.
        stop = fill_entry(entry, source, plain, fill_with);
    }
    entry.seal(Via::Inflate, plain.run);
    stop
}

/// Takes frames until the entry holds what is wished for or one limit is met.
fn fill_entry(
    entry: &mut Entry,
    source: &mut impl FrameSource,
    limits: Limits,
    fill_with: Fill,
) -> Shortage {
    let most = limits.frames.round_down(fill_with.order);
    let wanted = fill_with.frames.min(most).saturating_sub(entry.frames());
    let sink = RangeSink::new(entry.spare(limits.runs.min(MAX_RUNS)), wanted);
    let mut sink = sink
        .with_longest_run(limits.run.round_down(fill_with.order))
        .with_effort(fill_with.effort, fill_with.order);
    if sink.is_full() {
        return Shortage::None;
    }
    let stop = source.take(
        TakeRequest {
            order: fill_with.order,
            below: limits.below,
            min_free: fill_with.min_free,
            unpopulated_first: fill_with.unpopulated_first,
        },
        &mut sink,
    );
    let laid = sink.into();
    entry.extend(laid);
    stop
}
