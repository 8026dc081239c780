//! Taking mapped frames away: freeze, flush, look again, commit or thaw.
//!
//! This is the only code that takes RAM from the guest, for the zero check, the balloon and
//! `relocate` alike. The order of steps is the whole point: a page is judged only after no
//! virtual CPU can write it any more, and a frame is used again only after its table entry is
//! known to be gone and flushed.

use crate::frame::{Flushed, ScannedZero};
use crate::pod::Dying;
use crate::{
    Attr, Backing, Budget, Entry, Event, Frame, FrameCount, Gfn, Host, Mfn, NeedsFlush, Order,
    Pattern, Pod, Users,
};

/// Runs frozen under one flush.
const BATCH: usize = 16;

/// What is to become of a frozen run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    /// A promise of this pattern, if every page has the content.
    Check(Pattern),
    /// This entry, whatever the content.
    Give(Entry),
}

#[derive(Clone, Copy, Debug)]
struct Held {
    gfn: Gfn,
    order: Order,
    mfn: Mfn,
    attr: Attr,
    job: Job,
}

/// Frozen runs that wait for their flush.
#[derive(Debug)]
pub(crate) struct Batch {
    held: [Option<Held>; BATCH],
    len: usize,
}

impl Batch {
    pub(crate) const EMPTY: Self = Self {
        held: [None; BATCH],
        len: 0,
    };

    pub(crate) const fn is_full(&self) -> bool {
        self.len == BATCH
    }
}

/// What became of a batch, in frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settled {
    pub(crate) reclaimed: u64,
    pub(crate) stolen: u64,
    pub(crate) freed: u64,
    /// Thawed for another reason than their content.
    pub(crate) kept: u64,
}

impl Settled {
    pub(crate) const fn add(&mut self, other: Self) {
        self.reclaimed += other.reclaimed;
        self.stolen += other.stolen;
        self.freed += other.freed;
        self.kept += other.kept;
    }
}

/// Result of a visit to one region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Visit {
    /// So many frames went to the cache.
    Got(u64),
    Nothing,
}

