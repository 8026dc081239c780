//! Counters of an engine, and their dump.

use core::fmt;

use crate::FrameCount;

/// Frames counted since the engine was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Populated on demand.
    pub populated: u64,
    /// Found filled and turned into promises again.
    pub reclaimed: u64,
    /// Released while promises.
    pub released: u64,
    /// Released while RAM, kept for the cache.
    pub stolen: u64,
    /// Released while RAM, given to the host.
    pub freed: u64,
    /// Given to the host because the promises needed fewer.
    pub trimmed: u64,
    /// Taken from the host.
    pub grown: u64,
    /// Taken from the host by [`Policy::Lend`](crate::Policy).
    pub lent: u64,
    /// Given to the host because the storage had no place.
    pub refused: u64,
    /// Superpage promises populated in smaller parts.
    pub splintered: u64,
    /// Leaves made of smaller entries.
    pub promoted: u64,
}

/// A consistent snapshot of one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Pages that are promises (Xen: `entry_count`).
    pub promises: FrameCount,
    /// Frames in the cache (Xen: `count`).
    pub cache: FrameCount,
    /// Pages of RAM.
    pub populated: FrameCount,
    /// The target last set.
    pub target: Option<FrameCount>,
    /// Whole superpages in the cache.
    pub superpages: u32,
    /// Cached frames that cannot merge for want of blocks.
    pub loose: FrameCount,
    /// The guest is built.
    pub started: bool,
    /// Counters since the start.
    pub totals: Totals,
}

impl Stats {
    /// Frames the guest owns: populated and cached.
    #[must_use]
    pub const fn owned(&self) -> FrameCount {
        FrameCount::new(self.populated.get() + self.cache.get())
    }

    /// Promises without a frame behind them. The guest lives as long as the balloon brings
    /// this to zero before it has dirtied its share.
    #[must_use]
    pub const fn debt(&self) -> FrameCount {
        FrameCount::new(self.promises.get().saturating_sub(self.cache.get()))
    }

    /// Frames without a promise to back.
    #[must_use]
    pub const fn surplus(&self) -> FrameCount {
        FrameCount::new(self.cache.get().saturating_sub(self.promises.get()))
    }
}

impl fmt::Display for Stats {
    /// One line, like the debug key of a hypervisor prints for each guest.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "entries {} cache {} ({} superpages, {} loose) debt {} populated {} owned {}",
            self.promises,
            self.cache,
            self.superpages,
            self.loose,
            self.debt(),
            self.populated,
            self.owned(),
        )?;
        if let Some(target) = self.target {
            write!(f, " target {target}")?;
        }
        let t = &self.totals;
        write!(
            f,
            " | demanded {} reclaimed {} stolen {} freed {} splintered {} promoted {}",
            t.populated, t.reclaimed, t.stolen, t.freed, t.splintered, t.promoted,
        )
    }
}
