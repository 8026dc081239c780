//! Allocation for use.

use super::{FRAGMENTABLE, Zone};
use crate::error::AllocError;
use crate::frame::{Frame, FrameCount, FrameRange, Order};
use crate::list::NONE;
use crate::node::Kind;

/// Which free frames to hand out first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Preference {
    /// Blocks with populated frames, most recently freed first; then the others likewise. The
    /// choice for most callers: it keeps the host's footprint small and large untouched blocks
    /// whole.
    #[default]
    Populated,
    /// Blocks without populated frames first: for memory that is filled anew anyway.
    Unpopulated,
    /// The most recently freed block of the smallest order that fits, whatever its class.
    Any,
}

impl Zone<'_> {
    /// Allocates a block of `2^order` frames, aligned to its size.
    ///
    /// # Errors
    /// See [`AllocError`].
    #[inline]
    pub fn allocate(&mut self, order: Order, preference: Preference) -> Result<Frame, AllocError> {
        let order = u32::from(order.get());
        if order > self.max_order {
            return Err(AllocError::TooLarge);
        }
        let (frame, populated) = self
            .allocate_block(order, preference)
            .ok_or(AllocError::Exhausted)?;
        self.use_block(frame, order, populated);
        Ok(Frame::new(frame))
    }

    /// Allocates `count` frames in a row that start at a multiple of `2^align`.
    ///
    /// The size need not be a power of two: what is cut off stays free. The range may be freed in
    /// whole or in parts with [`free_range`](Self::free_range).
    ///
    /// ```
    /// # use buddy_alloc::*;
    /// # let span = FrameRange::new(Frame::new(0), FrameCount::new(64));
    /// # let mut memory = vec![0; Config::new().metadata_words(span)];
    /// # let mut zone = Zone::new(span, Config::new(), &mut memory)?;
    /// # zone.add_range(span, Backing::Unpopulated)?;
    /// let three = zone.allocate_range(FrameCount::new(3), Order::FRAME, Preference::Any)?;
    /// assert_eq!(three.count(), FrameCount::new(3));
    /// assert_eq!(zone.stats().free, FrameCount::new(61));
    /// zone.free_range(three)?;
    /// # Ok::<(), Box<dyn core::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// See [`AllocError`].
    pub fn allocate_range(
        &mut self,
        count: FrameCount,
        align: Order,
        preference: Preference,
    ) -> Result<FrameRange, AllocError> {
        let size = Order::holding(count).filter(|_| count != FrameCount::ZERO);
        let order = u32::from(size.ok_or(AllocError::TooLarge)?.max(align).get());
        if order > self.max_order {
            return Err(AllocError::TooLarge);
        }
        let (start, populated) = self
            .allocate_block(order, preference)
            .ok_or(AllocError::Exhausted)?;
        let (end, tail) = (start + count.get(), start + (1 << order));
        // The used part is marked first: a merging tail must not meet unmarked frames.
        for (frame, order) in self.blocks_of(start, end) {
            self.use_block(frame, order, 0);
        }
        for (frame, order) in self.blocks_of(end, tail) {
            let known = if populated == 0 {
                0
            } else {
                self.populated.count(frame, order)
            };
            self.release(frame, order, known);
        }
        Ok(FrameRange::raw(start, end))
    }

    /// Marks a block that left the free lists as used and populated; `populated` of its frames
    /// are known to be already.
    #[inline]
    fn use_block(&mut self, frame: u64, order: u32, populated: u64) {
        self.mark(frame, order, Kind::Used);
        self.cached.claim(frame);
        if populated != 1 << order {
            self.populated.fill(frame, order, true);
        }
        self.add_held(Kind::Used, 1 << order);
    }

    /// Takes a block of exactly `order` out of the free frames. Says how many of its frames are
    /// populated.
    #[inline]
    pub(super) fn allocate_block(
        &mut self,
        order: u32,
        preference: Preference,
    ) -> Option<(u64, u64)> {
        let granule = self.regions.order();
        if self.breakable_limit == 0 || order >= granule {
            let (set, found, class) = self.find(0, order, preference)?;
            return self.split(set, found, order, class, preference, false);
        }
        if let Some((set, found, class)) = self.find(FRAGMENTABLE, order, preference) {
            return self.split(set, found, order, class, preference, false);
        }
        if self.fragmentable < self.breakable_limit
            && let Some((set, found, class)) = self.find(0, granule, preference)
        {
            return self.split(set, found, order, class, preference, true);
        }
        let (set, found, class) = self.find(0, order, preference)?;
        self.split(set, found, order, class, preference, false)
    }

    /// Whether a demand finds a block of the class it prefers.
    pub(crate) fn has_preferred(&self, order: Order, preference: Preference) -> bool {
        let order = u32::from(order.get());
        let fits = |found: Option<(usize, u32, Option<bool>)>| match preference {
            Preference::Populated => found.is_some_and(|(.., class)| class == Some(true)),
            Preference::Unpopulated => found.is_some_and(|(.., class)| class == Some(false)),
            Preference::Any => found.is_some(),
        };
        fits(self.find(FRAGMENTABLE, order, preference)) || fits(self.find(0, order, preference))
    }

    /// The list to serve a demand from: list set, order and class (`None`: its very first block).
    #[inline]
    pub(super) fn find(
        &self,
        set: usize,
        order: u32,
        preference: Preference,
    ) -> Option<(usize, u32, Option<bool>)> {
        let [none, some] = *self.masks.get(set)?;
        let fits = u32::MAX << order;
        let pick = |mask: u32, class| {
            let mask = mask & fits;
            (mask != 0).then(|| (set, mask.trailing_zeros(), class))
        };
        match preference {
            Preference::Any => pick(none | some, None),
            Preference::Populated => pick(some, Some(true)).or_else(|| pick(none, Some(false))),
            Preference::Unpopulated => pick(none, Some(false)).or_else(|| pick(some, Some(true))),
        }
    }

    /// Takes the first block of a list and halves it down to `order`.
    #[inline]
    fn split(
        &mut self,
        set: usize,
        found: u32,
        order: u32,
        class: Option<bool>,
        preference: Preference,
        set_aside: bool,
    ) -> Option<(u64, u64)> {
        let list = &self.bin(set, found)?.list;
        let pair = match class {
            Some(any_populated) => list.first_of(&self.nodes, any_populated),
            None => list.first(),
        };
        if pair == NONE {
            return None;
        }
        let node = self.nodes.get(pair);
        let mut frame = self.frame_of(pair, found, node.odd_is_free());
        let mut any_populated = node.is_populated();
        self.unlist_node(set, found, pair, node);
        // What will be asked about the next block in the list.
        if let Some(bin) = self.bin(set, found) {
            self.populated
                .prefetch(self.frame_of(bin.list.first(), found, false));
        }
        if found != order {
            (frame, any_populated) =
                self.halve((frame, found, any_populated), order, preference, set_aside);
        }
        let populated = match (any_populated, order) {
            (false, _) => 0,
            (true, 0) => 1,
            (true, _) => self.populated.count(frame, order),
        };
        self.account(frame, order, populated, false);
        Some((frame, populated))
    }

    /// Halves a block in no list down to `order`, listing the other halves. What is wanted is
    /// kept, the lower half if both are alike.
    fn halve(
        &mut self,
        (mut frame, mut at, mut any_populated): (u64, u32, bool),
        order: u32,
        preference: Preference,
        set_aside: bool,
    ) -> (u64, bool) {
        let wanted = !matches!(preference, Preference::Unpopulated);
        while at > order {
            if set_aside && at == self.regions.order() {
                self.regions.set_fragmentable(self.regions.of(frame), true);
                self.fragmentable += 1;
            }
            at -= 1;
            let upper = frame + (1 << at);
            let (lower_populated, upper_populated) = if any_populated {
                self.populated.halves(frame, at)
            } else {
                (false, false)
            };
            if lower_populated != wanted && upper_populated == wanted {
                self.list(frame, at, lower_populated);
                (frame, any_populated) = (upper, upper_populated);
            } else {
                self.list(upper, at, upper_populated);
                any_populated = lower_populated;
            }
        }
        (frame, any_populated)
    }
}
