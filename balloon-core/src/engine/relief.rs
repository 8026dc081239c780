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
use crate::events::Event;
use crate::policy::{Budget, OomRule};
use crate::run::{RangeSink, Run};
use crate::shared::{RESERVE_BELOW, RESERVE_FRAMES};
use crate::slots::{Claimed, Kind, SlotId};
use crate::source::{Ask, Backing, FrameSource, GivePath, Ledger};
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

    /// One run of so many frames, its first one aligned to `align`.
    #[must_use]
    pub const fn run(frames: FrameCount, align: Order) -> Self {
        Self {
            frames,
            contiguous: Some(align),
        }
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
const RELIEF_BUDGET: Budget = Budget::requests(RELIEF_REQUESTS);

/// Answers of the ledger looked at for a contiguous need.
const RELIEF_LOOKS: usize = 4096;

impl<const N: usize> Engine<N> {
    /// Takes ballooned frames back at once for an allocation that failed.
    ///
    /// `source` is the allocator as the out-of-memory hook holds it. Where the
    /// engine itself cannot be had (its lock is taken), leave a
    /// [`Shared::request_relief`](crate::Shared::request_relief) and use
    /// [`Shared::take_reserve`](crate::Shared::take_reserve). Step soon
    /// afterwards: the host is told the new size by the next step.
    pub fn relieve<T: Transport, S: FrameSource + Ledger>(
        &mut self,
        transport: &mut T,
        source: &mut S,
        need: Need,
        now: Nanos,
    ) -> Relieved {
        let caps = transport.capabilities();
        let mut io = Io {
            caps,
            transport,
            source,
            now,
            budget: RELIEF_BUDGET,
        };
        self.now = self.now.max(now);
        let relieved = self.relieve_with(need, &mut io);
        // The size has changed: whoever waits for a signal steps.
        self.shared.signal().used();
        relieved
    }

    fn relieve_with<T: Transport, S: FrameSource + Ledger>(
        &mut self,
        need: Need,
        io: &mut Io<'_, T, S>,
    ) -> Relieved {
        let mut relieved = Relieved::default();
        // Without a cool-down the step that relief is part of goes on as before.
        let until = io.now.saturating_add(self.policy.cool_down);
        self.cool_until = Some(until).filter(|&until| until > io.now);
        if self.mode.is_quiesced() || need.frames.is_zero() {
            return relieved;
        }
        // What the host has answered since the last step leaves its slot for this.
        self.collect(io);
        while let Some(slot) = self.deflating.next_settling(0) {
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
        let goal = self.goal().unwrap_or(size);
        match self.policy.oom_rule {
            _ if caps.deflate_on_oom => size,
            OomRule::Surplus => size.saturating_sub(goal),
            OomRule::Literal if goal > size => size,
            OomRule::Literal => FrameCount::ZERO,
        }
    }
}

impl<const N: usize> Engine<N> {
    fn relieve_some<T: Transport, S: FrameSource + Ledger>(
        &mut self,
        mut wanted: FrameCount,
        relieved: &mut Relieved,
        io: &mut Io<'_, T, S>,
    ) {
        while !wanted.is_zero() && io.budget.spend() {
            let path = self.next_path(io.source);
            let Some(path) = path.filter(|&path| self.may_come_by(path)) else {
                return;
            };
            let Ok(claimed) = self.shared.slots().claim(Kind::Deflate) else {
                return;
            };
            let frames = self.recall(&claimed, path, wanted, io);
            if frames.is_zero() || !self.hand_over(claimed, path, relieved, io) {
                return;
            }
            wanted = wanted.saturating_sub(frames);
        }
    }

    /// Whether frames given by `path` may come: a broken device is asked nothing.
    const fn may_come_by(&self, path: GivePath) -> bool {
        matches!(path, GivePath::Bulk) || !self.broken
    }

    /// Looks for ballooned neighbours that make the run, and takes just those.
    fn relieve_run<T: Transport, S: FrameSource + Ledger>(
        &mut self,
        frames: FrameCount,
        align: Order,
        relieved: &mut Relieved,
        io: &mut Io<'_, T, S>,
    ) {
        let mut from = Pfn::new(0);
        let mut run: Option<(FrameRange, GivePath)> = None;
        for _ in 0..RELIEF_LOOKS {
            let Some((next, path)) = next_held(io.source, from) else {
                return;
            };
            from = next.end();
            run = match run {
                Some((before, same)) if same == path && before.end() == next.start() => {
                    before.joined(next).map(|joined| (joined, path))
                }
                _ => Some((next, path)),
            };
            // Part of a run is no run, here neither.
            let within_reach = |path| {
                let piece = piece(&io.caps, path).get();
                let requests = piece.saturating_mul(RELIEF_REQUESTS as u64);
                frames.get() <= requests && self.may_come_by(path)
            };
            let fit = run
                .filter(|&(_, path)| within_reach(path))
                .and_then(|(range, path)| Some((aligned_part(range, frames, align)?, path)));
            if let Some((range, path)) = fit {
                self.relieve_range(range, path, relieved, io);
                return;
            }
        }
    }

    /// Takes back exactly this range, in as many requests as its path needs.
    fn relieve_range<T: Transport, S: FrameSource + Ledger>(
        &mut self,
        range: FrameRange,
        path: GivePath,
        relieved: &mut Relieved,
        io: &mut Io<'_, T, S>,
    ) {
        let limits = io.caps.deflate;
        let piece = piece(&io.caps, path);
        let mut rest = Some(range);
        while let Some(range) = rest {
            let (head, tail) = range.split_at(piece);
            rest = tail;
            let goes_on = self.may_come_by(path) && io.budget.spend();
            let Some(head) = head.filter(|_| goes_on) else {
                return;
            };
            let Ok(claimed) = self.shared.slots().claim(Kind::Deflate) else {
                return;
            };
            if io.source.recall_at(head, path).is_ok()
                && let Some(entry) = self.deflating.entry_mut(claimed.slot())
            {
                let mut sink = RangeSink::new(entry.spare(1), head.count());
                // One run of at most `Run::MAX` frames into an empty entry.
                let _ = sink.push(head, Backing::Unpopulated);
                let laid = sink.into();
                entry.extend(laid);
                entry.seal(path, limits.run);
            }
            if !self.hand_over(claimed, path, relieved, io) {
                return;
            }
        }
    }

    /// Sends a filled deflate slot on its way; false if nothing more will go.
    fn hand_over<T: Transport, S: FrameSource + Ledger>(
        &mut self,
        claimed: Claimed<'static>,
        path: GivePath,
        relieved: &mut Relieved,
        io: &mut Io<'_, T, S>,
    ) -> bool {
        let slot = claimed.slot();
        let frames = self
            .deflating
            .entry(slot)
            .map_or(FrameCount::ZERO, Entry::frames);
        if path == GivePath::Bulk || frames.is_zero() || self.mode.is_forgetting() {
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
        let placed = self.deflating.place(slot, |range, done, path| {
            if !done {
                return source.store(range, path);
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
        let frames = self.shared.take_relief_request();
        if !frames.is_zero() {
            let spent = core::mem::replace(&mut io.budget, RELIEF_BUDGET);
            self.relieve_with(Need::frames(frames), io);
            io.budget = spent;
        }
    }

    /// Refills the frames that can be had without the engine.
    pub(super) fn fill_reserve<T, S: FrameSource>(&mut self, io: &mut Io<'_, T, S>) {
        if self.cool_until.is_some() {
            return;
        }
        while self.shared.reserved() < self.policy.reserve.min(RESERVE_FRAMES) {
            let mut run = [Run::ZERO];
            let mut sink = RangeSink::new(&mut run, FrameCount::ONE);
            let ask = Ask {
                keep: self.policy.keep,
                ..Ask::any(RESERVE_BELOW)
            };
            io.source.take(ask, &mut sink);
            let Some(frame) = sink.runs().first().map(|run| run.range()) else {
                return;
            };
            if self.shared.put_reserve(frame).is_err() {
                // Somebody else filled it meanwhile: the frame was just taken.
                let _ = io.source.put(frame, Backing::Unknown);
                return;
            }
        }
    }
}

/// Frames of one run that one request takes back.
fn piece(caps: &Capabilities, path: GivePath) -> FrameCount {
    match path {
        GivePath::Bulk => Run::MAX,
        GivePath::Told => caps.deflate.run.min(caps.deflate.frames),
    }
}

/// The first ballooned frames at or after `from`.
pub(super) fn next_held(ledger: &mut impl Ledger, from: Pfn) -> Option<(FrameRange, GivePath)> {
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
