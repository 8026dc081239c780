//! One 2 MiB block: a word about it for the plan, and its frames bit by bit.

use crate::policy::Budget;
use crate::source::{FrameSource, Ledger, Via};
use crate::units::{FrameCount, FrameRange, Order, Pfn};

/// Frames of one block.
pub(super) const FRAMES: u64 = Order::SUPERPAGE.frames().get();

/// The same as an index.
pub(super) const CELLS: usize = 1 << Order::SUPERPAGE.get();

/// What the plan remembers of a block, in one word of the caller's storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) holes: u32,
    pub(super) free: u32,
    pub(super) role: Role,
}

/// What becomes of a block in this round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Takes holes if it has room.
    Target,
    /// Loses its holes.
    Source,
}

const COUNT_BITS: u32 = 10;
const COUNT_MASK: u32 = (1 << COUNT_BITS) - 1;
const SOURCE: u32 = 1 << (2 * COUNT_BITS);

impl Block {
    pub(super) const fn unpack(word: u32) -> Self {
        Self {
            holes: word & COUNT_MASK,
            free: (word >> COUNT_BITS) & COUNT_MASK,
            role: if word & SOURCE == 0 {
                Role::Target
            } else {
                Role::Source
            },
        }
    }

    pub(super) const fn pack(self) -> u32 {
        let role = match self.role {
            Role::Target => 0,
            Role::Source => SOURCE,
        };
        self.holes | (self.free << COUNT_BITS) | role
    }

    /// Whether moving holes alone can make the whole block free.
    pub(super) const fn can_complete(self) -> bool {
        (self.holes + self.free) as u64 == FRAMES
    }
}

/// Which frames of a block are free, and which ballooned by which path.
#[derive(Clone, Copy, Debug)]
pub(super) struct Map {
    start: Pfn,
    pub(super) free: Bits,
    told: Bits,
    bulk: Bits,
}

impl Map {
    /// Nothing is known of the block of `part` yet.
    const fn unread(part: FrameRange) -> Self {
        Self {
            start: Pfn::new(part.start().get() & !(FRAMES - 1)),
            free: Bits::NONE,
            told: Bits::NONE,
            bulk: Bits::NONE,
        }
    }

    /// Looks at the free frames of `part`, which lies in one block; whether the budget was
    /// enough for all of them.
    pub(super) fn read_free<S: FrameSource>(
        source: &mut S,
        part: FrameRange,
        budget: &mut Budget,
    ) -> (Self, bool) {
        let mut map = Self::unread(part);
        let mut rest = Some(part);
        while let Some(within) = rest {
            if !budget.spend_look() {
                return (map, false);
            }
            rest = map.look_free(source, within);
        }
        (map, true)
    }

    /// Notes the first free frames of `within`; what is left to look at.
    fn look_free<S: FrameSource>(
        &mut self,
        source: &mut S,
        within: FrameRange,
    ) -> Option<FrameRange> {
        let found = source.next_free(within)?.intersection(within)?;
        self.free.set(found, self.start);
        behind(found, within)
    }

    /// Notes the first ballooned frames of `within`; what is left to look at.
    fn look_held<S: Ledger>(&mut self, source: &mut S, within: FrameRange) -> Option<FrameRange> {
        let (found, via) = source.next_held(within)?;
        let found = found.intersection(within)?;
        let start = self.start;
        self.held_mut(via).set(found, start);
        behind(found, within)
    }

    pub(super) const fn held(&self, via: Via) -> &Bits {
        match via {
            Via::Inflate => &self.told,
            Via::Bulk => &self.bulk,
        }
    }

    const fn held_mut(&mut self, via: Via) -> &mut Bits {
        match via {
            Via::Inflate => &mut self.told,
            Via::Bulk => &mut self.bulk,
        }
    }

    pub(super) fn summary(&self) -> Block {
        Block {
            holes: self.told.count() + self.bulk.count(),
            free: self.free.count(),
            role: Role::Target,
        }
    }

    /// Removes and yields the lowest ballooned run of a path.
    pub(super) fn pop_first_held(&mut self, via: Via, most: FrameCount) -> Option<FrameRange> {
        let start = self.start;
        self.held_mut(via).pop_first(start, most)
    }

