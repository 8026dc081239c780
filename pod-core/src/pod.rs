//! The engine's state, and the few steps all operations are made of.
//!
//! Every change of a table entry goes through [`Pod::write`], which accounts exactly what the
//! host says it applied; every frame that enters the cache goes through [`Pod::stash`].

use core::fmt;

use crate::alarm::AlarmState;
use crate::cache::{Cache, CacheState};
use crate::level::Block;
use crate::region::{Region, Regions};
use crate::ring::Lane;
use crate::sweep::{Search, SweepState};
use crate::{
    Backing, Budget, Config, Entry, Frame, FrameCount, Gfn, Host, Mfn, NewError, Order, SetError,
    Sizes, Stats, Storage, Totals, Vcpu, Zeroed,
};

/// Populate-on-demand for one guest. See the [crate] documentation for a tour.
///
/// The host's lock around the second-stage table is the lock of the engine too: all calls take
/// `&mut self`. Nothing is allocated; all memory is in the caller's [`Storage`].
pub struct Pod<'s> {
    pub(crate) st: State,
    pub(crate) mem: Storage<'s>,
}

/// Everything of an engine that is not in its storage.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) cfg: Config,
    pub(crate) cache: CacheState,
    /// Pages that are promises.
    pub(crate) entries: u64,
    /// Pages of RAM in the table.
    pub(crate) populated: u64,
    pub(crate) target: Option<u64>,
    pub(crate) started: bool,
    pub(crate) dead: bool,
    pub(crate) sweep: SweepState,
    /// The host's own touch that waits for a frame.
    pub(crate) search: Search,
    pub(crate) coalesce_at: u32,
    pub(crate) alarm: AlarmState,
    pub(crate) totals: Totals,
}

/// An engine without its storage, for a host that hands a running guest to its successor.
///
/// Valid together with the storage it was suspended from, unchanged.
#[derive(Clone, Debug)]
pub struct Suspended {
    state: State,
    lengths: [usize; 5],
}

/// The storage is not what the engine was suspended from: its slices have other lengths, or other
/// frames and pages in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResumeError;

impl fmt::Display for ResumeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("storage is not what the engine was suspended from")
    }
}

impl core::error::Error for ResumeError {}

/// The guest is being torn down: only [`Pod::drain`] is left to do.
pub(crate) struct Dying;

impl<'s> Pod<'s> {
    /// An engine for a guest whose map is all holes.
    ///
    /// # Errors
    /// If a setting is out of range or the storage is too small for the guest's map.
    pub fn new(config: Config, storage: Storage<'s>) -> Result<Self, NewError> {
        let used = usize::from(config.patterns_used);
        let others = config.patterns.iter().take(used).skip(1);
        let legal = config.patterns.first() == Some(&0)
            && (1..=config.patterns.len()).contains(&used)
            && others.clone().all(|w| *w != 0)
            && config.limit <= config.max
            && config.ram <= config.max
            && config.around <= config.geometry.superpage()
            && config.max.get() >> config.geometry.superpage().get() < u64::from(u32::MAX);
        if !legal {
            return Err(NewError::Config);
        }
        let needed = Sizes::for_guest(&config, FrameCount::ZERO, 1);
        if storage.regions.len() < needed.regions || storage.lanes.is_empty() {
            return Err(NewError::Storage);
        }
        let mut pod = Self {
            st: State {
                cache: CacheState::new(config.geometry, config.rules),
                cfg: config,
                entries: 0,
                populated: 0,
                target: None,
                started: false,
                dead: false,
                sweep: SweepState::IDLE,
                search: Search::NONE,
                coalesce_at: 0,
                alarm: AlarmState::QUIET,
                totals: Totals::default(),
            },
            mem: storage,
        };
        pod.mem.regions.fill(Region::EMPTY);
        pod.mem.blocks.fill(Block::EMPTY);
        pod.mem.gigas.fill(Block::EMPTY);
        pod.mem.lanes.fill(Lane::EMPTY);
        for lane in pod.mem.lanes.iter_mut() {
            lane.fixed(config.rules.ring);
        }
        pod.cache().reset();
        Ok(pod)
    }

    /// Takes the engine apart, to go on later or elsewhere with [`Pod::resume`].
    #[must_use]
    pub fn suspend(self) -> (Suspended, Storage<'s>) {
        let suspended = Suspended {
            lengths: self.mem.lengths(),
            state: self.st,
        };
        (suspended, self.mem)
    }

