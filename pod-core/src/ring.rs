//! Recently populated regions, one list per virtual CPU.
//!
//! A guest that scrubs its memory at boot touches regions one after the other and leaves them
//! zero. While promises outnumber the cache, the oldest entry is looked at for each new one. The
//! list has to be long enough that the guest is done with a region when its turn comes: a region
//! that is demanded again soon after it was taken back says that the list was too short.

use crate::sweep::Search;

/// Regions a lane holds at most.
const DEPTH_MAX: u8 = 64;
const DEPTH_MIN: u8 = 4;
/// Reclaims without a repeated demand before the list gets shorter by one.
const CALM: u8 = 8;

/// Recently populated regions of one virtual CPU; a slot of the caller's storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lane {
    slots: [u32; DEPTH_MAX as usize],
    first: u8,
    len: u8,
    /// Touches of another region than the one before, less what was taken off the list.
    turns: u8,
    depth: u8,
    calm: u8,
    /// The depth does not adapt, and no more regions are remembered than it says.
    fixed: bool,
    /// The touch of this virtual CPU that waits for a frame.
    pub(crate) search: Search,
}

impl Lane {
    /// A lane without history.
    pub const EMPTY: Self = Self {
        slots: [0; DEPTH_MAX as usize],
        first: 0,
        len: 0,
        turns: 0,
        depth: DEPTH_MIN,
        calm: 0,
        fixed: false,
        search: Search::NONE,
    };

    pub(crate) fn fixed(&mut self, depth: Option<u8>) {
        if let Some(depth) = depth {
            self.depth = depth.clamp(1, DEPTH_MAX);
            self.fixed = true;
        }
    }

    #[cfg(test)]
    pub(crate) const fn depth(&self) -> u8 {
        self.depth
    }

    /// Regions from the oldest on, the turns, and the two numbers that adapt.
    #[cfg(any(test, feature = "test-utils"))]
    pub(crate) fn contents(&self) -> (impl Iterator<Item = u32>, [u8; 3]) {
        let from = usize::from(self.first);
        let slots = self.slots.iter().cycle().skip(from).copied();
        (
            slots.take(usize::from(self.len)),
            [self.turns, self.depth, self.calm],
        )
    }

    fn at(&mut self, i: u8) -> Option<&mut u32> {
        let index = (usize::from(self.first) + usize::from(i)) % self.slots.len();
        self.slots.get_mut(index)
    }

    /// Notes a populated region as the newest. A region is on the list once, but each touch of
    /// another one than before counts as a turn.
    pub(crate) fn push(&mut self, region: u32) {
        let found = (0..self.len)
            .rev()
            .find(|i| self.at(*i).is_some_and(|r| *r == region));
        if found.is_some_and(|i| i + 1 == self.len) {
            return;
        }
        self.turns = (self.turns + 1).min(self.depth.max(self.len));
        if let Some(i) = found {
            for i in i + 1..self.len {
                let newer = self.at(i).map(|r| *r);
                if let (Some(newer), Some(place)) = (newer, self.at(i - 1)) {
                    *place = newer;
                }
            }
            self.len -= 1;
        }
        let most = if self.fixed { self.depth } else { DEPTH_MAX };
        if self.len >= most {
            self.pop();
        }
        let len = self.len;
        if let Some(place) = self.at(len) {
            *place = region;
            self.len += 1;
        }
    }

    /// The oldest region.
    pub(crate) fn pop(&mut self) -> Option<u32> {
        if self.len == 0 {
            return None;
        }
        let region = *self.at(0)?;
        self.first = (self.first + 1) % DEPTH_MAX;
        self.len -= 1;
        self.turns = if self.len == 0 {
            0
        } else {
            self.turns.saturating_sub(1)
        };
        Some(region)
    }

    /// The oldest region, once so many turns have passed as the list is to be long.
    pub(crate) fn due(&mut self) -> Option<u32> {
        if self.turns >= self.depth {
            self.pop()
        } else {
            None
        }
    }

    /// A region taken back from the list was demanded again.
    pub(crate) fn too_short(&mut self) {
        self.depth = self.depth.saturating_mul(2).min(DEPTH_MAX);
        self.calm = 0;
    }

    /// A region was taken back from the list.
    pub(crate) fn reclaimed(&mut self) {
        self.calm += 1;
        if self.calm >= CALM {
            self.calm = 0;
            self.depth = self.depth.saturating_sub(1).max(DEPTH_MIN);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_in_first_out_at_the_lane_s_own_depth() {
        let mut lane = Lane::EMPTY;
        for region in [1, 1, 2, 3] {
            lane.push(region);
        }
        assert_eq!(lane.due(), None);
        lane.push(4);
        assert_eq!(lane.due(), Some(1));
        lane.too_short();
        for region in 5..9 {
            lane.push(region);
        }
        assert_eq!(lane.due(), None);
        lane.push(9);
        assert_eq!(lane.due(), Some(2));
        for _ in 0..8 {
            lane.reclaimed();
        }
        assert_eq!(lane.depth(), 7);
        for region in 100..300 {
            lane.push(region);
        }
        assert_eq!((lane.pop(), lane.len), (Some(236), 63));
    }

    #[test]
    fn a_region_is_listed_once_and_its_touches_make_the_oldest_due() {
        let mut lane = Lane::EMPTY;
        for region in [7, 1, 2, 1] {
            assert_eq!(lane.due(), None);
            lane.push(region);
        }
        assert_eq!((lane.len, lane.due()), (3, Some(7)));
        assert_eq!(
            (lane.pop(), lane.pop(), lane.pop()),
            (Some(2), Some(1), None)
        );
    }

    #[test]
    fn a_fixed_lane_remembers_no_more_than_its_depth() {
        let mut lane = Lane::EMPTY;
        lane.fixed(Some(2));
        for region in 1..6 {
            lane.push(region);
        }
        assert_eq!(
            [lane.pop(), lane.pop(), lane.pop()],
            [Some(4), Some(5), None]
        );
    }
}