impl Pod<'_> {
    /// Freezes a run of RAM and adds it to the batch; `false` if the table refused.
    pub(crate) fn hold<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        batch: &mut Batch,
        gfn: Gfn,
        order: Order,
        (mfn, attr): (Mfn, Attr),
        job: Job,
    ) -> bool {
        if order < self.superpage() {
            let mut regions = self.regions();
            let index = regions.index_of(gfn);
            regions.set_whole(index, false);
        }
        let Some(place) = batch.held.get_mut(batch.len) else {
            return false;
        };
        if host.freeze(gfn, order).is_err() {
            return false;
        }
        *place = Some(Held {
            gfn,
            order,
            mfn,
            attr,
            job,
        });
        batch.len += 1;
        true
    }

    /// Flushes once, then decides on every run of the batch.
    pub(crate) fn settle<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        batch: &mut Batch,
        budget: &mut Budget,
    ) -> Settled {
        let mut result = Settled::default();
        if batch.len == 0 {
            return result;
        }
        let writers_gone = Flushed::new(host);
        let mut taken: [Option<(Held, u64, bool)>; BATCH] = [None; BATCH];
        for (held, taken) in batch.held.iter_mut().zip(taken.iter_mut()) {
            let Some(run) = held.take() else { continue };
            let length = run.order.frames().get();
            let entry = Entry::Ram {
                mfn: run.mfn,
                attr: run.attr,
            };
            let allowed = self.check_alive(host).is_ok()
                && host.users(run.mfn, run.order) == Users::None
                && self.has_place(host, &run);
            let content = match run.job {
                _ if !allowed => false,
                Job::Check(pattern) => self.scan(host, &run, pattern, budget),
                Job::Give(_) => true,
            };
            if !content {
                host.thaw(run.gfn, run.order);
                result.kept += if allowed { 0 } else { length };
                continue;
            }
            let now = match run.job {
                Job::Check(pattern) => Entry::Promise(pattern),
                Job::Give(entry) => entry,
            };
            let (applied, _) = self.write(host, run.gfn, run.order, entry, now);
            if applied < length {
                for i in applied..length {
                    host.thaw(run.gfn.plus(i), Order::FRAME);
                }
                result.kept += length - applied;
            }
            if applied > 0 {
                let zero = run.job == Job::Check(Pattern::ZERO);
                *taken = Some((run, applied, zero));
            }
        }
        batch.len = 0;
        if taken.iter().all(Option::is_none) {
            return result;
        }
        // Write protection lets stale readers through until the removed entries are flushed.
        let readers_gone = if host.freeze_stops_reads() {
            writers_gone
        } else {
            Flushed::new(host)
        };
        for (run, applied, zero) in taken.into_iter().flatten() {
            let proof = zero.then(|| ScannedZero::new(&readers_gone));
            result.add(self.dispose(host, &run, applied, proof.as_ref(), &readers_gone));
        }
        result
    }

    /// A check commits only what the cache has room for.
    fn has_place<H: Host + ?Sized>(&mut self, _host: &H, run: &Held) -> bool {
        match run.job {
            Job::Check(_) | Job::Give(Entry::Promise(_)) => {
                self.cache().has_room(run.mfn, run.order)
            }
            Job::Give(_) => true,
        }
    }

    fn scan<H: Host + ?Sized>(
        &self,
        host: &mut H,
        run: &Held,
        pattern: Pattern,
        budget: &mut Budget,
    ) -> bool {
        let word = self.st.cfg.word(pattern);
        (0..run.order.frames().get()).all(|i| {
            budget.spend(1);
            host.is_filled(run.mfn.plus(i), word)
        })
    }

    /// The frames are out of the table: to the cache or to the host.
    fn dispose<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        run: &Held,
        applied: u64,
        zero: Option<&ScannedZero>,
        flushed: &Flushed,
    ) -> Settled {
        let mut result = Settled::default();
        let index = self.regions().index_of(run.gfn);
        let promised = !matches!(
            run.job,
            Job::Give(Entry::Hole | Entry::Special | Entry::Ram { .. })
        );
        host.event(Event::Unmapped {
            gfn: run.gfn,
            mfn: run.mfn,
            count: FrameCount::new(applied),
            promised,
        });
        for (mfn, order) in Self::pieces(run.mfn, applied) {
            let length = order.frames().get();
            let frame = Frame::<NeedsFlush>::unmapped(mfn, order).flushed(flushed);
            let keep = promised || self.debt() > 0 && self.cache().has_room(mfn, order);
            if !keep {
                result.freed += length;
                self.st.totals.freed += length;
                host.free(Backing::Dirty(frame));
                continue;
            }
            let frame = match zero {
                Some(proof) => frame.proven_zero(proof),
                None => frame.cleared(host),
            };
            self.stash(host, frame, Some(index));
            if let Job::Check(_) = run.job {
                result.reclaimed += length;
                self.st.totals.reclaimed += length;
            } else {
                result.stolen += length;
                self.st.totals.stolen += length;
            }
        }
        result
    }

    /// The machine run under a whole region, if all its pages lie on it in one state.
    fn layout<H: Host + ?Sized>(
        &mut self,
        host: &H,
        index: u32,
        budget: &mut Budget,
    ) -> Option<(Mfn, Attr)> {
        let (start, size) = (self.regions().start(index), self.st.cfg.geometry.size());
        budget.spend(1);
        let leaf = host.lookup(start);
        let Entry::Ram { mfn, attr } = leaf.at(start) else {
            return None;
        };
        if leaf.order >= self.superpage() {
            return Some((mfn, attr));
        }
        if u64::from(self.region(index).in_place) != size || !mfn.is_aligned(self.superpage()) {
            return None;
        }
        (1..size)
            .all(|i| {
                budget.spend(1);
                let at = start.plus(i);
                host.lookup(at).at(at)
                    == (Entry::Ram {
                        mfn: mfn.plus(i),
                        attr,
                    })
            })
            .then_some((mfn, attr))
    }

    /// Turns a whole region of one pattern into one promise. Stops at the first other page.
    pub(crate) fn reclaim_super<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        index: u32,
        budget: &mut Budget,
    ) -> Result<Visit, Dying> {
        self.check_alive(host)?;
        let size = self.st.cfg.geometry.size();
        if u64::from(self.region(index).resident) != size {
            return Ok(Visit::Nothing);
        }
        // One page decides most cases before the layout is even read.
        let start = self.regions().start(index);
        budget.spend(1);
        let Entry::Ram { mfn: first, .. } = host.lookup(start).at(start) else {
            return Ok(Visit::Nothing);
        };
        budget.spend(1);
        let Some(pattern) = host.peek(first).and_then(|w| self.st.cfg.pattern_of(w)) else {
            return Ok(Visit::Nothing);
        };
        let word = self.st.cfg.word(pattern);
        let Some((mfn, attr)) = self.layout(host, index, budget) else {
            return Ok(Visit::Nothing);
        };
        let order = self.superpage();
        if host.users(mfn, order) != Users::None {
            return Ok(Visit::Nothing);
        }
        for i in 1..size {
            budget.spend(1);
            if host.peek(mfn.plus(i)) != Some(word) {
                return Ok(Visit::Nothing);
            }
        }
        let mut batch = Batch::EMPTY;
        self.hold(
            host,
            &mut batch,
            start,
            order,
            (mfn, attr),
            Job::Check(pattern),
        );
        let got = self.settle(host, &mut batch, budget).reclaimed;
        self.check_alive(host)?;
        Ok(if got > 0 {
            Visit::Got(got)
        } else {
            Visit::Nothing
        })
    }

    /// Turns single pages of a region into promises, a batch per flush.
    pub(crate) fn reclaim_pages<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        index: u32,
        budget: &mut Budget,
    ) -> Result<Visit, Dying> {
        self.check_alive(host)?;
        let (start, size) = (self.regions().start(index), self.st.cfg.geometry.size());
        let limit = self.st.cfg.max.get();
        // From here on the host watches for writes: what is seen now can be remembered.
        host.written(start);
        let mut batch = Batch::EMPTY;
        let mut total = Settled::default();
        let mut seen_all = true;
        let mut candidates = 0_u64;
        let mut leaf = None;
        for i in 0..size {
            let gfn = start.plus(i);
            if gfn.get() >= limit {
                break;
            }
            let current = match leaf {
                Some(l) if gfn.get() < end_of(&l) => l,
                _ => {
                    budget.spend(1);
                    *leaf.insert(host.lookup(gfn))
                }
            };
            let Entry::Ram { mfn, attr } = current.at(gfn) else {
                continue;
            };
            budget.spend(1);
            let Some(pattern) = host.peek(mfn).and_then(|w| self.st.cfg.pattern_of(w)) else {
                continue;
            };
            candidates += 1;
            if host.users(mfn, Order::FRAME) != Users::None {
                seen_all = false;
                continue;
            }
            let ram = (mfn, attr);
            if self.hold(
                host,
                &mut batch,
                gfn,
                Order::FRAME,
                ram,
                Job::Check(pattern),
            ) {
                leaf = None;
            } else {
                seen_all = false;
            }
            if batch.is_full() {
                total.add(self.settle(host, &mut batch, budget));
                if self.check_alive(host).is_err() {
                    return Err(Dying);
                }
            }
        }
        total.add(self.settle(host, &mut batch, budget));
        self.check_alive(host)?;
        if total.reclaimed > 0 {
            self.merge_promises(host, index, budget);
            return Ok(Visit::Got(total.reclaimed));
        }
        if let Some(r) = self.regions().get_mut(index) {
            r.barren = seen_all && total.kept == 0;
        }
        if candidates > 0 {
            // Pages that only looked empty may have cost the leaf.
            self.promote(host, index, budget);
        }
        Ok(Visit::Nothing)
    }
}

fn end_of(leaf: &crate::Leaf) -> u64 {
    leaf.start.get().saturating_add(leaf.order.frames().get())
}
