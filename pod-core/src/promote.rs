//! Entries that belong to one huge page, in order and state, become one leaf, in place.
//!
//! Candidates are found without walking the table: each region counts its pages that lie on their
//! own frame of one machine run, and whole regions carry markers for the aligned groups that
//! continue each other's run. Only a candidate is verified against the table, because only the
//! table knows the state of an entry.

use crate::{Attr, Budget, DemandError, Entry, Event, Gfn, Host, Mfn, Order, Pattern, Pod};

/// Result of a step over the whole map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CoalesceStep {
    /// The budget is used up; call again.
    More,
    /// The end of the map was reached.
    Done,
}

impl Pod<'_> {
    /// Looks for superpages and giga pages that can be made whole, after the host changed the
    /// state of entries or an earlier attempt lacked budget. Populating does it on its own.
    ///
    /// # Errors
    /// [`DemandError::Dying`] once the guest is being torn down.
    pub fn coalesce_step<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        budget: &mut Budget,
    ) -> Result<CoalesceStep, DemandError> {
        let mut visited = false;
        while self.st.coalesce_at < self.region_count() {
            self.check_alive(host)?;
            if visited && (!budget.covers(self.region_cost()) || host.should_yield()) {
                return Ok(CoalesceStep::More);
            }
            visited = true;
            budget.spend(1);
            let index = self.st.coalesce_at;
            self.st.coalesce_at += 1;
            let start = self.regions().start(index);
            budget.spend(1);
            if self.region(index).whole && host.lookup(start).order < self.superpage() {
                // The host split the leaf on its own.
                self.regions().set_whole(index, false);
            }
            self.merge_promises(host, index, budget);
            self.promote_region(host, index, budget);
            let fan = self.st.cfg.geometry.fan().frames().get();
            if (u64::from(index) + 1).is_multiple_of(fan) {
                self.promote_giga(host, index, budget);
            }
            while budget.left() > 0 && self.merge_loose(host) {
                budget.spend(1);
            }
        }
        self.st.coalesce_at = 0;
        Ok(CoalesceStep::Done)
    }

    fn merge_loose<H: Host + ?Sized>(&mut self, host: &H) -> bool {
        let Some(mfn) = self.cache().last_loose() else {
            return false;
        };
        let node = host.node_of(mfn);
        self.cache().merge_one(node)
    }

    /// Makes one leaf of a region whose pages all lie on one run, then of the giga page.
    pub(crate) fn promote<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        index: u32,
        budget: &mut Budget,
    ) {
        self.promote_region(host, index, budget);
        self.promote_giga(host, index, budget);
    }

    fn promote_region<H: Host + ?Sized>(&mut self, host: &mut H, index: u32, budget: &mut Budget) {
        let (start, size) = (self.regions().start(index), self.st.cfg.geometry.size());
        let (order, region) = (self.superpage(), self.region(index));
        if self.st.cfg.rules.promote
            && u64::from(region.in_place) == size
            && !region.whole
            && host.max_order(start) >= order
            && budget.covers(size + 2)
            && let Some(ram) = self.uniform(host, start, size, 1, budget)
        {
            self.join(host, start, order, ram, budget);
        }
    }

    fn promote_giga<H: Host + ?Sized>(&mut self, host: &mut H, index: u32, budget: &mut Budget) {
        let (superpage, giga) = (self.superpage(), self.st.cfg.geometry.giga());
        if !self.st.cfg.rules.promote || !self.st.cfg.rules.giga {
            return;
        }
        let Some((first, run)) = self.regions().giga_run(index) else {
            return;
        };
        let (start, fan) = (self.regions().start(first), self.st.cfg.geometry.fan());
        let aligned = Mfn::new(u64::from(run) << superpage.get()).is_aligned(giga);
        let n = fan.frames().get();
        if !aligned || host.max_order(start) < giga || !budget.covers(n + 3) {
            return;
        }
        budget.spend(1);
        if host.lookup(start).order < giga
            && let Some(ram) = self.uniform(host, start, n, self.st.cfg.geometry.size(), budget)
        {
            self.join(host, start, giga, ram, budget);
        }
    }

    /// First frame and state, if `n` leaves of `step` frames continue one run in one state.
    fn uniform<H: Host + ?Sized>(
        &self,
        host: &H,
        start: Gfn,
        n: u64,
        step: u64,
        budget: &mut Budget,
    ) -> Option<(Mfn, Attr)> {
        budget.spend(1);
        let first = host.lookup(start);
        let Entry::Ram { mfn, attr } = first.at(start) else {
            return None;
        };
        if first.order.frames().get() < step {
            return None;
        }
        (1..n)
            .all(|i| {
                budget.spend(1);
                let at = start.plus(i * step);
                let leaf = host.lookup(at);
                leaf.order.frames().get() >= step
                    && leaf.at(at)
                        == (Entry::Ram {
                            mfn: mfn.plus(i * step),
                            attr,
                        })
            })
            .then_some((mfn, attr))
    }

    fn join<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        gfn: Gfn,
        order: Order,
        ram: (Mfn, Attr),
        budget: &mut Budget,
    ) {
        let entry = Entry::Ram {
            mfn: ram.0,
            attr: ram.1,
        };
        let complete = self.write(host, gfn, order, entry, entry).1;
        budget.spend(1);
        if complete && host.lookup(gfn).order >= order {
            self.st.totals.promoted += 1;
            host.event(Event::Promoted { gfn, order });
        }
    }

    /// Makes one promise of a region whose pages all are promises of one pattern, so that it
    /// can be populated by a superpage again; whether it did. Takes a look at each page.
    pub(crate) fn merge_promises<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        index: u32,
        budget: &mut Budget,
    ) -> bool {
        let (start, size) = (self.regions().start(index), self.st.cfg.geometry.size());
        let order = self.superpage();
        if u64::from(self.region(index).promises) != size {
            return false;
        }
        budget.spend(1);
        let leaf = host.lookup(start);
        let Entry::Promise(pattern) = leaf.entry else {
            return false;
        };
        if leaf.order >= order || !self.all_promised(host, start, size, pattern, budget) {
            return false;
        }
        let entry = Entry::Promise(pattern);
        self.write(host, start, order, entry, entry).1
    }

    fn all_promised<H: Host + ?Sized>(
        &self,
        host: &H,
        start: Gfn,
        size: u64,
        pattern: Pattern,
        budget: &mut Budget,
    ) -> bool {
        (1..size).all(|i| {
            budget.spend(1);
            host.lookup(start.plus(i)).entry == Entry::Promise(pattern)
        })
    }
}
