//! The balloon's path: the guest gives pages back.
//!
//! A promise is simply forgotten. RAM is taken with the same steps as for the zero check, at the
//! order of its leaf: kept for the cache while promises lack frames, given to the host
//! otherwise. A page somebody else still uses stays where it is.

use core::error::Error;
use core::fmt;

use crate::batch::{Batch, Job, Settled};
use crate::pod::Dying;
use crate::reclaim::Visit;
use crate::{Budget, Entry, FrameCount, Gfn, Host, Order, Pattern, Pod, Progress, Users};

/// What is to be where the released pages were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// Nothing: the guest gave the frame numbers back.
    Hole,
    /// A promise: the guest only said that it does not need the content (a free page report,
    /// or a balloon whose pages may be touched again without a word).
    Promise(Pattern),
}

/// What a release did, in frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the rest of the range is not done"]
pub struct Released {
    /// How far it got.
    pub progress: Progress,
    /// Were promises.
    pub promises: FrameCount,
    /// Were RAM; the frames went to the cache.
    pub stolen: FrameCount,
    /// Were RAM; the frames went to the host.
    pub freed: FrameCount,
    /// Stayed: special, or used by somebody else. Holes do not count.
    pub kept: FrameCount,
}

/// Why a release stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReleaseError {
    /// The guest is being torn down.
    Dying,
    /// The range is not on the guest's map.
    OutOfRange,
    /// The host had no memory to split a leaf; this frame and what follows was not released.
    NoTableMemory(Gfn),
    /// The pattern is not one of the configured ones.
    UnknownPattern,
}

impl fmt::Display for ReleaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dying => f.write_str("guest is dying"),
            Self::OutOfRange => f.write_str("range is not on the guest's map"),
            Self::NoTableMemory(gfn) => write!(f, "no memory for a table at {gfn}"),
            Self::UnknownPattern => f.write_str("pattern is not configured"),
        }
    }
}

impl Error for ReleaseError {}

impl From<Dying> for ReleaseError {
    fn from(_: Dying) -> Self {
        Self::Dying
    }
}

impl Pod<'_> {
    /// Releases a range of any start and length. What is not there already is no error, so a
    /// release may be repeated, and may arrive before or after the fault it explains.
    ///
    /// # Errors
    /// If the guest is dying, the range is not on its map, or a leaf could not be split.
    pub fn release<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        gfn: Gfn,
        count: FrameCount,
        leave: Leave,
        budget: &mut Budget,
    ) -> Result<Released, ReleaseError> {
        let end = self.end_of(gfn, count).ok_or(ReleaseError::OutOfRange)?;
        let size = self.st.cfg.geometry.size();
        let merges = matches!(leave, Leave::Promise(_));
        let now = match leave {
            Leave::Hole => Entry::Hole,
            Leave::Promise(p) if p.get() < self.st.cfg.patterns_used => Entry::Promise(p),
            Leave::Promise(_) => return Err(ReleaseError::UnknownPattern),
        };
        let first = self.regions().index_of(gfn);
        let mut at = gfn;
        let mut batch = Batch::EMPTY;
        let mut settled = Settled::default();
        let (mut promises, mut special) = (0, 0);
        let mut tried = None;
        let mut failed = None;
        while at.get() < end {
            if self.check_alive(host).is_err() {
                // Nothing may stay frozen; a dying guest's batch is thawed.
                self.settle(host, &mut batch, budget);
                return Err(ReleaseError::Dying);
            }
            let index = self.regions().index_of(at);
            let affordable = budget.covers(self.region_cost() + batch.to_clear());
            if at != gfn && (index != first && !affordable || host.should_yield()) {
                break;
            }
            budget.spend(1);
            let leaf = host.lookup(at);
            let room = leaf.room_from(at).min(end - at.get());
            let mut order = Order::fitting(at.get(), room, leaf.order);
            // Clearing a giga page is too long for one step.
            let clears = self.clears(Job::Give(now)) && matches!(leaf.entry, Entry::Ram { .. });
            if order > self.superpage() && (clears || order < self.st.cfg.geometry.giga()) {
                order = self.superpage();
            }
            match leaf.at(at) {
                Entry::Hole => {}
                Entry::Special => special += order.frames().get(),
                Entry::Promise(_) if merges => {}
                was @ Entry::Promise(_) => {
                    let (applied, complete) = self.write(host, at, order, was, Entry::Hole);
                    promises += applied;
                    self.st.totals.released += applied;
                    if !complete {
                        failed = Some(at.plus(applied));
                        break;
                    }
                }
                Entry::Ram { mfn, attr } => {
                    // Guests return small pages of regions they never used: one look at the
                    // whole region may free 512 of them, and leaves no splinters.
                    let small = order < self.superpage() && leave == Leave::Hole;
                    if small && self.debt() > 0 && tried != Some(index) {
                        tried = Some(index);
                        settled.add(self.settle(host, &mut batch, budget));
                        if let Visit::Got(_) = self.reclaim_super(host, index, budget)? {
                            continue;
                        }
                    }
                    let mut used = host.users(mfn, order) != Users::None;
                    if used && order > Order::FRAME {
                        // One user of one page must not keep the whole run.
                        order = Order::FRAME;
                        used = host.users(mfn, order) != Users::None;
                    }
                    if used {
                        special += 1;
                        order = Order::FRAME;
                    } else if !self.hold(host, &mut batch, at, order, (mfn, attr), Job::Give(now)) {
                        failed = Some(at);
                        break;
                    }
                }
            }
            at = at.plus(order.frames().get());
            let region_done = self.page_of(at) == 0;
            if batch.is_full() || batch.to_clear() >= size || region_done && merges {
                settled.add(self.settle(host, &mut batch, budget));
            }
            if region_done && merges {
                self.merge_promises(host, index, budget);
            }
        }
        settled.add(self.settle(host, &mut batch, budget));
        if merges {
            self.st.alarm.returned += settled.stolen;
        } else {
            self.st.alarm.given += promises + settled.stolen;
        }
        self.check_alive(host)?;
        if merges && self.page_of(at) != 0 {
            // The end of the range may be what its region was waiting for.
            let last = self.regions().index_of(at);
            self.merge_promises(host, last, budget);
        }
        let trimmed = self.trim(host, budget);
        if let Some(failed) = failed {
            return Err(ReleaseError::NoTableMemory(failed));
        }
        Ok(Released {
            progress: Progress {
                done: FrameCount::new(at.get() - gfn.get()),
                complete: at.get() >= end && trimmed,
            },
            promises: FrameCount::new(promises),
            stolen: FrameCount::new(settled.stolen),
            freed: FrameCount::new(settled.freed),
            kept: FrameCount::new(special + settled.kept),
        })
    }
}
