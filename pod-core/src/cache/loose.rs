//! Frames for which no block is left: a plain stack, 4 bytes each.

use crate::{FrameCount, Mfn, Order};

/// The stack for the time of one operation.
#[derive(Debug)]
pub(super) struct Loose<'a> {
    pub(super) numbers: &'a mut [u32],
    pub(super) len: &'a mut u32,
}

impl Loose<'_> {
    fn used(&self) -> &[u32] {
        self.numbers.get(..*self.len as usize).unwrap_or_default()
    }

    pub(super) const fn room(&self) -> u64 {
        (self.numbers.len() as u64).saturating_sub(*self.len as u64)
    }

    /// Takes all of the run, or nothing if there is no room or a number is too large.
    pub(super) fn push(&mut self, mfn: Mfn, order: Order) -> bool {
        let length = order.frames().get();
        let fits =
            length <= self.room() && u32::try_from(mfn.get().saturating_add(length - 1)).is_ok();
        for i in 0..if fits { length } else { 0 } {
            let place = self.numbers.get_mut(*self.len as usize);
            if let (Some(place), Ok(number)) = (place, u32::try_from(mfn.get() + i)) {
                *place = number;
                *self.len += 1;
            }
        }
        fits
    }

    pub(super) fn get(&self, at: u32) -> Option<Mfn> {
        let number = *self.used().get(at as usize)?;
        Some(Mfn::new(u64::from(number)))
    }

    pub(super) fn last(&self) -> Option<Mfn> {
        self.get(self.len.checked_sub(1)?)
    }

    pub(super) fn pop(&mut self) -> Option<Mfn> {
        let mfn = self.last()?;
        *self.len -= 1;
        Some(mfn)
    }

    /// Takes one frame out, wherever it is.
    pub(super) fn remove(&mut self, mfn: Mfn) -> bool {
        let at = self.used().iter().position(|n| u64::from(*n) == mfn.get());
        let Some(at) = at else { return false };
        *self.len -= 1;
        self.numbers.swap(at, *self.len as usize);
        true
    }

    pub(super) fn lowest_in(&self, mfn: Mfn, count: FrameCount) -> Option<Mfn> {
        let end = mfn.get().saturating_add(count.get());
        let run = mfn.get()..end;
        let inside = self.used().iter().map(|n| u64::from(*n));
        inside.filter(|n| run.contains(n)).min().map(Mfn::new)
    }

    pub(super) fn sort(&mut self) {
        let used = *self.len as usize;
        self.numbers
            .get_mut(..used)
            .unwrap_or_default()
            .sort_unstable();
    }

    /// Whether any of the sorted frames is in the run.
    pub(super) fn sorted_touches(&self, mfn: Mfn, order: Order) -> bool {
        let used = self.used();
        let next = used.partition_point(|n| u64::from(*n) < mfn.get());
        let end = mfn.get().saturating_add(order.frames().get());
        used.get(next).is_some_and(|n| u64::from(*n) < end)
    }

    /// Whether the sorted frames differ from each other.
    pub(super) fn sorted_are_distinct(&self) -> bool {
        self.used().is_sorted_by(|a, b| a < b)
    }
}
