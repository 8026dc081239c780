//! Decreases, and what is left after one that fell short.

use core::ops::Range;

use balloon_core::{FrameCount, FrameRange, Migration, Order, Pfn};

use super::cut::{is_whole, starts};
use super::{BATCH, Counters, Reservation, Stopped};
use crate::errno::Errno;
use crate::frame_map::FrameMap;
use crate::hypercall::Memory;
use crate::units::Gmfn;

/// How often Xen is asked what it has taken before that counts as unknown.
const ATTEMPTS: usize = 4;

/// Frames that one call gives after a short count.
const REMAINS: usize = 64;

impl<M: Memory, F: FrameMap> Reservation<M, F> {
    /// Whether a frame can be looked at without touching it, if Xen lets us.
    const LOOKS: bool = matches!(F::MIGRATION, Migration::Move);

    /// One decrease of the queued extents `which`.
    pub(super) fn decrease(&mut self, which: Range<usize>, order: Order) -> Result<usize, Stopped> {
        if order != Order::FRAME {
            self.owned = self.reservation()?;
        }
        let starts = self.starts.get(which).unwrap_or_default().iter().copied();
        let Self {
            memory, map, list, ..
        } = self;
        let served = decrease(memory, map, &mut self.counters, list, starts, order)?;
        self.owned = self
            .owned
            .saturating_sub(FrameCount::new(served as u64 * order.frames().get()));
        Ok(served)
    }

    /// Gives what is left of an extent that was refused, or half given.
    pub(super) fn give_remains(
        &mut self,
        extent: FrameRange,
        done: &mut FrameCount,
    ) -> Result<(), Stopped> {
        if is_whole(extent) {
            self.count_downgrade();
        }
        let gone = self.gone(extent);
        *done = done.saturating_add(gone);
        let mut rest = extent.split_at(gone).1;
        while let Some(range) = rest {
            let (Some(head), _) = range.split_at(FrameCount::new(REMAINS as u64)) else {
                break;
            };
            let given = self.decrease_frames(head)?;
            *done = done.saturating_add(given);
            let stuck = range.split_at(given).1;
            if given < head.count() {
                // One that is a hole is the host's already.
                let holes = stuck.and_then(|stuck| self.leading_holes(stuck));
                let holes = holes.filter(|holes| !holes.is_zero());
                let holes = holes.ok_or(Stopped::NotServed)?;
                *done = done.saturating_add(holes);
                rest = stuck.and_then(|stuck| stuck.split_at(holes).1);
            } else {
                rest = stuck;
            }
        }
        Ok(())
    }

    /// How many frames at the start of an extent that fell short are gone.
    fn gone(&mut self, extent: FrameRange) -> FrameCount {
        if let Some(holes) = self.leading_holes(extent) {
            return holes;
        }
        if extent.count() == FrameCount::ONE {
            return FrameCount::ZERO;
        }
        for _ in 0..ATTEMPTS {
            if let Ok(now) = self.reservation() {
                return self.owned.saturating_sub(now).min(extent.count());
            }
        }
        // Nobody tells. A frame that may be gone must not be used, so all of them
        // are to be gone: at worst the host keeps some it was not told of.
        for single in extent.frames().filter_map(FrameRange::single) {
            let _ = self.decrease_frames(single);
        }
        extent.count()
    }

    /// How many frames at the start of a range have nothing behind them; `None`
    /// if that is not to be seen.
    fn leading_holes(&mut self, range: FrameRange) -> Option<FrameCount> {
        let mut holes = FrameCount::ZERO;
        for pfn in range.frames().take_while(|_| Self::LOOKS) {
            if !self.is_hole(pfn)? {
                break;
            }
            holes = holes.saturating_add(FrameCount::ONE);
        }
        self.counters.holes_found = self.counters.holes_found.wrapping_add(holes.get());
        Self::LOOKS.then_some(holes)
    }

    /// A move of a frame to where it is changes nothing, and is invalid for a
    /// hole; any other refusal says nothing about the frame.
    pub(crate) fn is_hole(&mut self, pfn: Pfn) -> Option<bool> {
        self.counters.hypercalls = self.counters.hypercalls.wrapping_add(1);
        match self.memory.move_frame(pfn, pfn) {
            Ok(()) => Some(false),
            Err(Errno::Invalid) => Some(true),
            Err(_) => None,
        }
    }

    /// Gives frames singly; returns how many went.
    fn decrease_frames(&mut self, range: FrameRange) -> Result<FrameCount, Stopped> {
        let starts = starts(range, Order::FRAME);
        let Self {
            memory, map, list, ..
        } = self;
        let served = decrease(memory, map, &mut self.counters, list, starts, Order::FRAME)?;
        Ok(FrameCount::new(served as u64))
    }

    pub(super) fn reservation(&mut self) -> Result<FrameCount, Stopped> {
        self.counters.hypercalls = self.counters.hypercalls.wrapping_add(1);
        Ok(self.memory.current_reservation()?)
    }
}

/// One decrease of the extents that begin at `starts`, of at most [`BATCH`] of
/// them; returns how many went.
fn decrease<M: Memory, F: FrameMap>(
    memory: &mut M,
    map: &mut F,
    counters: &mut Counters,
    list: &mut [Gmfn; BATCH],
    starts: impl Iterator<Item = Pfn> + Clone,
    order: Order,
) -> Result<usize, Stopped> {
    let mut ready = 0;
    for (place, start) in list.iter_mut().zip(starts.clone()) {
        let Some(gmfn) = map.unmap(start) else {
            break;
        };
        *place = gmfn;
        ready += 1;
    }
    let list = list.get(..ready).unwrap_or_default();
    if list.is_empty() {
        return Ok(0);
    }
    map.commit();
    counters.hypercalls = counters.hypercalls.wrapping_add(1);
    let result = memory.decrease_reservation(list, order);
    let served = result.unwrap_or(0).min(ready);
    counters.given.count(order, served);
    for (&gmfn, start) in list.iter().zip(starts).skip(served) {
        map.map(start, gmfn);
    }
    map.commit();
    result?;
    Ok(served)
}
