//! Changing entries of a range: promises, fill from outside, patterns.

use core::error::Error;
use core::fmt;
use core::ops::Range;

use crate::pod::Dying;
use crate::{Budget, Entry, FrameCount, Gfn, Host, Mfn, Order, Pattern, Pod};

/// How far an operation on a range got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the rest of the range is not done"]
pub struct Progress {
    /// Frames from the start of the range that are done.
    pub done: FrameCount,
    /// Whether that is the whole range; if not, call again with the rest.
    pub complete: bool,
}

/// Why a range could not be marked, filled or given another pattern.
///
/// What was done before the failure stays done and is accounted. Errors that come in the middle
/// name the first guest frame that is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RangeError {
    /// The guest is being torn down.
    Dying(Gfn),
    /// The range is not on the guest's map, or not aligned to its order.
    OutOfRange,
    /// This frame holds something the operation must not replace.
    Occupied(Gfn),
    /// The host had no memory for a table.
    NoTableMemory(Gfn),
    /// The guest would own more than its limit ([`Config::limit`](crate::Config::limit)).
    AboveLimit(Gfn),
    /// The pattern is not one of the configured ones.
    UnknownPattern,
    /// The frame that was to be mapped waits in the cache.
    Cached(Gfn, Mfn),
}

impl fmt::Display for RangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dying(_) => f.write_str("guest is dying"),
            Self::OutOfRange => f.write_str("range is not on the guest's map"),
            Self::Occupied(gfn) => write!(f, "frame {gfn} is occupied"),
            Self::NoTableMemory(gfn) => write!(f, "no memory for a table at {gfn}"),
            Self::AboveLimit(gfn) => write!(f, "frame {gfn} is one more than the guest may own"),
            Self::UnknownPattern => f.write_str("pattern is not configured"),
            Self::Cached(_, mfn) => write!(f, "frame {mfn} is in the cache"),
        }
    }
}

impl Error for RangeError {}

/// An aligned run with one entry.
#[derive(Debug)]
struct Piece {
    at: Gfn,
    order: Order,
    was: Entry,
}

