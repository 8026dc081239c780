//! What the cache hands out, and in which order of preference.

use super::{Cache, low, nodes};
use crate::level::Class;
use crate::{Frame, Mfn, Node, Order, Zeroed};

impl Cache<'_> {
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

    /// A whole run that is tied to nobody.
    fn whole_slot(&mut self, node: Node) -> Option<u32> {
        let superpage = self.superpage();
        [Class::Free, Class::Fragment]
            .into_iter()
            .find_map(|class| {
                nodes(node).find_map(|n| self.pages().pick_exact(n, class, superpage))
            })
    }

    fn take_superpage(&mut self, node: Node) -> Option<Mfn> {
        let slot = self.whole_slot(node)?;
        self.take_from(slot, self.superpage())
    }

    fn take_small(&mut self, order: Order, node: Node) -> Option<Mfn> {
        if order == Order::FRAME
            && let Some(mfn) = self.pop_loose()
        {
            return Some(mfn);
        }
        if !self.state.rules.merge
            && let Some(slot) = self.whole_slot(node)
            && self.scatter(slot)
        {
            return (order == Order::FRAME).then(|| self.pop_loose())?;
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

    /// Two lists: a superpage is broken into singles for good. What the stack cannot hold stays
    /// in its block.
    fn scatter(&mut self, slot: u32) -> bool {
        let superpage = self.superpage();
        let Some(run) = self.pages().get(slot).map(|b| b.run()) else {
            return false;
        };
        let base = self.base_of(run);
        let scattered = self.loose_list().push(base, superpage)
            && self.remove_bits(slot, 0, superpage).is_some();
        self.state.count += u64::from(scattered) * superpage.frames().get();
        scattered
    }

    /// The next loose frame. One that is in a block too, by a mistake of the host, is dropped
    /// here: it goes out from there, once.
    pub(super) fn pop_loose(&mut self) -> Option<Mfn> {
        loop {
            let mfn = self.loose_list().pop()?;
            self.state.count -= 1;
            if !self.in_blocks(mfn, Order::FRAME) {
                return Some(mfn);
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

    /// Takes one broken frame out, wherever it is.
    pub(crate) fn remove_broken(&mut self, mfn: Mfn) -> bool {
        if self.take_at(mfn, Order::FRAME).is_some() {
            return true;
        }
        let found = self.loose_list().remove(mfn);
        self.state.count -= u64::from(found);
        found
    }
}
