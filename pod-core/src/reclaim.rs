//! The zero check: filled pages become promises again.
//!
//! Pages are looked at while the guest runs, cheapest question first; only what passes is frozen
//! and handed to [`batch`](crate::batch), which decides.

use crate::batch::{Batch, Job, Settled};
use crate::pod::Dying;
use crate::{Attr, Budget, Entry, Host, Leaf, Mfn, Order, Pod, Users};

/// Result of a visit to one region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Visit {
    /// So many frames went to the cache.
    Got(u64),
    Nothing,
}

impl Pod<'_> {
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
        if let Some(r) = self.regions().get_mut(index) {
            r.fresh = 0;
        }
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
            // If not now, then at the next touch.
            if budget.covers(size + 1) {
                self.merge_promises(host, index, budget);
            }
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

fn end_of(leaf: &Leaf) -> u64 {
    leaf.start.get().saturating_add(leaf.order.frames().get())
}
