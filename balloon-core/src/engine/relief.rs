//! Out of memory: ballooned frames come back now.
//!
//! Called from an allocation failure, so: no allocation, no waiting, bounded
//! work, and only frames usable at once count. Frames given in bulk need no word
//! with the host; those told one by one are announced through a slot kept for
//! this and may be used right away unless the host insists on being told first.
//! Inflation then pauses for a while, or the balloon would take back what was
//! just handed out.

use super::table::Entry;
use super::{Engine, Io, held};
use crate::backing::Backing;
use crate::events::Event;
use crate::policy::Budget;
use crate::run::{RangeSink, Run};
use crate::shared::{EMERGENCY_BELOW, EMERGENCY_FRAMES};
use crate::slots::{Claimed, Kind, SlotId};
use crate::source::{FrameSource, Ledger, TakeRequest, Via};
use crate::transport::{Capabilities, Transport};
use crate::units::{FrameCount, FrameRange, Nanos, Order, Pfn};

/// What an allocation that failed would need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// How many frames.
    pub frames: FrameCount,
    /// Whether in one run, aligned to this.
    pub contiguous: Option<Order>,
}

impl Need {
    /// Any so many frames.
    #[must_use]
    pub const fn frames(frames: FrameCount) -> Self {
        Self {
            frames,
            contiguous: None,
        }
    }

    /// The same in whole blocks, for a kernel that deals in nothing smaller.
    fn in_blocks_of(self, order: Order) -> Self {
        let block = order.frames();
        let up = block.saturating_sub(FrameCount::ONE);
        Self {
            frames: self.frames.saturating_add(up).round_down(order),
            contiguous: self.contiguous.map(|align| align.max(order)),
        }
    }

    /// One run of so many frames, its first one aligned to `align`.
    #[must_use]
    pub const fn run(frames: FrameCount, align: Order) -> Self {
        Self {
            frames,
            contiguous: Some(align),
        }
    }
}

/// Relief that the host has not heard of: whoever steps the engine is to be woken.
#[derive(Debug)]
#[must_use = "the host hears of it by the next step: wake whoever makes it"]
pub struct Relief {
    relieved: Relieved,
    /// There is something for a step to do.
    step_soon: bool,
}

impl Relief {
    /// Nothing was done.
    pub(crate) const NONE: Self = Self {
        relieved: Relieved {
            usable: FrameCount::ZERO,
            coming: FrameCount::ZERO,
        },
        step_soon: false,
    };

    /// What it achieved, after `wake` has woken whoever steps the engine; it is not
    /// called if nothing changed.
    ///
    /// Memory is short here: `wake` must not allocate.
    pub fn wake(self, wake: impl FnOnce()) -> Relieved {
        if self.step_soon {
            wake();
        }
        self.relieved
    }
}

/// What relief achieved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Relieved {
    /// Frames the allocator has again, usable now.
    pub usable: FrameCount,
    /// Frames that come once the host acknowledges.
    pub coming: FrameCount,
}

/// Requests one relief may use at most.
const RELIEF_REQUESTS: usize = 4;

/// Answers of the ledger looked at for a contiguous need that no block serves.
const RELIEF_LOOKS: usize = 128;

impl<const N: usize> Engine<N> {
    /// Takes ballooned frames back at once for an allocation that failed.
    ///
    /// `source` is the allocator as the out-of-memory hook holds it. Where the
    /// engine itself cannot be had (its lock is taken), leave a
    /// [`Shared::request_relief`](crate::Shared::request_relief) and use
    /// [`Shared::take_emergency`](crate::Shared::take_emergency).
    ///
    /// The host is told the new size by the next step, and only then knows whom the
    /// frames belong to: it sets the signal, and its result wakes the worker.
    pub fn relieve<T: Transport, S: FrameSource + Ledger>(
        &mut self,
        transport: &mut T,
        source: &mut S,
        need: Need,
        now: Nanos,
    ) -> Relief {
        let caps = transport.capabilities();
        let mut io = Io {
            caps,
            transport,
            source,
            now,
            // What was answered comes home in any case.
            budget: Budget::requests(N + RELIEF_REQUESTS),
        };
        self.set_clock(now);
        self.begin(io.source);
        let requests = self.in_flight();
        let announced = self.is_woken();
        let relieved = self.relieve_with(need, &mut io);
        let mut step_soon = relieved != Relieved::default() || self.in_flight() != requests;
        // Answers to others that were taken up on the way; older news have woken already.
        step_soon |= !announced && self.is_woken();
        if step_soon {
            self.wake();
        }
        Relief {
            relieved,
            step_soon,
        }
    }

