//! What compaction is worth: contiguous memory, and page walks.

use crate::units::{FrameCount, Order};

use super::block::{Block, FRAMES};

/// How broken up the free memory of a zone is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Fragmentation {
    /// Free frames.
    pub free: FrameCount,
    /// Ballooned frames.
    pub holes: FrameCount,
    /// Free frames in whole, aligned 2 MiB blocks.
    pub in_blocks: FrameCount,
    /// 2 MiB blocks without a frame in use: the ones that moving holes alone
    /// can make free.
    pub candidates: u64,
}

impl Fragmentation {
    pub(super) const NONE: Self = Self {
        free: FrameCount::ZERO,
        holes: FrameCount::ZERO,
        in_blocks: FrameCount::ZERO,
        candidates: 0,
    };

    pub(super) fn add(&mut self, block: Block) {
        self.free = self.free.saturating_add(FrameCount::new(block.free.into()));
        self.holes = self
            .holes
            .saturating_add(FrameCount::new(block.holes.into()));
        if block.can_complete() {
            self.candidates += 1;
            if block.holes == 0 {
                self.in_blocks = self.in_blocks.saturating_add(Order::SUPERPAGE.frames());
            }
        }
    }

    /// Whole free 2 MiB blocks.
    #[must_use]
    pub const fn blocks(&self) -> u64 {
        self.in_blocks.get() / FRAMES
    }

    /// Whole free 2 MiB blocks that no compaction of holes can exceed.
    ///
    /// Each takes 512 free frames, and a block with a frame in use is none.
    #[must_use]
    pub fn possible_blocks(&self) -> u64 {
        self.candidates.min(self.free.get() / FRAMES)
    }

    /// The share of free memory that a demand for 2 MiB cannot use, in
    /// thousandths.
    #[must_use]
    pub fn unusable_index(&self) -> u32 {
        let unusable = self.free.saturating_sub(self.in_blocks).get();
        let share = unusable.saturating_mul(1000).checked_div(self.free.get());
        u32::try_from(share.unwrap_or(0)).unwrap_or(1000)
    }

    /// What reaching one byte of the free memory costs on average once it is
    /// used, with whole 2 MiB blocks mapped by one guest entry each.
    #[must_use]
    pub fn walk(&self, levels: WalkLevels) -> MeanWalk {
        let (small, large) = (levels.cost(), levels.with_superpages().cost());
        let free = self.free.get().max(1);
        let mean = |small: u32, large: u32| {
            let in_blocks = self.in_blocks.get().min(free);
            let total = u64::from(large).saturating_mul(in_blocks);
            let total = total.saturating_add(u64::from(small).saturating_mul(free - in_blocks));
            u32::try_from(total.saturating_mul(100) / free).unwrap_or(u32::MAX)
        };
        MeanWalk {
            products: mean(small.products, large.products),
            table_reads: mean(small.table_reads, large.table_reads),
        }
    }
}

/// Levels of the two page tables that an access of a guest goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WalkLevels {
    /// Of the guest's own table, for a 4 KiB page.
    pub guest: u8,
    /// Of the host's second-stage table.
    pub host: u8,
}

impl WalkLevels {
    /// The same with 2 MiB pages in the guest: one level less.
    #[must_use]
    pub const fn with_superpages(self) -> Self {
        Self {
            guest: self.guest.saturating_sub(1),
            host: self.host,
        }
    }

    /// What one access costs that no cache or TLB helps.
    #[must_use]
    pub const fn cost(self) -> WalkCost {
        let (guest, host) = (self.guest as u32, self.host as u32);
        WalkCost {
            products: guest * host + 1,
            table_reads: (guest + 1) * (host + 1) - 1,
        }
    }
}

/// Memory accesses of one access of a guest, counted in two ways.
///
/// The sum of products counts the second-stage reads for each guest level and
/// the access itself; the usual figure counts every read of a table and so adds
/// the guest's own G entries and the H second-stage reads for the final
/// address, but not the access itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WalkCost {
    /// The sum of H × G over all levels, plus 1; with the same H for each of G
    /// guest levels that is `H * G + 1`.
    pub products: u32,
    /// `(G + 1) * (H + 1) - 1`.
    pub table_reads: u32,
}

/// [`WalkCost`] averaged over memory, in hundredths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MeanWalk {
    /// Of [`WalkCost::products`].
    pub products: u32,
    /// Of [`WalkCost::table_reads`].
    pub table_reads: u32,
}

/// One round of compaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Report {
    /// The zone when the round was planned.
    pub before: Fragmentation,
    /// The zone when the round was over.
    pub after: Fragmentation,
    /// Holes that were moved.
    pub moves: FrameCount,
    /// The fewest moves that make all possible blocks out of the zone as it
    /// was before.
    pub fewest_moves: FrameCount,
    /// Blocks given up because frames of them came into use meanwhile.
    pub lost_blocks: u64,
}
