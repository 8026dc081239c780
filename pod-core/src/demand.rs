//! First touch of a promise.

use core::error::Error;
use core::fmt;

use crate::pod::Dying;
use crate::sweep::{Search, Swept};
use crate::{
    Budget, Entry, Event, Frame, FrameCount, Gfn, Host, Leaf, Mfn, Order, Pattern, Pod, Policy,
    Vcpu, Zeroed,
};

/// Who touched the promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Toucher {
    /// A virtual CPU of the guest.
    Vcpu(Vcpu),
    /// The host itself: device model, emulation, foreign map. May use the reserve.
    Host,
}

/// Answer to a touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand {
    /// The frame is RAM now, and so is the whole aligned run of this order around it.
    Populated(Order),
    /// The frame was RAM already: another touch was faster, or the fault has another reason.
    ///
    /// So says the table: if the memory was discarded behind the engine's back, to wake the
    /// virtual CPU again and again does not help it. The host has to give it a page itself.
    Present,
    /// There is nothing to populate: a hole, or an entry the engine does not touch.
    NotPromise,
    /// Not yet. Progress was made, so calling again ends.
    Retry(Wait),
    /// No frame is left, and a complete pass since the touch began found none to reclaim. What the
    /// host decided.
    ///
    /// If the pass took several calls, a second one was made, because the guest may have freed pages
    /// behind the first. Calls for one frame, by one virtual CPU (or the host), with none of them
    /// answered in between, are one touch.
    ///
    /// Virtual CPUs with one lane, and all touches of the host, share a count. If many frames are
    /// touched in turns there, the pass may have begun with an earlier touch of them.
    Exhausted(Policy),
}

/// Why a touch has to be repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Wait {
    /// The search for filled pages used up the budget; call again at once.
    Sweeping,
    /// No target was set yet, so the cache was never filled; call again after it was.
    NoTarget,
}

/// Why a touch could not be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DemandError {
    /// The guest is being torn down.
    Dying,
    /// The frame is not on the guest's map.
    OutOfRange,
    /// The cache's lists have no frame although its count says so: the storage is not this
    /// engine's, or was written. [`Pod::audit`] tells more.
    Storage,
    /// The host had no memory for a table. The page asked for was not populated; some that lie before
    /// it in its run may be.
    NoTableMemory,
}

impl fmt::Display for DemandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dying => "guest is dying",
            Self::OutOfRange => "frame is not on the guest's map",
            Self::Storage => "storage contradicts itself",
            Self::NoTableMemory => "no memory for a table",
        })
    }
}

impl Error for DemandError {}

impl From<Dying> for DemandError {
    fn from(_: Dying) -> Self {
        Self::Dying
    }
}

