//! An allocator and ledger that knows where every frame is.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use crate::backing::Backing;
use crate::run::RangeSink;
use crate::source::{FrameSource, Ledger, Shortage, TakeRequest, Via};
use crate::units::{FrameCount, FrameRange, Order, Pfn};

/// Frames `first..first + count`, all free, lowest handed out last.
///
/// Free frames are handed out most recently freed first, unpopulated ones before them
/// if they are asked for; those that came back from
/// the host count as unpopulated until the kernel has used them. Faults are switched
/// on by its public fields.
#[derive(Clone, Debug)]
pub struct FakeSource {
    all: FrameRange,
    free: Vec<Pfn>,
    unpopulated: BTreeSet<Pfn>,
    in_hand: BTreeSet<Pfn>,
    ballooned: BTreeMap<Pfn, Via>,
    held: [u64; 2],
    /// Frames `take` leaves in the allocator.
    pub floor: FrameCount,
    /// Frames that something holds in place: `take` leaves so many.
    pub pinned: FrameCount,
    /// `put` and `store` refuse.
    pub refuses: bool,
    /// `allocate_taken` refuses.
    pub keeps: bool,
    /// Each `take` yields at most so many frames.
    pub short: FrameCount,
}

impl FakeSource {
    /// A source of these frames.
    #[must_use]
    pub fn new(all: FrameRange) -> Self {
        Self {
            all,
            free: all.frames().collect(),
            unpopulated: BTreeSet::new(),
            in_hand: BTreeSet::new(),
            ballooned: BTreeMap::new(),
            held: [0; 2],
            floor: FrameCount::ZERO,
            pinned: FrameCount::ZERO,
            refuses: false,
            keeps: false,
            short: FrameCount::MAX,
        }
    }

    /// The same source with its free frames in an order no two of which are
    /// neighbours.
    #[must_use]
    pub fn scattered(mut self) -> Self {
        let (even, odd): (Vec<Pfn>, Vec<Pfn>) = self.free.iter().partition(|p| p.get() % 2 == 0);
        self.free = even.into_iter().chain(odd).collect();
        self
    }

    /// Free frames.
    #[must_use]
    pub fn free(&self) -> FrameCount {
        FrameCount::new(self.free.len() as u64)
    }

    /// Frames the engine has in hand.
    #[must_use]
    pub fn in_hand(&self) -> FrameCount {
        FrameCount::new(self.in_hand.len() as u64)
    }

    /// Takes a frame for the kernel's own use, as any allocation does.
    pub fn allocate(&mut self) -> Option<Pfn> {
        let pfn = self.free.pop()?;
        self.unpopulated.remove(&pfn);
        Some(pfn)
    }

    /// Returns a frame that [`allocate`](Self::allocate) handed out.
    pub fn free_allocated(&mut self, pfn: Pfn) {
        self.free.push(pfn);
    }

    /// Whether the frame is ballooned, and by which path.
    #[must_use]
    pub fn ballooned(&self, pfn: Pfn) -> Option<Via> {
        self.ballooned.get(&pfn).copied()
    }

    /// Whether the host has memory behind the frame as far as the source knows,
    /// or had when it was taken.
    #[must_use]
    pub fn is_populated(&self, pfn: Pfn) -> bool {
        !self.unpopulated.contains(&pfn)
    }

    /// Checks that no frame is in two places and that `used` frames, allocated
    /// by the kernel, account for the rest.
    ///
    /// # Panics
    /// If a frame is lost or has two owners.
    pub fn check(&self, used: FrameCount) {
        let free: BTreeSet<Pfn> = self.free.iter().copied().collect();
        assert_eq!(free.len(), self.free.len(), "a frame is free twice");
        assert!(free.is_disjoint(&self.in_hand), "a free frame is in hand");
        assert!(
            !self.ballooned.keys().any(|p| free.contains(p)),
            "a free frame is ballooned"
        );
        assert!(
            !self.ballooned.keys().any(|p| self.in_hand.contains(p)),
            "a ballooned frame is in hand"
        );
        let held = [Via::Inflate, Via::Bulk].map(|via| self.held(via).get());
        assert_eq!(
            held.iter().sum::<u64>(),
            self.ballooned.len() as u64,
            "miscounted"
        );
        let known = (free.len() + self.in_hand.len() + self.ballooned.len()) as u64;
        assert_eq!(
            known + used.get(),
            self.all.count().get(),
            "a frame is lost"
        );
    }

