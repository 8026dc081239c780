//! Building a guest and changing its share: target, promises, fill from outside, patterns.
//!
//! The order that survives a foreign access at any moment: set the target (which fills the
//! cache), then mark, then start. Marking first also works, but a touch before the target is set
//! has to wait.

use core::error::Error;
use core::fmt;

use crate::pod::Dying;
use crate::{Backing, Budget, Entry, FrameCount, Gfn, Host, Mfn, Node, Order, Pattern, Pod};

/// How far [`Pod::set_target`] got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The cache holds what the target asks for.
    Done,
    /// The budget is used up; call again with the same target.
    More,
    /// The host had no frames: make room for this many (balloon others down) and call again.
    /// What was got is kept.
    Need(FrameCount),
}

/// Why a target was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TargetError {
    /// The guest is being torn down.
    Dying,
    /// The target is above what the guest may own.
    AboveLimit,
    /// The caller's storage has no place for more frames.
    StorageFull,
}

impl fmt::Display for TargetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dying => "guest is dying",
            Self::AboveLimit => "target is above the guest's limit",
            Self::StorageFull => "no storage for more frames",
        })
    }
}

impl Error for TargetError {}

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
/// What was done before the failure stays done and is accounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RangeError {
    /// The guest is being torn down.
    Dying,
    /// The range is not on the guest's map, or not aligned to its order.
    OutOfRange,
    /// This frame holds something the operation must not replace.
    Occupied(Gfn),
    /// The host had no memory for a table; everything before this frame is done.
    NoTableMemory(Gfn),
    /// The pattern is not one of the configured ones.
    UnknownPattern,
    /// The frame that was to be mapped waits in the cache.
    Cached(Mfn),
}

impl fmt::Display for RangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dying => f.write_str("guest is dying"),
            Self::OutOfRange => f.write_str("range is not on the guest's map"),
            Self::Occupied(gfn) => write!(f, "frame {gfn} is occupied"),
            Self::NoTableMemory(gfn) => write!(f, "no memory for a table at {gfn}"),
            Self::UnknownPattern => f.write_str("pattern is not configured"),
            Self::Cached(mfn) => write!(f, "frame {mfn} is in the cache"),
        }
    }
}

impl Error for RangeError {}

impl From<Dying> for RangeError {
    fn from(_: Dying) -> Self {
        Self::Dying
    }
}