impl Pod<'_> {
    /// Populates the promise at `gfn`, with the largest leaf that is possible.
    ///
    /// `largest` caps the leaf, for a fault of which the host knows that a superpage would be
    /// wrong. Work is bounded by the budget, or by the visit of one region (four looks for each
    /// of its pages, and a few) if that is more. Calling it for a frame that is RAM already, or again
    /// after any error, is harmless.
    ///
    /// # Errors
    /// If the guest is dying, the frame is not on the map, or table memory ran out.
    pub fn demand<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        gfn: Gfn,
        by: Toucher,
        largest: Order,
        budget: &mut Budget,
    ) -> Result<Demand, DemandError> {
        if gfn.get() >= self.st.cfg.max.get() {
            return Err(DemandError::OutOfRange);
        }
        let answer = self.touch(host, gfn, by, largest, budget);
        if answer != Ok(Demand::Retry(Wait::Sweeping)) {
            // A virtual CPU that got a frame waits for no other one.
            let moved_on = by != Toucher::Host && matches!(answer, Ok(Demand::Populated(_)));
            let search = self.search(by);
            if moved_on || search.is_for(gfn) {
                *search = Search::NONE;
            }
        }
        answer
    }

    /// What is known of the touch that waits there.
    fn search(&mut self, by: Toucher) -> &mut Search {
        let lane = match by {
            Toucher::Vcpu(vcpu) => {
                let lanes = self.mem.lanes.len().max(1);
                self.mem.lanes.get_mut(usize::from(vcpu.get()) % lanes)
            }
            Toucher::Host => None,
        };
        lane.map_or(&mut self.st.search, |lane| &mut lane.search)
    }

    fn touch<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        gfn: Gfn,
        by: Toucher,
        largest: Order,
        budget: &mut Budget,
    ) -> Result<Demand, DemandError> {
        self.check_alive(host)?;
        budget.spend(1);
        match host.lookup(gfn).entry {
            Entry::Promise(_) => {}
            Entry::Ram { .. } => return Ok(Demand::Present),
            Entry::Hole | Entry::Special => return Ok(Demand::NotPromise),
        }
        let vcpu = match by {
            Toucher::Vcpu(vcpu) => {
                self.st.started = true;
                vcpu
            }
            Toucher::Host => Vcpu::default(),
        };
        let reserve = if by == Toucher::Host {
            0
        } else {
            self.st.cfg.reserve.get()
        };
        let (mut visited, mut until) = (false, None);
        if self.debt() > 0
            && let Some(index) = self.lane(vcpu).and_then(|l| l.due())
        {
            visited = true;
            self.visit_recent(host, index, vcpu, false, budget)?;
        }
        loop {
            self.check_alive(host)?;
            if self.st.cache.count() > 0 && (self.debt() == 0 || self.st.cache.count() > reserve) {
                let enough = budget.covers(self.st.cfg.geometry.size() + 2);
                if visited && !enough {
                    return Ok(Demand::Retry(Wait::Sweeping));
                }
                return self.populate(host, gfn, vcpu, largest, budget);
            }
            if self.st.target.is_none() {
                return Ok(Demand::Retry(Wait::NoTarget));
            }
            if visited && (!budget.covers(self.region_cost()) || host.should_yield()) {
                return Ok(Demand::Retry(Wait::Sweeping));
            }
            visited = true;
            let (looked, regions) = (self.st.sweep.looked(), u64::from(self.region_count()));
            let until = *until.get_or_insert_with(|| {
                // From here on each look counts for this touch.
                self.search(by).resume(gfn, looked, regions)
            });
            if let Some(index) = self.lane(vcpu).and_then(|l| l.pop()) {
                self.visit_recent(host, index, vcpu, true, budget)?;
                continue;
            }
            match self.sweep(host, Some(until), budget)? {
                Swept::Found(_) => {}
                Swept::More => return Ok(Demand::Retry(Wait::Sweeping)),
                Swept::Nothing => match host.exhausted(gfn, &self.stats()) {
                    Policy::Lend(frames) if self.lend(host, gfn, frames, budget) => {
                        // A loan smaller than the reserve: the next one needs no other pass.
                        let looked = self.st.sweep.looked();
                        self.search(by).finish(looked);
                    }
                    Policy::Lend(_) => return Ok(Demand::Exhausted(Policy::Pause)),
                    policy => return Ok(Demand::Exhausted(policy)),
                },
            }
        }
    }

    /// Takes up to `frames` more from the host; whether any came.
    ///
    /// Nobody has to remember a loan: it pays debt, so that the cache covers the promises before
    /// the balloon has reached the target. From then on what comes back goes to the host.
    fn lend<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        gfn: Gfn,
        frames: FrameCount,
        budget: &mut Budget,
    ) -> bool {
        // A superpage at most: the touch needs one frame, and time is short.
        let populating = self.st.cfg.geometry.size() + 2;
        let affordable = u64::from(budget.left()).saturating_sub(populating).max(1);
        let wanted = frames
            .get()
            .min(self.st.cfg.geometry.size())
            .min(affordable);
        let mut got = 0;
        while got < wanted && self.st.populated + self.st.cache.count() < self.st.cfg.limit.get() {
            let node = host.home(gfn);
            let Some(backing) = host.alloc(Order::FRAME, node) else {
                break;
            };
            let Some(length) = self.grow(host, backing, budget) else {
                break;
            };
            got += length;
        }
        self.st.totals.lent += got;
        got > 0
    }

    fn populate<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        gfn: Gfn,
        vcpu: Vcpu,
        largest: Order,
        budget: &mut Budget,
    ) -> Result<Demand, DemandError> {
        budget.spend(1);
        let mut leaf = host.lookup(gfn);
        let Entry::Promise(pattern) = leaf.entry else {
            return Ok(Demand::Present);
        };
        let index = self.regions().index_of(gfn);
        let (recycled, wanted) = (
            self.region(index).recycled,
            host.max_order(gfn).min(largest),
        );
        // A merge that lacked the budget before is made up for if a superpage can follow.
        let splintered = leaf.order < self.superpage() && wanted >= self.superpage();
        if splintered
            && self.st.cache.whole() > 0
            && budget.covers(2 * self.st.cfg.geometry.size() + 4)
            && self.merge_promises(host, index, budget)
        {
            budget.spend(1);
            leaf = host.lookup(gfn);
        }
        let cap = wanted.min(leaf.order);
        let Some((order, frame)) = self.supply(host, gfn, &leaf, cap, largest, budget) else {
            return Err(DemandError::Storage);
        };
        let at = gfn.align_down(order);
        let reached = self.map(host, at, frame, pattern, budget);
        if at.plus(reached).get() <= gfn.get() {
            return Err(DemandError::NoTableMemory);
        }
        let whole = reached == order.frames().get();
        if leaf.order >= self.superpage() && order < self.superpage() {
            self.st.totals.splintered += 1;
            host.event(Event::Splintered {
                gfn: gfn.align_down(self.superpage()),
            });
        }
        let adapts = self.st.cfg.rules.ring.is_none();
        if let Some(lane) = self.lane(vcpu) {
            lane.push(index);
            if recycled && adapts {
                lane.too_short();
            }
        }
        if order <= self.superpage() {
            self.promote(host, index, budget);
        }
        Ok(Demand::Populated(if whole { order } else { Order::FRAME }))
    }

    /// The best frame for the touch, and how much of the promise it backs.
    fn supply<H: Host + ?Sized>(
        &mut self,
        host: &H,
        gfn: Gfn,
        leaf: &Leaf,
        cap: Order,
        largest: Order,
        budget: &mut Budget,
    ) -> Option<(Order, Frame<Zeroed>)> {
        let (superpage, giga) = (self.superpage(), self.st.cfg.geometry.giga());
        let node = host.home(gfn);
        // A giga page for one touch only where that cannot make the race closer, and takes no
        // time to fill.
        if self.st.cfg.rules.giga
            && cap >= giga
            && leaf.entry == Entry::Promise(Pattern::ZERO)
            && self.debt() == 0
            && let Some(frame) = self.cache().take(giga, node)
        {
            return Some((giga, frame));
        }
        if cap >= superpage
            && let Some(frame) = self.cache().take(superpage, node)
        {
            return Some((superpage, frame));
        }
        let index = self.regions().index_of(gfn);
        self.tie(index, node);
        let around = self.around(host, gfn, leaf, largest, budget);
        // Its own frame first: that is what lets the region become one leaf again.
        for order in [around, Order::FRAME] {
            let Some(run) = self.region(index).run() else {
                break;
            };
            let base = Mfn::new(u64::from(run) << superpage.get());
            let own = base.plus(self.page_of(gfn.align_down(order)));
            if let Some(frame) = self.cache().take_at(own, order) {
                return Some((order, frame));
            }
        }
        [around, Order::FRAME].into_iter().find_map(|order| {
            let frame = self.cache().take(order, node)?;
            Some((order, frame))
        })
    }

    /// Lays a region out on one machine run if most of it will be populated.
    fn tie(&mut self, index: u32, node: crate::Node) {
        let region = self.region(index);
        let worth = u64::from(region.promises) * 2 >= self.st.cfg.geometry.size();
        if self.st.cfg.rules.tie
            && worth
            && region.run().is_none()
            && let Some(run) = self.cache().tie(node)
            && let Some(r) = self.regions().get_mut(index)
        {
            r.set_run(Some(run));
        }
    }

    /// The order to populate around a small touch: all of it has to be one promise.
    fn around<H: Host + ?Sized>(
        &self,
        host: &H,
        gfn: Gfn,
        leaf: &Leaf,
        largest: Order,
        budget: &mut Budget,
    ) -> Order {
        let around = self.st.cfg.around.min(largest);
        if around == Order::FRAME || leaf.order >= around {
            return around.min(leaf.order);
        }
        let start = gfn.align_down(around);
        let affordable = budget.covers(2 * around.frames().get());
        if !affordable || self.end_of(start, around.frames()).is_none() {
            return Order::FRAME;
        }
        let uniform = (0..around.frames().get()).all(|i| {
            budget.spend(1);
            host.lookup(start.plus(i)).entry == leaf.entry
        });
        if uniform { around } else { Order::FRAME }
    }

    /// Maps a frame of the cache over a promise; how many frames are mapped. The rest of the
    /// frame goes back.
    pub(crate) fn map<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        gfn: Gfn,
        frame: Frame<Zeroed>,
        pattern: Pattern,
        budget: &mut Budget,
    ) -> u64 {
        let (mfn, order, word) = (frame.mfn(), frame.order(), self.st.cfg.word(pattern));
        if word != 0 {
            budget.spend_on(order.frames());
            host.fill(mfn, order, word);
        }
        let (applied, complete) =
            self.write(host, gfn, order, Entry::Promise(pattern), Entry::ram(mfn));
        self.st.totals.populated += applied;
        if !complete {
            for (mfn, order) in Self::pieces(mfn.plus(applied), order.frames().get() - applied) {
                let piece = if word == 0 {
                    Frame::from_cache(mfn, order)
                } else {
                    match Frame::<crate::Dirty>::new(mfn, order) {
                        Some(dirty) => dirty.cleared(host, budget),
                        None => continue,
                    }
                };
                let index = self.regions().index_of(gfn);
                self.stash(host, piece, Some(index));
                self.settle_run(index);
            }
        }
        if applied > 0 {
            host.event(Event::Populated {
                gfn,
                mfn,
                count: FrameCount::new(applied),
            });
        }
        applied
    }
}