    /// Goes on where [`Pod::suspend`] stopped, with the same content of the storage, which is
    /// recounted: that takes as long as the storage is large. [`Pod::audit`] compares it with the
    /// host's table, too.
    ///
    /// # Errors
    /// If the storage is another one. Nothing has changed; a copy of `suspended` goes with the
    /// right one.
    pub fn resume(suspended: Suspended, storage: Storage<'s>) -> Result<Self, ResumeError> {
        let mut pod = Self::assemble(suspended, storage)?;
        let count = |of: fn(&Region) -> u16| pod.mem.regions.iter().map(|r| u64::from(of(r))).sum();
        let (promises, resident): (u64, u64) = (count(|r| r.promises), count(|r| r.resident));
        let counted = promises == pod.st.entries && resident == pod.st.populated;
        if counted && pod.cache().recount() {
            Ok(pod)
        } else {
            Err(ResumeError)
        }
    }

    /// The same, without a recount.
    pub(crate) fn assemble(
        suspended: Suspended,
        storage: Storage<'s>,
    ) -> Result<Self, ResumeError> {
        if suspended.lengths != storage.lengths() {
            return Err(ResumeError);
        }
        Ok(Self {
            st: suspended.state,
            mem: storage,
        })
    }

    /// The settings in force.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.st.cfg
    }

    /// Changes how much is populated around a touch: less when the cache runs short.
    pub const fn set_around(&mut self, around: Order) {
        if around.get() <= self.st.cfg.geometry.superpage().get() {
            self.st.cfg.around = around;
        }
    }

    /// A consistent snapshot of all counters.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats {
            promises: FrameCount::new(self.st.entries),
            cache: FrameCount::new(self.st.cache.count()),
            populated: FrameCount::new(self.st.populated),
            target: self.st.target.map(FrameCount::new),
            superpages: self.st.cache.whole(),
            loose: FrameCount::new(u64::from(self.st.cache.loose())),
            started: self.st.started,
            totals: self.st.totals,
        }
    }

    /// The guest is built: from now on frames the promises do not need go back to the host.
    ///
    /// A touch by a virtual CPU says the same. Before it, the cache may be larger than the
    /// promises, because it is filled first.
    pub const fn start(&mut self) {
        self.st.started = true;
    }

    pub(crate) fn cache(&mut self) -> Cache<'_> {
        Cache {
            state: &mut self.st.cache,
            blocks: self.mem.blocks,
            gigas: self.mem.gigas,
            loose: self.mem.loose,
        }
    }

    pub(crate) fn regions(&mut self) -> Regions<'_> {
        Regions {
            list: self.mem.regions,
            geometry: self.st.cfg.geometry,
        }
    }

    pub(crate) fn region(&self, index: u32) -> Region {
        self.mem
            .regions
            .get(index as usize)
            .copied()
            .unwrap_or(Region::EMPTY)
    }

    pub(crate) fn region_count(&self) -> u32 {
        let size = self.st.cfg.geometry.size();
        u32::try_from(self.st.cfg.max.get().div_ceil(size)).unwrap_or(u32::MAX)
    }

    pub(crate) fn lane(&mut self, vcpu: Vcpu) -> Option<&mut Lane> {
        let lanes = self.mem.lanes.len().max(1);
        self.mem.lanes.get_mut(usize::from(vcpu.get()) % lanes)
    }

    pub(crate) const fn superpage(&self) -> Order {
        self.st.cfg.geometry.superpage()
    }

    /// Position of a frame inside its region.
    pub(crate) const fn page_of(&self, gfn: Gfn) -> u64 {
        gfn.get() & (self.st.cfg.geometry.size() - 1)
    }

    /// Promises without a frame behind them.
    pub(crate) const fn debt(&self) -> u64 {
        self.st.entries.saturating_sub(self.st.cache.count())
    }

    /// The end of the range, if all of it is on the map.
    pub(crate) fn end_of(&self, gfn: Gfn, count: FrameCount) -> Option<u64> {
        let end = gfn.checked_add(count)?.get();
        (end <= self.st.cfg.max.get()).then_some(end)
    }

    pub(crate) fn check_alive<H: Host + ?Sized>(&mut self, host: &H) -> Result<(), Dying> {
        if self.st.dead || host.dying() {
            self.st.dead = true;
            return Err(Dying);
        }
        Ok(())
    }

    /// Looks in a budget that half of a visit to one region costs at most: a lookup, a peek, a
    /// scan and a fill of each page.
    pub(crate) const fn region_cost(&self) -> u64 {
        4 * self.st.cfg.geometry.size() + 8
    }

    /// Writes one run of uniform entries and accounts the part that was applied; its length,
    /// and whether it was all.
    pub(crate) fn write<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        gfn: Gfn,
        order: Order,
        was: Entry,
        now: Entry,
    ) -> (u64, bool) {
        let result = host.set(gfn, order, now);
        self.written(gfn, order, was, now, result)
    }

    /// Accounts what the host says that it wrote; its length, and whether it was all.
    pub(crate) fn written(
        &mut self,
        gfn: Gfn,
        order: Order,
        was: Entry,
        now: Entry,
        result: Result<(), SetError>,
    ) -> (u64, bool) {
        let length = order.frames().get();
        let (applied, complete) = match result {
            Ok(()) => (length, true),
            Err(e) => (e.applied.get().min(length), false),
        };
        let size = self.st.cfg.geometry.size();
        let leaf = complete && order >= self.superpage();
        // Even a write that failed may have split the leaf.
        self.split_noted(gfn, order);
        let mut done = 0;
        while done < applied {
            let at = gfn.plus(done);
            let page = self.page_of(at);
            let n = (size - page).min(applied - done);
            let mut regions = self.regions();
            let index = regions.index_of(at);
            regions.account(
                index,
                u16::try_from(page).unwrap_or(0),
                u16::try_from(n).unwrap_or(0),
                was.advanced(done),
                now.advanced(done),
                leaf,
            );
            if matches!(was, Entry::Ram { .. }) {
                self.settle_run(index);
            }
            done += n;
        }
        match was {
            Entry::Promise(_) => self.st.entries = self.st.entries.saturating_sub(applied),
            Entry::Ram { .. } => self.st.populated = self.st.populated.saturating_sub(applied),
            Entry::Hole | Entry::Special => {}
        }
        match now {
            Entry::Promise(_) => self.st.entries += applied,
            Entry::Ram { .. } => self.st.populated += applied,
            Entry::Hole | Entry::Special => {}
        }
        (applied, complete)
    }

    /// What is done to a part of a superpage leaf, even in vain, may have split it.
    pub(crate) fn split_noted(&mut self, gfn: Gfn, order: Order) {
        if order < self.superpage() {
            let mut regions = self.regions();
            let index = regions.index_of(gfn);
            regions.set_whole(index, false);
        }
    }

    /// A region of which no page lies on its run any more gives the run up.
    pub(crate) fn settle_run(&mut self, index: u32) {
        let region = self.region(index);
        if let (0, Some(run)) = (region.in_place, region.run()) {
            self.cache().untie(run);
            if let Some(r) = self.regions().get_mut(index) {
                r.set_run(None);
            }
        }
    }

    /// Puts a zeroed frame into the cache. `region` is where it was mapped, if anywhere. A
    /// frame without a place goes back to the host; one that is in a block already, by a
    /// mistake of the host, stays there once (among the loose frames only the audit finds it).
    pub(crate) fn stash<H: Host + ?Sized>(
        &mut self,
        host: &mut H,
        frame: Frame<Zeroed>,
        region: Option<u32>,
    ) -> bool {
        let node = host.node_of(frame.mfn());
        let tied = self.st.cfg.rules.tie;
        let run = self.cache().run_of(frame.mfn());
        let owned = region.is_some_and(|i| tied && run.is_some() && self.region(i).run() == run);
        if self.cache().in_blocks(frame.mfn(), frame.order()) {
            self.st.totals.refused += frame.order().frames().get();
            return false;
        }
        match self.cache().insert(frame, node, owned) {
            Ok(()) => true,
            Err(frame) => {
                self.st.totals.refused += frame.order().frames().get();
                host.free(Backing::Zeroed(frame));
                false
            }
        }
    }

    /// Aligned pieces of a machine run.
    pub(crate) fn pieces(mfn: Mfn, count: u64) -> impl Iterator<Item = (Mfn, Order)> {
        let mut done = 0;
        core::iter::from_fn(move || {
            if done == count {
                return None;
            }
            let at = mfn.plus(done);
            let order = Order::fitting(at.get(), count - done, Order::MAX);
            done += order.frames().get();
            Some((at, order))
        })
    }

    /// Gives frames the promises no longer need back to the host; whether all are gone. One run
    /// goes in any case, so that repeated calls end.
    pub(crate) fn trim<H: Host + ?Sized>(&mut self, host: &mut H, budget: &mut Budget) -> bool {
        let mut first = true;
        while self.st.started {
            let surplus = self.st.cache.count().saturating_sub(self.st.entries);
            if surplus == 0 {
                break;
            }
            if !first && (budget.left() == 0 || host.should_yield()) {
                return false;
            }
            first = false;
            let Some(frame) = self.cache().take_surplus(surplus) else {
                break;
            };
            self.st.totals.trimmed += frame.order().frames().get();
            budget.spend(1);
            host.free(Backing::Zeroed(frame));
        }
        true
    }
}

impl fmt::Debug for Pod<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pod")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
