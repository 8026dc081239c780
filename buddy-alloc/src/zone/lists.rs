//! The moves every operation is made of: list and unlist a free block, mark frames as held, merge on
//! release, split a range off a free block, and count all of it.

use super::{BINS, Bin, Blocks, KINDS, Zone};
use crate::node::{Kind, Node};

impl Zone<'_> {
    /// Which list set a free block belongs to.
    #[inline]
    pub(super) fn set_of(&self, frame: u64, order: u32) -> usize {
        let small = self.fragmentable != 0 && order < self.regions.order();
        usize::from(small && self.regions.is_fragmentable(self.regions.of(frame)))
    }

    #[inline]
    pub(super) fn bin(&self, set: usize, order: u32) -> Option<&Bin> {
        self.bins.get(set & 1)?.get(order as usize & (BINS - 1))
    }

    #[inline]
    pub(super) fn bin_mut(&mut self, set: usize, order: u32) -> Option<&mut Bin> {
        self.bins
            .get_mut(set & 1)?
            .get_mut(order as usize & (BINS - 1))
    }

    /// Puts a free block in front of its list.
    #[inline]
    pub(super) fn list(&mut self, frame: u64, order: u32, any_populated: bool) {
        let pair = self.pair(frame);
        let node = if order == 0 {
            self.nodes
                .get(pair)
                .free_single(frame % 2 == 1, any_populated)
        } else {
            Node::free_block(order, any_populated)
        };
        let set = self.set_of(frame, order);
        let nodes = self.nodes;
        let Some(bin) = self.bin_mut(set, order) else {
            return;
        };
        bin.list.push(&nodes, pair, node);
        if let Some(count) = bin.blocks.get_mut(usize::from(any_populated)) {
            *count += 1;
        }
        if let Some(mask) = self.mask_mut(set, any_populated) {
            *mask |= 1 << order;
        }
    }

    /// Takes a free block out of its list; nothing starts there afterwards. Says whether any frame in it was populated.
    #[inline]
    pub(super) fn unlist(&mut self, frame: u64, order: u32) -> bool {
        let set = self.set_of(frame, order);
        let pair = self.pair(frame);
        let node = self.nodes.get(pair);
        self.unlist_node(set, order, pair, node);
        node.is_populated()
    }

    #[inline(always)]
    pub(super) fn unlist_node(&mut self, set: usize, order: u32, pair: u32, node: Node) {
        let nodes = self.nodes;
        let any_populated = node.is_populated();
        let Some(bin) = self.bin_mut(set, order) else {
            return;
        };
        bin.list.remove(&nodes, pair, node);
        let last = bin
            .blocks
            .get_mut(usize::from(any_populated))
            .is_some_and(|count| {
                *count -= 1;
                *count == 0
            });
        nodes.set(
            pair,
            if order == 0 {
                node.unlisted_single()
            } else {
                Node::ZERO
            },
        );
        if last && let Some(mask) = self.mask_mut(set, any_populated) {
            *mask &= !(1 << order);
        }
    }

    #[inline]
    pub(super) fn mask_mut(&mut self, set: usize, any_populated: bool) -> Option<&mut u32> {
        self.masks
            .get_mut(set & 1)?
            .get_mut(usize::from(any_populated))
    }

    /// Marks an aligned block that is in no list as held.
    #[inline]
    pub(super) fn mark(&mut self, frame: u64, order: u32, kind: Kind) {
        let pair = self.pair(frame);
        let node = if order == 0 {
            self.nodes.get(pair).with_single(frame % 2 == 1, kind)
        } else if matches!(kind, Kind::None) {
            Node::ZERO
        } else {
            Node::held_block(kind, order)
        };
        self.nodes.set(pair, node);
    }

    /// Marks a range that is in no list as held, in as few blocks as its alignment allows.
    pub(super) fn mark_range(&mut self, start: u64, end: u64, kind: Kind) {
        for (frame, order) in self.blocks_of(start, end) {
            self.mark(frame, order, kind);
            if matches!(kind, Kind::Used) {
                self.cached.claim(frame);
            }
        }
        self.add_held(kind, end - start);
    }

    pub(super) fn add_held(&mut self, kind: Kind, frames: u64) {
        if let Some(held) = self.held.get_mut(kind as usize & (KINDS - 1)) {
            *held += frames;
        }
    }

    /// Forgets the head of a held block.
    #[inline]
    pub(super) fn unhold(&mut self, frame: u64, order: u32, kind: Kind) {
        self.mark(frame, order, Kind::None);
        self.drop_held(kind, 1 << order);
    }

    #[inline]
    pub(super) fn drop_held(&mut self, kind: Kind, frames: u64) {
        if let Some(held) = self.held.get_mut(kind as usize & (KINDS - 1)) {
            *held -= frames;
        }
    }

    /// Cuts a range into aligned blocks.
    pub(super) const fn blocks_of(&self, start: u64, end: u64) -> Blocks {
        Blocks {
            start,
            end,
            max_order: self.max_order,
        }
    }

    /// Frames become free: counts them, merges, and lists the result.
    #[inline]
    pub(super) fn release(&mut self, frame: u64, order: u32, populated: u64) {
        self.account(frame, order, populated, true);
        let (mut frame, mut order, mut any_populated) = (frame, order, populated != 0);
        while order < self.max_order {
            if order == self.regions.order() {
                self.unset_fragmentable(frame);
            }
            let buddy = frame ^ (1 << order);
            // A buddy outside the span has no node, or its half of one is never free.
            if !self
                .nodes
                .get(self.pair(buddy))
                .is_free_head(buddy % 2 == 1, order)
            {
                break;
            }
            any_populated |= self.unlist(buddy, order);
            if order == 0 {
                self.nodes.set(self.pair(frame), Node::ZERO);
            }
            frame &= buddy;
            order += 1;
        }
        if order == self.regions.order() {
            self.unset_fragmentable(frame);
        }
        self.list(frame, order, any_populated);
    }

    /// A region in one piece is set aside no more.
    fn unset_fragmentable(&mut self, frame: u64) {
        let region = self.regions.of(frame);
        if self.fragmentable != 0 && self.regions.is_fragmentable(region) {
            self.regions.set_fragmentable(region, false);
            self.fragmentable -= 1;
        }
    }

    /// Counts an aligned block in or out of the free frames.
    #[inline(always)]
    pub(super) fn account(&mut self, frame: u64, order: u32, populated: u64, freed: bool) {
        let frames = 1 << order;
        if freed {
            self.free += frames;
            self.free_populated += populated;
        } else {
            self.free -= frames;
            self.free_populated -= populated;
        }
        let granule = self.regions.order();
        if order <= granule {
            self.account_region(self.regions.of(frame), frames, populated, freed);
            return;
        }
        self.account_regions(frame, order, populated, freed);
    }

    #[inline(never)]
    fn account_regions(&mut self, frame: u64, order: u32, populated: u64, freed: bool) {
        let granule = self.regions.order();
        let each = 1 << granule;
        for region in self.regions.of(frame)..self.regions.of(frame + (1 << order)) {
            let populated = match populated {
                0 => 0,
                all if all == 1 << order => each,
                _ => self.populated.count(region << granule, granule),
            };
            self.account_region(region, each, populated, freed);
        }
    }

    #[inline]
    pub(super) fn account_region(&mut self, region: u64, frames: u64, populated: u64, freed: bool) {
        if freed {
            self.regions.freed(region, frames, populated);
        } else {
            self.regions.taken(region, frames, populated);
        }
    }

    /// Carves `start..end` out of the free block `(head, order)` around it: the range is in no
    /// list and not counted as free afterwards, the rest of the block is listed again.
    pub(super) fn split_off(&mut self, head: u64, order: u32, start: u64, end: u64) {
        let any_populated = self.unlist(head, order);
        let tail = head + (1 << order);
        self.relist(head, start, any_populated);
        self.relist(end, tail, any_populated);
        for (frame, order) in self.blocks_of(start, end) {
            let populated = if any_populated {
                self.populated.count(frame, order)
            } else {
                0
            };
            self.account(frame, order, populated, false);
        }
    }

    /// Lists what is left of a free block.
    fn relist(&mut self, start: u64, end: u64, any_populated: bool) {
        for (frame, order) in self.blocks_of(start, end) {
            let any_populated = any_populated && self.populated.any(frame, order);
            self.list(frame, order, any_populated);
        }
    }
}
