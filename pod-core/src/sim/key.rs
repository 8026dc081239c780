//! States of a guest and its engine, up to what makes no difference.

use alloc::vec::Vec;

use super::{Content, Sim, World};
use crate::level::Block;
use crate::sweep::SweepState;
use crate::{Entry, Gfn, Mfn, Order, Region};

impl World {
    /// What steers what can happen next, as bytes; for guests of a few superpages.
    ///
    /// Equal for states that differ only in frame numbers, in which of two superpages is which, in
    /// the order of pages inside a superpage, or in the order of blocks in a list of the cache.
    #[must_use]
    pub fn key(&mut self) -> Vec<u8> {
        self.with(|pod, sim| {
            let (blocks, gigas, loose) = pod.cache().contents();
            let superpage = pod.superpage().get();
            let view = View {
                sim,
                blocks,
                superpage,
            };
            let mut regions: Vec<(Vec<u8>, u32)> = (0..pod.region_count())
                .map(|index| (view.region(index, pod.region(index)), index))
                .collect();
            regions.sort();
            let named = |index: u32| regions.iter().position(|(_, i)| *i == index);
            let name = |index: u32| named(index).unwrap_or(usize::MAX) as u8;
            // Which regions lie on a run is what ties them to each other.
            let mut runs: Vec<Vec<u8>> = view
                .blocks
                .iter()
                .map(|b| {
                    let best = b.best().map_or(u8::MAX, Order::get);
                    let laid = |i: &u32| pod.region(*i).run() == Some(b.run());
                    let regions = regions.iter().map(|(_, i)| *i).filter(laid).map(name);
                    let block = [b.class() as u8, best, b.bits().count() as u8];
                    block.into_iter().chain(regions).collect()
                })
                .collect();
            runs.sort();
            let mut key = Vec::new();
            for part in regions.iter().map(|(part, _)| part).chain(&runs) {
                key.extend(part);
                key.push(u8::MAX);
            }
            key.extend(gigas.iter().map(|giga| giga.bits().count() as u8));
            let (at, from, left, phase) = pod.st.sweep.contents();
            key.extend([loose.len() as u8, name(at), name(from), left as u8, phase]);
            let searches = pod.mem.lanes.iter().map(|lane| lane.search);
            for search in searches.chain([pod.st.search]) {
                let Some((gfn, left, state)) = search.contents(pod.st.sweep.looked()) else {
                    key.push(u8::MAX);
                    continue;
                };
                let region = u32::try_from(gfn.get() >> superpage).unwrap_or(u32::MAX);
                key.extend([name(region), left as u8]);
                key.extend(state);
            }
            for lane in pod.mem.lanes.iter() {
                let (recent, adapting) = lane.contents();
                key.extend(recent.map(name));
                key.extend(adapting);
            }
            key
        })
    }

    /// The next search for filled pages begins where the first one did.
    pub fn restart_sweep(&mut self) {
        self.with(|pod, _| pod.st.sweep = SweepState::IDLE);
    }

    /// Virtual CPU 0 reads all its memory, so that each page has a translation.
    pub fn touch_all(&mut self) {
        for gfn in (0..self.sim.truth.len() as u64).map(Gfn::new) {
            let _ = self.sim.guest_read(0, gfn);
        }
    }
}

struct View<'a> {
    sim: &'a Sim,
    blocks: Vec<Block>,
    superpage: u8,
}

impl View<'_> {
    fn region(&self, index: u32, region: Region) -> Vec<u8> {
        let start = u64::from(index) << self.superpage;
        let base = region.run().map(|run| u64::from(run) << self.superpage);
        let mut pages: Vec<[u8; 4]> = (0..1 << self.superpage)
            .map(|i| self.page(Gfn::new(start + i), base, i))
            .collect();
        pages.sort_unstable();
        let written = self.sim.written[index as usize];
        let flags = [region.whole, region.barren, region.recycled, written];
        let order = self.sim.leaf(Gfn::new(start)).order.get();
        let of_run = |b: &&Block| Some(b.run()) == region.run();
        let class = self.blocks.iter().find(of_run).map(|b| b.class() as u8);
        // No page, some, or enough to be worth a look.
        let half = 1 << (self.superpage - 1);
        let fresh = u8::from(region.fresh > 0) + u8::from(region.fresh >= half);
        let mut key = pages.concat();
        key.extend(flags.map(u8::from));
        key.push(fresh);
        key.extend([region.marker, order, class.unwrap_or(u8::MAX)]);
        key
    }

    /// Entry, content, how the frame lies to the region's run, and who has the frame that belongs
    /// at page `i`.
    fn page(&self, gfn: Gfn, base: Option<u64>, i: u64) -> [u8; 4] {
        let own = base.map(|base| Mfn::new(base + i));
        let owner = own.map_or(u8::MAX, |own| {
            let cached = self.blocks.iter().any(|b| self.holds(b, own));
            u8::from(cached) + 2 * u8::from(self.sim.mapped.has(own.get()))
        });
        match self.sim.leaf(gfn).at(gfn) {
            Entry::Hole => [0, 0, 0, owner],
            Entry::Special => [1, 0, 0, owner],
            Entry::Promise(pattern) => [2 + pattern.get(), 0, 0, owner],
            Entry::Ram { mfn, attr } => {
                let zero = self.sim.visible(gfn) == Some(Content::ZERO);
                let on_run =
                    base.is_some_and(|base| base == mfn.get() & !((1 << self.superpage) - 1));
                let place = u8::from(on_run) + u8::from(own == Some(mfn));
                [10 + attr.get(), u8::from(zero), place, owner]
            }
        }
    }

    fn holds(&self, block: &Block, mfn: Mfn) -> bool {
        let within = mfn.get() & ((1 << self.superpage) - 1);
        u64::from(block.run()) == mfn.get() >> self.superpage
            && block.bits().covers(within as u16, Order::FRAME)
    }
}