impl Pod<'_> {
    /// Promises a range of holes: each page will be there, with the pattern's content, when it
    /// is touched. Pages that are promises already keep theirs.
    ///
    /// # Errors
    /// If a page of the range is neither a hole nor a promise, or for want of table memory.
    /// What lies before the failing frame is promised.
    pub fn mark<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        gfn: Gfn,
        count: FrameCount,
        pattern: Pattern,
        budget: &mut Budget,
    ) -> Result<Progress, RangeError> {
        self.promise(host, gfn, count, pattern, budget, |at, was| match was {
            Entry::Promise(_) => Ok(false),
            Entry::Hole => Ok(true),
            Entry::Ram { .. } | Entry::Special => Err(RangeError::Occupied(at)),
        })
    }

    /// Changes the pattern of the promises in a range; other entries stay as they are.
    ///
    /// For a guest whose idea of scrubbed memory changes: from zero to poison, or back.
    ///
    /// # Errors
    /// If the pattern is not configured, or for want of table memory.
    pub fn set_pattern<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        gfn: Gfn,
        count: FrameCount,
        pattern: Pattern,
        budget: &mut Budget,
    ) -> Result<Progress, RangeError> {
        self.promise(host, gfn, count, pattern, budget, |_, was| {
            Ok(matches!(was, Entry::Promise(old) if old != pattern))
        })
    }

    /// Makes promises of what `chosen` says.
    fn promise<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        gfn: Gfn,
        count: FrameCount,
        pattern: Pattern,
        budget: &mut Budget,
        chosen: impl Fn(Gfn, Entry) -> Result<bool, RangeError>,
    ) -> Result<Progress, RangeError> {
        self.known(pattern)?;
        let end = self.end_of(gfn, count).ok_or(RangeError::OutOfRange)?;
        // Left over at any moment for the region that is under way.
        let reserve = self.st.cfg.geometry.size() + 2;
        self.walk(
            host,
            gfn..Gfn::new(end),
            reserve,
            budget,
            |pod, host, piece, budget| {
                if chosen(piece.at, piece.was)? {
                    pod.put(host, &piece, Entry::Promise(pattern))?;
                }
                let next = piece.at.plus(piece.order.frames().get());
                let region_done = pod.page_of(next) == 0 || next.get() == end;
                if region_done && piece.order < pod.superpage() {
                    let index = pod.regions().index_of(piece.at);
                    pod.merge_promises(host, index, budget);
                }
                Ok(next)
            },
        )
    }

    /// Fills holes and promises from outside: firmware, a grant, a foreign map, direct MMIO.
    ///
    /// Frames the promises no longer need go back to the host, so nothing is stranded. RAM is the
    /// guest's own from then on: before [`Pod::start`] it counts beside the whole cache.
    ///
    /// # Errors
    /// If a page is RAM or special already, for want of table memory, or if `entry` would give a
    /// frame of the cache a second home, promise an unknown pattern, or exceed the limit.
    pub fn fill<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        gfn: Gfn,
        count: FrameCount,
        entry: Entry,
        budget: &mut Budget,
    ) -> Result<Progress, RangeError> {
        let end = self.end_of(gfn, count).ok_or(RangeError::OutOfRange)?;
        let loose = match entry {
            Entry::Promise(pattern) => {
                self.known(pattern)?;
                None
            }
            Entry::Ram { mfn, .. } => {
                mfn.checked_add(count).ok_or(RangeError::OutOfRange)?;
                // As many numbers as fill a page are read in one look.
                budget.spend(self.st.cache.loose() / 1024);
                self.cache().loose_in(mfn, count)
            }
            Entry::Hole | Entry::Special => None,
        };
        // One look is left for the trimming.
        let visit = |pod: &mut Self, host: &mut H, mut piece: Piece, _: &mut Budget| {
            if let Entry::Ram { .. } | Entry::Special = piece.was {
                return Err(RangeError::Occupied(piece.at));
            }
            let now = entry.advanced(piece.at.get() - gfn.get());
            if let Entry::Ram { mfn, .. } = now {
                let order = piece.order;
                let room = pod.room_for(piece.was).min(order.frames().get());
                if room == 0 {
                    return Err(RangeError::AboveLimit(piece.at));
                }
                piece.order = Order::fitting(mfn.get() | piece.at.get(), room, order);
                let end = mfn.plus(piece.order.frames().get());
                if pod.cache().in_blocks(mfn, piece.order) {
                    return Err(RangeError::Cached(piece.at, mfn));
                }
                if let Some(loose) = loose.filter(|l| (mfn..end).contains(l)) {
                    return Err(RangeError::Cached(piece.at, loose));
                }
            }
            pod.put(host, &piece, now)
        };
        let mut result = self.walk(host, gfn..Gfn::new(end), 1, budget, visit);
        let trimmed = self.trim(host, budget);
        if let Ok(progress) = &mut result {
            progress.complete &= trimmed;
        }
        result
    }

    /// Frames of RAM that may come in from outside in the place of such entries.
    fn room_for(&self, was: Entry) -> u64 {
        let (owned, cache) = (self.st.populated, self.st.cache.count());
        // What the promises do not need goes back to the host. Each one less needs one less.
        let kept = if self.st.started {
            cache.min(self.st.entries)
        } else {
            cache
        };
        let room = self.st.cfg.limit.get().saturating_sub(owned + kept);
        match was {
            Entry::Promise(_) if self.st.started && self.debt() == 0 => u64::MAX,
            _ => room,
        }
    }

    const fn known(&self, pattern: Pattern) -> Result<(), RangeError> {
        if pattern.get() < self.st.cfg.patterns_used {
            Ok(())
        } else {
            Err(RangeError::UnknownPattern)
        }
    }

    /// Visits the leaves of a range in aligned pieces, each with one kind of entry. The visit
    /// says where to go on. After the first region, `reserve` looks of the budget are left.
    fn walk<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        range: Range<Gfn>,
        reserve: u64,
        budget: &mut Budget,
        mut visit: impl FnMut(&mut Self, &mut H, Piece, &mut Budget) -> Result<Gfn, RangeError>,
    ) -> Result<Progress, RangeError> {
        let Range { start, end } = range;
        let first = self.regions().index_of(start);
        let mut at = start;
        while at < end {
            self.check_alive(host)
                .map_err(|Dying| RangeError::Dying(at))?;
            let within = self.regions().index_of(at) == first || budget.covers(1 + reserve);
            if at != start && (!within || host.should_yield()) {
                break;
            }
            budget.spend(1);
            let leaf = host.lookup(at);
            let room = leaf.room_from(at).min(end.get() - at.get());
            let order = Order::fitting(at.get(), room, leaf.order);
            let order = if order < self.superpage() || order >= self.st.cfg.geometry.giga() {
                order.min(self.st.cfg.geometry.giga())
            } else {
                self.superpage()
            };
            let was = leaf.at(at);
            at = visit(self, host, Piece { at, order, was }, budget)?;
        }
        Ok(Progress {
            done: FrameCount::new(at.get() - start.get()),
            complete: at >= end,
        })
    }

    /// Writes one piece; its end. An incomplete write is accounted and becomes an error.
    fn put<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        piece: &Piece,
        now: Entry,
    ) -> Result<Gfn, RangeError> {
        match self.write(host, piece.at, piece.order, piece.was, now) {
            (applied, true) => Ok(piece.at.plus(applied)),
            (applied, false) => Err(RangeError::NoTableMemory(piece.at.plus(applied))),
        }
    }
}
