//! Free-page reporting: lend free populated blocks to the host without holding the lock.
//!
//! One pass: [`Zone::isolate_next`] under the lock, the report without it,
//! [`Zone::unisolate`] under the lock again. The blocks come back as unpopulated, so the next pass
//! does not meet them: nothing is walked but what is worth reporting.

use super::Zone;
use super::add::Backing;
use crate::error::RangeError;
use crate::frame::{Frame, FrameCount, FrameRange, Order};
use crate::node::{Kind, Slot};

/// Where a reporting pass has got to. Holds no reference and survives any change of the zone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct ReportCursor {
    next: u64,
}

/// Which blocks are worth a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct IsolateRequest {
    /// Smallest block. Nothing is found above the granule, in pieces of which larger blocks come.
    pub order: Order,
    /// Fewest populated frames in it.
    pub populated: FrameCount,
}

/// Answer of [`Zone::isolate_next`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Isolated {
    /// A block, now isolated.
    Block(FrameRange),
    /// The bound of one call was reached: call again, with the lock dropped if need be.
    Again,
    /// The end of the zone. The cursor starts over.
    Done,
}

/// Regions visited per call.
const VISITS: u32 = 32;

impl Zone<'_> {
    /// Isolates the next free block worth reporting, in order of address.
    ///
    /// A free block larger than the host granule comes granule by granule. Visits at most 32
    /// regions per call.
    pub fn isolate_next(&mut self, cursor: &mut ReportCursor, ask: IsolateRequest) -> Isolated {
        let granule = self.regions.order();
        for _ in 0..VISITS {
            let Some(region) = self.regions.next_dense(self.regions.of(cursor.next)) else {
                *cursor = ReportCursor::default();
                return Isolated::Done;
            };
            let (start, end) = (region << granule, (region + 1) << granule);
            let from = cursor.next.max(start);
            if self.regions.counts(region).free_populated >= ask.populated.get().max(1)
                && let Some((head, order, start, stop)) = self.worth_reporting(from, end, ask)
            {
                self.split_off(head, order, start, stop);
                self.mark_range(start, stop, Kind::Isolated);
                cursor.next = stop;
                return Isolated::Block(FrameRange::raw(start, stop));
            }
            cursor.next = end;
        }
        Isolated::Again
    }

    /// The first suiting (part of a) free block between two frames of a region.
    fn worth_reporting(
        &self,
        from: u64,
        end: u64,
        ask: IsolateRequest,
    ) -> Option<(u64, u32, u64, u64)> {
        let least = ask.populated.get().max(1);
        let mut at = from;
        while at < end {
            let Some((head, order, slot)) = self.block_at(at) else {
                at += 1;
                continue;
            };
            let (start, stop) = (head.max(from), (head + (1 << order)).min(end));
            if matches!(slot, Slot::Free(_)) && stop - start >= ask.order.frames() {
                let populated: u64 = self
                    .blocks_of(start, stop)
                    .map(|(f, k)| self.populated.count(f, k))
                    .sum();
                if populated >= least {
                    return Some((head, order, start, stop));
                }
            }
            at = stop;
        }
        None
    }

    /// Isolates a whole free block by address, for a caller with a search of its own.
    ///
    /// # Errors
    /// See [`AtError`](crate::AtError).
    pub fn isolate_at(&mut self, frame: Frame, order: Order) -> Result<(), crate::AtError> {
        if frame.get() & (order.frames() - 1) != 0 {
            return Err(crate::AtError::Misaligned);
        }
        self.hold_free(FrameRange::block(frame, order), Kind::Isolated)
    }

    /// Makes isolated frames free again: `Unpopulated` after a report that went through, `Populated`
    /// after one that did not.
    ///
    /// # Errors
    /// See [`RangeError`].
    pub fn unisolate(&mut self, range: FrameRange, backing: Backing) -> Result<(), RangeError> {
        self.release_held(range, Kind::Isolated, Some(backing.is_populated()))
            .map_err(|at| self.range_error(at))
    }
}