    /// Whole aligned blocks, lowest first.
    fn take_blocks(&mut self, request: TakeRequest, out: &mut RangeSink<'_>) -> Shortage {
        let free: BTreeSet<Pfn> = self.free.iter().copied().collect();
        let size = request.order.frames();
        let floor = self.floor.max(request.min_free);
        let mut starts: Vec<Pfn> = free.iter().copied().collect();
        starts.retain(|pfn| pfn.is_aligned(request.order));
        if request.unpopulated_first {
            let populated = |&start: &Pfn| {
                FrameRange::new(start, size)
                    .is_some_and(|block| !self.backing(block).populated(size).is_zero())
            };
            starts.sort_by_cached_key(populated);
        }
        for start in starts {
            if out.wanted() < size {
                return Shortage::None;
            }
            if self.free().saturating_sub(size) < floor {
                return Shortage::Floor;
            }
            let block = FrameRange::new(start, size).filter(|block| block.end() <= request.below);
            let Some(block) = block.filter(|block| block.frames().all(|pfn| free.contains(&pfn)))
            else {
                continue;
            };
            if out.push(block, self.backing(block)).is_ok() {
                self.free
                    .retain(|&pfn| pfn < block.start() || pfn >= block.end());
                self.in_hand.extend(block.frames());
            }
        }
        if free.is_empty() {
            Shortage::Empty
        } else {
            Shortage::Fragmented
        }
    }

    const fn held_mut(&mut self, via: Via) -> &mut u64 {
        let [told, bulk] = &mut self.held;
        match via {
            Via::Inflate => told,
            Via::Bulk => bulk,
        }
    }

    fn backing(&self, range: FrameRange) -> Backing {
        let unpopulated = self.unpopulated.range(range.start()..range.end()).count() as u64;
        Backing::Partly(range.count().saturating_sub(FrameCount::new(unpopulated)))
    }

    fn owns(&self, range: FrameRange) -> bool {
        range.frames().all(|pfn| self.in_hand.contains(&pfn))
    }
}

impl FrameSource for FakeSource {
    fn take(&mut self, request: TakeRequest, out: &mut RangeSink<'_>) -> Shortage {
        if request.order > Order::FRAME {
            return self.take_blocks(request, out);
        }
        if request.unpopulated_first && !self.unpopulated.is_empty() {
            let Self {
                free, unpopulated, ..
            } = self;
            free.sort_by_key(|pfn| unpopulated.contains(pfn));
        }
        let mut taken = FrameCount::ZERO;
        let mut passed = Vec::new();
        let stop = loop {
            if out.is_full() {
                break Shortage::None;
            }
            if taken >= self.short {
                break Shortage::Fragmented;
            }
            let left = self.free.len() + passed.len();
            if left as u64 <= self.floor.max(request.min_free).get() {
                break if left == 0 {
                    Shortage::Empty
                } else {
                    Shortage::Floor
                };
            }
            if left as u64 <= self.pinned.get() {
                break Shortage::Pinned;
            }
            let Some(pfn) = self.free.pop() else {
                break Shortage::OutOfReach;
            };
            let range = FrameRange::single(pfn).filter(|_| pfn < request.below);
            match range {
                Some(range) if out.push(range, self.backing(range)).is_ok() => {
                    self.in_hand.insert(pfn);
                    taken = taken.saturating_add(FrameCount::ONE);
                }
                _ => passed.push(pfn),
            }
        };
        self.free.extend(passed);
        stop
    }

