//! What is fixed when a zone is built, and how much metadata memory that takes.

use crate::bits;
use crate::error::ConfigError;
use crate::frame::{FRAME_LIMIT, FrameRange, Order};
use crate::node::LINK_BITS;
use crate::region;

/// Settings of a [`Zone`](crate::Zone).
///
/// ```
/// use buddy_alloc::{Config, Order};
/// let config = Config::new().with_max_order(Order::MIB_2).with_fragmentable(4);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Config {
    pub(crate) max_order: Order,
    pub(crate) granule: Order,
    pub(crate) fragmentable: u32,
}

impl Config {
    /// Smallest host granule: 64 frames.
    pub const MIN_GRANULE: Order = Order::raw(6);

    /// Blocks up to 1 GiB, a host granule of 2 MiB, no blocks kept for breaking.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            max_order: Order::MAX,
            granule: Order::MIB_2,
            fragmentable: 0,
        }
    }

    /// Caps the largest block; at least order 1.
    #[must_use]
    pub const fn with_max_order(mut self, max_order: Order) -> Self {
        self.max_order = max_order;
        self
    }

    /// The unit in which the host backs memory: density is counted per granule.
    #[must_use]
    pub const fn with_granule(mut self, granule: Order) -> Self {
        self.granule = granule;
        self
    }

    /// Sets aside up to `blocks` granules for being fragmented.
    ///
    /// Demands below the granule are served from these first, so that other blocks stay whole.
    /// The price is the exact order of reuse: a small demand prefers an older frame inside the
    /// set to a newer one outside.
    #[must_use]
    pub const fn with_fragmentable(mut self, blocks: u32) -> Self {
        self.fragmentable = blocks;
        self
    }

    /// 64-bit words of metadata a zone over `span` needs; about 0.1016 % of the span.
    ///
    /// ```
    /// use buddy_alloc::{Config, Frame, FrameCount, FrameRange};
    /// const SPAN: FrameRange = FrameRange::new(Frame::new(0), FrameCount::new(1 << 21));
    /// const WORDS: usize = Config::new().metadata_words(SPAN);
    /// let percent = (WORDS * 8) as f64 / (8u64 << 30) as f64 * 100.0;
    /// assert!(percent < 0.105);
    /// ```
    #[must_use]
    pub const fn metadata_words(&self, span: FrameRange) -> usize {
        self.layout(span).total()
    }

    pub(crate) const fn check(&self, span: FrameRange) -> Result<(), ConfigError> {
        let (start, end) = (span.start().get(), span.end().get());
        if span.is_empty() {
            return Err(ConfigError::Empty);
        }
        if end > FRAME_LIMIT {
            return Err(ConfigError::FrameNumber);
        }
        if end.div_ceil(2) - start / 2 > 1 << LINK_BITS {
            return Err(ConfigError::TooLarge);
        }
        if self.max_order.get() == 0 {
            return Err(ConfigError::MaxOrder);
        }
        let small = self.granule.get() < Self::MIN_GRANULE.get();
        if small || (self.fragmentable > 0 && self.granule.get() > self.max_order.get()) {
            return Err(ConfigError::Granule);
        }
        Ok(())
    }

    pub(crate) const fn layout(&self, span: FrameRange) -> Layout {
        let (start, end) = (span.start().get(), span.end().get());
        let order = self.granule.get() as u32;
        let regions = region::number(start, end, order);
        let first = start >> order;
        Layout {
            nodes: to_usize(end.div_ceil(2) - start / 2),
            populated: to_usize(bits::words(start, end)),
            regions: to_usize(regions * region::WORDS),
            region_bits: to_usize(bits::words(first, first + regions)),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::new()
    }
}

/// Words of each table, in the order in which they lie in the metadata memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) nodes: usize,
    pub(crate) populated: usize,
    pub(crate) regions: usize,
    /// Each of five maps over regions: dense, two for each path to the host.
    pub(crate) region_bits: usize,
}

impl Layout {
    const fn total(&self) -> usize {
        self.nodes
            .saturating_add(self.populated)
            .saturating_add(self.regions)
            .saturating_add(self.region_bits.saturating_mul(5))
    }
}

/// A word count; more than an address space has stays too much.
#[expect(clippy::cast_possible_truncation, reason = "checked")]
const fn to_usize(words: u64) -> usize {
    if words > usize::MAX as u64 {
        usize::MAX
    } else {
        words as usize
    }
}