    /// Removes and yields the highest free run.
    pub(super) fn pop_last_free(&mut self, most: FrameCount) -> Option<FrameRange> {
        self.free.pop_last(self.start, most)
    }
}

/// The map of one block while it is read, over as many steps as its budgets take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading {
    part: FrameRange,
    map: Map,
    /// What is left to look at for free frames, and for ballooned ones.
    free: Option<FrameRange>,
    held: Option<FrameRange>,
}

impl Reading {
    const fn new(part: FrameRange) -> Self {
        Self {
            part,
            map: Map::unread(part),
            free: Some(part),
            held: Some(part),
        }
    }

    /// Reads on, or begins to read `part`; the map once it is complete. `None` if the
    /// budget is spent.
    pub(super) fn go_on<S: FrameSource + Ledger>(
        this: &mut Option<Self>,
        part: FrameRange,
        source: &mut S,
        budget: &mut Budget,
    ) -> Option<Map> {
        let mut reading = this.take().filter(|reading| reading.part == part);
        let reading = reading.get_or_insert(Self::new(part));
        while reading.free.is_some() || reading.held.is_some() {
            if !budget.spend_look() {
                *this = Some(*reading);
                return None;
            }
            match (reading.free, reading.held) {
                (Some(within), _) => reading.free = reading.map.look_free(source, within),
                (_, Some(within)) => reading.held = reading.map.look_held(source, within),
                _ => {}
            }
        }
        Some(reading.map)
    }
}

/// What is left of a range behind what was found in it.
const fn behind(found: FrameRange, within: FrameRange) -> Option<FrameRange> {
    let left = within.end().get().saturating_sub(found.end().get());
    FrameRange::new(found.end(), FrameCount::new(left))
}

const WORDS: usize = CELLS / 64;

/// One bit for each frame of a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bits([u64; WORDS]);

impl Bits {
    const NONE: Self = Self([0; WORDS]);

    fn set(&mut self, range: FrameRange, start: Pfn) {
        let mut bit = range.start().get() - start.get();
        let end = range.end().get() - start.get();
        while bit < end {
            let next = end.min((bit / 64 + 1) * 64);
            let ones = u64::MAX >> (64 - (next - bit));
            if let Some(word) = self.word_mut(bit) {
                *word |= ones << (bit % 64);
            }
            bit = next;
        }
    }

    pub(super) fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    fn has(&self, bit: u64) -> bool {
        let word = usize::try_from(bit / 64).ok().and_then(|at| self.0.get(at));
        word.is_some_and(|word| word >> (bit % 64) & 1 != 0)
    }

    fn word_mut(&mut self, bit: u64) -> Option<&mut u64> {
        usize::try_from(bit / 64)
            .ok()
            .and_then(|at| self.0.get_mut(at))
    }

    fn pop_first(&mut self, start: Pfn, most: FrameCount) -> Option<FrameRange> {
        let (at, word) = (0..).zip(self.0).find(|&(_, word)| word != 0)?;
        let first: u64 = at * 64 + u64::from(word.trailing_zeros());
        let mut end = first;
        while end - first < most.get() && self.has(end) {
            end += 1;
        }
        self.cut(start, first, end)
    }

    fn pop_last(&mut self, start: Pfn, most: FrameCount) -> Option<FrameRange> {
        let (at, word) = (0..).zip(self.0).filter(|&(_, word)| word != 0).last()?;
        let end: u64 = at * 64 + 64 - u64::from(word.leading_zeros());
        let mut first = end;
        while end - first < most.get() && first > 0 && self.has(first - 1) {
            first -= 1;
        }
        self.cut(start, first, end)
    }

    fn cut(&mut self, start: Pfn, first: u64, end: u64) -> Option<FrameRange> {
        for bit in first..end {
            if let Some(word) = self.word_mut(bit) {
                *word &= !(1 << (bit % 64));
            }
        }
        FrameRange::new(Pfn::new(start.get() + first), FrameCount::new(end - first))
    }
}
