//! A zone: the buddy system over one span of frame numbers.
//!
//! This module owns the state. The operations are in the submodules by purpose, the moves they are
//! made of in `moves`.

pub(crate) mod add;
pub(crate) mod alloc;
pub(crate) mod balloon;
mod ballooned;
pub(crate) mod batch;
pub(crate) mod compact;
mod free;
mod iterate;
mod lists;
pub(crate) mod percpu;
pub(crate) mod report;
mod scan;
pub(crate) mod sink;
pub(crate) mod stats;
mod take;

use core::fmt;

use crate::bits::Bits;
use crate::cached_bits::CachedBits;
use crate::config::Config;
use crate::error::ConfigError;
use crate::frame::{FrameRange, Order};
use crate::list::List;
use crate::node::{Kind, Node, Nodes, Slot};
use crate::region::Regions;
use crate::storage::Cells;
use ballooned::BalloonedRegions;
use ballooned::Search;

/// The free blocks of one order.
#[derive(Clone, Copy, Debug)]
struct Bin {
    list: List,
    /// How many, by class (unpopulated, populated).
    blocks: [u32; 2],
}

impl Bin {
    const EMPTY: Self = Self {
        list: List::EMPTY,
        blocks: [0; 2],
    };
}

/// A power of two long, as above.
const KINDS: usize = Kind::COUNT.next_power_of_two();

const BINS: usize = Order::COUNT.next_power_of_two();

/// Index of the lists of blocks inside regions set aside for being fragmented.
const FRAGMENTABLE: usize = 1;

/// A buddy allocator over one span of up to 2 TiB of frame numbers.
///
/// Starts empty: [`add_range`](Self::add_range) brings frames in. Every call's cost is bounded by
/// the number of orders plus one word per 64 frames of the block or range itself;
/// [`split_block`](Self::split_block) writes to each part; calls that search (balloon, reporting,
/// compaction) and [`add_range`](Self::add_range) state their bound.
pub struct Zone<'m> {
    span: FrameRange,
    base_pair: u64,
    max_order: u32,
    breakable_limit: u32,
    fragmentable: u32,
    nodes: Nodes<'m>,
    /// Blocks that wait in CPU caches; they are used in every other respect.
    cached: CachedBits<'m>,
    populated: Bits<'m>,
    regions: Regions<'m>,
    /// Which regions hold ballooned frames, by path.
    given: [BalloonedRegions<'m>; 2],
    /// Where recalls look on, by path.
    searches: [Search; 2],
    /// By list set and order; a power of two long, so that no index needs a check.
    bins: [[Bin; BINS]; 2],
    /// Bit per order with blocks, by list set and class (unpopulated, populated).
    masks: [[u32; 2]; 2],
    /// Frames by kind.
    held: [u64; KINDS],
    free: u64,
    free_populated: u64,
    managed: u64,
}

impl fmt::Debug for Zone<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Zone")
            .field("span", &self.span)
            .field("free", &self.free)
            .finish()
    }
}

impl<'m> Zone<'m> {
    /// An empty zone over `span`. Clears the metadata memory.
    ///
    /// # Errors
    /// See [`ConfigError`].
    ///
    /// ```
    /// use buddy_alloc::*;
    ///
    /// let span = FrameRange::new(Frame::new(0), FrameCount::new(4096));
    /// let config = Config::new();
    /// let memory: &'static mut [u64] = vec![0; config.metadata_words(span)].leak();
    /// let mut zone = Zone::new(span, config, memory)?;
    /// zone.add_range(span, Backing::Unpopulated)?;
    /// let frame = zone.allocate(Order::FRAME, Preference::Populated)?;
    /// zone.free(frame, Order::FRAME)?;
    /// assert_eq!(zone.free(frame, Order::FRAME), Err(FreeError::DoubleFree));
    /// # Ok::<(), Box<dyn core::error::Error>>(())
    /// ```
    pub fn new(
        span: FrameRange,
        config: Config,
        memory: &'m mut [u64],
    ) -> Result<Self, ConfigError> {
        config.check(span)?;
        let memory = memory
            .get_mut(..config.metadata_words(span))
            .ok_or(ConfigError::Metadata)?;
        memory.fill(0);
        Self::new_zeroed(span, config, memory)
    }

