//! The cache: zeroed frames that belong to the guest and are in no table.
//!
//! Frames are kept as bits of blocks, one block per machine superpage run, so that runs of every
//! order exist again as soon as their frames are back. A second level finds whole giga runs. When
//! the host's memory is so scattered that the blocks run out, frames go to a plain stack (4 bytes
//! each) and are handed out first.
//!
//! Order of preference for small demands: loose frames, the superpages set aside for fragmenting,
//! broken runs, whole runs, and last the runs tied to some other region.

use crate::config::{Geometry, Rules};
use crate::level::{Block, Class, Level, Lists, NIL};
use crate::{Frame, Mfn, Node, Order, Zeroed};

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

    /// Whether the frames of the run would all find a place.
    pub(crate) fn has_room(&mut self, mfn: Mfn, order: Order) -> bool {
        let room = self.loose.len() as u64 - u64::from(self.state.loose);
        let in_loose = u32::try_from(mfn.get()).is_ok() && room >= order.frames().get();
        let runs = 1 << order.get().saturating_sub(self.superpage().get());
        let last = mfn.plus(order.frames().get() - 1);
        let (Some(run), Some(_)) = (self.run_of(mfn), self.run_of(last)) else {
            return false;
        };
        let blocks = self.state.pages.free_slots() >= runs
            || (runs == 1 && self.pages().find(run).is_some());
        if self.state.rules.merge || order >= self.superpage() {
            blocks || (in_loose && order < self.superpage())
        } else {
            in_loose
        }
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
        if order > superpage {
            for i in 0..1_u64 << (order.get() - superpage.get()) {
                self.insert_bits(mfn.plus(i << superpage.get()), superpage, node, false);
            }
        } else if order == superpage || self.state.rules.merge {
            self.insert_bits(mfn, order, node, owned);
        } else {
            self.push_loose(mfn, order);
        }
        self.state.count += order.frames().get();
        Ok(())
    }

    fn push_loose(&mut self, mfn: Mfn, order: Order) {
        for i in 0..order.frames().get() {
            let place = self.loose.get_mut(self.state.loose as usize);
            if let (Some(place), Ok(number)) = (place, u32::try_from(mfn.get() + i)) {
                *place = number;
                self.state.loose += 1;
            }
        }
    }

    fn insert_bits(&mut self, mfn: Mfn, order: Order, node: Node, owned: bool) {
        let superpage = self.superpage();
        let slot = self
            .run_of(mfn)
            .and_then(|run| self.pages().obtain(run, node));
        let Some(slot) = slot else {
            return self.push_loose(mfn, order);
        };
        let start = low(mfn.get(), superpage);
        let mut pages = self.pages();
        pages.change(slot, |bits| bits.insert(start, order));
        let Some(&block) = pages.get(slot) else {
            return;
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

    /// Takes exactly these frames out of a block, all of which are there.
    fn remove_bits(&mut self, slot: u32, start: u16, order: Order) -> Option<Mfn> {
        let superpage = self.superpage();
        let block = *self.pages().get(slot)?;
        if block.best() == Some(superpage) && block.class() != Class::Tied {
            self.note_whole(block.run(), block.node(), false);
        }
        let last = block.bits().count() == 1 << order.get();
        if let (true, Class::Fragment) = (last, block.class()) {
            let aside = self.state.aside.get_mut(usize::from(block.node().get()));
            if let Some(n) = aside {
                *n = n.saturating_sub(1);
            }
        }
        self.pages().change(slot, |bits| bits.remove(start, order));
        self.state.count -= order.frames().get();
        Some(self.base_of(block.run()).plus(u64::from(start)))
    }

    fn take_from(&mut self, slot: u32, order: Order) -> Option<Mfn> {
        let start = self.pages().get(slot)?.bits().find(order)?;
        self.remove_bits(slot, start, order)
    }

    /// Takes exactly this run out, if all of it is in blocks.
    pub(crate) fn take_at(&mut self, mfn: Mfn, order: Order) -> Option<Frame<Zeroed>> {
        let superpage = self.superpage();
        let run = self.run_of(mfn)?;
        let slot = self.pages().find(run)?;
        let start = low(mfn.get(), superpage);
        if order > superpage || !self.pages().get(slot)?.bits().covers(start, order) {
            return None;
        }
        self.remove_bits(slot, start, order)?;
        Some(Frame::from_cache(mfn, order))
    }

    /// A run of this order, from this node if it has one.
    pub(crate) fn take(&mut self, order: Order, node: Node) -> Option<Frame<Zeroed>> {
        let mfn = if order > self.superpage() {
            self.take_giga(order, node)
        } else if order == self.superpage() {
            self.take_superpage(node)
        } else {
            self.take_small(order, node)
        }?;
        Some(Frame::from_cache(mfn, order))
    }

    fn take_giga(&mut self, order: Order, node: Node) -> Option<Mfn> {
        let superpage = self.superpage();
        let fan = Order::clamped(order.get() - superpage.get());
        let slot = nodes(node).find_map(|n| self.giga_level().pick(n, Class::Free, fan))?;
        let level = self.giga_level();
        let block = level.get(slot)?;
        let first = block.bits().find(fan)?;
        let run = block.run() << self.state.geometry.fan().get() | u32::from(first);
        for i in 0..1_u32 << fan.get() {
            let slot = self.pages().find(run + i)?;
            self.remove_bits(slot, 0, superpage)?;
        }
        Some(self.base_of(run))
    }

    fn take_superpage(&mut self, node: Node) -> Option<Mfn> {
        let superpage = self.superpage();
        let slot = [Class::Free, Class::Fragment]
            .into_iter()
            .find_map(|class| {
                nodes(node).find_map(|n| self.pages().pick_exact(n, class, superpage))
            })?;
        self.take_from(slot, superpage)
    }

    fn take_small(&mut self, order: Order, node: Node) -> Option<Mfn> {
        if order == Order::FRAME
            && let Some(mfn) = self.pop_loose()
        {
            return Some(mfn);
        }
        if !self.state.rules.merge {
            // Two lists: a superpage is broken into singles for good.
            let base = self.take_superpage(node)?;
            self.push_loose(base, self.superpage());
            self.state.count += self.superpage().frames().get();
            return if order == Order::FRAME {
                self.pop_loose()
            } else {
                None
            };
        }
        for n in nodes(node) {
            if let Some(slot) = self.pages().pick(n, Class::Fragment, order) {
                return self.take_from(slot, order);
            }
            if self.wants_aside(n) {
                let superpage = self.superpage();
                if let Some(slot) = self.pages().pick_exact(n, Class::Free, superpage) {
                    self.set_aside(slot, n);
                    return self.take_from(slot, order);
                }
            }
            if let Some(slot) = self.pages().pick(n, Class::Free, order) {
                return self.take_from(slot, order);
            }
        }
        // Nobody else has any: break a tie, the run with the largest piece left.
        let slot = nodes(node).find_map(|n| self.pages().pick_largest(n, Class::Tied))?;
        self.pages().set_class(slot, Class::Free);
        self.take_from(slot, order)
    }

    fn pop_loose(&mut self) -> Option<Mfn> {
        let last = self.state.loose.checked_sub(1)?;
        let number = *self.loose.get(last as usize)?;
        self.state.loose = last;
        self.state.count -= 1;
        Some(Mfn::new(u64::from(number)))
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

    /// The run to give back when `surplus` frames are too many: whole superpages go whole, and
    /// none is broken while frames of broken ones are enough. Tied frames go last.
    pub(crate) fn take_surplus(&mut self, surplus: u64) -> Option<Frame<Zeroed>> {
        let superpage = self.superpage();
        let node = Node::default();
        let small = self.state.count - u64::from(self.state.whole) * superpage.frames().get();
        if surplus >= superpage.frames().get() && surplus > small {
            let giga = self.state.geometry.giga();
            let fits = surplus >= giga.frames().get();
            let frame = fits.then(|| self.take(giga, node)).flatten();
            if let Some(frame) = frame.or_else(|| self.take(superpage, node)) {
                return Some(frame);
            }
        }
        if let Some(mfn) = self.pop_loose() {
            return Some(Frame::from_cache(mfn, Order::FRAME));
        }
        let broken = Order::clamped(superpage.get() - 1);
        for class in [Class::Free, Class::Fragment] {
            if let Some(frame) = self.take_piece(class, broken, surplus) {
                return Some(frame);
            }
        }
        for class in [Class::Fragment, Class::Free, Class::Tied] {
            if let Some(frame) = self.take_piece(class, superpage, surplus) {
                return Some(frame);
            }
        }
        None
    }

    /// The largest piece of at most `surplus` frames from the blocks of a class whose runs are
    /// no larger than `best`.
    fn take_piece(&mut self, class: Class, best: Order, surplus: u64) -> Option<Frame<Zeroed>> {
        for n in nodes(Node::default()) {
            for best in (0..=best.get()).rev().map(Order::clamped) {
                if let Some(slot) = self.pages().pick_exact(n, class, best) {
                    let order = Order::fitting(0, surplus, best);
                    let mfn = self.take_from(slot, order)?;
                    return Some(Frame::from_cache(mfn, order));
                }
            }
        }
        None
    }

    /// Recounts the whole runs that are tied to nobody.
    fn whole_runs(&self) -> u32 {
        let superpage = self.superpage();
        let whole = |b: &&Block| b.best() == Some(superpage) && b.class() != Class::Tied;
        u32::try_from(self.blocks.iter().filter(whole).count()).unwrap_or(0)
    }

    /// Whether any frame of the run is in the cache.
    pub(crate) fn touches(&mut self, mfn: Mfn, order: Order) -> bool {
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

    /// Takes one broken frame out, wherever it is.
    pub(crate) fn remove_broken(&mut self, mfn: Mfn) -> bool {
        if self.take_at(mfn, Order::FRAME).is_some() {
            return true;
        }
        let used = self.state.loose as usize;
        let Some(at) = self
            .loose
            .iter()
            .take(used)
            .position(|n| u64::from(*n) == mfn.get())
        else {
            return false;
        };
        if let Some(last) = self.loose.get(used - 1).copied() {
            if let Some(place) = self.loose.get_mut(at) {
                *place = last;
            }
            self.state.loose -= 1;
            self.state.count -= 1;
        }
        true
    }

    /// Loose frames, for the audit and for merging them once blocks are free again.
    pub(crate) fn loose_frames(&self) -> impl Iterator<Item = Mfn> + '_ {
        self.loose
            .iter()
            .take(self.state.loose as usize)
            .map(|n| Mfn::new(u64::from(*n)))
    }

    /// Moves one loose frame to a block if there is a place; whether it did.
    pub(crate) fn merge_one(&mut self, node: Node) -> bool {
        if !self.state.rules.merge || self.state.pages.free_slots() == 0 {
            return false;
        }
        let Some(mfn) = self.pop_loose() else {
            return false;
        };
        self.insert_bits(mfn, Order::FRAME, node, false);
        self.state.count += 1;
        true
    }

    /// Recounts everything; `false` if lists, chains, levels and counters disagree.
    pub(crate) fn audit(&mut self) -> bool {
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
        lists && whole && listed == claims && bits + u64::from(self.state.loose) == self.state.count
    }
}
