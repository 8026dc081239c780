//! What a zone and the CPU caches before it owe each other.
//!
//! Caches put and take blocks without the lock: they change the block's bit, never its node. The
//! zone changes nodes under the lock. Whoever does either looks at the other afterwards, and both
//! look by changing the same word of the bitmap, so one of two always sees the other:
//!
//! * A free into a cache sets the bit, then looks whether the node still says used. If not, it asks
//!   under the lock: with the bit still set on a block that is not used it came second, and takes
//!   the bit back ([`refused_free`](Zone::refused_free)).
//! * Under the lock a used block first becomes [`Kind::Claimed`], then its bit is looked at. If it
//!   is set, a free into a cache was quicker, and the block stays used.
//! * A block that leaves a cache under the lock becomes [`Kind::Claimed`] too, before its bit is
//!   cleared. If it is clear by then, the cache's owner was quicker, and the block stays used.
//! * A block becomes used before its bit is cleared, or, on its way to a cache, after the bit is
//!   set. So the bit of a late free ends there, and the new owner does not notice it. Whether that
//!   free is told or not is all that a new allocation of the block makes uncertain.

use super::Zone;
use crate::cache::class_of;
use crate::cached_bits::CachedBits;
use crate::error::{ConfigError, FreeError};
use crate::frame::FrameRange;
use crate::node::{Kind, Node, Nodes, Peek, Slot};

impl<'m> Zone<'m> {
    /// A view of the nodes for readers without the lock.
    pub(crate) const fn nodes(&self) -> NodeView<'m> {
        NodeView {
            nodes: self.nodes,
            span: self.span,
            base: self.base_pair * 2,
        }
    }

    /// From now on blocks whose bit is set count as free when someone frees them. For good: frees
    /// into the caches go by these bits, and with others the zone would miss them.
    pub(crate) const fn attach(&mut self, cached: CachedBits<'m>) -> Result<(), ConfigError> {
        if !self.cached.is_none() {
            return Err(ConfigError::Cached);
        }
        self.cached = cached;
        Ok(())
    }

    /// First step of a used block's way out of use. False if a cache has it: then nothing changed.
    #[inline]
    pub(super) fn leave(&mut self, frame: u64, order: u32) -> bool {
        self.cached.is_none() || class_of(order).is_none() || self.leave_shared(frame, order)
    }

    #[inline(never)]
    fn leave_shared(&mut self, frame: u64, order: u32) -> bool {
        if self.cached.is_set(frame) {
            return false;
        }
        self.mark(frame, order, Kind::Claimed);
        let free = !self.cached.is_set_after_all(frame);
        if !free {
            self.mark(frame, order, Kind::Used);
        }
        free
    }

    /// As [`leave`](Self::leave) for all used blocks between two borders of blocks. Else the block
    /// that a cache has comes back.
    pub(super) fn leave_all(&mut self, head: u64, tail: u64) -> Result<(), u64> {
        if self.cached.is_none() {
            return Ok(());
        }
        let mut at = head;
        while at < tail
            && let Slot::Held(_, order) = self.slot(at)
        {
            if !self.leave(at, order) {
                self.stay_all(head, at);
                return Err(at);
            }
            at += 1 << order;
        }
        Ok(())
    }

    fn stay_all(&mut self, head: u64, tail: u64) {
        let mut at = head;
        while at < tail
            && let Slot::Held(_, order) = self.slot(at)
        {
            self.mark(at, order, Kind::Used);
            at += 1 << order;
        }
    }

    /// Takes a block out of whatever cache it is in; its frames are nobody's then. `None` if it is
    /// in none, or its owner was quicker.
    pub(crate) fn evict(&mut self, frame: u64) -> Option<FrameRange> {
        if !self.cached.is_set(frame) {
            return None;
        }
        let Slot::Held(Kind::Used, order) = self.slot(frame) else {
            return None;
        };
        self.mark(frame, order, Kind::Claimed);
        if !self.cached.claim(frame) {
            self.mark(frame, order, Kind::Used);
            return None;
        }
        self.mark(frame, order, Kind::None);
        self.drop_held(Kind::Used, 1 << order);
        Some(FrameRange::raw(frame, frame + (1 << order)))
    }

    /// Neighbouring blocks that were evicted become free.
    pub(crate) fn release_used(&mut self, range: FrameRange) {
        for (frame, order) in self.blocks_of(range.start().get(), range.end().get()) {
            self.release(frame, order, 1 << order);
        }
    }

    /// Frees the block of whatever order that the caller has just claimed from a cache.
    pub(crate) fn free_claimed(&mut self, frame: u64) {
        if let Slot::Held(Kind::Used, order) = self.slot(frame)
            && self.leave(frame, order)
        {
            self.unhold(frame, order, Kind::Used);
            self.release(frame, order, 1 << order);
        }
    }

    /// A free that set the block's bit and then did not find the block in use.
    #[cold]
    pub(crate) fn refused_free(&mut self, frame: u64, order: u32) -> Result<(), FreeError> {
        if !self.cached.is_set(frame) {
            // It was taken out of the cache again: this free counted.
            return Ok(());
        }
        if self.slot(frame) == Slot::Held(Kind::Used, order) {
            // Whoever was about to free it found the bit and did not: this free counts.
            if let Some(block) = self.evict(frame) {
                self.release_used(block);
            }
            return Ok(());
        }
        self.cached.claim(frame);
        Err(self.free_error(frame))
    }
}

/// What CPU caches see of a zone without its lock. Frames are entries here: counted from the first
/// pair of the zone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NodeView<'m> {
    nodes: Nodes<'m>,
    span: FrameRange,
    /// Frame of entry 0.
    base: u64,
}

impl NodeView<'_> {
    pub(crate) const fn span(&self) -> FrameRange {
        self.span
    }

    /// Entry of a frame; a frame before the zone is beyond all entries.
    #[inline]
    pub(crate) fn entry(&self, frame: u64) -> usize {
        usize::try_from(frame.wrapping_sub(self.base)).unwrap_or(usize::MAX)
    }

    #[inline]
    pub(crate) const fn frame(&self, entry: usize) -> u64 {
        self.base + entry as u64
    }

    /// The node of an entry, for another look; `None` beyond the end of the zone.
    #[inline(always)]
    pub(crate) fn peek(&self, entry: usize) -> Option<Peek<'_>> {
        self.nodes.peek(entry / 2)
    }

    /// Whether a used block of this order starts at an entry. Stable for the owner of the block.
    #[inline(always)]
    pub(crate) fn is_used_head(&self, entry: usize, order: u32) -> bool {
        let node = self.peek(entry).map_or(Node::ZERO, Peek::get);
        node.is_used_head(entry % 2 == 1, order)
    }

    /// Asks for the cache lines that the release of a block needs besides its own: those of its
    /// buddy's neighbours in their list.
    #[inline]
    pub(crate) fn prefetch_release(&self, entry: usize, order: u32) {
        let buddy = entry ^ (1 << order);
        let node = self.peek(buddy).map_or(Node::ZERO, Peek::get);
        if node.is_free_head(buddy % 2 == 1, order) {
            self.nodes.prefetch_neighbours(node);
        }
    }
}
