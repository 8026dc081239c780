//! The frames of requests: which slot moves which runs, and how far it is.

use crate::run::{RangeSink, Run, sort_and_merge};
use crate::slots::Request;
use crate::slots::{Claimed, InFlight, SlotId};
use crate::source::Via;
use crate::units::{FrameCount, FrameRange, Nanos};

/// Runs that one request can hold: a PFN array of 256 scattered frames.
pub const MAX_RUNS: usize = 256;

/// One request's frames.
#[derive(Debug)]
pub(crate) struct Entry {
    runs: [Run; MAX_RUNS],
    len: usize,
    frames: FrameCount,
    populated: FrameCount,
    via: Via,
    phase: Phase,
    /// Some of its frames are in their places although the host has not
    /// answered.
    early: bool,
    /// The source did not take its frames, and is not asked again for now.
    refused: bool,
}

#[derive(Debug)]
pub(crate) enum Phase {
    /// Not in use, or being filled.
    Empty,
    /// With the host since.
    InFlight(InFlight<'static>, Nanos),
    /// The host did the first so many frames; each is to be put in its place.
    Settling(
        #[expect(dead_code, reason = "held for its drop, which frees the slot")] Claimed<'static>,
        FrameCount,
    ),
}

impl Entry {
    pub(crate) const EMPTY: Self = Self {
        runs: [Run::ZERO; MAX_RUNS],
        len: 0,
        frames: FrameCount::ZERO,
        populated: FrameCount::ZERO,
        via: Via::Inflate,
        phase: Phase::Empty,
        early: false,
        refused: false,
    };

    /// The unused ones of the first `runs` runs, to lay a sink over.
    pub(crate) fn spare(&mut self, runs: usize) -> &mut [Run] {
        self.runs
            .get_mut(self.len..runs.min(MAX_RUNS))
            .unwrap_or_default()
    }

    /// Accepts what a sink over [`spare`](Self::spare) laid down.
    pub(crate) fn extend(&mut self, laid: Laid) {
        self.len += laid.runs;
        self.frames = self.frames.saturating_add(laid.frames);
        self.populated = self.populated.saturating_add(laid.populated);
    }

    /// Sorts the runs, merges neighbours, and fixes the path.
    pub(crate) fn seal(&mut self, via: Via, longest_run: FrameCount) {
        let runs = self.runs.get_mut(..self.len).unwrap_or_default();
        self.len = sort_and_merge(runs, longest_run);
        self.via = via;
    }

    pub(crate) fn runs(&self) -> &[Run] {
        self.runs.get(..self.len).unwrap_or_default()
    }

    pub(crate) const fn frames(&self) -> FrameCount {
        self.frames
    }

    pub(crate) const fn via(&self) -> Via {
        self.via
    }

    /// How many of the frames the host was believed to back when taken.
    pub(crate) const fn populated(&self) -> FrameCount {
        self.populated
    }

    /// The last frames not yet put in their place: a range, and whether the
    /// host did them.
    pub(crate) fn last(&self) -> Option<(FrameRange, bool)> {
        let Phase::Settling(_, done) = self.phase else {
            return None;
        };
        self.last_of(done)
    }

    /// The same if the host did the first `done` frames.
    pub(crate) fn last_of(&self, done: FrameCount) -> Option<(FrameRange, bool)> {
        let range = self.runs().last()?.range();
        let before = self.frames.saturating_sub(range.count());
        let head = done.saturating_sub(before);
        match range.split_at(head) {
            (_, Some(undone)) => Some((undone, false)),
            (Some(whole), None) => Some((whole, true)),
            (None, None) => None,
        }
    }

    /// Drops what [`last`](Self::last) named: it is in its place.
    pub(crate) fn pop(&mut self, settled: FrameRange) {
        let Some(last) = self
            .len
            .checked_sub(1)
            .and_then(|last| self.runs.get_mut(last))
        else {
            return;
        };
        let rest = last.count().saturating_sub(settled.count());
        match last.head(rest) {
            Some(head) => *last = head,
            None => self.len -= 1,
        }
        self.frames = self.frames.saturating_sub(settled.count());
    }

    pub(crate) fn clear(&mut self) {
        self.len = 0;
        self.frames = FrameCount::ZERO;
        self.populated = FrameCount::ZERO;
        self.phase = Phase::Empty;
        self.refused = false;
    }
}

/// What a sink laid down over an entry's spare runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Laid {
    pub(crate) runs: usize,
    pub(crate) frames: FrameCount,
    pub(crate) populated: FrameCount,
}

impl From<RangeSink<'_>> for Laid {
    fn from(sink: RangeSink<'_>) -> Self {
        Self {
            runs: sink.runs().len(),
            frames: sink.frames(),
            populated: sink.populated(),
        }
    }
}

