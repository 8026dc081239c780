//! What the zone is made of: by state, by order, by fragmentation.

use super::balloon::Via;
use super::{FRAGMENTABLE, Zone};
use crate::frame::{Frame, FrameCount, FrameRange, Order};
use crate::node::{Kind, Slot};

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum State {
    /// Free.
    Free,
    /// Allocated for use.
    Used,
    /// Reserved.
    Reserved,
    /// Isolated for reporting.
    Isolated,
    /// In the hands of a balloon, not given.
    InHand,
    /// Given to the host.
    Ballooned(Via),
}

/// The block around a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct BlockState {
    /// Its frames.
    pub block: FrameRange,
    /// What they are.
    pub state: State,
}

/// A free block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct FreeBlock {
    /// First frame.
    pub start: Frame,
    /// Size.
    pub order: Order,
    /// Whether any of its frames is populated.
    pub any_populated: bool,
}

/// Counters of a zone; a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Stats {
    /// All frames that were added.
    pub managed: FrameCount,
    /// Free frames.
    pub free: FrameCount,
    /// Free frames that are populated.
    pub free_populated: FrameCount,
    /// Allocated for use.
    pub used: FrameCount,
    /// Reserved.
    pub reserved: FrameCount,
    /// Isolated for reporting.
    pub isolated: FrameCount,
    /// In the hands of a balloon.
    pub in_hand: FrameCount,
    /// Given to the host.
    pub ballooned: FrameCount,
    /// Regions set aside for being fragmented.
    pub fragmentable: u32,
    /// Free blocks by order: unpopulated, populated.
    pub blocks: [[u64; 2]; Order::COUNT],
}

impl Stats {
    /// Free frames in blocks of at least this order.
    #[must_use]
    pub fn free_in_blocks(&self, order: Order) -> FrameCount {
        let larger = self
            .blocks
            .iter()
            .enumerate()
            .skip(usize::from(order.get()));
        FrameCount::new(
            larger
                .map(|(order, [none, some])| (none + some) << order)
                .sum(),
        )
    }

    /// The share of free memory that a demand of this order cannot use, in thousandths: 0 when all
    /// of it is in large enough blocks, 1000 when none is.
    #[must_use]
    pub fn unusable_index(&self, order: Order) -> u32 {
        let free = self.free.get();
        let usable = self.free_in_blocks(order).get();
        let share = ((free - usable) * 1000).checked_div(free).unwrap_or(0);
        u32::try_from(share).unwrap_or(1000)
    }
}

impl Zone<'_> {
    /// The zone's counters.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let held = |kind: Kind| self.held.get(kind as usize).copied().unwrap_or(0);
        Stats {
            managed: FrameCount::new(self.managed),
            free: FrameCount::new(self.free),
            free_populated: FrameCount::new(self.free_populated),
            used: FrameCount::new(held(Kind::Used)),
            reserved: FrameCount::new(held(Kind::Reserved)),
            isolated: FrameCount::new(held(Kind::Isolated)),
            in_hand: FrameCount::new(held(Kind::Taken)),
            ballooned: FrameCount::new(held(Kind::Inflate) + held(Kind::Bulk)),
            fragmentable: self.fragmentable,
            blocks: core::array::from_fn(|order| {
                let count = |set, class: usize| {
                    let bin = self
                        .bins
                        .get(set)
                        .and_then(|set: &[super::Bin; super::BINS]| set.get(order));
                    bin.and_then(|bin| bin.blocks.get(class))
                        .copied()
                        .map_or(0, u64::from)
                };
                [
                    count(0, 0) + count(FRAGMENTABLE, 0),
                    count(0, 1) + count(FRAGMENTABLE, 1),
                ]
            }),
        }
    }

    /// Number of free frames.
    #[must_use]
    pub const fn free_frames(&self) -> FrameCount {
        FrameCount::new(self.free)
    }

    /// Frames the guest has: what is managed less what is ballooned.
    #[must_use]
    pub fn owned_frames(&self) -> FrameCount {
        let given = self.ballooned(Via::Inflate).get() + self.ballooned(Via::Bulk).get();
        FrameCount::new(self.managed - given)
    }

    /// The block around a frame; `None` for frames the zone does not manage.
    #[must_use]
    pub fn state(&self, frame: Frame) -> Option<BlockState> {
        let (head, order, slot) = self.block_at(frame.get())?;
        let state = match slot {
            Slot::Free(_) => State::Free,
            Slot::Held(kind, _) => match kind {
                Kind::None => return None,
                Kind::Used | Kind::Claimed => State::Used,
                Kind::Reserved => State::Reserved,
                Kind::Isolated => State::Isolated,
                Kind::Taken => State::InHand,
                Kind::Inflate => State::Ballooned(Via::Inflate),
                Kind::Bulk => State::Ballooned(Via::Bulk),
            },
            Slot::Nothing => return None,
        };
        let block = FrameRange::new(Frame::new(head), FrameCount::new(1 << order));
        Some(BlockState { block, state })
    }

    /// How many frames of a range are populated, one word per 64 frames.
    #[must_use]
    pub fn populated(&self, range: FrameRange) -> FrameCount {
        let (start, end) = (range.start().get(), range.end().get());
        let (low, high) = (self.span.start().get(), self.span.end().get());
        let blocks = self.blocks_of(start.max(low), end.min(high));
        FrameCount::new(
            blocks
                .map(|(frame, order)| self.populated.count(frame, order))
                .sum(),
        )
    }

    /// The free blocks of an order, most recently freed first (those set aside for being
    /// fragmented last).
    pub fn free_blocks(&self, order: Order) -> impl Iterator<Item = FreeBlock> + use<'_> {
        [0, FRAGMENTABLE].into_iter().flat_map(move |set| {
            let bin = self.bin(set, u32::from(order.get()));
            bin.into_iter().flat_map(move |bin| {
                bin.list.iter(self.nodes).map(move |pair| {
                    let node = self.nodes.get(pair);
                    let odd = node.odd_is_free();
                    let start = self.frame_of(pair, u32::from(order.get()), odd);
                    FreeBlock {
                        start: Frame::new(start),
                        order,
                        any_populated: node.is_populated(),
                    }
                })
            })
        })
    }
}
