//! Migrating frames: moves on translated guests, exchanges on PV ones.
//!
//! Where both sides rise together for a while, they are moved as ranges.

use balloon_core::{FrameCount, FrameRange, Migration, Order, Pfn, Run};

use crate::clear::Clear;
use crate::errno::Errno;
use crate::frame_map::FrameMap;
use crate::hypercall::calls::Memory;
use crate::reservation::{Moved, Reservation, Stopped};
use crate::units::Gmfn;

/// Pairs of one exchange.
const PAIRS: usize = 64;

/// Stretches that rise together on both sides are moved by themselves from this
/// length on: a frame of a range costs a fraction of one by itself.
const WORTH: u64 = 8;

/// Frames of one move of a range; interrupts are served in between.
const RANGE: FrameCount = FrameCount::new(512);

impl<M: Memory, F: FrameMap, C: Clear> Reservation<M, F, C> {
    /// Makes the frames of `from`, which are ballooned, the guest's and gives
    /// those of `to` in their stead, pair by pair. Sides that differ in size
    /// are not migrated at all, and nothing is while a
    /// [promise stands](Self::promise_stands).
    ///
    /// By move the old frames get the content of the new ones, too; by exchange the new
    /// ones are [cleared](Clear) first. What follows the
    /// frames counted is as it was, unless a pair was [torn](Stopped::Torn) or that
    /// is [undecided](Stopped::Undecided).
    pub fn migrate(&mut self, from: &[Run], to: &[Run]) -> Moved {
        let mut done = FrameCount::ZERO;
        let stopped = self.migrate_sides(from, to, &mut done).err();
        Moved {
            frames: done,
            stopped,
        }
    }

    fn migrate_sides(
        &mut self,
        from: &[Run],
        to: &[Run],
        done: &mut FrameCount,
    ) -> Result<(), Stopped> {
        if total(from) != total(to) {
            return Err(Stopped::Unequal);
        }
        // To move what is promised, Xen keeps its promise first.
        if self.undecided.is_some() || self.promised {
            return Err(Stopped::NotServed);
        }
        if self.no_migrations {
            return Err(Stopped::NoTables);
        }
        if matches!(F::MIGRATION, Migration::Move)
            && !self.looks
            && let Some(first) = to.first()
        {
            // Where Xen lets nothing be seen, what has become of a pair that it
            // refuses would stay unknown.
            self.is_hole(first.range().start())?;
            self.looks = true;
        }
        let mut sides = (Side::new(from), Side::new(to));
        let mut pairs = Pairs::new();
        loop {
            let stretch = sides.0.left().min(sides.1.left());
            let alone =
                stretch >= FrameCount::new(WORTH) && matches!(F::MIGRATION, Migration::Move);
            if stretch.is_zero() || alone || pairs.room().is_zero() {
                self.migrate_pairs(&pairs, done)?;
                pairs = Pairs::new();
            }
            if stretch.is_zero() {
                return Ok(());
            }
            let most = if alone { RANGE } else { pairs.room() };
            let count = stretch.min(most);
            let untouched = sides.1.untouched;
            let (Some(old), Some(new)) = (sides.0.take(count), sides.1.take(count)) else {
                return Ok(());
            };
            if alone {
                self.move_range(old, new, done)?;
            } else {
                if matches!(F::MIGRATION, Migration::Exchange) {
                    // By move the content stays with the guest.
                    self.clear(new, untouched);
                }
                pairs.push(old, new);
            }
        }
    }

    fn migrate_pairs(&mut self, pairs: &Pairs, done: &mut FrameCount) -> Result<(), Stopped> {
        let (old, new) = pairs.both();
        if old.is_empty() {
            return Ok(());
        }
        match F::MIGRATION {
            Migration::Move => self.move_pairs(old, new, done),
            Migration::Exchange => {
                let (migrated, error) = self.exchange_pairs(old, new);
                self.migrated(FrameCount::new(migrated as u64), done);
                if migrated < old.len() {
                    return Err(error.map_or(Stopped::NotServed, Stopped::Refused));
                }
                Ok(())
            }
            _ => Err(Errno::NotSupported.into()),
        }
    }

    fn migrated(&mut self, frames: FrameCount, done: &mut FrameCount) {
        *done = done.saturating_add(frames);
        let (_, _, counters) = self.parts_mut();
        counters.migrated = counters.migrated.wrapping_add(frames.get());
    }

