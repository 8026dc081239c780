//! One level of the cache: blocks of up to 512 units, found by run number, listed by the
//! largest aligned run they hold.
//!
//! The page level has frames as units and a block per superpage run; the level above has whole
//! superpage runs as units and a block per 1 GiB run. Both are this code. Slots, hash chains and
//! lists live in the caller's slice; an index replaces a pointer.

use crate::bits::Bits;
use crate::{Node, Order};

pub(crate) const NIL: u32 = u32::MAX;
const BESTS: usize = 10;
const NODES: usize = Node::LIMIT as usize;

/// What a block's frames are kept for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Class {
    /// For anybody.
    Free,
    /// Set aside: small demands break these, so that the others stay whole.
    Fragment,
    /// Tied to a guest region that is laid out on this run; others take it last.
    Tied,
}

const CLASSES: usize = 3;

/// One block of the cache; a slot of the caller's storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Block {
    bits: Bits,
    run: u32,
    /// First slot of the hash chain this slot's index names.
    bucket: u32,
    chain: u32,
    prev: u32,
    next: u32,
    node: Node,
    class: Class,
    best: Option<Order>,
    used: bool,
}

impl Block {
    /// An unused slot.
    pub const EMPTY: Self = Self {
        bits: Bits::EMPTY,
        run: 0,
        bucket: NIL,
        chain: NIL,
        prev: NIL,
        next: NIL,
        node: Node::new(0),
        class: Class::Free,
        best: None,
        used: false,
    };

    pub(crate) const fn bits(&self) -> &Bits {
        &self.bits
    }

    pub(crate) const fn run(&self) -> u32 {
        self.run
    }

    pub(crate) const fn node(&self) -> Node {
        self.node
    }

    pub(crate) const fn class(&self) -> Class {
        self.class
    }

    pub(crate) const fn best(&self) -> Option<Order> {
        self.best
    }
}

/// Heads of all lists of a level.
#[derive(Clone, Debug)]
pub(crate) struct Lists {
    heads: [[[u32; BESTS]; CLASSES]; NODES],
    free: u32,
    free_slots: u32,
}

impl Lists {
    pub(crate) const EMPTY: Self = Self {
        heads: [[[NIL; BESTS]; CLASSES]; NODES],
        free: NIL,
        free_slots: 0,
    };

    pub(crate) const fn free_slots(&self) -> u32 {
        self.free_slots
    }

    fn head(&mut self, node: Node, class: Class, best: Order) -> Option<&mut u32> {
        let lists = self.heads.get_mut(usize::from(node.get()))?;
        lists
            .get_mut(class as usize)?
            .get_mut(usize::from(best.get()))
    }
}

/// A level for the time of one operation.
#[derive(Debug)]
pub(crate) struct Level<'a> {
    pub(crate) lists: &'a mut Lists,
    pub(crate) blocks: &'a mut [Block],
}

/// Spreads neighbouring runs over the buckets (odd multiplier, high bits).
fn bucket_of(run: u32, len: usize) -> usize {
    let hash = u64::from(run).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    usize::try_from((hash * len as u64) >> 32).unwrap_or(0)
}