impl Pod<'_> {
    /// Makes the guest's share `target` frames, plus the slack: fills the cache as far as the
    /// promises need it.
    ///
    /// The share is never lowered here, because the guest could not survive that before its
    /// balloon has reacted. Restarting is recomputing: call with the same target until done.
    ///
    /// # Errors
    /// If the guest is dying, the target is above the limit, or the storage is full.
    pub fn set_target<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        target: FrameCount,
        budget: &mut Budget,
    ) -> Result<Target, TargetError> {
        self.check_alive(host).map_err(|Dying| TargetError::Dying)?;
        if target > self.st.cfg.limit {
            return Err(TargetError::AboveLimit);
        }
        self.st.target = Some(target.get());
        let with_slack = target.get().saturating_add(self.st.cfg.slack.get());
        let goal = with_slack.min(self.st.cfg.limit.get());
        let (mut large, mut first) = (true, true);
        loop {
            let mut wanted = goal.saturating_sub(self.st.populated);
            if self.st.started {
                wanted = wanted.min(self.st.entries);
            }
            let missing = wanted.saturating_sub(self.st.cache.count());
            if missing == 0 {
                return Ok(Target::Done);
            }
            if !first && (budget.left() == 0 || host.should_yield()) {
                return Ok(Target::More);
            }
            self.check_alive(host).map_err(|Dying| TargetError::Dying)?;
            let superpage = self.superpage();
            let order = if large && missing >= superpage.frames().get() {
                superpage
            } else {
                Order::FRAME
            };
            let node = self.home_of_next(host, goal);
            let Some(backing) = host.alloc(order, node) else {
                if order == Order::FRAME {
                    return Ok(Target::Need(FrameCount::new(missing)));
                }
                large = false;
                continue;
            };
            first = false;
            if self.grow(host, backing, budget).is_none() {
                return Err(TargetError::StorageFull);
            }
        }
    }

    /// The node for the next frame of a share of `goal`: spread as the guest's map is.
    fn home_of_next<H: Host + ?Sized>(&self, host: &H, goal: u64) -> Node {
        let max = u128::from(self.st.cfg.max.get());
        let owned = u128::from(self.st.populated + self.st.cache.count());
        let at = owned * max / u128::from(goal.max(1));
        let at = u64::try_from(at.min(max.saturating_sub(1))).unwrap_or(0);
        host.home(Gfn::new(at))
    }

    /// Takes a frame of the host into the cache; its length.
    pub(crate) fn grow<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        backing: Backing,
        budget: &mut Budget,
    ) -> Option<u64> {
        let length = backing.order().frames().get();
        budget.spend(u32::try_from(length).unwrap_or(u32::MAX));
        let frame = backing.into_zeroed(host);
        self.stash(host, frame, None).then(|| {
            self.st.totals.grown += length;
            length
        })
    }

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
        let visit = |pod: &mut Self, host: &mut H, at, order: Order, was, budget: &mut Budget| {
            if !chosen(at, was)? {
                return Ok(order.frames().get());
            }
            let done = pod.put(host, at, order, was, Entry::Promise(pattern))?;
            if order < pod.superpage() {
                let index = pod.regions().index_of(at);
                pod.merge_promises(host, index, budget);
            }
            Ok(done)
        };
        self.walk(host, gfn, count, budget, visit)
    }

    /// Fills holes and promises from outside: firmware, a grant, a foreign map, direct MMIO.
    ///
    /// Frames the promises no longer need go back to the host, so nothing is stranded.
    ///
    /// # Errors
    /// If a page is RAM or special already, for want of table memory, or if `entry` would give a
    /// frame of the cache a second home or promise an unknown pattern.
    pub fn fill<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        gfn: Gfn,
        count: FrameCount,
        entry: Entry,
        budget: &mut Budget,
    ) -> Result<Progress, RangeError> {
        match entry {
            Entry::Promise(pattern) => self.known(pattern)?,
            Entry::Ram { mfn, .. } => {
                mfn.checked_add(count).ok_or(RangeError::OutOfRange)?;
            }
            Entry::Hole | Entry::Special => {}
        }
        let mut result = self.walk(host, gfn, count, budget, |pod, host, at, order, was, _| {
            if let Entry::Ram { .. } | Entry::Special = was {
                return Err(RangeError::Occupied(at));
            }
            let now = entry.advanced(at.get() - gfn.get());
            let mut order = order;
            if let Entry::Ram { mfn, .. } = now {
                order = Order::fitting(mfn.get(), order.frames().get(), order);
                if pod.cache().touches(mfn, order) {
                    return Err(RangeError::Cached(mfn));
                }
            }
            pod.put(host, at, order, was, now)
        });
        let trimmed = self.trim(host, budget);
        if let Ok(progress) = &mut result {
            progress.complete &= trimmed;
        }
        result
    }

    const fn known(&self, pattern: Pattern) -> Result<(), RangeError> {
        if pattern.get() < self.st.cfg.patterns_used {
            Ok(())
        } else {
            Err(RangeError::UnknownPattern)
        }
    }

    /// Visits the leaves of a range in aligned pieces, each with one kind of entry.
    fn walk<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        gfn: Gfn,
        count: FrameCount,
        budget: &mut Budget,
        mut visit: impl FnMut(
            &mut Self,
            &mut H,
            Gfn,
            Order,
            Entry,
            &mut Budget,
        ) -> Result<u64, RangeError>,
    ) -> Result<Progress, RangeError> {
        let end = self.end_of(gfn, count).ok_or(RangeError::OutOfRange)?;
        let mut at = gfn;
        let progress = |at: Gfn| Progress {
            done: FrameCount::new(at.get() - gfn.get()),
            complete: at.get() >= end,
        };
        while at.get() < end {
            self.check_alive(host)?;
            if at != gfn && (budget.left() == 0 || host.should_yield()) {
                return Ok(progress(at));
            }
            budget.spend(1);
            let leaf = host.lookup(at);
            let room = leaf.room_from(at).min(end - at.get());
            let order = Order::fitting(at.get(), room, leaf.order);
            let order = if order < self.superpage() || order >= self.st.cfg.geometry.giga() {
                order.min(self.st.cfg.geometry.giga())
            } else {
                self.superpage()
            };
            let done = visit(self, host, at, order, leaf.at(at), budget)?;
            at = at.plus(done);
        }
        Ok(progress(at))
    }

    /// Writes one piece; an incomplete write is accounted and becomes an error.
    fn put<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        at: Gfn,
        order: Order,
        was: Entry,
        now: Entry,
    ) -> Result<u64, RangeError> {
        match self.write(host, at, order, was, now) {
            (applied, true) => Ok(applied),
            (applied, false) => Err(RangeError::NoTableMemory(at.plus(applied))),
        }
    }
}
