//! The guest's share: its target, and the frames the host gives for it.
//!
//! The order that survives a foreign access at any moment: set the target (which fills the
//! cache), then mark, then start. Marking first also works, but a touch before the target is set
//! has to wait.

use core::error::Error;
use core::fmt;

use crate::pod::Dying;
use crate::{Backing, Budget, FrameCount, Gfn, Host, Node, Order, Pod};

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
            let superpage = self.superpage();
            let order = if large && missing >= superpage.frames().get() {
                superpage
            } else {
                Order::FRAME
            };
            if !first && (!budget.covers(order.frames().get()) || host.should_yield()) {
                return Ok(Target::More);
            }
            self.check_alive(host).map_err(|Dying| TargetError::Dying)?;
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

    /// Takes a frame of the host into the cache; its length. One look a page, whoever clears it.
    pub(crate) fn grow<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        backing: Backing,
        budget: &mut Budget,
    ) -> Option<u64> {
        let length = backing.order().frames().get();
        if let Backing::Zeroed(frame) = &backing {
            budget.spend_on(frame.order().frames());
        }
        let frame = backing.into_zeroed(host, budget);
        self.stash(host, frame, None).then(|| {
            self.st.totals.grown += length;
            length
        })
    }
}
