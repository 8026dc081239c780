//! Decreases, and what is left after one that fell short.

use core::ops::Range;

use balloon_core::{FrameCount, FrameRange, Migration, Order, Pfn};

use super::cut::{is_whole, starts};
use super::{BATCH, Counters, Reservation, Stopped};
use crate::clear::Clear;
use crate::errno::Errno;
use crate::frame_map::FrameMap;
use crate::hypercall::calls::Memory;
use crate::units::Gmfn;

/// How often Xen is asked for what it refuses before that counts as its answer.
pub(super) const ATTEMPTS: usize = 8;

/// Frames that one call gives after a short count.
const REMAINS: usize = 64;

impl<M: Memory, F: FrameMap, C: Clear> Reservation<M, F, C> {
    /// Whether a frame can be looked at without touching it, if Xen lets us.
    const LOOKS: bool = matches!(F::MIGRATION, Migration::Move);

    /// One decrease of the queued extents `which`.
    pub(super) fn decrease(&mut self, which: Range<usize>, order: Order) -> Result<usize, Stopped> {
        let starts = self.starts.get(which).unwrap_or_default().iter().copied();
        let Self {
            memory, map, list, ..
        } = self;
        decrease(memory, map, &mut self.counters, list, starts, order)
    }

    /// Gives what is left of an extent that was refused, or half given.
    pub(super) fn inflate_rest(
        &mut self,
        extent: FrameRange,
        done: &mut FrameCount,
    ) -> Result<(), Stopped> {
        if is_whole(extent) {
            self.count_downgrade();
        }
        let mut rest = Some(extent);
        while let Some(range) = rest {
            // One that is a hole is the host's already.
            let Some(holes) = self.leading_holes(range) else {
                return self.inflate_unprobed(range, done);
            };
            *done = done.saturating_add(holes);
            let Some(range) = range.split_at(holes).1 else {
                break;
            };
            let (head, _) = range.split_at(FrameCount::new(REMAINS as u64));
            let given = self.decrease_frames(head.unwrap_or(range))?;
            if given.is_zero() {
                return Err(Stopped::NotServed);
            }
            *done = done.saturating_add(given);
            rest = range.split_at(given).1;
        }
        Ok(())
    }

    /// Gives what is left of an extent where no frame can be looked at.
    ///
    /// A frame that may be gone must not be used, so all of them are to be gone: at
    /// worst the host keeps some that it was not told of.
    fn inflate_unprobed(
        &mut self,
        range: FrameRange,
        done: &mut FrameCount,
    ) -> Result<(), Stopped> {
        if !F::TRANSLATED {
            // Single frames, which go or stay.
            return Err(Stopped::NotServed);
        }
        *done = done.saturating_add(range.count());
        let mut rest = Some(range);
        while let Some(range) = rest {
            let given = (0..ATTEMPTS).find_map(|_| self.decrease_frames(range).ok());
            let over = given.unwrap_or_default().saturating_add(FrameCount::ONE);
            rest = range.split_at(over).1;
        }
        Ok(())
    }

    /// How many frames at the start of a range have nothing behind them; `None`
    /// if that is not to be seen.
    fn leading_holes(&mut self, range: FrameRange) -> Option<FrameCount> {
        if !Self::LOOKS {
            return None;
        }
        let mut holes = FrameCount::ZERO;
        for pfn in range.frames() {
            if !self.is_hole(pfn).ok()? {
                break;
            }
            holes = holes.saturating_add(FrameCount::ONE);
        }
        self.counters.holes_found = self.counters.holes_found.wrapping_add(holes.get());
        Some(holes)
    }

    /// Looks at a frame, more than once if Xen refuses.
    pub(crate) fn is_hole(&mut self, pfn: Pfn) -> Result<bool, Errno> {
        let mut answer = Err(Errno::NotSupported);
        for _ in 0..ATTEMPTS {
            self.counters.hypercalls = self.counters.hypercalls.wrapping_add(1);
            answer = self.memory.is_hole(pfn);
            if answer.is_ok() {
                break;
            }
        }
        answer
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
    counters.inflated.count(order, served);
    for (&gmfn, start) in list.iter().zip(starts).skip(served) {
        map.map(start, gmfn);
    }
    map.commit();
    result?;
    Ok(served)
}