    fn relieve_with<T: Transport, S: FrameSource + Ledger>(
        &mut self,
        need: Need,
        io: &mut Io<'_, T, S>,
    ) -> Relieved {
        let mut relieved = Relieved::default();
        // Without a cool-down the step that relief is part of goes on as before.
        let until = io.now.saturating_add(self.policy.cool_down);
        if need.frames.is_zero() {
            return relieved;
        }
        self.cool_until = Some(until).filter(|&until| until > io.now);
        if self.mode.is_quiesced() {
            return relieved;
        }
        let need = need.in_blocks_of(self.policy.granularity.smallest());
        // What the host has answered since the last step leaves its slot for this.
        self.collect(io);
        while let Some(slot) = self.deflating.next_settling(0) {
            let left = self
                .deflating
                .entry(slot)
                .map_or(FrameCount::ZERO, Entry::frames);
            if !left.is_zero() && !io.budget.spend() {
                break;
            }
            let (came, placed) = self.bring_home(slot, io.source);
            relieved.usable = relieved.usable.saturating_add(came);
            if !placed {
                break;
            }
        }
        let allowed = self.allowance(&io.caps, held(io.source));
        match need.contiguous {
            Some(align) if need.frames <= allowed => {
                self.relieve_run(need.frames, align, &mut relieved, io);
            }
            // Part of a run is no run.
            Some(_) => {}
            None => self.relieve_some(need.frames.min(allowed), &mut relieved, io),
        }
        if !relieved.usable.is_zero() {
            self.counters.relieved = self.counters.relieved.saturating_add(relieved.usable);
            self.events.push(Event::Relieved(relieved.usable));
        }
        relieved
    }

    /// How many frames may return against the target.
    fn allowance(&self, caps: &Capabilities, size: FrameCount) -> FrameCount {
        if caps.deflate_on_oom {
            return size;
        }
        // The text (virtio 1.3, 5.5.6.1) forbids deflation while the target is *at or below*
        // the size, which would forbid ordinary deflation; every driver reads it the other way
        // round: the surplus above the target may return.
        size.saturating_sub(self.goal().unwrap_or(size))
    }
}

impl<const N: usize> Engine<N> {
    fn relieve_some<T: Transport, S: FrameSource + Ledger>(
        &mut self,
        mut wanted: FrameCount,
        relieved: &mut Relieved,
        io: &mut Io<'_, T, S>,
    ) {
        for _ in 0..RELIEF_REQUESTS {
            if wanted.is_zero() || !io.budget.spend() {
                return;
            }
            let via = self.next_via(io.source);
            let Some(via) = via.filter(|&via| self.may_come_by(via)) else {
                return;
            };
            let Some(claimed) = self.claim(Kind::Deflate) else {
                return;
            };
            let frames = self.fill_from_ledger(&claimed, via, wanted, true, io);
            if frames.is_zero() || !self.hand_over(claimed, via, relieved, io) {
                return;
            }
            wanted = wanted.saturating_sub(frames);
        }
    }

    /// Frames of one run that one request takes back.
    fn piece(&self, caps: &Capabilities, via: Via) -> FrameCount {
        let most = match via {
            Via::Bulk => Run::MAX,
            Via::Inflate => caps.deflate.run.min(caps.deflate.frames),
        };
        most.round_down(self.policy.granularity.smallest())
    }

    /// Whether frames given by `via` may come: a broken device is asked nothing.
    const fn may_come_by(&self, via: Via) -> bool {
        matches!(via, Via::Bulk) || self.failed.is_none() || self.mode.is_resetting()
    }

    /// A ballooned block that the run fits into, if the ledger finds one.
    ///
    /// A ledger is asked for blocks by taking them: this one is put back.
    fn held_block<S: FrameSource + Ledger>(
        &mut self,
        order: Order,
        via: Via,
        source: &mut S,
    ) -> Option<FrameRange> {
        let claimed = self.claim(Kind::Deflate)?;
        let slot = claimed.slot();
        let entry = self.deflating.entry_mut(slot)?;
        let mut sink = RangeSink::new(entry.spare(1), order.frames());
        source.recall(via, order, &mut sink);
        let laid = sink.into();
        entry.extend(laid);
        entry.seal(via, Run::MAX);
        let range = entry.runs().first()?.range();
        self.deflating.answer(claimed, FrameCount::ZERO);
        self.settle_slot(Kind::Deflate, slot, source)
            .then_some(range)
    }

