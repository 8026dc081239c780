//! The cache: zeroed frames that belong to the guest and are in no table.
//!
//! Frames are kept as bits of blocks, one block per machine superpage run, so that runs of every
//! order exist again as soon as their frames are back. A second level finds whole giga runs. When
//! the host's memory is so scattered that the blocks run out, frames go to a plain stack (4 bytes
//! each, `loose`) and are handed out first. `take` chooses what goes out.
//!
//! Order of preference for small demands: loose frames, the superpages set aside for fragmenting,
//! broken runs, whole runs, and last the runs tied to some other region.

mod audit;
mod loose;
mod take;

use loose::Loose;

use crate::bits::Bits;
use crate::config::{Geometry, Rules};
use crate::level::{Block, Class, Level, Lists, NIL};
use crate::{Frame, FrameCount, Mfn, Node, Order, Zeroed};

/// Counters and list heads; the slots are in the caller's storage.
#[derive(Clone, Debug)]
pub(crate) struct CacheState {
    pages: Lists,
    gigas: Lists,
    loose: u32,
    count: u64,
    /// Whole superpage runs that are tied to nobody.
    whole: u32,
    aside: [u8; Node::LIMIT as usize],
    geometry: Geometry,
    rules: Rules,
}

impl CacheState {
    pub(crate) const fn new(geometry: Geometry, rules: Rules) -> Self {
        Self {
            pages: Lists::EMPTY,
            gigas: Lists::EMPTY,
            loose: 0,
            count: 0,
            whole: 0,
            aside: [0; Node::LIMIT as usize],
            geometry,
            rules,
        }
    }

    /// Frames in the cache.
    pub(crate) const fn count(&self) -> u64 {
        self.count
    }

    pub(crate) const fn loose(&self) -> u32 {
        self.loose
    }

    /// Whole superpage runs that are tied to nobody.
    pub(crate) const fn whole(&self) -> u32 {
        self.whole
    }
}

/// The cache for the time of one operation.
#[derive(Debug)]
pub(crate) struct Cache<'a> {
    pub(crate) state: &'a mut CacheState,
    pub(crate) blocks: &'a mut [Block],
    pub(crate) gigas: &'a mut [Block],
    pub(crate) loose: &'a mut [u32],
}

/// Places that frames on their way into the cache have been promised.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claims {
    blocks: u32,
    loose: u64,
    /// The run that was given a block last: neighbours in it need no other.
    last: Option<u32>,
}

impl Claims {
    pub(crate) const NONE: Self = Self {
        blocks: 0,
        loose: 0,
        last: None,
    };
}

/// Position inside a block.
fn low(n: u64, order: Order) -> u16 {
    u16::try_from(n & (order.frames().get() - 1)).unwrap_or(0)
}

fn nodes(first: Node) -> impl Iterator<Item = Node> {
    let others = (0..Node::LIMIT).map(Node::new).filter(move |n| *n != first);
    core::iter::once(first).chain(others)
}

