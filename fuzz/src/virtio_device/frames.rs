//! The guest's memory: 64 frames, a bit each, and who owns them.
//!
//! A frame only ever moves from one owner to another, and a move of a frame that
//! its owner does not have ends the run. So no check over all frames is needed
//! to know that each has exactly one.

use std::cell::Cell;
use std::rc::Rc;

use balloon_core::{
    Backing, FrameCount, FrameRange, FrameSource, Ledger, Order, Pfn, RangeSink, Shortage,
    TakeRequest, Via,
};

pub(super) const FRAMES: u64 = 64;

/// Who has a frame.
#[derive(Clone, Copy, Debug)]
pub(super) enum Owner {
    /// The allocator.
    Free,
    /// The engine or a service.
    InHand,
    /// The host, by page numbers.
    Told,
    /// The host, by ranges.
    Bulk,
    /// Kept back for a migration: hints, unused pages.
    Hinted,
    Unused,
    /// The guest's programs.
    Program,
}

#[derive(Debug)]
struct Memory {
    first: Pfn,
    scattered: bool,
    owners: [Cell<u64>; 7],
    populated: Cell<u64>,
}

/// The guest's allocator and ledger; clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Frames(Rc<Memory>);

impl Frames {
    /// All free, and handed out in order or in steps of two.
    pub(super) fn new(first: Pfn, scattered: bool) -> Self {
        let frames = Self(Rc::new(Memory {
            first,
            scattered,
            owners: Default::default(),
            populated: Cell::new(u64::MAX),
        }));
        frames.owner(Owner::Free).set(u64::MAX);
        frames
    }

    /// Where answered hints or unused pages are kept.
    pub(super) fn kept(&self, owner: Owner) -> Kept {
        Kept(self.clone(), owner)
    }

    /// A program of the guest takes a frame and writes to it.
    pub(super) fn allocate(&self) -> Option<u64> {
        let frame = self.next()?;
        self.pass(frame, Owner::Free, Owner::Program);
        self.0.populated.set(self.0.populated.get() | frame);
        Some(frame)
    }

    /// A program gives a frame back.
    pub(super) fn free(&self, frame: u64) {
        self.pass(frame, Owner::Program, Owner::Free);
    }

    /// Whether nobody but the allocator and programs has frames.
    pub(super) fn is_home(&self) -> bool {
        let [free, program] = [Owner::Free, Owner::Program].map(|owner| self.owner(owner).get());
        free | program == u64::MAX
    }

    /// Asserts that an owner has these frames.
    pub(super) fn check(&self, frames: u64, owner: Owner) {
        let missing = frames & !self.owner(owner).get();
        assert_eq!(missing, 0, "frames that {owner:?} does not own");
    }

    fn owner(&self, owner: Owner) -> &Cell<u64> {
        &self.0.owners[owner as usize]
    }

    fn pass(&self, frames: u64, from: Owner, to: Owner) {
        self.check(frames, from);
        let (from, to) = (self.owner(from), self.owner(to));
        from.set(from.get() & !frames);
        to.set(to.get() | frames);
    }

    /// The free frame to hand out next.
    fn next(&self) -> Option<u64> {
        const EVEN: u64 = u64::MAX / 3;
        let free = self.owner(Owner::Free).get();
        let even = free & EVEN;
        let choice = if self.0.scattered && even != 0 {
            even
        } else {
            free
        };
        choice.checked_ilog2().map(|frame| 1 << frame)
    }

    /// The bits of a range of the guest's memory.
    pub(super) fn mask(&self, range: FrameRange) -> u64 {
        let first = range.start().get().checked_sub(self.0.first.get());
        let (first, count) = (first.expect("guest memory"), range.count().get());
        assert!(first + count <= FRAMES, "guest memory");
        u64::MAX >> (FRAMES - count) << first
    }

    fn range(&self, frame: u64) -> Option<FrameRange> {
        let index = frame.checked_ilog2()?;
        FrameRange::single(Pfn::new(self.0.first.get() + u64::from(index)))
    }

    fn recall(&self, from: Owner, unit: Order, out: &mut RangeSink<'_>) -> Shortage {
        if unit > Order::FRAME {
            return Shortage::Fragmented;
        }
        while !out.is_full() {
            let held = self.owner(from).get();
            let lowest = held & held.wrapping_neg();
            let Some(range) = self.range(lowest) else {
                return Shortage::Empty;
            };
            if out.push(range, Backing::Unpopulated).is_err() {
                break;
            }
            self.pass(lowest, from, Owner::InHand);
        }
        Shortage::None
    }
}

impl FrameSource for Frames {
    fn take(&mut self, ask: TakeRequest, out: &mut RangeSink<'_>) -> Shortage {
        if ask.order.frames() > FrameCount::ONE {
            return Shortage::Fragmented;
        }
        while !out.is_full() {
            let free = self.owner(Owner::Free).get();
            if u64::from(free.count_ones()) <= ask.min_free.get() {
                return if free == 0 {
                    Shortage::Empty
                } else {
                    Shortage::Floor
                };
            }
            let next = self
                .next()
                .and_then(|frame| Some((frame, self.range(frame)?)));
            let Some((frame, range)) = next.filter(|(_, range)| range.end() <= ask.below) else {
                return Shortage::Fragmented;
            };
            let backing = if self.0.populated.get() & frame == 0 {
                Backing::Unpopulated
            } else {
                Backing::Populated
            };
            if out.push(range, backing).is_err() {
                break;
            }
            self.pass(frame, Owner::Free, Owner::InHand);
        }
        Shortage::None
    }

    fn available(&mut self) -> Option<FrameCount> {
        let free = self.owner(Owner::Free).get();
        Some(FrameCount::new(free.count_ones().into()))
    }

    fn put(&mut self, range: FrameRange, backing: Backing) -> Result<(), FrameRange> {
        let frames = self.mask(range);
        self.pass(frames, Owner::InHand, Owner::Free);
        let populated = self.0.populated.get();
        self.0.populated.set(match backing {
            Backing::Unpopulated => populated & !frames,
            _ => populated | frames,
        });
        Ok(())
    }
}

const fn given(via: Via) -> Owner {
    match via {
        Via::Inflate => Owner::Told,
        Via::Bulk => Owner::Bulk,
    }
}

impl Ledger for Frames {
    fn store(&mut self, range: FrameRange, via: Via) -> Result<(), FrameRange> {
        self.pass(self.mask(range), Owner::InHand, given(via));
        Ok(())
    }

    fn recall(&mut self, via: Via, unit: Order, out: &mut RangeSink<'_>) -> Shortage {
        Self::recall(self, given(via), unit, out)
    }

    fn held(&self, via: Via) -> FrameCount {
        FrameCount::new(self.owner(given(via)).get().count_ones().into())
    }
}

/// The frames a service keeps, as a ledger.
#[derive(Debug)]
pub(super) struct Kept(Frames, Owner);

impl Ledger for Kept {
    fn store(&mut self, range: FrameRange, _: Via) -> Result<(), FrameRange> {
        let Self(frames, owner) = self;
        frames.pass(frames.mask(range), Owner::InHand, *owner);
        Ok(())
    }

    fn recall(&mut self, via: Via, unit: Order, out: &mut RangeSink<'_>) -> Shortage {
        match via {
            Via::Inflate => self.0.recall(self.1, unit, out),
            Via::Bulk => Shortage::Empty,
        }
    }

    fn held(&self, via: Via) -> FrameCount {
        match via {
            Via::Inflate => FrameCount::new(self.0.owner(self.1).get().count_ones().into()),
            Via::Bulk => FrameCount::ZERO,
        }
    }
}
