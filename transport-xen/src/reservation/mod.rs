//! Giving and taking memory in extents, the largest first.
//!
//! What real Xen does (4.17, measured) and what follows from it:
//!
//! * A 2 MiB extent costs a fraction of 512 frames, and only a 2 MiB extent
//!   brings the 2 MiB leaf of the nested page table back. So runs are cut at
//!   superpage boundaries, and what is left over goes by 64 KiB and 4 KiB.
//! * A decrease that meets a hole stops *inside* the extent and says nothing:
//!   the frames before the hole are gone. After a short count the first frame
//!   that is still there is looked for, and the rest is given one by one.
//! * A populate that cannot be served returns a short count without a reason.
//!   If the domain may own more, the host has no superpage to spare: the extent
//!   is filled by smaller ones, up to the domain's limit, a counted downgrade.
//! * Order 10 is never served.
//!
//! Results count frames from the first, in the order of the request: a prefix
//! is done and the rest untouched, whatever Xen refused.

mod cut;
mod give;
mod take;

use balloon_core::{FrameCount, FrameRange, Order, Pfn, Run};

use crate::errno::Errno;
use crate::frame_map::FrameMap;
use crate::hypercall::Memory;
use crate::units::Gmfn;

use cut::{is_whole, next_extent};

/// Extents of one hypercall.
pub const BATCH: usize = 512;

/// How far a request got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Frames moved, from the first.
    pub frames: FrameCount,
    /// Why it ended before the last, if it did.
    pub stopped: Option<Stopped>,
}

/// Why a request ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Stopped {
    /// Xen refused the call.
    #[error("refused: {0}")]
    Refused(#[from] Errno),
    /// Xen served no further extent: no memory, or nothing behind the frame.
    #[error("not served")]
    NotServed,
    /// The two sides of a trade differ in size: nothing was traded.
    #[error("the sides of the trade differ in size")]
    Unequal,
    /// The domain owns as much as it may.
    #[error("the domain is at its limit")]
    AtLimit,
    /// Xen refused to go on with a trade, and to show how far it got: until
    /// [`Reservation::decide`] says so, neither side may be used, and nothing is
    /// traded.
    #[error("xen does not show what was traded")]
    Undecided,
}

/// What the balloon has cost; counts wrap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub struct Counters {
    /// Hypercalls made.
    pub hypercalls: u64,
    /// Extents given, by size.
    pub given: ExtentCounts,
    /// Extents taken back, by size.
    pub taken: ExtentCounts,
    /// Whole superpages that went by smaller extents: given by a PV guest, found
    /// to have holes, or not to be had from the host.
    pub downgrades: u64,
    /// Hypercalls that did less than they were asked.
    pub short_counts: u64,
    /// Frames found to be holes already where one was to be given.
    pub holes_found: u64,
    /// Frames traded for others.
    pub traded: u64,
}

/// Extents by size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct ExtentCounts {
    /// 2 MiB.
    pub superpages: u64,
    /// 64 KiB.
    pub medium: u64,
    /// 4 KiB.
    pub frames: u64,
}

impl ExtentCounts {
    const fn count(&mut self, order: Order, extents: usize) {
        let place = match order.get() {
            9 => &mut self.superpages,
            4 => &mut self.medium,
            _ => &mut self.frames,
        };
        *place = place.wrapping_add(extents as u64);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Give,
    Take,
}

/// The domain's memory, as far as the balloon moves it.
///
/// About 8 KiB, for the lists of one hypercall.
#[derive(Debug)]
pub struct Reservation<M, F> {
    memory: M,
    map: F,
    /// First frames of the extents of the next hypercall.
    starts: [Pfn; BATCH],
    /// The same as Xen calls them.
    list: [Gmfn; BATCH],
    queued: usize,
    /// What the domain owned before the last decrease of larger extents, for
    /// when no frame can be looked at.
    owned: FrameCount,
    /// Xen has let itself be shown what is behind a frame.
    pub(crate) looks: bool,
    /// Both sides of a trade that may have been made in part.
    pub(crate) undecided: Option<(FrameRange, FrameRange)>,
    counters: Counters,
}

impl<M: Memory, F: FrameMap> Reservation<M, F> {
    /// The memory of this domain.
    #[must_use]
    pub const fn new(memory: M, map: F) -> Self {
        Self {
            memory,
            map,
            starts: [Pfn::new(0); BATCH],
            list: [Gmfn::new(0); BATCH],
            queued: 0,
            owned: FrameCount::ZERO,
            looks: false,
            undecided: None,
            counters: Counters {
                hypercalls: 0,
                given: ZERO,
                taken: ZERO,
                downgrades: 0,
                short_counts: 0,
                holes_found: 0,
                traded: 0,
            },
        }
    }

