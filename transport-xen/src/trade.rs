//! Trading frames: moves on translated guests, exchanges on PV ones.
//!
//! Where both sides rise together for a while, they are moved as ranges.

use balloon_core::{FrameCount, FrameRange, Migration, Order, Pfn, Run};

use crate::errno::Errno;
use crate::frame_map::FrameMap;
use crate::hypercall::Memory;
use crate::reservation::{Moved, Reservation, Stopped};
use crate::units::Gmfn;

/// Pairs of one exchange.
const PAIRS: usize = 64;

/// Stretches that rise together on both sides are moved by themselves from this
/// length on: a frame of a range costs a fraction of one by itself.
const WORTH: u64 = 8;

/// Looks at each side of a pair before it stays unknown.
const LOOKS: usize = 8;

/// Frames of one move of a range; interrupts are served in between.
const RANGE: FrameCount = FrameCount::new(512);

impl<M: Memory, F: FrameMap> Reservation<M, F> {
    /// Makes the frames of `olds`, which are ballooned, the guest's and gives
    /// those of `news` in their stead, pair by pair. Sides that differ in size
    /// are not traded at all.
    ///
    /// By move the old frames get the content of the new ones, too. What follows the
    /// frames counted is as it was, unless that is [undecided](Stopped::Undecided).
    pub fn trade(&mut self, olds: &[Run], news: &[Run]) -> Moved {
        let mut done = FrameCount::ZERO;
        let stopped = self.trade_sides(olds, news, &mut done).err();
        Moved {
            frames: done,
            stopped,
        }
    }

    fn trade_sides(
        &mut self,
        olds: &[Run],
        news: &[Run],
        done: &mut FrameCount,
    ) -> Result<(), Stopped> {
        if total(olds) != total(news) {
            return Err(Stopped::Unequal);
        }
        if self.undecided.is_some() {
            return Err(Stopped::NotServed);
        }
        let mut sides = (Side::new(olds), Side::new(news));
        let mut pairs = Pairs::new();
        loop {
            let stretch = sides.0.left().min(sides.1.left());
            let alone =
                stretch >= FrameCount::new(WORTH) && matches!(F::MIGRATION, Migration::Move);
            if stretch.is_zero() || alone || pairs.room().is_zero() {
                self.trade_pairs(&pairs, done)?;
                pairs = Pairs::new();
            }
            if stretch.is_zero() {
                return Ok(());
            }
            let most = if alone { RANGE } else { pairs.room() };
            let count = stretch.min(most);
            let (Some(old), Some(new)) = (sides.0.take(count), sides.1.take(count)) else {
                return Ok(());
            };
            if alone {
                self.move_range(old, new, done)?;
            } else {
                pairs.push(old, new);
            }
        }
    }

    fn trade_pairs(&mut self, pairs: &Pairs, done: &mut FrameCount) -> Result<(), Stopped> {
        let (old, new) = pairs.both();
        if old.is_empty() {
            return Ok(());
        }
        let (traded, error) = match F::MIGRATION {
            Migration::Move => self.move_pairs(old, new),
            Migration::Exchange => self.exchange_pairs(old, new),
            _ => (0, Some(Errno::NotSupported)),
        };
        self.traded(FrameCount::new(traded as u64), done);
        if traded < old.len() {
            return Err(error.map_or(Stopped::NotServed, Stopped::Refused));
        }
        Ok(())
    }

    fn traded(&mut self, frames: FrameCount, done: &mut FrameCount) {
        *done = done.saturating_add(frames);
        let (_, _, counters) = self.parts_mut();
        counters.traded = counters.traded.wrapping_add(frames.get());
    }

    fn move_range(
        &mut self,
        old: FrameRange,
        new: FrameRange,
        done: &mut FrameCount,
    ) -> Result<(), Stopped> {
        if !self.looks {
            // Where Xen lets nothing be seen it forbids moves at all, and what has
            // become of a range would stay unknown.
            let (memory, _, counters) = self.parts_mut();
            counters.hypercalls = counters.hypercalls.wrapping_add(1);
            memory.move_frame(new.start(), new.start())?;
            self.looks = true;
        }
        let (memory, _, counters) = self.parts_mut();
        counters.hypercalls = counters.hypercalls.wrapping_add(1);
        let Err(errno) = memory.move_range(new, old.start()) else {
            self.traded(old.count(), done);
            return Ok(());
        };
        let Some(filled) = self.filled(old, new) else {
            self.undecided = Some((old, new));
            return Err(Stopped::Undecided);
        };
        self.traded(filled, done);
        Err(errno.into())
    }

    /// How much was traded of what the last trade left [undecided](Stopped::Undecided);
    /// `None` as long as Xen will not show it.
    pub fn decide(&mut self) -> Option<FrameCount> {
        let (old, new) = self.undecided?;
        let filled = self.filled(old, new)?;
        self.undecided = None;
        let mut done = FrameCount::ZERO;
        self.traded(filled, &mut done);
        Some(done)
    }

