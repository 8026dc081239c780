//! Bringing frames in.

use super::Zone;
use crate::error::AddError;
use crate::frame::FrameRange;
use crate::node::Slot;

/// What the host is believed to have behind frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Backing {
    /// Every frame has memory behind it.
    Populated,
    /// None has; the first touch costs a page fault in the host.
    Unpopulated,
    /// Nobody knows, as after a reset or a restore. Counts as populated: giving an unpopulated
    /// frame away frees nothing, never giving a populated one costs the host its memory.
    Unknown,
}

impl Backing {
    pub(crate) const fn is_populated(self) -> bool {
        !matches!(self, Self::Unpopulated)
    }
}

impl Zone<'_> {
    /// Adds free frames. Ranges may touch each other; they merge.
    ///
    /// Costs one visit per region and one word per 64 populated frames, and in regions that are
    /// partly managed already one node per frame added. An untouched range writes a handful of
    /// metadata words and the counters of its regions.
    ///
    /// # Errors
    /// See [`AddError`]; an empty range is fine.
    pub fn add_range(&mut self, range: FrameRange, backing: Backing) -> Result<(), AddError> {
        self.check_add(range)?;
        let (start, end) = (range.start().get(), range.end().get());
        for (region, start, end) in self.by_region(start, end) {
            self.regions.add_managed(region, end - start);
        }
        self.managed += end - start;
        for (frame, order) in self.blocks_of(start, end) {
            if backing.is_populated() {
                self.populated.fill(frame, order, true);
            }
            self.release(
                frame,
                order,
                if backing.is_populated() {
                    1 << order
                } else {
                    0
                },
            );
        }
        Ok(())
    }

    /// Whether [`add_range`](Self::add_range) would add a range.
    pub(crate) fn check_add(&self, range: FrameRange) -> Result<(), AddError> {
        if range.is_empty() {
            Ok(())
        } else if !self.span.covers(range) {
            Err(AddError::Foreign)
        } else if self.any_managed(range.start().get(), range.end().get()) {
            Err(AddError::Overlap)
        } else {
            Ok(())
        }
    }

    /// Whether any frame of a range is managed. Regions that are wholly one or the other are
    /// answered by their counter.
    fn any_managed(&self, start: u64, end: u64) -> bool {
        self.by_region(start, end).any(|(region, start, end)| {
            let managed = self.regions.counts(region).managed;
            if managed == 0 {
                return false;
            }
            if managed == 1 << self.regions.order() || self.block_at(start).is_some() {
                return true;
            }
            (start..end).any(|frame| self.slot(frame) != Slot::Nothing)
        })
    }

    /// The parts of a range by region: region number, start, end.
    pub(super) fn by_region(
        &self,
        start: u64,
        end: u64,
    ) -> impl Iterator<Item = (u64, u64, u64)> + use<> {
        let order = self.regions.order();
        let regions = if start < end {
            start >> order..((end - 1) >> order) + 1
        } else {
            0..0
        };
        regions.map(move |region| {
            (
                region,
                start.max(region << order),
                end.min((region + 1) << order),
            )
        })
    }
}