    /// Gives frames to the host.
    ///
    /// They are not in use, and whatever they held is gone.
    pub fn give(&mut self, runs: &[Run]) -> Moved {
        self.transfer(Way::Give, runs)
    }

    /// Takes ballooned frames back.
    pub fn take(&mut self, runs: &[Run]) -> Moved {
        self.transfer(Way::Take, runs)
    }

    /// What it has cost so far.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// The hypervisor, for calls this type has no part in.
    pub const fn memory_mut(&mut self) -> &mut M {
        &mut self.memory
    }

    /// The guest's frame table.
    pub const fn map_mut(&mut self) -> &mut F {
        &mut self.map
    }

    pub(crate) const fn parts_mut(&mut self) -> (&mut M, &mut F, &mut Counters) {
        (&mut self.memory, &mut self.map, &mut self.counters)
    }

    fn transfer(&mut self, way: Way, runs: &[Run]) -> Moved {
        let mut done = FrameCount::ZERO;
        let stopped = self.transfer_runs(way, runs, &mut done).err();
        self.queued = 0;
        Moved {
            frames: done,
            stopped,
        }
    }

    fn transfer_runs(
        &mut self,
        way: Way,
        runs: &[Run],
        done: &mut FrameCount,
    ) -> Result<(), Stopped> {
        // A decrease of a PV guest names machine frames, which need not be in a
        // row; Xen goes frame by frame there anyway.
        let largest = match way {
            Way::Give if !F::TRANSLATED => Order::FRAME,
            _ => Order::SUPERPAGE,
        };
        let mut order = Order::FRAME;
        for run in runs {
            let mut rest = Some(run.range());
            while let Some(range) = rest {
                let (extent, next) = next_extent(range, largest);
                if extent != order || self.queued == BATCH {
                    self.flush(way, order, done)?;
                    order = extent;
                }
                if extent != Order::SUPERPAGE && is_whole(range) {
                    self.count_downgrade();
                }
                if let Some(place) = self.starts.get_mut(self.queued) {
                    *place = range.start();
                    self.queued += 1;
                }
                rest = next;
            }
        }
        self.flush(way, order, done)
    }

    const fn count_downgrade(&mut self) {
        self.counters.downgrades = self.counters.downgrades.wrapping_add(1);
    }

    /// Makes the hypercalls for what is queued.
    fn flush(&mut self, way: Way, order: Order, done: &mut FrameCount) -> Result<(), Stopped> {
        let queued = core::mem::take(&mut self.queued);
        let mut from = 0;
        while from < queued {
            let served = match way {
                Way::Give => self.decrease(from..queued, order)?,
                Way::Take => self.populate(from..queued, order)?,
            };
            let frames = served as u64 * order.frames().get();
            *done = done.saturating_add(FrameCount::new(frames));
            from += served;
            let Some(&start) = self.starts.get(from).filter(|_| from < queued) else {
                break;
            };
            self.counters.short_counts = self.counters.short_counts.wrapping_add(1);
            let extent = FrameRange::new(start, order.frames()).ok_or(Stopped::NotServed)?;
            match way {
                Way::Give => self.give_remains(extent, done)?,
                Way::Take => self.take_smaller(extent, order, done)?,
            }
            from += 1;
        }
        Ok(())
    }
}

const ZERO: ExtentCounts = ExtentCounts {
    superpages: 0,
    medium: 0,
    frames: 0,
};

#[cfg(test)]
mod tests;
