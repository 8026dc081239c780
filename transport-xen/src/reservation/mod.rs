//! Giving and taking memory in extents, the largest first.
//!
//! What real Xen does (4.17, measured) and what follows from it:
//!
//! * A 2 MiB extent costs a fraction of 512 frames, and only a 2 MiB extent
//!   brings the 2 MiB leaf of the nested page table back. So runs are cut at
//!   superpage boundaries, and what is left over goes by 64 KiB and 4 KiB.
//! * A decrease that meets a hole stops *inside* the extent and says nothing:
//!   the frames before the hole are gone. After a short count the first frame
//!   that is still there is looked for, and the rest is given one by one. Where
//!   no frame can be looked at, all of the extent counts as gone: the reservation
//!   tells nothing, under populate-on-demand it does not fall.
//! * A populate that cannot be served returns a short count without a reason.
//!   If the domain may own more, the host has no superpage to spare: the extent
//!   is filled by smaller ones, up to the domain's limit, a counted downgrade.
//!   If it owns an extent more already, Xen had the memory and no room in the
//!   domain's tables: that memory is nowhere until the domain ends, and the next
//!   attempt would cost as much again.
//! * Order 10 is never served.
//!
//! Results count frames from the first, in the order of the request: a prefix
//! is done and the rest untouched, whatever Xen refused.

mod cut;
mod deflate;
mod inflate;

use balloon_core::{FrameCount, FrameRange, Order, Pfn, Run};

use crate::clear::Clear;
use crate::errno::Errno;
use crate::frame_map::FrameMap;
use crate::hypercall::calls::Memory;
use crate::units::Gmfn;

use cut::{is_whole, next_extent};

/// Extents of one hypercall.
pub const BATCH: usize = 512;

/// Hypercalls after which a request that goes by single frames ends with what is
/// done; an extent more may take as many again as it has frames, and half.
const CALLS: u64 = 2048;

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
    /// The two sides of a migration differ in size: nothing was migrated.
    #[error("the sides of the migration differ in size")]
    Unequal,
    /// The domain owns as much as it may.
    #[error("the domain is at its limit")]
    AtLimit,
    /// Xen refused to go on with a migration, and to show how far it got: until
    /// [`Reservation::decide`] says so, neither side may be used, and nothing is
    /// migrated.
    #[error("xen does not show what was migrated")]
    Undecided,
    /// Xen refused to go on with a migration, and nothing is behind either frame of the
    /// pair after those migrated: both are the host's.
    #[error("a pair was torn")]
    Torn,
    /// Xen has no memory for the tables that map the domain's: what it lets the
    /// domain have is charged and nowhere. Until a take goes well nothing is migrated,
    /// and extents up to the size lost go frame by frame.
    #[error("no memory for the domain's tables")]
    NoTables,
    /// Much of it went by single frames: enough for one call, ask again.
    #[error("enough for one call")]
    Enough,
}

/// What the balloon has cost; counts wrap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub struct Counters {
    /// Hypercalls made.
    pub hypercalls: u64,
    /// Extents given, by size.
    pub inflated: ExtentCounts,
    /// Extents taken back, by size.
    pub deflated: ExtentCounts,
    /// Whole superpages that went by smaller extents: given by a PV guest, found
    /// to have holes, or not to be had from the host.
    pub downgrades: u64,
    /// Hypercalls that did less than they were asked.
    pub short_counts: u64,
    /// Frames found to be holes already where one was to be given.
    pub holes_found: u64,
    /// Frames cleared before they were given or exchanged.
    pub cleared: u64,
    /// Frames charged to the domain that are nowhere, for want of memory for its
    /// tables, until it ends.
    pub lost: u64,
    /// Frames migrated for others.
    pub migrated: u64,
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
enum Direction {
    Inflate,
    Deflate,
}

/// The domain's memory, as far as the balloon moves it.
///
/// About 8 KiB, for the lists of one hypercall.
#[derive(Debug)]
pub struct Reservation<M, F, C> {
    memory: M,
    map: F,
    clear: C,
    /// First frames of the extents of the next hypercall.
    starts: [Pfn; BATCH],
    /// The same as Xen calls them.
    list: [Gmfn; BATCH],
    queued: usize,
    /// What the domain should own after the last populate.
    owned: FrameCount,
    /// More may be promised than Xen has ready: to clear or move a frame may end the
    /// domain.
    pub(crate) promised: bool,
    /// Xen had no memory for the domain's tables: a migration may cost a frame.
    pub(crate) no_migrations: bool,
    /// Nor for what was to name an extent of this order: up to it another one costs
    /// more than a frame. Larger ones may need no table more.
    singly: Order,
    /// Xen has let itself be shown what is behind a frame.
    pub(crate) looks: bool,
    /// Both sides of a migration that may have been made in part, and why Xen refused
    /// to go on with it.
    pub(crate) undecided: Option<((FrameRange, FrameRange), Errno)>,
    /// Hypercalls before the call under way.
    calls_before: u64,
    counters: Counters,
}

impl<M: Memory, F: FrameMap, C: Clear> Reservation<M, F, C> {
    /// The memory of this domain, and how it is cleared before the host gets it.
    #[must_use]
    pub const fn new(memory: M, map: F, clear: C) -> Self {
        Self {
            memory,
            map,
            clear,
            starts: [Pfn::new(0); BATCH],
            list: [Gmfn::new(0); BATCH],
            queued: 0,
            owned: FrameCount::ZERO,
            promised: false,
            no_migrations: false,
            singly: Order::FRAME,
            looks: false,
            undecided: None,
            calls_before: 0,
            counters: Counters {
                hypercalls: 0,
                inflated: ZERO,
                deflated: ZERO,
                downgrades: 0,
                short_counts: 0,
                holes_found: 0,
                cleared: 0,
                lost: 0,
                migrated: 0,
            },
        }
    }

