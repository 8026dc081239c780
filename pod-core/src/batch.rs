//! Taking mapped frames away: freeze, flush, look again, commit or thaw.
//!
//! This is the only code that takes RAM from the guest, for the zero check, the balloon and
//! `relocate` alike. The order of steps is the whole point: a page is judged only after no
//! virtual CPU can write it any more, and a frame is used again only after its table entry is
//! known to be gone and flushed.

use crate::cache::Claims;
use crate::frame::{Flushed, ScannedZero};
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
    /// Frames from the start that are out of the table.
    gone: u64,
}

/// Frozen runs that wait for their flush.
#[derive(Debug)]
pub(crate) struct Batch {
    held: [Option<Held>; BATCH],
    len: usize,
    to_clear: u64,
}

impl Batch {
    pub(crate) const EMPTY: Self = Self {
        held: [None; BATCH],
        len: 0,
        to_clear: 0,
    };

    pub(crate) const fn is_full(&self) -> bool {
        self.len == BATCH
    }

    /// Pages that settling may have to clear.
    pub(crate) const fn to_clear(&self) -> u64 {
        self.to_clear
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
        self.split_noted(gfn, order);
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
            gone: 0,
        });
        batch.len += 1;
        if self.clears(job) {
            batch.to_clear += order.frames().get();
        }
        true
    }

    /// Whether the frames of such a run have to be cleared for the cache.
    pub(crate) fn clears(&self, job: Job) -> bool {
        match job {
            Job::Check(pattern) => pattern != Pattern::ZERO,
            Job::Give(Entry::Promise(_)) => true,
            Job::Give(_) => self.debt() > 0,
        }
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
        let mut claims = Claims::NONE;
        // Each run is settled in its place: a second list would be as large on the stack.
        for held in &mut batch.held {
            let Some(mut run) = held.take() else { continue };
            let length = run.order.frames().get();
            let entry = Entry::Ram {
                mfn: run.mfn,
                attr: run.attr,
            };
            let allowed = self.check_alive(host).is_ok()
                && host.users(run.mfn, run.order) == Users::None
                && self.has_place(&run, &mut claims);
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
                Self::thaw_rest(host, run.gfn, run.order, applied);
                result.kept += length - applied;
            }
            if applied > 0 {
                run.gone = applied;
                *held = Some(run);
            }
        }
        batch.len = 0;
        batch.to_clear = 0;
        if batch.held.iter().all(Option::is_none) {
            return result;
        }
        // Write protection lets stale readers through until the removed entries are flushed.
        let readers_gone = if host.freeze_stops_reads() {
            writers_gone
        } else {
            Flushed::new(host)
        };
        for run in batch.held.iter_mut().filter_map(Option::take) {
            let zero = run.job == Job::Check(Pattern::ZERO);
            let proof = zero.then(|| ScannedZero::new(&readers_gone));
            let flushed = (&readers_gone, proof.as_ref());
            result.add(self.dispose(host, &run, flushed, budget));
        }
        result
    }

    /// Ends the freeze of what a table write did not get to: the write ended that of the rest.
    pub(crate) fn thaw_rest<H: Host + ?Sized>(host: &mut H, gfn: Gfn, order: Order, applied: u64) {
        let mut done = applied;
        while done < order.frames().get() {
            let (at, left) = (gfn.plus(done), order.frames().get() - done);
            let piece = Order::fitting(at.get(), left, order);
            host.thaw(at, piece);
            done += piece.frames().get();
        }
    }

    /// What becomes a promise is taken only if the cache has room for all such runs of the batch.
    /// Other frames may go to the host.
    fn has_place(&mut self, run: &Held, claims: &mut Claims) -> bool {
        match run.job {
            Job::Check(_) | Job::Give(Entry::Promise(_)) => {
                self.cache().claim(run.mfn, run.order, claims)
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
        (flushed, zero): (&Flushed, Option<&ScannedZero>),
        budget: &mut Budget,
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
            count: FrameCount::new(run.gone),
            promised,
        });
        for (mfn, order) in Self::pieces(run.mfn, run.gone) {
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
                None => frame.cleared(host, budget),
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
}