    /// How far the move of a range got: it does not say, but so far the holes are
    /// filled.
    fn filled(&mut self, old: FrameRange, new: FrameRange) -> Option<FrameCount> {
        let (mut filled, mut holes) = (0, old.count().get());
        while filled < holes {
            let middle = filled.midpoint(holes);
            let old = Pfn::new(old.start().get() + middle);
            let new = Pfn::new(new.start().get() + middle);
            if self.is_filled(old, new)? {
                filled = middle + 1;
            } else {
                holes = middle;
            }
        }
        Some(FrameCount::new(filled))
    }

    /// Whether the memory behind `new` was moved to `old`; `None` if Xen keeps
    /// refusing to tell.
    ///
    /// A `new` that is a hole need not have been moved.
    fn is_filled(&mut self, old: Pfn, new: Pfn) -> Option<bool> {
        for _ in 0..LOOKS {
            if let Some(hole) = self.is_hole(old) {
                return Some(!hole);
            }
            if self.is_hole(new) == Some(false) {
                return Some(false);
            }
        }
        None
    }

    /// One by one: Xen's list of moves goes on after one it refuses, and what
    /// it did then it may refuse to undo.
    fn move_pairs(&mut self, old: &[Pfn], new: &[Pfn]) -> (usize, Option<Errno>) {
        let (memory, _, counters) = self.parts_mut();
        for (done, (&old, &new)) in old.iter().zip(new).enumerate() {
            counters.hypercalls = counters.hypercalls.wrapping_add(1);
            if let Err(errno) = memory.move_frame(new, old) {
                return (done, Some(errno));
            }
        }
        (old.len(), None)
    }

    fn exchange_pairs(&mut self, old: &[Pfn], new: &[Pfn]) -> (usize, Option<Errno>) {
        let (memory, map, counters) = self.parts_mut();
        let mut given = [Gmfn::new(0); PAIRS];
        let mut wanted = [Gmfn::new(0); PAIRS];
        let mut ready = 0;
        for ((given, wanted), (&old, &new)) in
            given.iter_mut().zip(&mut wanted).zip(old.iter().zip(new))
        {
            let Some(gmfn) = map.unmap(new) else { break };
            (*given, *wanted) = (gmfn, Gmfn::of_guest(old));
            ready += 1;
        }
        let given = given.get(..ready).unwrap_or_default();
        let wanted = wanted.get_mut(..ready).unwrap_or_default();
        if given.is_empty() {
            return (0, None);
        }
        map.commit();
        counters.hypercalls = counters.hypercalls.wrapping_add(1);
        let exchanged = memory.exchange((given, Order::FRAME), (wanted, Order::FRAME));
        let done = exchanged.done.min(ready);
        for (&gmfn, &old) in wanted.iter().zip(old).take(done) {
            map.map(old, gmfn);
        }
        for (&gmfn, &new) in given.iter().zip(new).skip(done) {
            map.map(new, gmfn);
        }
        map.commit();
        (done, exchanged.error)
    }
}

/// Frames that become the guest's, and those given for them.
struct Pairs {
    old: [Pfn; PAIRS],
    new: [Pfn; PAIRS],
    count: usize,
}

impl Pairs {
    const fn new() -> Self {
        Self {
            old: [Pfn::new(0); PAIRS],
            new: [Pfn::new(0); PAIRS],
            count: 0,
        }
    }

    const fn room(&self) -> FrameCount {
        FrameCount::new((PAIRS - self.count) as u64)
    }

    fn push(&mut self, old: FrameRange, new: FrameRange) {
        for (next_old, next_new) in old.frames().zip(new.frames()) {
            let places = (self.old.get_mut(self.count), self.new.get_mut(self.count));
            if let (Some(old), Some(new)) = places {
                (*old, *new) = (next_old, next_new);
                self.count += 1;
            }
        }
    }

    fn both(&self) -> (&[Pfn], &[Pfn]) {
        (
            self.old.get(..self.count).unwrap_or_default(),
            self.new.get(..self.count).unwrap_or_default(),
        )
    }
}

/// One side of a trade, from where it has got to.
struct Side<'a> {
    rest: Option<FrameRange>,
    runs: core::slice::Iter<'a, Run>,
}

impl<'a> Side<'a> {
    fn new(runs: &'a [Run]) -> Self {
        let mut runs = runs.iter();
        Self {
            rest: runs.next().map(|run| run.range()),
            runs,
        }
    }

    /// Frames in a row from here on.
    fn left(&self) -> FrameCount {
        self.rest.map_or(FrameCount::ZERO, FrameRange::count)
    }

    fn take(&mut self, count: FrameCount) -> Option<FrameRange> {
        let (head, tail) = self.rest?.split_at(count);
        self.rest = tail.or_else(|| self.runs.next().map(|run| run.range()));
        head
    }
}

/// Frames of all runs.
pub(crate) fn total(runs: &[Run]) -> FrameCount {
    runs.iter()
        .map(|run| run.count())
        .fold(FrameCount::ZERO, FrameCount::saturating_add)
}

#[cfg(test)]
mod tests;
