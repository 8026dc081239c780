//! Recounting the cache.

#[cfg(any(test, feature = "test-utils"))]
use alloc::vec::Vec;

use super::Cache;
use crate::level::{Block, Class};
use crate::{Mfn, Order};

impl Cache<'_> {
    /// Brings the loose frames in order, so that [`Cache::holds`] is quick.
    pub(crate) fn sort_loose(&mut self) {
        self.loose_list().sort();
    }

    /// Whether any frame of the run is in the cache. The loose frames have to be sorted.
    pub(crate) fn holds(&mut self, mfn: Mfn, order: Order) -> bool {
        self.in_blocks(mfn, order) || self.loose_list().sorted_touches(mfn, order)
    }

    /// Recounts everything; `false` if lists, chains, levels and counters disagree, or a loose
    /// frame is there twice.
    pub(crate) fn audit(&mut self) -> bool {
        self.recount() && self.loose_have_one_home()
    }

    /// Recounts everything, and leaves the loose frames in their order.
    pub(crate) fn recount(&mut self) -> bool {
        let (superpage, fan) = (self.superpage(), self.state.geometry.fan());
        let bits: u64 = self
            .blocks
            .iter()
            .map(|b| u64::from(b.bits().count()))
            .sum();
        let lists = self.pages().audit().is_some() && self.giga_level().audit().is_some();
        let listed: u32 = self.gigas.iter().map(|b| b.bits().count()).sum();
        let mut claims = 0;
        for i in 0..self.gigas.len() {
            let Some(giga) = self.gigas.get(i).copied() else {
                return false;
            };
            claims += giga.bits().iter().fold(0, |n, at| {
                let run = giga.run() << fan.get() | u32::from(at);
                let whole = self.pages().find(run).is_some_and(|s| {
                    self.pages()
                        .get(s)
                        .is_some_and(|b| b.best() == Some(superpage))
                });
                n + u32::from(whole)
            });
        }
        let whole = self.whole_runs() == self.state.whole;
        let count = bits + u64::from(self.state.loose) == self.state.count;
        let loose = self.state.loose as usize <= self.loose.len();
        lists && whole && listed == claims && count && loose
    }

    /// Whether every loose frame is on the list once and in no block.
    fn loose_have_one_home(&mut self) -> bool {
        self.sort_loose();
        let listed_once = self.loose_list().sorted_are_distinct();
        listed_once
            && (0..self.state.loose).all(|i| {
                let mfn = self.loose_list().get(i);
                mfn.is_some_and(|mfn| !self.in_blocks(mfn, Order::FRAME))
            })
    }

    /// All that steers what the cache does next, in its order: blocks, giga blocks and loose frames.
    #[cfg(any(test, feature = "test-utils"))]
    pub(crate) fn contents(&mut self) -> (Vec<Block>, Vec<Block>, Vec<Mfn>) {
        let blocks = self.pages().listed().copied().collect();
        let gigas = self.giga_level().listed().copied().collect();
        let loose = (0..self.state.loose).filter_map(|i| self.loose_list().get(i));
        (blocks, gigas, loose.collect())
    }

    /// Recounts the whole runs that are tied to nobody.
    fn whole_runs(&self) -> u32 {
        let superpage = self.superpage();
        let whole = |b: &&Block| b.best() == Some(superpage) && b.class() != Class::Tied;
        u32::try_from(self.blocks.iter().filter(whole).count()).unwrap_or(0)
    }
}