    fn move_range(
        &mut self,
        old: FrameRange,
        new: FrameRange,
        done: &mut FrameCount,
    ) -> Result<(), Stopped> {
        let (memory, _, counters) = self.parts_mut();
        counters.hypercalls = counters.hypercalls.wrapping_add(1);
        let Err(errno) = memory.move_range(new, old.start()) else {
            self.migrated(old.count(), done);
            return Ok(());
        };
        self.refused((old, new), errno, done)
    }

    /// One by one: Xen's list of moves goes on after one it refuses, and what
    /// it did then it may refuse to undo.
    fn move_pairs(
        &mut self,
        old: &[Pfn],
        new: &[Pfn],
        done: &mut FrameCount,
    ) -> Result<(), Stopped> {
        for (&old, &new) in old.iter().zip(new) {
            let (memory, _, counters) = self.parts_mut();
            counters.hypercalls = counters.hypercalls.wrapping_add(1);
            match memory.move_frame(new, old) {
                Ok(()) => self.migrated(FrameCount::ONE, done),
                Err(errno) => {
                    let sides = FrameRange::single(old).zip(FrameRange::single(new));
                    return self.refused(sides.ok_or(errno)?, errno, done);
                }
            }
        }
        Ok(())
    }

    /// What a refused move has left of its pairs.
    fn refused(
        &mut self,
        sides: (FrameRange, FrameRange),
        errno: Errno,
        done: &mut FrameCount,
    ) -> Result<(), Stopped> {
        self.undecided = Some((sides, errno));
        let left = self.decide().ok_or(Stopped::Undecided)?;
        *done = done.saturating_add(left.frames);
        match left.stopped {
            Some(torn) => Err(torn),
            // Done, whatever Xen says.
            None if left.frames == sides.0.count() => Ok(()),
            None => Err(errno.into()),
        }
    }

    /// How much was migrated of what the last migration left [undecided](Stopped::Undecided),
    /// and whether the pair after that was [torn](Stopped::Torn); `None` as long as
    /// Xen will not show it.
    pub fn decide(&mut self) -> Option<Moved> {
        let (sides, errno) = self.undecided?;
        let left = self.look(sides)?;
        self.undecided = None;
        let mut done = FrameCount::ZERO;
        self.migrated(left.frames, &mut done);
        if left.stopped.is_some() && errno == Errno::NoMemory {
            // Each attempt more would cost as much.
            self.no_migrations = true;
            let (_, _, counters) = self.parts_mut();
            counters.lost = counters.lost.wrapping_add(1);
        }
        Some(left)
    }

    /// How far a move got: it does not say, but so far the holes are filled.
    fn look(&mut self, (old, new): (FrameRange, FrameRange)) -> Option<Moved> {
        let (mut filled, mut holes) = (0, old.count().get());
        while filled < holes {
            let middle = filled.midpoint(holes);
            if self.is_hole(Pfn::new(old.start().get() + middle)).ok()? {
                holes = middle;
            } else {
                filled = middle + 1;
            }
        }
        let mut left = Moved {
            frames: FrameCount::new(filled),
            stopped: None,
        };
        if let Some(rest) = new.split_at(left.frames).1
            && left.frames < old.count()
            && self.is_hole(rest.start()).ok()?
        {
            left.stopped = Some(Stopped::Torn);
        }
        Some(left)
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

/// One side of a migration, from where it has got to.
struct Side<'a> {
    rest: Option<FrameRange>,
    /// The guest wrote none of the rest.
    untouched: bool,
    runs: core::slice::Iter<'a, Run>,
}

impl<'a> Side<'a> {
    fn new(runs: &'a [Run]) -> Self {
        let mut side = Self {
            rest: None,
            untouched: false,
            runs: runs.iter(),
        };
        side.next_run();
        side
    }

    /// Frames in a row from here on.
    fn left(&self) -> FrameCount {
        self.rest.map_or(FrameCount::ZERO, FrameRange::count)
    }

    fn take(&mut self, count: FrameCount) -> Option<FrameRange> {
        let (head, tail) = self.rest?.split_at(count);
        self.rest = tail;
        if tail.is_none() {
            self.next_run();
        }
        head
    }

    fn next_run(&mut self) {
        if let Some(run) = self.runs.next() {
            self.rest = Some(run.range());
            self.untouched = run.is_untouched();
        }
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