    /// Looks for ballooned neighbours that make the run, and takes just those.
    fn relieve_run<T: Transport, S: FrameSource + Ledger>(
        &mut self,
        frames: FrameCount,
        align: Order,
        relieved: &mut Relieved,
        io: &mut Io<'_, T, S>,
    ) {
        // Part of a run is no run, here neither.
        let within_reach = |engine: &Self, via| {
            let piece = engine.piece(&io.caps, via).get();
            let requests = piece.saturating_mul(RELIEF_REQUESTS as u64);
            frames.get() <= requests && engine.may_come_by(via)
        };
        let reach = Via::ALL.map(|via| within_reach(self, via));
        let within_reach = |via| reach.get(usize::from(via == Via::Inflate)) == Some(&true);
        let order = Order::holding(frames).map(|order| order.max(align));
        for via in Via::ALL.into_iter().filter(|&via| within_reach(via)) {
            let block = order.and_then(|order| self.held_block(order, via, io.source));
            if let Some(range) = block.and_then(|block| block.split_at(frames).0) {
                self.relieve_range(range, via, relieved, io);
                return;
            }
        }
        let mut from = Pfn::new(0);
        let mut run: Option<(FrameRange, Via)> = None;
        for _ in 0..RELIEF_LOOKS {
            let Some((next, via)) = next_held(io.source, from) else {
                return;
            };
            from = next.end();
            run = match run {
                Some((before, same)) if same == via && before.end() == next.start() => {
                    before.joined(next).map(|joined| (joined, via))
                }
                _ => Some((next, via)),
            };
            let fit = run
                .filter(|&(_, via)| within_reach(via))
                .and_then(|(range, via)| Some((aligned_part(range, frames, align)?, via)));
            if let Some((range, via)) = fit {
                self.relieve_range(range, via, relieved, io);
                return;
            }
        }
    }

    /// Takes back exactly this range, in as many requests as its path needs.
    fn relieve_range<T: Transport, S: FrameSource + Ledger>(
        &mut self,
        range: FrameRange,
        via: Via,
        relieved: &mut Relieved,
        io: &mut Io<'_, T, S>,
    ) {
        let limits = io.caps.deflate;
        let piece = self.piece(&io.caps, via);
        let mut rest = Some(range);
        while let Some(range) = rest {
            let (head, tail) = range.split_at(piece);
            rest = tail;
            let goes_on = self.may_come_by(via) && io.budget.spend();
            let Some(head) = head.filter(|_| goes_on) else {
                return;
            };
            let Some(claimed) = self.claim(Kind::Deflate) else {
                return;
            };
            if io.source.recall_at(head, via).is_ok()
                && let Some(entry) = self.deflating.entry_mut(claimed.slot())
            {
                let mut sink = RangeSink::new(entry.spare(1), head.count());
                // One run of at most `Run::MAX` frames into an empty entry.
                let _ = sink.push(head, Backing::Unpopulated);
                let laid = sink.into();
                entry.extend(laid);
                entry.seal(via, limits.run);
            }
            if !self.hand_over(claimed, via, relieved, io) {
                return;
            }
        }
    }

    /// Sends a filled deflate slot on its way; false if nothing more will go.
    fn hand_over<T: Transport, S: FrameSource + Ledger>(
        &mut self,
        claimed: Claimed<'static>,
        via: Via,
        relieved: &mut Relieved,
        io: &mut Io<'_, T, S>,
    ) -> bool {
        let slot = claimed.slot();
        let frames = self
            .deflating
            .entry(slot)
            .map_or(FrameCount::ZERO, Entry::frames);
        if via == Via::Bulk || frames.is_zero() || self.mode.is_resetting() {
            let placed = self.reclaim(claimed, io.source);
            let left = self.deflating.entry(slot);
            let left = left.map_or(FrameCount::ZERO, Entry::frames);
            relieved.usable = relieved.usable.saturating_add(frames.saturating_sub(left));
            return placed && !frames.is_zero();
        }
        if !self.send(claimed, io) {
            return false;
        }
        // Makes the request visible and asks for the answer, which a synchronous
        // host has given by now: what it says counts then, and nothing else.
        self.kick(self.in_flight().div_ceil(2), io.transport, io.now);
        self.collect(io);
        if self.deflating.next_settling(slot.index()) == Some(slot) {
            let (came, placed) = self.bring_home(slot, io.source);
            relieved.usable = relieved.usable.saturating_add(came);
            return placed && !came.is_zero();
        }
        if io.caps.must_tell_host {
            relieved.coming = relieved.coming.saturating_add(frames);
            return true;
        }
        let early = self
            .deflating
            .empty(slot, |range| io.source.put(range, Backing::Unpopulated));
        self.counters.deflated = self.counters.deflated.saturating_add(early);
        relieved.usable = relieved.usable.saturating_add(early);
        true
    }