/// All requests of one kind: each entry holds the slot it occupies.
#[derive(Debug)]
pub(crate) struct Table<const N: usize> {
    entries: [Entry; N],
    told_in_flight: usize,
    bulk_in_flight: usize,
    in_flight_frames: FrameCount,
    settling: usize,
    settling_frames: FrameCount,
    early: usize,
    refused: usize,
    /// So many requests were in flight when there was no room for one more; zero if there
    /// always was.
    full_at: usize,
}

impl<const N: usize> Table<N> {
    pub(crate) const fn new() -> Self {
        Self {
            entries: [const { Entry::EMPTY }; N],
            told_in_flight: 0,
            bulk_in_flight: 0,
            in_flight_frames: FrameCount::ZERO,
            settling: 0,
            settling_frames: FrameCount::ZERO,
            early: 0,
            refused: 0,
            full_at: 0,
        }
    }

    /// Requests with the host.
    pub(crate) const fn in_flight(&self) -> usize {
        self.told_in_flight + self.bulk_in_flight
    }

    /// Requests with the host that took this path.
    pub(crate) const fn in_flight_by(&self, via: Via) -> usize {
        match via {
            Via::Inflate => self.told_in_flight,
            Via::Bulk => self.bulk_in_flight,
        }
    }

    pub(crate) const fn in_flight_frames(&self) -> FrameCount {
        self.in_flight_frames
    }

    /// Frames that are neither free nor ballooned because of this kind.
    pub(crate) const fn frames(&self) -> FrameCount {
        self.in_flight_frames.saturating_add(self.settling_frames)
    }

    /// Whether frames are in use that the host has not answered for.
    pub(crate) const fn has_early(&self) -> bool {
        self.early > 0
    }

    /// Answered requests that are to be put in their places.
    pub(crate) const fn settling(&self) -> usize {
        self.settling
    }

    /// Requests whose frames the source did not take.
    pub(crate) const fn refused(&self) -> usize {
        self.refused
    }

    /// The source is to be asked again about what it did not take.
    pub(crate) fn ask_again(&mut self) {
        if core::mem::take(&mut self.refused) > 0 {
            for entry in &mut self.entries {
                entry.refused = false;
            }
        }
    }

    /// Notes at how many requests in flight there was no room for one more, zero if there is
    /// room.
    pub(crate) const fn set_full_at(&mut self, in_flight: usize) {
        self.full_at = in_flight;
    }

    /// Whether there was no room at so many requests in flight.
    pub(crate) const fn is_full_at(&self, in_flight: usize) -> bool {
        self.full_at > 0 && in_flight >= self.full_at
    }

    /// When the request that has waited longest was launched.
    pub(crate) fn oldest(&self) -> Option<Nanos> {
        if self.in_flight() == 0 {
            return None;
        }
        let since = |entry: &Entry| match entry.phase {
            Phase::InFlight(_, since) => Some(since),
            Phase::Empty | Phase::Settling(..) => None,
        };
        self.entries.iter().filter_map(since).min()
    }

    /// Requests in flight were launched at the earliest and at the latest then.
    pub(crate) fn restamp(&mut self, earliest: Nanos, latest: Nanos) {
        if self.in_flight() > 0 {
            for entry in &mut self.entries {
                if let Phase::InFlight(_, since) = &mut entry.phase {
                    *since = (*since).clamp(earliest, latest);
                }
            }
        }
    }

    pub(crate) fn entry(&self, slot: SlotId) -> Option<&Entry> {
        self.entries.get(slot.index())
    }

    pub(crate) fn entry_mut(&mut self, slot: SlotId) -> Option<&mut Entry> {
        self.entries.get_mut(slot.index())
    }

