//! Populates, and the way down to smaller extents.

use core::ops::Range;

use balloon_core::{FrameCount, FrameRange, Order, Pfn};

use super::cut::{MEDIUM, is_whole, starts};
use super::inflate::ATTEMPTS;
use super::{BATCH, Counters, Reservation, Stopped};
use crate::clear::Clear;
use crate::errno::Errno;
use crate::frame_map::FrameMap;
use crate::hypercall::calls::Memory;
use crate::units::Gmfn;

impl<M: Memory, F: FrameMap, C: Clear> Reservation<M, F, C> {
    /// One populate of the queued extents `which`.
    pub(super) fn populate(&mut self, which: Range<usize>, order: Order) -> Result<usize, Stopped> {
        self.owned = self.reservation()?;
        let starts = self.starts.get(which).unwrap_or_default().iter().copied();
        let Self {
            memory, map, list, ..
        } = self;
        let served = populate(memory, map, &mut self.counters, list, starts, order)?;
        let frames = FrameCount::new(served as u64 * order.frames().get());
        self.owned = self.owned.saturating_add(frames);
        Ok(served)
    }

    /// Fills an extent that was not served by smaller ones, as far as the
    /// domain's limit allows.
    pub(super) fn deflate_smaller(
        &mut self,
        extent: FrameRange,
        order: Order,
        done: &mut FrameCount,
    ) -> Result<(), Stopped> {
        let room = self.room(order)?.min(order.frames());
        if room.is_zero() {
            return Err(Stopped::AtLimit);
        }
        if order == Order::FRAME {
            return Err(Stopped::NotServed);
        }
        if is_whole(extent) {
            self.count_downgrade();
        }
        let (mut rest, beyond) = extent.split_at(room);
        for smaller in [MEDIUM, Order::FRAME] {
            if let Some(range) = rest
                && smaller < order
                && (smaller == Order::FRAME || smaller > self.singly)
            {
                let taken = self.populate_pieces(range, smaller)?;
                *done = done.saturating_add(taken);
                rest = range.split_at(taken).1;
                if rest.is_some() {
                    self.room(smaller)?;
                }
            }
        }
        match (rest, beyond) {
            (Some(_), _) => Err(Stopped::NotServed),
            (None, Some(_)) => Err(Stopped::AtLimit),
            (None, None) => Ok(()),
        }
    }

    /// What the domain may own still, after a populate of `order` that fell short.
    ///
    /// One extent is lost at a time. By any other number the toolstack has changed the
    /// reservation meanwhile; whether an extent was lost beside that, a smaller one shows.
    ///
    /// # Errors
    /// [`Stopped::NoTables`] if it owns an extent more than it was given.
    fn room(&mut self, order: Order) -> Result<FrameCount, Stopped> {
        let owned = self.reservation()?;
        let expected = core::mem::replace(&mut self.owned, owned);
        if owned.saturating_sub(expected) == order.frames() {
            let lost = order.frames();
            self.counters.lost = self.counters.lost.wrapping_add(lost.get());
            self.no_migrations = true;
            self.singly = self.singly.max(order);
            return Err(Stopped::NoTables);
        }
        self.counters.hypercalls = self.counters.hypercalls.wrapping_add(1);
        Ok(self.memory.maximum_reservation()?.saturating_sub(owned))
    }

    /// What the domain owns. More than once if Xen refuses to tell: a loss that is not
    /// seen is not counted, and made again.
    fn reservation(&mut self) -> Result<FrameCount, Stopped> {
        let mut answer = Err(Errno::NotSupported);
        for _ in 0..ATTEMPTS {
            self.counters.hypercalls = self.counters.hypercalls.wrapping_add(1);
            answer = self.memory.current_reservation();
            if answer.is_ok() {
                break;
            }
        }
        Ok(answer?)
    }

    /// Populates a range in extents of `order`; returns how many frames it got.
    fn populate_pieces(&mut self, range: FrameRange, order: Order) -> Result<FrameCount, Stopped> {
        let starts = starts(range, order);
        let Self {
            memory, map, list, ..
        } = self;
        let served = populate(memory, map, &mut self.counters, list, starts, order)?;
        let frames = FrameCount::new(served as u64 * order.frames().get());
        self.owned = self.owned.saturating_add(frames);
        Ok(frames)
    }
}

/// One populate of the extents that begin at `starts`, of at most [`BATCH`] of
/// them; returns how many came.
fn populate<M: Memory, F: FrameMap>(
    memory: &mut M,
    map: &mut F,
    counters: &mut Counters,
    list: &mut [Gmfn; BATCH],
    starts: impl Iterator<Item = Pfn> + Clone,
    order: Order,
) -> Result<usize, Stopped> {
    let mut ready = 0;
    for (place, start) in list.iter_mut().zip(starts.clone()) {
        *place = Gmfn::of_guest(start);
        ready += 1;
    }
    let list = list.get_mut(..ready).unwrap_or_default();
    if list.is_empty() {
        return Ok(0);
    }
    counters.hypercalls = counters.hypercalls.wrapping_add(1);
    let result = memory.populate_physmap(list, order);
    let served = result.unwrap_or(0).min(ready);
    counters.deflated.count(order, served);
    for (&gmfn, start) in list.iter().zip(starts).take(served) {
        note(map, start, gmfn, order);
    }
    map.commit();
    result?;
    Ok(served)
}

/// Tells an untranslated guest's table what is behind an extent now.
pub(super) fn note<F: FrameMap>(map: &mut F, start: Pfn, gmfn: Gmfn, order: Order) {
    if F::TRANSLATED {
        return;
    }
    for frame in 0..order.frames().get() {
        // Xen's number may be any.
        let gmfn = Gmfn::new(gmfn.get().wrapping_add(frame));
        map.map(Pfn::new(start.get() + frame), gmfn);
    }
}