    /// Gives frames to the host.
    ///
    /// They are not in use. Runs that were written are [cleared](Clear) first; whatever
    /// they held is gone, also of those that Xen does not take.
    pub fn inflate(&mut self, runs: &[Run]) -> Moved {
        self.transfer(Direction::Inflate, runs)
    }

    /// Takes ballooned frames back.
    pub fn deflate(&mut self, runs: &[Run]) -> Moved {
        self.transfer(Direction::Deflate, runs)
    }

    /// Says whether a [promise](crate::pod) of populate-on-demand stands: from before
    /// the first frame is given until [`PodDeadline::is_kept`](crate::pod::PodDeadline::is_kept).
    ///
    /// While it stands nothing is [cleared](Clear): of a source that does not say what is
    /// [untouched](Run::is_untouched), any frame may be a promise, and Xen ends a
    /// domain that touches more of them than it has ready. So what the source hands out in
    /// that time holds nothing that others must not read: the kernel wrote to none of it.
    /// Nor is anything migrated. A promise that is never said to have ended leaves all memory
    /// uncleared.
    pub const fn promise_stands(&mut self, stands: bool) {
        self.promised = stands;
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

    /// Forgets what was learnt of a hypervisor that is another one now: due after a
    /// restore, and part of [`XenBalloon::restored`](crate::XenBalloon::restored).
    pub const fn restored(&mut self) {
        self.looks = false;
        self.tables_have_room();
    }

    const fn tables_have_room(&mut self) {
        self.no_migrations = false;
        self.singly = Order::FRAME;
    }

    pub(crate) const fn parts_mut(&mut self) -> (&mut M, &mut F, &mut Counters) {
        (&mut self.memory, &mut self.map, &mut self.counters)
    }

    fn transfer(&mut self, direction: Direction, runs: &[Run]) -> Moved {
        let mut done = FrameCount::ZERO;
        self.calls_before = self.counters.hypercalls;
        let stopped = self.transfer_runs(direction, runs, &mut done).err();
        self.queued = 0;
        if direction == Direction::Deflate && stopped.is_none() {
            self.tables_have_room();
        }
        Moved {
            frames: done,
            stopped,
        }
    }

    fn transfer_runs(
        &mut self,
        direction: Direction,
        runs: &[Run],
        done: &mut FrameCount,
    ) -> Result<(), Stopped> {
        // A decrease of a PV guest names machine frames, which need not be in a
        // row; Xen goes frame by frame there anyway.
        let singly = match direction {
            Direction::Inflate if !F::TRANSLATED => Order::SUPERPAGE,
            Direction::Inflate => Order::FRAME,
            Direction::Deflate => self.singly,
        };
        let mut order = Order::FRAME;
        for run in runs {
            let mut rest = Some(run.range());
            while let Some(range) = rest {
                let (extent, next) = next_extent(range, singly);
                if extent != order || self.queued == BATCH {
                    self.flush(direction, order, done)?;
                    order = extent;
                }
                if extent != Order::SUPERPAGE && is_whole(range) {
                    self.count_downgrade();
                }
                if direction == Direction::Inflate
                    && let Some(leaving) = range.split_at(extent.frames()).0
                {
                    self.clear(leaving, run.is_untouched());
                }
                if let Some(place) = self.starts.get_mut(self.queued) {
                    *place = range.start();
                    self.queued += 1;
                }
                rest = next;
            }
        }
        self.flush(direction, order, done)
    }

    /// Takes what the guest wrote out of frames that the next hypercall names.
    pub(crate) fn clear(&mut self, frames: FrameRange, untouched: bool) {
        // A promise of populate-on-demand is untouched, too, and stays one.
        if !self.promised && !untouched {
            self.clear.clear(frames);
            self.counters.cleared = self.counters.cleared.wrapping_add(frames.count().get());
        }
    }

    const fn count_downgrade(&mut self) {
        self.counters.downgrades = self.counters.downgrades.wrapping_add(1);
    }

    /// Makes the hypercalls for what is queued.
    fn flush(
        &mut self,
        direction: Direction,
        order: Order,
        done: &mut FrameCount,
    ) -> Result<(), Stopped> {
        let queued = core::mem::take(&mut self.queued);
        let mut from = 0;
        while from < queued {
            let served = match direction {
                Direction::Inflate => self.decrease(from..queued, order)?,
                Direction::Deflate => self.populate(from..queued, order)?,
            };
            let frames = served as u64 * order.frames().get();
            *done = done.saturating_add(FrameCount::new(frames));
            from += served;
            let Some(&start) = self.starts.get(from).filter(|_| from < queued) else {
                break;
            };
            self.counters.short_counts = self.counters.short_counts.wrapping_add(1);
            let calls = self.counters.hypercalls.wrapping_sub(self.calls_before);
            if calls > CALLS && !done.is_zero() {
                return Err(Stopped::Enough);
            }
            let extent = FrameRange::new(start, order.frames()).ok_or(Stopped::NotServed)?;
            match direction {
                Direction::Inflate => self.inflate_rest(extent, done)?,
                Direction::Deflate => self.deflate_smaller(extent, order, done)?,
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
