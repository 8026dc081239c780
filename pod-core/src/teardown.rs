//! Broken frames, pins, and the end of a guest.

use crate::pod::Dying;
use crate::{
    Backing, Budget, Demand, DemandError, Entry, FrameCount, Gfn, Host, Order, Pod, Progress,
    Toucher, Wait,
};

/// How far [`Pod::drain`] got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drain {
    /// The cache is empty.
    Done,
    /// The budget is used up; call again.
    More,
}

/// What became of a broken frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameFailed {
    /// Out of the cache, and the host gave another.
    Replaced,
    /// Out of the cache, which is one frame short now.
    Short,
    /// It was not in the cache; if it is mapped, the host deals with it.
    NotCached,
}

/// Why a range was not pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PinError {
    /// A page could not be populated for an error.
    Demand(DemandError),
    /// A page cannot be populated; what lies before it is pinned.
    Unavailable(Gfn, Demand),
}

impl core::fmt::Display for PinError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Demand(e) => e.fmt(f),
            Self::Unavailable(gfn, _) => write!(f, "frame {gfn} could not be populated"),
        }
    }
}

impl core::error::Error for PinError {}

impl Pod<'_> {
    /// Populates a range and pins it, for a device that writes past the tables.
    ///
    /// From then on [`Host::users`] has to name a user for the frames, and the engine leaves
    /// them alone. So passthrough restricts ranges, not the whole guest. Progress may be none if
    /// the search for a frame used up the budget: call again.
    ///
    /// # Errors
    /// With the first frame that could not be populated.
    pub fn pin<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        gfn: Gfn,
        count: FrameCount,
        budget: &mut Budget,
    ) -> Result<Progress, PinError> {
        let end = self
            .end_of(gfn, count)
            .ok_or(PinError::Demand(DemandError::OutOfRange))?;
        let mut at = gfn;
        while at.get() < end {
            // Enough for whatever populating this page may need.
            let affordable = budget.covers(self.region_cost() + 4);
            if at != gfn && (!affordable || host.should_yield()) {
                break;
            }
            let answer = self
                .demand(host, at, Toucher::Host, Order::MAX, budget)
                .map_err(PinError::Demand)?;
            if answer == Demand::Retry(Wait::Sweeping) {
                break;
            }
            budget.spend(1);
            let leaf = host.lookup(at);
            let Entry::Ram { mfn, .. } = leaf.at(at) else {
                return Err(PinError::Unavailable(at, answer));
            };
            let room = leaf.room_from(at).min(end - at.get());
            let order = Order::fitting(at.get(), room, leaf.order);
            host.pin(mfn, order);
            at = at.plus(order.frames().get());
        }
        Ok(Progress {
            done: FrameCount::new(at.get() - gfn.get()),
            complete: at.get() >= end,
        })
    }

    /// A machine frame is broken: takes it out of the cache and asks for another one.
    ///
    /// Found by its number at once, unless it is one of the loose frames.
    ///
    /// # Errors
    /// [`DemandError::Dying`] once the guest is being torn down.
    pub fn frame_failed<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        mfn: crate::Mfn,
    ) -> Result<FrameFailed, DemandError> {
        self.check_alive(host)?;
        if !self.cache().remove_broken(mfn) {
            return Ok(FrameFailed::NotCached);
        }
        let node = host.node_of(mfn);
        host.retire(mfn);
        let Some(backing) = host.alloc(Order::FRAME, node) else {
            return Ok(FrameFailed::Short);
        };
        let frame = backing.into_zeroed(host, &mut Budget::default());
        Ok(if self.stash(host, frame, None) {
            FrameFailed::Replaced
        } else {
            FrameFailed::Short
        })
    }

    /// Gives the cache back to the host, for a guest that is being torn down.
    ///
    /// After the first call every other operation answers that the guest is dying. What is
    /// mapped is the host's to free.
    pub fn drain<H: Host + ?Sized>(&mut self, host: &mut H, budget: &mut Budget) -> Drain {
        self.st.dead = true;
        let mut first = true;
        while self.st.cache.count() > 0 {
            if !first && (budget.left() == 0 || host.should_yield()) {
                return Drain::More;
            }
            first = false;
            let all = self.st.cache.count();
            let Some(frame) = self.cache().take_surplus(all) else {
                break;
            };
            budget.spend(1);
            host.free(Backing::Zeroed(frame));
        }
        Drain::Done
    }
}

impl From<Dying> for PinError {
    fn from(_: Dying) -> Self {
        Self::Demand(DemandError::Dying)
    }
}