impl Cache<'_> {
    pub(crate) fn reset(&mut self) {
        self.pages().reset();
        self.giga_level().reset();
    }

    fn pages(&mut self) -> Level<'_> {
        Level {
            lists: &mut self.state.pages,
            blocks: self.blocks,
        }
    }

    fn giga_level(&mut self) -> Level<'_> {
        Level {
            lists: &mut self.state.gigas,
            blocks: self.gigas,
        }
    }

    fn loose_list(&mut self) -> Loose<'_> {
        Loose {
            numbers: self.loose,
            len: &mut self.state.loose,
        }
    }

    const fn superpage(&self) -> Order {
        self.state.geometry.superpage()
    }

    /// Superpage run of a frame, if the number can be kept in 32 bits.
    pub(crate) fn run_of(&self, mfn: Mfn) -> Option<u32> {
        u32::try_from(mfn.get() >> self.superpage().get())
            .ok()
            .filter(|r| *r != NIL)
    }

    fn base_of(&self, run: u32) -> Mfn {
        Mfn::new(u64::from(run) << self.superpage().get())
    }

    /// Whether frames of this run are kept in blocks: the stack has no room for a large number.
    fn uses_blocks(&self, last: Mfn, order: Order) -> bool {
        self.state.rules.merge || order >= self.superpage() || u32::try_from(last.get()).is_err()
    }

    /// Whether the frames of the run would all find a place.
    pub(crate) fn has_room(&mut self, mfn: Mfn, order: Order) -> bool {
        let mut claims = Claims::NONE;
        self.claim(mfn, order, &mut claims)
    }

    /// Whether they would beside all that was claimed before; claims it if so.
    pub(crate) fn claim(&mut self, mfn: Mfn, order: Order, claims: &mut Claims) -> bool {
        let superpage = self.superpage();
        let last = mfn.plus(order.frames().get() - 1);
        let (Some(first), Some(_)) = (self.run_of(mfn), self.run_of(last)) else {
            return false;
        };
        let runs = 1_u32 << order.get().saturating_sub(superpage.get());
        let (mut known, mut new) = (0, 0);
        if self.uses_blocks(last, order) {
            let free = self.state.pages.free_slots().saturating_sub(claims.blocks);
            let pages = self.pages();
            let found = (first..=first.saturating_add(runs - 1))
                .filter(|r| claims.last == Some(*r) || pages.find(*r).is_some());
            known = u32::try_from(found.count()).unwrap_or(0);
            new = free.min(runs.saturating_sub(known));
        }
        let others = u64::from(runs.saturating_sub(known).saturating_sub(new));
        let numbered = others == 0 || u32::try_from(last.get()).is_ok();
        let loose = claims.loose + others * order.min(superpage).frames().get();
        let fits = numbered && (others == 0 || loose <= self.loose_list().room());
        if fits {
            claims.blocks += new;
            claims.loose = loose;
            if new > 0 && others == 0 {
                claims.last = Some(first.saturating_add(runs - 1));
            }
        }
        fits
    }

    /// Takes frames in. `owned` says that a region is laid out on this run.
    ///
    /// # Errors
    /// The frame comes back if there is no place for it.
    pub(crate) fn insert(
        &mut self,
        frame: Frame<Zeroed>,
        node: Node,
        owned: bool,
    ) -> Result<(), Frame<Zeroed>> {
        let (mfn, order) = (frame.mfn(), frame.order());
        if !self.has_room(mfn, order) {
            return Err(frame);
        }
        let superpage = self.superpage();
        let last = mfn.plus(order.frames().get() - 1);
        let kept = if order > superpage {
            (0..1_u64 << (order.get() - superpage.get())).fold(0, |kept, i| {
                let part = mfn.plus(i << superpage.get());
                let taken = self.insert_bits(part, superpage, node, false);
                kept + u64::from(taken) * superpage.frames().get()
            })
        } else {
            let taken = if self.uses_blocks(last, order) {
                self.insert_bits(mfn, order, node, owned)
            } else {
                self.loose_list().push(mfn, order)
            };
            if !taken {
                return Err(frame);
            }
            order.frames().get()
        };
        self.state.count += kept;
        Ok(())
    }

    /// Whether the frames found a place.
    fn insert_bits(&mut self, mfn: Mfn, order: Order, node: Node, owned: bool) -> bool {
        let superpage = self.superpage();
        let Some(run) = self.run_of(mfn) else {
            return false;
        };
        let mut slot = self.pages().obtain(run, node);
        if slot.is_none() && order == superpage && self.scatter_one().is_some() {
            slot = self.pages().obtain(run, node);
        }
        let Some(slot) = slot else {
            return self.loose_list().push(mfn, order);
        };
        let start = low(mfn.get(), superpage);
        let mut pages = self.pages();
        pages.change(slot, |bits| bits.insert(start, order));
        let Some(&block) = pages.get(slot) else {
            return false;
        };
        if block.best() == Some(superpage) {
            let aside = block.class() == Class::Fragment;
            if !aside && self.wants_aside(block.node()) {
                self.set_aside(slot, block.node());
            } else if !aside {
                self.pages().set_class(slot, Class::Free);
            }
            self.note_whole(block.run(), block.node(), true);
        } else if owned && block.class() == Class::Free {
            pages.set_class(slot, Class::Tied);
        }
        true
    }

    /// Makes the frames of one block loose that has no two in a row, so that a superpage gets
    /// the block.
    fn scatter_one(&mut self) -> Option<()> {
        let slot = nodes(Node::default())
            .find_map(|n| self.pages().pick_exact(n, Class::Free, Order::FRAME))?;
        let block = *self.blocks.get(slot as usize)?;
        let base = self.base_of(block.run());
        u32::try_from(base.plus(self.state.geometry.size()).get()).ok()?;
        if u64::from(block.bits().count()) > self.loose_list().room() {
            return None;
        }
        for at in block.bits().iter() {
            let mfn = base.plus(u64::from(at));
            self.loose_list().push(mfn, Order::FRAME);
        }
        self.pages().change(slot, |bits| *bits = Bits::EMPTY);
        Some(())
    }

    fn wants_aside(&self, node: Node) -> bool {
        self.state
            .aside
            .get(usize::from(node.get()))
            .is_some_and(|n| *n < self.state.rules.set_aside)
    }

    fn set_aside(&mut self, slot: u32, node: Node) {
        self.pages().set_class(slot, Class::Fragment);
        if let Some(n) = self.state.aside.get_mut(usize::from(node.get())) {
            *n += 1;
        }
    }

    /// Tells the giga level that a superpage run became whole, or no longer is.
    fn note_whole(&mut self, run: u32, node: Node, whole: bool) {
        self.state.whole = if whole {
            self.state.whole + 1
        } else {
            self.state.whole - 1
        };
        if !self.state.rules.giga {
            return;
        }
        let fan = self.state.geometry.fan();
        let at = low(u64::from(run), fan);
        let mut level = self.giga_level();
        if whole {
            if let Some(slot) = level.obtain(run >> fan.get(), node) {
                level.change(slot, |bits| bits.insert(at, Order::FRAME));
            }
        } else if let Some(slot) = level.find(run >> fan.get()) {
            level.change(slot, |bits| bits.remove(at, Order::FRAME));
        }
    }

    /// Ties a whole run to a region; frames leave it page by page.
    pub(crate) fn tie(&mut self, node: Node) -> Option<u32> {
        let superpage = self.superpage();
        let slot = nodes(node).find_map(|n| self.pages().pick_exact(n, Class::Free, superpage))?;
        let block = *self.pages().get(slot)?;
        self.note_whole(block.run(), block.node(), false);
        self.pages().set_class(slot, Class::Tied);
        Some(block.run())
    }

    /// The region gives its run up.
    pub(crate) fn untie(&mut self, run: u32) {
        let Some(slot) = self.pages().find(run) else {
            return;
        };
        let Some(&block) = self.pages().get(slot) else {
            return;
        };
        if block.class() == Class::Tied {
            self.pages().set_class(slot, Class::Free);
            if block.best() == Some(self.superpage()) {
                self.note_whole(run, block.node(), true);
            }
        }
    }

    /// Whether any frame of the run is in a block. Loose frames are another question.
    pub(crate) fn in_blocks(&mut self, mfn: Mfn, order: Order) -> bool {
        let superpage = self.superpage();
        let Some(run) = self.run_of(mfn) else {
            return false;
        };
        let start = low(mfn.get(), superpage);
        let part = Order::clamped(order.get().min(superpage.get()));
        let runs = 1_u32 << order.get().saturating_sub(superpage.get());
        let pages = self.pages();
        (0..runs).any(|i| {
            pages
                .find(run.saturating_add(i))
                .and_then(|s| pages.get(s))
                .is_some_and(|b| b.bits().touches(start, part))
        })
    }

    /// The lowest loose frame in a machine run; reads the whole list.
    pub(crate) fn loose_in(&mut self, mfn: Mfn, count: FrameCount) -> Option<Mfn> {
        self.loose_list().lowest_in(mfn, count)
    }

    /// The loose frame that goes out next.
    pub(crate) fn last_loose(&mut self) -> Option<Mfn> {
        self.loose_list().last()
    }

    /// Moves one loose frame to a block if there is a place; whether it did.
    pub(crate) fn merge_one(&mut self, node: Node) -> bool {
        if !self.state.rules.merge || self.state.pages.free_slots() == 0 {
            return false;
        }
        let Some(mfn) = self.pop_loose() else {
            return false;
        };
        let moved = self.insert_bits(mfn, Order::FRAME, node, false);
        self.state.count += u64::from(moved);
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::Memory;
    use crate::{Config, Pod, Sizes};

    #[test]
    fn small_demands_break_what_is_set_aside_and_leave_other_pieces_whole() {
        for (set_aside, expected) in [(1, 0), (0, 2 * 512)] {
            let mut config = Config::new(FrameCount::new(8 * 512));
            config.rules.set_aside = set_aside;
            let mut memory = Memory::new(&Sizes::for_guest(&config, config.limit, 1));
            let Ok(mut pod) = Pod::new(config, memory.storage()) else {
                panic!("a legal configuration");
            };
            let (mut cache, node) = (pod.cache(), Node::default());
            for (mfn, order) in [(0, 9), (512, 9), (2 * 512, 3)] {
                let frame = Frame::from_cache(Mfn::new(mfn), Order::clamped(order));
                assert!(cache.insert(frame, node, false).is_ok());
            }
            let taken = cache.take(Order::FRAME, node).map(|f| f.mfn().get());
            assert_eq!(taken, Some(expected));
        }
    }

    /// A cache under these rules with so many blocks.
    fn with_cache(rules: Rules, blocks: usize, test: impl FnOnce(&mut Cache<'_>)) {
        let mut config = Config::new(FrameCount::new(8 * 512));
        config.rules = rules;
        let sizes = Sizes {
            blocks,
            ..Sizes::for_guest(&config, config.limit, 1)
        };
        let mut memory = Memory::new(&sizes);
        let Ok(mut pod) = Pod::new(config, memory.storage()) else {
            panic!("a legal configuration");
        };
        test(&mut pod.cache());
    }

    fn put(cache: &mut Cache<'_>, mfn: u64, order: Order) -> bool {
        let frame = Frame::from_cache(Mfn::new(mfn), order);
        cache.insert(frame, Node::default(), false).is_ok()
    }

    /// Takes single frames until there is none: how many, and each once.
    fn take_all(cache: &mut Cache<'_>) -> usize {
        let mut seen = alloc::collections::BTreeSet::new();
        while let Some(frame) = cache.take(Order::FRAME, Node::default()) {
            assert!(seen.insert(frame.mfn().get()), "{} twice", frame.mfn());
            assert!(cache.audit());
        }
        assert_eq!(cache.state.count, 0);
        seen.len()
    }

    #[test]
    fn frames_whose_number_the_stack_cannot_hold_are_not_lost_where_nothing_merges() {
        for base in [1_u64 << 32, 1 << 33, 512] {
            with_cache(Rules::XEN, 4, |cache| {
                assert!(put(cache, base, Order::SUPERPAGE));
                assert!(cache.take(Order::FRAME, Node::default()).is_some());
                assert!(put(cache, base + 512, Order::SUPERPAGE));
                assert!(cache.audit());
                assert_eq!(take_all(cache), 1023);
            });
        }
    }

    #[test]
    fn a_frame_given_twice_goes_out_once_where_a_block_shows_it() {
        let rules = Rules {
            set_aside: 0,
            ..Rules::FULL
        };
        for merge in [false, true] {
            with_cache(rules, 1 + usize::from(merge), |cache| {
                assert!(put(cache, 9 * 512, Order::FRAME));
                if merge {
                    assert!(put(cache, 10 * 512, Order::FRAME));
                }
                // No block is left: loose. Then one is, and the same frame comes in again.
                assert!(put(cache, 8 * 512, Order::FRAME));
                assert!(cache.remove_broken(Mfn::new(9 * 512)));
                assert!(put(cache, 8 * 512, Order::SUPERPAGE));
                if merge {
                    assert!(cache.remove_broken(Mfn::new(10 * 512)));
                    cache.merge_one(Node::default());
                }
                let surplus = cache.take_surplus(1).map(|f| f.order());
                assert_eq!(surplus, Some(Order::FRAME));
                assert_eq!(take_all(cache), 511);
            });
        }
    }
}
