//! Which regions hold frames given to the host, and which were given as a whole.

use crate::bits::Bits;

/// What is known about the frames of one region that were given by one path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ballooned {
    /// There are none.
    Nothing,
    /// There are some, and others.
    Some,
    /// All of it.
    All,
}

/// A bit for [`Ballooned::Some`] and one for [`Ballooned::All`] per region, for the frames given by one path.
#[derive(Debug)]
pub(super) struct BalloonedRegions<'m> {
    some: Bits<'m>,
    all: Bits<'m>,
}

impl<'m> BalloonedRegions<'m> {
    pub(super) const fn new(some: Bits<'m>, all: Bits<'m>) -> Self {
        Self { some, all }
    }

    pub(super) fn set(&mut self, region: u64, given: Ballooned) {
        self.some.fill(region, 0, given == Ballooned::Some);
        self.all.fill(region, 0, given == Ballooned::All);
    }

    /// The next region at or after `from` of which not all was given.
    pub(super) fn next_some(&self, from: u64) -> Option<u64> {
        self.some.next_set(from)
    }

    /// The next one of which all was given.
    pub(super) fn next_all(&self, from: u64) -> Option<u64> {
        self.all.next_set(from)
    }

    /// Whether all of an aligned block of `2^order` regions was given.
    pub(super) fn are_all(&self, region: u64, order: u32) -> bool {
        self.all.count(region, order) == 1 << order
    }

    /// The next one of which any frame was given.
    pub(super) fn next(&self, from: u64) -> Option<u64> {
        if self.some.any(from, 0) || self.all.any(from, 0) {
            return Some(from);
        }
        let found = [self.next_some(from), self.next_all(from)];
        found.into_iter().flatten().min()
    }
}

/// A search for units of one order that goes on where the call before ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Search {
    pub(super) unit: u32,
    /// The frame from which the next call looks.
    pub(super) from: u64,
    /// Something was given behind it, or a call looked for units of another order.
    pub(super) renewed: bool,
    /// Every unit was looked at since anything was given.
    pub(super) done: bool,
}

impl Search {
    pub(super) const START: Self = Self {
        unit: 0,
        from: 0,
        renewed: false,
        done: false,
    };

    /// The frame from which to look for units of an order, if there may be any.
    pub(super) const fn resume(&mut self, unit: u32) -> Option<u64> {
        if self.unit != unit {
            self.renewed = self.from != 0;
            self.done = false;
        }
        self.unit = unit;
        if self.done { None } else { Some(self.from) }
    }

    /// A range was given that starts here.
    pub(super) const fn given(&mut self, start: u64) {
        self.renewed |= start < self.from;
        self.done = false;
    }

    /// Nothing is left ahead: starts over. Whether every unit was looked at.
    pub(super) const fn end(&mut self) -> bool {
        self.done = !self.renewed;
        (self.from, self.renewed) = (0, false);
        self.done
    }
}