    /// The sealed request of a slot is with the host from `now` on.
    pub(crate) fn launch(&mut self, slot: Claimed<'static>, now: Nanos) -> Option<Request<'_>> {
        let entry = self.entries.get_mut(slot.slot().index())?;
        self.in_flight_frames = self.in_flight_frames.saturating_add(entry.frames);
        match entry.via {
            Via::Inflate => self.told_in_flight += 1,
            Via::Bulk => self.bulk_in_flight += 1,
        }
        entry.phase = Phase::InFlight(slot.launch(), now);
        match &entry.phase {
            Phase::InFlight(slot, _) => Some(slot.request(entry.via, entry.runs())),
            Phase::Empty | Phase::Settling(..) => None,
        }
    }

    /// The host did the frames of a slot that was never in flight.
    pub(crate) fn answer(&mut self, slot: Claimed<'static>, done: FrameCount) {
        if let Some(entry) = self.entries.get_mut(slot.slot().index()) {
            entry.phase = Phase::Settling(slot, done);
            self.settling += 1;
            self.settling_frames = self.settling_frames.saturating_add(entry.frames);
        }
    }

    /// The host will never answer: it did the first `done` frames.
    ///
    /// If it has answered all the same, the answer counts and is collected.
    pub(crate) fn revoke(&mut self, slot: SlotId, done: FrameCount) {
        self.conclude(slot, |in_flight, _| {
            in_flight.revoke().map(|claimed| (claimed, done))
        });
    }

    /// The same for every request in flight.
    pub(crate) fn revoke_all(&mut self, done: FrameCount) {
        for slot in (0..N).filter_map(slot_id) {
            self.revoke(slot, done);
        }
    }

    /// Moves answered requests to settling and shows each to `on_answer`, with
    /// the frames the host did.
    pub(crate) fn collect(&mut self, mut on_answer: impl FnMut(&Entry, FrameCount)) {
        if self.in_flight() == 0 {
            return;
        }
        for slot in (0..N).filter_map(slot_id) {
            self.conclude(slot, |in_flight, entry| {
                let (claimed, outcome) = in_flight.answer()?;
                let done = outcome.frames(entry.frames);
                on_answer(entry, done);
                Ok((claimed, done))
            });
        }
    }

    /// In flight → settling, if `end` ends the flight.
    fn conclude(
        &mut self,
        slot: SlotId,
        end: impl FnOnce(
            InFlight<'static>,
            &Entry,
        ) -> Result<(Claimed<'static>, FrameCount), InFlight<'static>>,
    ) {
        let Some(entry) = self.entries.get_mut(slot.index()) else {
            return;
        };
        let (in_flight, since) = match core::mem::replace(&mut entry.phase, Phase::Empty) {
            Phase::InFlight(in_flight, since) => (in_flight, since),
            other => {
                entry.phase = other;
                return;
            }
        };
        match end(in_flight, entry) {
            Ok((claimed, done)) => {
                self.in_flight_frames = self.in_flight_frames.saturating_sub(entry.frames);
                match entry.via {
                    Via::Inflate => self.told_in_flight -= 1,
                    Via::Bulk => self.bulk_in_flight -= 1,
                }
                self.early -= usize::from(core::mem::take(&mut entry.early));
                self.answer(claimed, done);
            }
            Err(in_flight) => entry.phase = Phase::InFlight(in_flight, since),
        }
    }

    /// Puts the frames of a request with the host in their places before it is
    /// answered; how many. A refusal leaves the rest to the answer.
    pub(crate) fn empty(
        &mut self,
        slot: SlotId,
        mut place: impl FnMut(FrameRange) -> Result<(), FrameRange>,
    ) -> FrameCount {
        let Some(entry) = self.entries.get_mut(slot.index()) else {
            return FrameCount::ZERO;
        };
        let before = entry.frames;
        while let Some(range) = entry.runs().last().map(|run| run.range()) {
            if place(range).is_err() {
                break;
            }
            entry.pop(range);
        }
        let placed = before.saturating_sub(entry.frames);
        if !placed.is_zero() && !entry.early {
            entry.early = true;
            self.early += 1;
        }
        self.in_flight_frames = self.in_flight_frames.saturating_sub(placed);
        placed
    }

    /// A settling request at or after `from` that the source has not refused, if
    /// there is any.
    pub(crate) fn next_settling(&self, from: usize) -> Option<SlotId> {
        if self.settling == self.refused {
            return None;
        }
        let settling = |&index: &usize| {
            self.entries
                .get(index)
                .is_some_and(|e| matches!(e.phase, Phase::Settling(..)) && !e.refused)
        };
        (from..N).find(settling).and_then(slot_id)
    }

    /// Puts the frames of a settling request in their places, last to first.
    ///
    /// `place` gets each range with whether the host did it. True once all are
    /// placed: the slot is free again. A refusal keeps what is left.
    pub(crate) fn place(
        &mut self,
        slot: SlotId,
        mut place: impl FnMut(FrameRange, bool, Via) -> Result<(), FrameRange>,
    ) -> bool {
        let Some(entry) = self.entries.get_mut(slot.index()) else {
            return false;
        };
        while let Some((range, done)) = entry.last() {
            if place(range, done, entry.via).is_err() {
                self.refused += usize::from(!core::mem::replace(&mut entry.refused, true));
                return false;
            }
            entry.pop(range);
            self.settling_frames = self.settling_frames.saturating_sub(range.count());
        }
        self.refused -= usize::from(entry.refused);
        // Drops the claim: the slot is free.
        entry.clear();
        self.settling -= 1;
        true
    }
}

fn slot_id(index: usize) -> Option<SlotId> {
    u16::try_from(index).ok().map(SlotId::new)
}