    /// Puts the frames of an answered deflation in their places: how many are the
    /// allocator's now, and whether all found theirs.
    fn bring_home<S: FrameSource + Ledger>(
        &mut self,
        slot: SlotId,
        source: &mut S,
    ) -> (FrameCount, bool) {
        let mut came = FrameCount::ZERO;
        let returned_as = self.returned_as();
        let placed = self.deflating.place(slot, |range, done, via| {
            if !done {
                return source.store(range, via);
            }
            source.put(range, returned_as)?;
            came = came.saturating_add(range.count());
            Ok(())
        });
        (came, placed)
    }

    /// Relief that was asked for while the engine was busy.
    pub(super) fn honour_relief_request<T: Transport, S: FrameSource + Ledger>(
        &mut self,
        io: &mut Io<'_, T, S>,
    ) {
        if self.mode.is_quiesced() {
            // Remembered: whoever resumes steps.
            return;
        }
        let Some(shared) = self.shared else { return };
        let owed = core::mem::take(&mut self.owed);
        let frames = shared.take_relief_request().max(owed);
        if frames.is_zero() {
            return;
        }
        let Relieved { usable, coming } = self.relieve_with(Need::frames(frames), io);
        let came = usable.saturating_add(coming);
        let left = frames.saturating_sub(came);
        if !came.is_zero() && !left.is_zero() {
            // More than one step brings: the next one goes on.
            shared.request_relief(left);
        } else if self.deflating.in_flight() > 0 {
            // An answer makes room for more.
            self.owed = left;
        }
    }

    /// Refills the frames that can be had without the engine.
    pub(super) fn fill_emergency_pool<T, S: FrameSource + Ledger>(
        &mut self,
        io: &mut Io<'_, T, S>,
    ) {
        if self.cool_until.is_some() || self.mode.is_quiesced() {
            return;
        }
        let Some(shared) = self.shared else { return };
        // A kernel of larger pages has no use for part of one.
        let page = self.policy.granularity.smallest();
        while shared.emergency_frames() < self.policy.emergency_pool.min(EMERGENCY_FRAMES) {
            // One that does not get there goes home as one that was not given.
            let (Some(place), Ok(claimed)) =
                (shared.keep_place(), shared.slots().claim(Kind::Inflate))
            else {
                return;
            };
            let slot = claimed.slot();
            let Some(entry) = self.inflating.entry_mut(slot) else {
                return;
            };
            let mut sink = RangeSink::new(entry.spare(1), page.frames());
            let request = TakeRequest {
                order: page,
                min_free: self.policy.min_free,
                ..TakeRequest::any(EMERGENCY_BELOW)
            };
            io.source.take(request, &mut sink);
            let laid = sink.into();
            entry.extend(laid);
            let Some(frame) = entry.runs().first().map(|run| run.range()) else {
                return;
            };
            // Whoever takes it frees it as any frame: it is allocated before it is seen.
            let whole = frame.count() == page.frames() && frame.start().is_aligned(page);
            let fits = whole && frame.end() <= EMERGENCY_BELOW;
            if fits && io.source.allocate_taken(frame).is_ok() {
                entry.clear();
                let kept = place.put(frame);
                debug_assert!(kept.is_ok(), "its number is low enough");
            } else {
                entry.seal(Via::Inflate, Run::MAX);
                self.inflating.answer(claimed, FrameCount::ZERO);
                if !self.settle_slot(Kind::Inflate, slot, io.source) {
                    self.source_refuses(io.now);
                }
                return;
            }
        }
    }
}

/// The first ballooned frames at or after `from`.
pub(super) fn next_held(ledger: &mut impl Ledger, from: Pfn) -> Option<(FrameRange, Via)> {
    let left = FrameCount::new(Pfn::LIMIT.get().saturating_sub(from.get()));
    ledger.next_held(FrameRange::new(from, left)?)
}

/// The first `frames` of the range whose start is aligned.
fn aligned_part(range: FrameRange, frames: FrameCount, align: Order) -> Option<FrameRange> {
    let unit = align.frames().get();
    let start = Pfn::new(range.start().get().div_ceil(unit) * unit);
    let part = FrameRange::new(start, frames)?;
    (part.end() <= range.end()).then_some(part)
}