    fn put(&mut self, range: FrameRange, backing: Backing) -> Result<(), FrameRange> {
        if self.refuses || !self.owns(range) {
            return Err(range);
        }
        for pfn in range.frames() {
            self.in_hand.remove(&pfn);
            self.free.push(pfn);
            if backing == Backing::Unpopulated {
                self.unpopulated.insert(pfn);
            }
        }
        Ok(())
    }

    fn allocate_taken(&mut self, range: FrameRange) -> Result<(), FrameRange> {
        if self.keeps || !self.owns(range) {
            return Err(range);
        }
        for pfn in range.frames() {
            self.in_hand.remove(&pfn);
            self.unpopulated.remove(&pfn);
        }
        Ok(())
    }

    fn take_at(&mut self, range: FrameRange) -> Result<Backing, FrameRange> {
        let free: BTreeSet<Pfn> = self.free.iter().copied().collect();
        if self.refuses || !range.frames().all(|pfn| free.contains(&pfn)) {
            return Err(range);
        }
        self.free
            .retain(|&pfn| pfn < range.start() || pfn >= range.end());
        self.in_hand.extend(range.frames());
        Ok(self.backing(range))
    }

    fn next_free(&mut self, within: FrameRange) -> Option<FrameRange> {
        let inside = |&&pfn: &&Pfn| pfn >= within.start() && pfn < within.end();
        let first = self.free.iter().filter(inside).min();
        first.copied().and_then(FrameRange::single)
    }

    fn available(&mut self) -> Option<FrameCount> {
        let kept = self.floor.max(self.pinned);
        Some(self.free().saturating_sub(kept))
    }
}

impl Ledger for FakeSource {
    fn store(&mut self, range: FrameRange, via: Via) -> Result<(), FrameRange> {
        if self.refuses || !self.owns(range) {
            return Err(range);
        }
        for pfn in range.frames() {
            self.in_hand.remove(&pfn);
            self.ballooned.insert(pfn, via);
            *self.held_mut(via) += 1;
        }
        Ok(())
    }

    fn recall(&mut self, via: Via, unit: Order, out: &mut RangeSink<'_>) -> Shortage {
        while !out.is_full() {
            let starts = self.ballooned.iter();
            let whole = starts
                .filter(|&(pfn, p)| *p == via && pfn.is_aligned(unit))
                .filter_map(|(&pfn, _)| FrameRange::new(pfn, unit.frames()))
                .find(|block| block.frames().all(|pfn| self.ballooned(pfn) == Some(via)));
            let Some(block) = whole else {
                return if self.held(via).is_zero() {
                    Shortage::Empty
                } else {
                    Shortage::Fragmented
                };
            };
            if out.push(block, Backing::Unpopulated).is_err() {
                break;
            }
            for pfn in block.frames() {
                self.ballooned.remove(&pfn);
                self.in_hand.insert(pfn);
            }
            *self.held_mut(via) -= block.count().get();
        }
        Shortage::None
    }

    fn held(&self, via: Via) -> FrameCount {
        let [told, bulk] = self.held;
        FrameCount::new(match via {
            Via::Inflate => told,
            Via::Bulk => bulk,
        })
    }

    fn recall_at(&mut self, range: FrameRange, via: Via) -> Result<(), FrameRange> {
        let held = |pfn| self.ballooned.get(&pfn) == Some(&via);
        if !range.frames().all(held) {
            return Err(range);
        }
        self.ballooned
            .retain(|&pfn, _| pfn < range.start() || pfn >= range.end());
        self.in_hand.extend(range.frames());
        *self.held_mut(via) -= range.count().get();
        Ok(())
    }

    fn next_held(&mut self, within: FrameRange) -> Option<(FrameRange, Via)> {
        let mut held = self.ballooned.range(within.start()..within.end());
        let (&pfn, &via) = held.next()?;
        Some((FrameRange::single(pfn)?, via))
    }
}