impl Level<'_> {
    /// Puts every slot on the free list.
    pub(crate) fn reset(&mut self) {
        *self.lists = Lists::EMPTY;
        for slot in (0..u32::try_from(self.blocks.len()).unwrap_or(NIL)).rev() {
            let next = self.lists.free;
            if let Some(b) = self.get_mut(slot) {
                *b = Block {
                    next,
                    ..Block::EMPTY
                };
            }
            self.lists.free = slot;
            self.lists.free_slots += 1;
        }
    }

    pub(crate) fn get(&self, slot: u32) -> Option<&Block> {
        self.blocks.get(usize::try_from(slot).ok()?)
    }

    fn get_mut(&mut self, slot: u32) -> Option<&mut Block> {
        self.blocks.get_mut(usize::try_from(slot).ok()?)
    }

    pub(crate) fn find(&self, run: u32) -> Option<u32> {
        if self.blocks.is_empty() {
            return None;
        }
        let mut slot = self.blocks.get(bucket_of(run, self.blocks.len()))?.bucket;
        while let Some(b) = self.get(slot) {
            if b.run == run {
                return Some(slot);
            }
            slot = b.chain;
        }
        None
    }

    /// The slot of this run, taking a free one if there is none yet.
    pub(crate) fn obtain(&mut self, run: u32, node: Node) -> Option<u32> {
        if let Some(slot) = self.find(run) {
            return Some(slot);
        }
        let slot = self.lists.free;
        self.lists.free = self.get(slot)?.next;
        self.lists.free_slots -= 1;
        let bucket = bucket_of(run, self.blocks.len());
        let head = self.blocks.get_mut(bucket)?;
        let chain = core::mem::replace(&mut head.bucket, slot);
        let b = self.get_mut(slot)?;
        *b = Block {
            run,
            node,
            chain,
            used: true,
            bucket: b.bucket,
            ..Block::EMPTY
        };
        Some(slot)
    }

    fn discard(&mut self, slot: u32) {
        let Some(&Block { run, chain, .. }) = self.get(slot) else {
            return;
        };
        let bucket = bucket_of(run, self.blocks.len());
        let Some(head) = self.blocks.get_mut(bucket) else {
            return;
        };
        if head.bucket == slot {
            head.bucket = chain;
        } else {
            let mut at = head.bucket;
            while let Some(b) = self.get_mut(at) {
                if b.chain == slot {
                    b.chain = chain;
                    break;
                }
                at = b.chain;
            }
        }
        let next = self.lists.free;
        if let Some(b) = self.get_mut(slot) {
            *b = Block {
                bucket: b.bucket,
                next,
                ..Block::EMPTY
            };
        }
        self.lists.free = slot;
        self.lists.free_slots += 1;
    }

    fn unlink(&mut self, slot: u32) {
        let Some(&Block {
            prev,
            next,
            node,
            class,
            best,
            ..
        }) = self.get(slot)
        else {
            return;
        };
        let Some(best) = best else { return };
        if let Some(p) = self.get_mut(prev) {
            p.next = next;
        } else if let Some(head) = self.lists.head(node, class, best) {
            *head = next;
        }
        if let Some(n) = self.get_mut(next) {
            n.prev = prev;
        }
    }

    fn link(&mut self, slot: u32) {
        let Some(&Block {
            node,
            class,
            best: Some(best),
            ..
        }) = self.get(slot)
        else {
            return;
        };
        let Some(head) = self.lists.head(node, class, best) else {
            return;
        };
        let next = core::mem::replace(head, slot);
        if let Some(b) = self.get_mut(slot) {
            b.prev = NIL;
            b.next = next;
        }
        if let Some(n) = self.get_mut(next) {
            n.prev = slot;
        }
    }

    /// Changes a block and moves it to the list it belongs to; an empty one is discarded.
    pub(crate) fn change(&mut self, slot: u32, change: impl FnOnce(&mut Bits)) {
        let Some(b) = self.get_mut(slot) else { return };
        let before = b.best;
        let mut bits = b.bits;
        change(&mut bits);
        let best = bits.best();
        if best == before {
            b.bits = bits;
            return;
        }
        self.unlink(slot);
        let Some(b) = self.get_mut(slot) else { return };
        b.bits = bits;
        b.best = best;
        if best.is_some() {
            self.link(slot);
        } else {
            self.discard(slot);
        }
    }

    pub(crate) fn set_class(&mut self, slot: u32, class: Class) {
        self.unlink(slot);
        if let Some(b) = self.get_mut(slot) {
            b.class = class;
        }
        self.link(slot);
    }

    /// A block of this class and node with a run of at least `order`, the smallest that does.
    pub(crate) fn pick(&mut self, node: Node, class: Class, order: Order) -> Option<u32> {
        (order.get()..=9).find_map(|best| {
            let head = *self.lists.head(node, class, Order::clamped(best))?;
            (head != NIL).then_some(head)
        })
    }

    /// The same, but the block with the largest run.
    pub(crate) fn pick_largest(&mut self, node: Node, class: Class) -> Option<u32> {
        (0..=9).rev().find_map(|best| {
            let head = *self.lists.head(node, class, Order::clamped(best))?;
            (head != NIL).then_some(head)
        })
    }

    /// A block with exactly this best order.
    pub(crate) fn pick_exact(&mut self, node: Node, class: Class, best: Order) -> Option<u32> {
        let head = *self.lists.head(node, class, best)?;
        (head != NIL).then_some(head)
    }

    /// All blocks, list by list.
    #[cfg(any(test, feature = "test-utils"))]
    pub(crate) fn listed(&self) -> impl Iterator<Item = &Block> {
        let heads = self.lists.heads.iter().flatten().flatten();
        heads.flat_map(|head| core::iter::successors(self.get(*head), |block| self.get(block.next)))
    }

    /// Slots on a list that begins here; `None` if there are more than slots at all.
    fn length(&self, head: u32) -> Option<u32> {
        let rest = core::iter::successors(self.get(head), |block| self.get(block.next));
        let most = self.blocks.len();
        let n = rest.take(most + 1).count();
        u32::try_from(n).ok().filter(|_| n <= most)
    }

    /// Checks chains, lists and best orders against the bits; used slots if all agree.
    pub(crate) fn audit(&self) -> Option<u32> {
        let mut used = 0;
        for (slot, b) in (0..).zip(self.blocks.iter()).filter(|(_, b)| b.used) {
            used += 1;
            let listed = match self.get(b.prev) {
                Some(p) => p.next == slot,
                None => {
                    let lists = self.lists.heads.get(usize::from(b.node.get()))?;
                    let list = lists.get(b.class as usize)?;
                    *list.get(usize::from(b.best?.get()))? == slot
                }
            };
            if !listed || b.bits.best() != b.best || self.find(b.run) != Some(slot) {
                return None;
            }
        }
        let mut listed = 0_u32;
        for head in self.lists.heads.iter().flatten().flatten() {
            listed = listed.checked_add(self.length(*head)?)?;
        }
        let free = self.length(self.lists.free)?;
        let total = u32::try_from(self.blocks.len()).ok()?;
        let all = listed == used && free == self.lists.free_slots && used + free == total;
        all.then_some(used)
    }
}
