//! What the engine remembers about each guest superpage, and the contiguity markers.
//!
//! The record counts, it does not map: the host's table stays the only truth about entries.

use crate::config::Geometry;
use crate::{Entry, Gfn, Mfn, Order};

const NONE: u32 = u32::MAX;

/// What is known about one guest superpage; a slot of the caller's storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Region {
    /// Machine superpage run this region is laid out on.
    run: u32,
    /// Pages that are promises.
    pub(crate) promises: u16,
    /// Pages that are RAM.
    pub(crate) resident: u16,
    /// RAM pages that lie on their own frame of `run`.
    pub(crate) in_place: u16,
    /// Pages that became RAM since the region was last looked at page by page.
    pub(crate) fresh: u16,
    /// Written as one run of superpage order or larger, and not split since: one leaf, where
    /// the table has such leaves.
    pub(crate) whole: bool,
    /// Every page was seen non-zero, and the host is watching for writes.
    pub(crate) barren: bool,
    /// Taken back through the list of recent regions and not touched since.
    pub(crate) recycled: bool,
    /// The aligned group of 2^marker whole regions that starts here lies on one machine run.
    pub(crate) marker: u8,
}

impl Region {
    /// All hole, nothing known.
    pub const EMPTY: Self = Self {
        run: NONE,
        promises: 0,
        resident: 0,
        in_place: 0,
        fresh: 0,
        whole: false,
        barren: false,
        recycled: false,
        marker: 0,
    };

    pub(crate) const fn run(&self) -> Option<u32> {
        if self.run == NONE {
            None
        } else {
            Some(self.run)
        }
    }

    pub(crate) const fn set_run(&mut self, run: Option<u32>) {
        self.run = match run {
            Some(run) => run,
            None => NONE,
        };
    }
}

/// All regions, for the time of one operation.
#[derive(Debug)]
pub(crate) struct Regions<'a> {
    pub(crate) list: &'a mut [Region],
    pub(crate) geometry: Geometry,
}

impl Regions<'_> {
    pub(crate) fn index_of(&self, gfn: Gfn) -> u32 {
        u32::try_from(gfn.get() >> self.geometry.superpage().get()).unwrap_or(NONE)
    }

    pub(crate) fn get(&self, index: u32) -> Option<&Region> {
        self.list.get(index as usize)
    }

    pub(crate) fn get_mut(&mut self, index: u32) -> Option<&mut Region> {
        self.list.get_mut(index as usize)
    }

    /// Moves `n` pages from `page` on, all inside one region, from one state to another.
    /// `leaf` says that the write made one leaf of superpage order or larger.
    pub(crate) fn account(
        &mut self,
        index: u32,
        page: u16,
        n: u16,
        was: Entry,
        now: Entry,
        leaf: bool,
    ) {
        let size = self.geometry.size();
        let order = self.geometry.superpage();
        let Some(r) = self.get_mut(index) else { return };
        let in_place = |run: u32, mfn: Mfn| {
            run != NONE
                && mfn.get() >> order.get() == u64::from(run)
                && mfn.get() & (size - 1) == u64::from(page)
        };
        // A table that changed behind the engine's back must not bring the host down: the
        // counts saturate, and the audit tells.
        match was {
            Entry::Promise(_) => r.promises = r.promises.saturating_sub(n),
            Entry::Ram { mfn, .. } => {
                r.resident = r.resident.saturating_sub(n);
                if in_place(r.run, mfn) {
                    r.in_place = r.in_place.saturating_sub(n);
                }
            }
            Entry::Hole | Entry::Special => {}
        }
        match now {
            Entry::Promise(_) => r.promises = r.promises.saturating_add(n),
            Entry::Ram { mfn, .. } => {
                // Only an empty region may adopt a run: pages already there could lie on it
                // without having been counted.
                let empty = r.run == NONE && r.resident == 0;
                if empty && mfn.get() & (size - 1) == u64::from(page) {
                    r.run = u32::try_from(mfn.get() >> order.get()).unwrap_or(NONE);
                }
                r.resident = r.resident.saturating_add(n);
                if in_place(r.run, mfn) {
                    r.in_place = r.in_place.saturating_add(n);
                }
            }
            Entry::Hole | Entry::Special => {}
        }
        // A join changes leaves, not pages: what is known of the pages stays known.
        if was != now {
            r.barren = false;
            if matches!(now, Entry::Ram { .. }) {
                r.recycled = false;
                if !matches!(was, Entry::Ram { .. }) {
                    r.fresh = r.fresh.saturating_add(n);
                }
            }
        }
        r.fresh = r.fresh.min(r.resident);
        let whole = leaf && matches!(now, Entry::Ram { .. }) && u64::from(r.in_place) == size;
        self.set_whole(index, whole);
    }

    pub(crate) fn set_whole(&mut self, index: u32, whole: bool) {
        let Some(r) = self.get_mut(index) else { return };
        if whole == r.whole {
            return;
        }
        r.whole = whole;
        r.marker = 0;
        if whole {
            self.raise_markers(index)
        } else {
            self.drop_markers(index)
        }
    }

    /// Joins the group of this region with its neighbours as far as they continue the run.
    fn raise_markers(&mut self, index: u32) {
        let fan = self.geometry.fan().get();
        for k in 0..fan {
            let start = index & !((1 << k) - 1);
            let low = start & !(1 << k);
            let (Some(&a), Some(&b)) = (self.get(low), self.get(low | 1 << k)) else {
                return;
            };
            let joined = a.whole
                && b.whole
                && a.marker >= k
                && b.marker >= k
                && a.run & ((2 << k) - 1) == 0
                && b.run == a.run + (1 << k);
            if !joined {
                return;
            }
            if let Some(r) = self.get_mut(low) {
                r.marker = k + 1;
            }
        }
    }

    fn drop_markers(&mut self, index: u32) {
        for k in 1..=self.geometry.fan().get() {
            let start = index & !((1 << k) - 1);
            if let Some(r) = self.get_mut(start) {
                r.marker = r.marker.min(k - 1);
            }
        }
    }

    /// First region of the giga page and its run, if all of it lies on one machine giga run.
    pub(crate) fn giga_run(&self, index: u32) -> Option<(u32, u32)> {
        let fan = self.geometry.fan();
        let first = index & !((1 << fan.get()) - 1);
        let r = self.get(first)?;
        (r.whole && r.marker == fan.get()).then_some((first, r.run))
    }

    pub(crate) fn start(&self, index: u32) -> Gfn {
        Gfn::new(u64::from(index) << self.geometry.superpage().get())
    }

    /// Whether every marker says what it should.
    pub(crate) fn markers_hold(&self) -> bool {
        let fan = self.geometry.fan().get();
        let order = Order::clamped(fan);
        (0_u32..).zip(self.list.iter()).all(|(i, r)| {
            let group = self
                .list
                .iter()
                .skip(i as usize)
                .take(1 << r.marker.min(fan));
            let aligned = u64::from(i) & (Order::clamped(r.marker).frames().get() - 1) == 0;
            r.marker <= order.get()
                && (r.marker == 0
                    || aligned
                        && group
                            .zip(0..)
                            .all(|(m, k)| m.whole && m.run == r.run.wrapping_add(k)))
        })
    }
}
