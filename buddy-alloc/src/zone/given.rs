//! Which regions hold frames given to the host, and which were given as a whole.

use super::{GivePath, Zone};
use crate::bits::Bits;

/// What is known about the frames of one region that were given by one path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Given {
    /// There are none.
    Nothing,
    /// Not all of the region; maybe none.
    Some,
    /// All of it.
    All,
    /// Frames were stored since the last look.
    Unseen,
}

/// Two bits per region for the frames given by one path.
#[derive(Debug)]
pub(super) struct GivenRegions<'m> {
    /// Some, or unseen.
    some: Bits<'m>,
    /// All, or unseen.
    all: Bits<'m>,
}

impl<'m> GivenRegions<'m> {
    pub(super) const fn new(some: Bits<'m>, all: Bits<'m>) -> Self {
        Self { some, all }
    }

    pub(super) fn set(&mut self, region: u64, given: Given) {
        let some = matches!(given, Given::Some | Given::Unseen);
        let all = matches!(given, Given::All | Given::Unseen);
        self.some.fill(region, 0, some);
        self.all.fill(region, 0, all);
    }

    /// The next region at or after `from` of which not all was given, as far as is known.
    pub(super) fn next_some(&self, from: u64) -> Option<u64> {
        self.some.next_set(from)
    }

    /// The next one of which all may have been given.
    pub(super) fn next_all(&self, from: u64) -> Option<u64> {
        self.all.next_set(from)
    }

    /// The next one of which any frame may have been given.
    pub(super) fn next(&self, from: u64) -> Option<u64> {
        let found = [self.next_some(from), self.next_all(from)];
        found.into_iter().flatten().min()
    }

    fn is_unseen(&self, region: u64) -> bool {
        self.some.any(region, 0) && self.all.any(region, 0)
    }

    /// Whether all of a region may have been given.
    pub(super) fn may_be_all(&self, region: u64) -> bool {
        self.all.any(region, 0)
    }
}

impl<'m> Zone<'m> {
    pub(super) const fn given(&self, path: GivePath) -> &GivenRegions<'m> {
        let [told, bulk] = &self.given;
        match path {
            GivePath::Told => told,
            GivePath::Bulk => bulk,
        }
    }

    pub(super) const fn given_mut(&mut self, path: GivePath) -> &mut GivenRegions<'m> {
        let [told, bulk] = &mut self.given;
        match path {
            GivePath::Told => told,
            GivePath::Bulk => bulk,
        }
    }

    /// Notes that a range was given by `path`, or came back.
    pub(super) fn note_given(&mut self, path: GivePath, start: u64, end: u64, stored: bool) {
        let granule = self.regions.order();
        let given = self.given_mut(path);
        let mut at = start;
        while at < end {
            let region = at >> granule;
            let next = end.min((region + 1) << granule);
            match (stored, next - at == 1 << granule) {
                (true, true) => given.set(region, Given::All),
                (true, false) if given.is_unseen(region) => {}
                (true, false) => given.set(region, Given::Unseen),
                (false, true) => given.set(region, Given::Nothing),
                (false, false) => given.set(region, Given::Some),
            }
            at = next;
        }
    }
}
