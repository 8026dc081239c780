//! Recounting everything, and what the table costs the guest to walk.

use core::error::Error;
use core::fmt;

use crate::{Entry, FrameCount, Gfn, Host, Mfn, Order, Pod};

/// Leaves of a guest's table, by frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Census {
    /// RAM frames in leaves below superpage order.
    pub small: FrameCount,
    /// RAM frames in superpage leaves.
    pub superpages: FrameCount,
    /// RAM frames in leaves of the largest order.
    pub gigas: FrameCount,
    /// Promised frames.
    pub promises: FrameCount,
    /// Frames the engine does not touch.
    pub special: FrameCount,
}

impl Census {
    /// RAM frames.
    #[must_use]
    pub const fn ram(&self) -> FrameCount {
        FrameCount::new(self.small.get() + self.superpages.get() + self.gigas.get())
    }

    /// Table levels the hardware reads per guest-physical access (the H of the formula
    /// X = H1 G1 + ... + Hn Gn + 1), in thousandths, for a table of four levels.
    #[must_use]
    pub const fn levels_milli(&self) -> u64 {
        let sum = 4 * self.small.get() + 3 * self.superpages.get() + 2 * self.gigas.get();
        match self.ram().get() {
            0 => 0,
            ram => sum.saturating_mul(1000) / ram,
        }
    }

    /// X of that formula in thousandths, if each of the guest's `walk` table reads goes through
    /// the mean number of levels.
    #[must_use]
    pub const fn accesses_milli(&self, walk: u8) -> u64 {
        self.levels_milli() * walk as u64 + 1000
    }
}

/// What an audit found wrong first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AuditError {
    /// The number of promises differs from the table's.
    Promises,
    /// The number of populated frames differs from the table's.
    Populated,
    /// The record of this region differs from its entries.
    Region(Gfn),
    /// A frame is mapped and in the cache.
    TwoHomes(Mfn),
    /// Lists and counters of the cache disagree.
    Cache,
    /// A contiguity marker is wrong.
    Markers,
}

impl fmt::Display for AuditError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Promises => f.write_str("count of promises is wrong"),
            Self::Populated => f.write_str("count of populated frames is wrong"),
            Self::Region(gfn) => write!(f, "record of the region at {gfn} is wrong"),
            Self::TwoHomes(mfn) => write!(f, "frame {mfn} is mapped and cached"),
            Self::Cache => f.write_str("cache lists and counters disagree"),
            Self::Markers => f.write_str("a contiguity marker is wrong"),
        }
    }
}

impl Error for AuditError {}

impl Pod<'_> {
    /// Recounts promises, RAM, regions, markers and the cache from the table and the storage.
    ///
    /// Takes as long as the guest is large; for debugging, tests, and after an accident. Changes
    /// nothing but the order of loose frames.
    ///
    /// # Errors
    /// With what was found wrong first.
    pub fn audit<H: Host + ?Sized>(&mut self, host: &H) -> Result<Census, AuditError> {
        let mut census = Census::default();
        let size = self.st.cfg.geometry.size();
        self.cache().sort_loose();
        for index in 0..self.region_count() {
            let start = self.regions().start(index);
            let end = (start.get() + size).min(self.st.cfg.max.get());
            let record = self.region(index);
            let (mut promises, mut resident, mut in_place) = (0, 0, 0);
            let mut at = start;
            while at.get() < end {
                let leaf = host.lookup(at);
                let room = leaf.room_from(at).min(end - at.get()).max(1);
                let count = FrameCount::new(room);
                match leaf.at(at) {
                    Entry::Hole => {}
                    Entry::Special => add(&mut census.special, count),
                    Entry::Promise(_) => {
                        promises += room;
                        add(&mut census.promises, count);
                    }
                    Entry::Ram { mfn, .. } => {
                        resident += room;
                        if leaf.order >= self.st.cfg.geometry.giga() {
                            add(&mut census.gigas, count);
                        } else if leaf.order >= self.superpage() {
                            add(&mut census.superpages, count);
                        } else {
                            add(&mut census.small, count);
                        }
                        let run = self.cache().run_of(mfn);
                        let aligned = (mfn.get() ^ at.get()) & (size - 1) == 0;
                        if aligned && run.is_some() && run == record.run() {
                            in_place += room;
                        }
                        for (mfn, order) in Self::pieces(mfn, room) {
                            if self.cache().holds(mfn, order) {
                                return Err(AuditError::TwoHomes(mfn));
                            }
                        }
                    }
                }
                at = at.plus(room);
            }
            let same = u64::from(record.promises) == promises
                && u64::from(record.resident) == resident
                && u64::from(record.in_place) == in_place
                && (!record.whole || in_place == size)
                && (record.run().is_none() || in_place > 0);
            if !same {
                return Err(AuditError::Region(start));
            }
        }
        self.check_totals(&census)?;
        Ok(census)
    }

    fn check_totals(&mut self, census: &Census) -> Result<(), AuditError> {
        if census.promises.get() != self.st.entries {
            return Err(AuditError::Promises);
        }
        if census.ram().get() != self.st.populated {
            return Err(AuditError::Populated);
        }
        if !self.cache().audit() {
            return Err(AuditError::Cache);
        }
        if !self.regions().markers_hold() {
            return Err(AuditError::Markers);
        }
        Ok(())
    }

    /// Whether a machine frame is in the cache (linear for loose frames; for audits).
    #[must_use]
    pub fn is_cached(&mut self, mfn: Mfn) -> bool {
        let one = FrameCount::new(1);
        self.cache().in_blocks(mfn, Order::FRAME) || self.cache().loose_in(mfn, one).is_some()
    }
}

const fn add(sum: &mut FrameCount, count: FrameCount) {
    *sum = FrameCount::new(sum.get() + count.get());
}
