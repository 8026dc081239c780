//! Finding what an earlier kernel gave.
//!
//! A kernel that takes the domain over from another one (kexec, kdump) finds the
//! memory map that the first one found, and holes where its balloon was: what is
//! written there goes nowhere, and what is read is all ones. Nobody has a list. So
//! a kernel that was started by another one, as its loader or its command line tells,
//! walks over the map once, before it uses the memory, and starts with a balloon of
//! what it finds. The reservation spares no walk: the domain is charged for frames
//! beyond its map, too, as video memory or those [lost](crate::Counters::lost) for want
//! of tables, and they hide a balloon of their size.
//!
//! What is no hole holds what the earlier kernel left. So it is added to the allocator
//! as memory that was written, or whose state is unknown: as untouched memory it would
//! be given to the host uncleared.
//!
//! ```
//! use balloon_core::testing::FakeSource;
//! use balloon_core::{FrameCount, FrameRange, FrameSource, Ledger, Pfn, Via};
//! use transport_xen::holes::{HoleWalk, Walked};
//! use transport_xen::testing::{FakeXen, Kind};
//!
//! let memory = FrameRange::new(Pfn::new(512), FrameCount::new(512)).unwrap();
//! let mut xen = FakeXen::new(Kind::Pvh, memory);
//! xen.punch(Pfn::new(600)); // given by an earlier kernel
//! let mut zone = FakeSource::new(memory);
//!
//! let mut walk = HoleWalk::over(memory);
//! loop {
//!     match walk.step(&mut xen, FrameCount::new(100))? {
//!         Walked::Hole(range) => {
//!             // Its allocator has them as free; they are the balloon's.
//!             zone.take_at(range).unwrap();
//!             zone.store(range, Via::Inflate).unwrap();
//!         }
//!         Walked::More => {} // whatever else the kernel has to do
//!         Walked::Done => break,
//!     }
//! }
//! assert_eq!(zone.held(Via::Inflate), FrameCount::ONE);
//! # Ok::<(), transport_xen::Errno>(())
//! ```

use balloon_core::{FrameCount, FrameRange};

use crate::errno::Errno;
use crate::hypercall::calls::Memory;

/// A walk over a stretch of the memory map: a hypercall for each frame.
#[derive(Clone, Copy, Debug)]
pub struct HoleWalk {
    rest: Option<FrameRange>,
}

/// How far a step of a [`HoleWalk`] got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walked {
    /// Nothing is behind these frames. The next hole may follow at once.
    Hole(FrameRange),
    /// The budget is spent.
    More,
    /// All was looked at.
    Done,
}

impl HoleWalk {
    /// A walk over these frames.
    #[must_use]
    pub const fn over(range: FrameRange) -> Self {
        Self { rest: Some(range) }
    }

    /// Looks at `budget` frames at most, to the end of the first hole.
    ///
    /// # Errors
    /// When Xen does not show what is behind a frame, as on Arm; the next step looks
    /// at it again.
    pub fn step(&mut self, memory: &mut impl Memory, budget: FrameCount) -> Result<Walked, Errno> {
        let Some(range) = self.rest else {
            return Ok(Walked::Done);
        };
        let (mut before, mut holes) = (FrameCount::ZERO, FrameCount::ZERO);
        for pfn in range
            .split_at(budget)
            .0
            .into_iter()
            .flat_map(FrameRange::frames)
        {
            match memory.is_hole(pfn) {
                Ok(true) => holes = holes.saturating_add(FrameCount::ONE),
                Ok(false) if holes.is_zero() => before = before.saturating_add(FrameCount::ONE),
                // What was found is told first.
                Err(errno) if holes.is_zero() => {
                    self.rest = range.split_at(before).1;
                    return Err(errno);
                }
                Ok(false) | Err(_) => break,
            }
        }
        let from = range.split_at(before).1;
        let (hole, rest) = from.map_or((None, None), |from| from.split_at(holes));
        self.rest = rest;
        Ok(match (hole, rest) {
            (Some(hole), _) => Walked::Hole(hole),
            (None, Some(_)) => Walked::More,
            (None, None) => Walked::Done,
        })
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use balloon_core::{Order, Pfn};

    use super::*;
    use crate::testing::{FakeXen, Fault, Kind};
    use crate::units::Gmfn;

    fn memory() -> FrameRange {
        FrameRange::new(Pfn::new(512), FrameCount::new(512)).unwrap()
    }

    /// The domain with holes where a balloon was, and where they are.
    fn taken_over() -> (FakeXen, Vec<Pfn>) {
        let mut xen = FakeXen::new(Kind::Pvh, memory());
        let holes = [512, 513, 700]
            .into_iter()
            .chain(800..900)
            .chain([1022, 1023]);
        let holes: Vec<Pfn> = holes.map(Pfn::new).collect();
        holes.iter().for_each(|&pfn| xen.punch(pfn));
        (xen, holes)
    }

    #[test]
    fn every_hole_is_found_at_any_budget() {
        for budget in [1, 2, 7, 64, 512, u64::MAX].map(FrameCount::new) {
            let (mut xen, holes) = taken_over();
            let mut walk = HoleWalk::over(memory());
            let (mut found, mut refused) = (Vec::new(), 0);
            loop {
                let calls = xen.hypercalls;
                // Refused now and then.
                if refused < 20 {
                    xen.faults = vec![Fault::None, Fault::Refuse(Errno::Busy)].into();
                }
                match walk.step(&mut xen, budget) {
                    Ok(Walked::Hole(range)) => found.extend(range.frames()),
                    Ok(Walked::More) => {}
                    Ok(Walked::Done) => break,
                    Err(errno) => {
                        assert_eq!(errno, Errno::Busy);
                        refused += 1;
                    }
                }
                assert!((xen.hypercalls - calls) as u64 <= budget.get());
            }
            assert_eq!(found, holes, "{budget:?}");
            // One hypercall for each frame, and for the ends of holes and refusals.
            assert!(xen.hypercalls < 512 * 2);
        }
    }

    #[test]
    fn a_balloon_is_found_behind_as_many_lost_frames() {
        let mut xen = FakeXen::new(Kind::Pvh, memory());
        memory().frames().for_each(|pfn| xen.punch(pfn));
        xen.tables = 0;
        let mut extent = [Gmfn::of_guest(memory().start())];
        assert_eq!(xen.populate_physmap(&mut extent, Order::SUPERPAGE), Ok(0));
        assert_eq!(xen.lost, 512);
        assert_eq!(xen.current_reservation(), Ok(memory().count()));
        let walked = HoleWalk::over(memory()).step(&mut xen, FrameCount::MAX);
        assert_eq!(walked, Ok(Walked::Hole(memory())));
    }

    #[test]
    fn what_is_promised_is_no_hole() {
        let mut xen = FakeXen::new(Kind::Pvh, memory());
        xen.promise(memory(), FrameCount::new(100));
        let walked = HoleWalk::over(memory()).step(&mut xen, FrameCount::MAX);
        assert_eq!(walked, Ok(Walked::Done));
    }

    #[test]
    fn where_nothing_is_shown_nothing_is_found() {
        let mut xen = FakeXen::new(Kind::Arm, memory());
        let walked = HoleWalk::over(memory()).step(&mut xen, FrameCount::MAX);
        assert_eq!(walked, Err(Errno::NotImplemented));
    }
}