    /// As [`new`](Self::new) over memory that is all zero already, which is neither read nor
    /// written: the host backs only the metadata that is used.
    ///
    /// Memory that is not zero leads to wrong answers, not to undefined behaviour.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn new_zeroed(
        span: FrameRange,
        config: Config,
        memory: &'m mut [u64],
    ) -> Result<Self, ConfigError> {
        config.check(span)?;
        let layout = config.layout(span);
        let (start, end) = (span.start().get(), span.end().get());
        let order = u32::from(config.granule.get());
        let mut rest = memory;
        let mut cut = |words: usize| -> Result<&'m mut [u64], ConfigError> {
            let (head, tail) = core::mem::take(&mut rest)
                .split_at_mut_checked(words)
                .ok_or(ConfigError::Metadata)?;
            rest = tail;
            Ok(head)
        };
        let nodes = Nodes::new(Cells::new(cut(layout.nodes)?));
        let populated =
            Bits::new(cut(layout.populated)?, start, end).ok_or(ConfigError::Metadata)?;
        let words = cut(layout.regions)?;
        let first = start >> order;
        let past = ((end - 1) >> order) + 1;
        let mut region_bits =
            || Bits::new(cut(layout.region_bits)?, first, past).ok_or(ConfigError::Metadata);
        let regions = Regions::new(words, region_bits()?, start, order);
        Ok(Self {
            span,
            base_pair: start / 2,
            max_order: u32::from(config.max_order.get()),
            breakable_limit: config.fragmentable,
            fragmentable: 0,
            nodes,
            cached: CachedBits::NONE,
            populated,
            regions,
            given: [
                BalloonedRegions::new(region_bits()?, region_bits()?),
                BalloonedRegions::new(region_bits()?, region_bits()?),
            ],
            searches: [Search::START; 2],
            bins: [[Bin::EMPTY; BINS]; 2],
            masks: [[0; 2]; 2],
            held: [0; KINDS],
            free: 0,
            free_populated: 0,
            managed: 0,
        })
    }

    /// The frame numbers the zone was built for.
    #[must_use]
    pub const fn span(&self) -> FrameRange {
        self.span
    }

    /// The largest block the zone forms.
    #[must_use]
    pub const fn max_order(&self) -> Order {
        Order::raw(self.max_order)
    }

    /// The host granule: the size of the regions in which density is counted.
    #[must_use]
    pub const fn granule(&self) -> Order {
        Order::raw(self.regions.order())
    }

    /// Node of a frame inside the span.
    #[inline]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a span has at most 2^28 pairs"
    )]
    const fn pair(&self, frame: u64) -> u32 {
        (frame / 2).wrapping_sub(self.base_pair) as u32
    }

    const fn frame_of(&self, pair: u32, order: u32, odd: bool) -> u64 {
        let even = (self.base_pair + pair as u64) * 2;
        if order == 0 && odd { even + 1 } else { even }
    }

    const fn contains(&self, frame: u64) -> bool {
        frame >= self.span.start().get() && frame < self.span.end().get()
    }

    /// What starts at a frame; nothing outside the span.
    #[inline]
    fn slot(&self, frame: u64) -> Slot {
        self.node(frame).slot(frame % 2 == 1)
    }

    /// The node of any frame; nothing starts outside the span.
    #[inline]
    fn node(&self, frame: u64) -> Node {
        if self.contains(frame) {
            self.nodes.get(self.pair(frame))
        } else {
            Node::ZERO
        }
    }

    /// The block around a frame: first frame, order and what it is. One node per order.
    fn block_at(&self, frame: u64) -> Option<(u64, u32, Slot)> {
        if !self.contains(frame) {
            return None;
        }
        for climb in 0..=self.max_order {
            let head = frame & !((1 << climb) - 1);
            let slot = self.slot(head);
            if let Slot::Free(order) | Slot::Held(_, order) = slot
                && order >= climb
            {
                return Some((head, order, slot));
            }
        }
        None
    }
}

/// Aligned blocks of a range, in rising order of address.
#[derive(Clone, Copy, Debug)]
struct Blocks {
    start: u64,
    end: u64,
    max_order: u32,
}

impl Iterator for Blocks {
    type Item = (u64, u32);

    #[inline]
    fn next(&mut self) -> Option<(u64, u32)> {
        let left = (self.end.checked_sub(self.start)?).checked_ilog2()?;
        let order = left.min(self.start.trailing_zeros()).min(self.max_order);
        let frame = self.start;
        self.start += 1 << order;
        Some((frame, order))
    }
}

#[cfg(test)]
mod tests;
