//! Populates, and the way down to smaller extents.

use core::ops::Range;

use balloon_core::{FrameCount, FrameRange, Order, Pfn};

use super::cut::{MEDIUM, is_whole, starts};
use super::{BATCH, Counters, Reservation, Stopped};
use crate::frame_map::FrameMap;
use crate::hypercall::Memory;
use crate::units::Gmfn;

impl<M: Memory, F: FrameMap> Reservation<M, F> {
    /// One populate of the queued extents `which`.
    pub(super) fn populate(&mut self, which: Range<usize>, order: Order) -> Result<usize, Stopped> {
        let starts = self.starts.get(which).unwrap_or_default().iter().copied();
        let Self {
            memory, map, list, ..
        } = self;
        populate(memory, map, &mut self.counters, list, starts, order)
    }

    /// Fills an extent that was not served by smaller ones, as far as the
    /// domain's limit allows.
    pub(super) fn take_smaller(
        &mut self,
        extent: FrameRange,
        order: Order,
        done: &mut FrameCount,
    ) -> Result<(), Stopped> {
        let owned = self.reservation()?;
        self.counters.hypercalls = self.counters.hypercalls.wrapping_add(1);
        let limit = self.memory.maximum_reservation().map_err(Stopped::from)?;
        let room = limit.saturating_sub(owned).min(order.frames());
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
        while let Some(range) = rest {
            let mut taken = FrameCount::ZERO;
            if order == Order::SUPERPAGE {
                taken = self.populate_pieces(range, MEDIUM)?;
            }
            if taken.is_zero() {
                let (head, _) = range.split_at(MEDIUM.frames());
                let piece = head.unwrap_or(range);
                taken = self.populate_pieces(piece, Order::FRAME)?;
                if taken < piece.count() {
                    *done = done.saturating_add(taken);
                    return Err(Stopped::NotServed);
                }
            }
            *done = done.saturating_add(taken);
            rest = range.split_at(taken).1;
        }
        beyond.map_or(Ok(()), |_| Err(Stopped::AtLimit))
    }

    /// Populates a range in extents of `order`; returns how many frames it got.
    fn populate_pieces(&mut self, range: FrameRange, order: Order) -> Result<FrameCount, Stopped> {
        let starts = starts(range, order);
        let Self {
            memory, map, list, ..
        } = self;
        let served = populate(memory, map, &mut self.counters, list, starts, order)?;
        Ok(FrameCount::new(served as u64 * order.frames().get()))
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
    counters.taken.count(order, served);
    for (&gmfn, start) in list.iter().zip(starts).take(served) {
        note(map, start, gmfn, order);
    }
    map.commit();
    result?;
    Ok(served)
}

/// Tells an untranslated guest's table what is behind an extent now.
fn note<F: FrameMap>(map: &mut F, start: Pfn, gmfn: Gmfn, order: Order) {
    if F::TRANSLATED {
        return;
    }
    for frame in 0..order.frames().get() {
        map.map(Pfn::new(start.get() + frame), Gmfn::new(gmfn.get() + frame));
    }
}
