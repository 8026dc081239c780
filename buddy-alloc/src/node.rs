//! One 8-byte node per pair of frames: the whole state of the buddy system.
//!
//! Two order-0 buddies are never both free at order 0 (they would be one block of order 1), and
//! every larger block covers whole pairs. So one node per pair serves every order. A node is one
//! of three things:
//!
//! * **free head**: a free block starts in this pair. 28 + 28 bits link it into its list, the
//!   rest says its order and whether any frame in it is populated. For order 0 the
//!   order field also names the [`Kind`] of the other frame of the pair.
//! * **held**: the head of a block that is not free (its kind and order), or two single frames
//!   with a kind each.
//! * **zero**: nothing starts here. The pair is inside a larger block or not managed at all. An
//!   all-zero table is therefore a valid empty one, and holes cost no write.
//!
//! Everything but the links sits in the upper 32 bits, so that a reader without the lock never
//! sees a torn state.

use crate::storage::{Cells, Upper};

/// Width of a link: a pair number inside the zone. All 2^28 values are pairs; "none" is a link of
/// a node to itself, so no value doubles as sentinel.
pub(crate) const LINK_BITS: u32 = 28;
const LINK: u64 = (1 << LINK_BITS) - 1;
const NEXT: u32 = LINK_BITS;
const KIND_EVEN: u32 = 48;
const KIND_ODD: u32 = 52;
const CODE: u32 = 56;
const CODE_MASK: u64 = 31;
/// Codes from here on: a single free frame; the difference is the kind of the other frame.
const SINGLE: u64 = 19;
const HALF: u64 = 1 << 61;
const POPULATED: u64 = 1 << 62;
const FREE: u64 = 1 << 63;

/// Which bits say that the even frame of a pair is used on its own, and how; likewise the odd one.
const USED_EVEN: (u64, u64) = used_single(KIND_EVEN);
const USED_ODD: (u64, u64) = used_single(KIND_ODD);

const fn used_single(kind: u32) -> (u64, u64) {
    (u64::MAX << CODE | 15 << kind, (Kind::Used as u64) << kind)
}

/// What holds frames that are not free. At most 13 values fit beside the list links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// Not a head, or not managed.
    None = 0,
    /// Allocated for use.
    Used = 1,
    /// Kept out of use by `reserve`.
    Reserved = 2,
    /// Lent to free-page reporting.
    Isolated = 3,
    /// Taken for a balloon, not given yet (or recalled from it).
    Taken = 4,
    /// Given to the host one by one.
    Inflate = 5,
    /// Given to the host as a range it discards.
    Bulk = 6,
    /// On the way out of `Used`, under the lock, until it is certain that no CPU cache has it.
    Claimed = 7,
}

impl Kind {
    pub(crate) const COUNT: usize = 8;

    const fn from_bits(bits: u64) -> Self {
        match bits & 15 {
            1 => Self::Used,
            2 => Self::Reserved,
            3 => Self::Isolated,
            4 => Self::Taken,
            5 => Self::Inflate,
            6 => Self::Bulk,
            7 => Self::Claimed,
            _ => Self::None,
        }
    }
}

/// What starts at a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    Nothing,
    Free(u32),
    Held(Kind, u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Node(u64);

impl Node {
    pub(crate) const ZERO: Self = Self(0);

    pub(crate) const fn is_free(self) -> bool {
        self.0 & FREE != 0
    }

    pub(crate) const fn is_populated(self) -> bool {
        self.0 & POPULATED != 0
    }

    pub(crate) const fn prev(self) -> u32 {
        (self.0 & LINK) as u32
    }

    pub(crate) const fn next(self) -> u32 {
        ((self.0 >> NEXT) & LINK) as u32
    }

    pub(crate) const fn with_prev(self, prev: u32) -> Self {
        Self((self.0 & !LINK) | prev as u64)
    }

    pub(crate) const fn with_next(self, next: u32) -> Self {
        Self((self.0 & !(LINK << NEXT)) | ((next as u64) << NEXT))
    }

    /// Whether a free block of this order starts at a frame; quicker than [`slot`](Self::slot).
    #[inline]
    pub(crate) const fn is_free_head(self, odd: bool, order: u32) -> bool {
        if order == 0 {
            let half = if odd { HALF } else { 0 };
            self.0 & (FREE | HALF) == FREE | half && self.code() >= SINGLE
        } else {
            const WITHOUT_LINKS: u64 = FREE | HALF | (CODE_MASK << CODE);
            !odd && self.0 & WITHOUT_LINKS == FREE | ((order as u64) << CODE)
        }
    }

    /// Whether a used block of this order starts at a frame; quicker than [`slot`](Self::slot).
    #[inline]
    pub(crate) const fn is_used_head(self, odd: bool, order: u32) -> bool {
        if order != 0 {
            const WITHOUT_LINKS: u64 = u64::MAX << KIND_EVEN;
            return !odd && self.0 & WITHOUT_LINKS == Self::held_block(Kind::Used, order).0;
        }
        // Neither frame is free or part of a larger block.
        let (of, used) = if odd { USED_ODD } else { USED_EVEN };
        if self.0 & of == used {
            return true;
        }
        // The other frame of the pair is free.
        let half = if odd { 0 } else { HALF };
        const STATE: u64 = u64::MAX << CODE & !POPULATED;
        self.0 & STATE == FREE | half | ((SINGLE + Kind::Used as u64) << CODE)
    }

    /// For a free single frame: whether it is the odd one.
    #[inline]
    pub(crate) const fn odd_is_free(self) -> bool {
        self.0 & HALF != 0
    }

    const fn code(self) -> u64 {
        (self.0 >> CODE) & CODE_MASK
    }

    /// A free block of order 1 or more, links still zero.
    pub(crate) const fn free_block(order: u32, any_populated: bool) -> Self {
        Self(FREE | ((order as u64) << CODE) | if any_populated { POPULATED } else { 0 })
    }

    /// A free single frame in this pair, links still zero. The other frame keeps its kind; what
    /// the pair says about this one does not matter.
    #[inline]
    pub(crate) const fn free_single(self, odd: bool, any_populated: bool) -> Self {
        let other = (self.0 >> if odd { KIND_EVEN } else { KIND_ODD }) & 15;
        Self(
            FREE | ((SINGLE + other) << CODE)
                | if any_populated { POPULATED } else { 0 }
                | if odd { HALF } else { 0 },
        )
    }

    /// The head of a held block of order 1 or more.
    pub(crate) const fn held_block(kind: Kind, order: u32) -> Self {
        Self(((order as u64) << CODE) | ((kind as u64) << KIND_EVEN))
    }

    /// This pair with the kind of one frame changed. The pair must not be a block of order >= 1,
    /// and that frame must not be free.
    pub(crate) const fn with_single(self, odd: bool, kind: Kind) -> Self {
        if self.is_free() {
            Self((self.0 & !(CODE_MASK << CODE)) | ((SINGLE + kind as u64) << CODE))
        } else {
            let shift = if odd { KIND_ODD } else { KIND_EVEN };
            Self((self.0 & !(15 << shift)) | ((kind as u64) << shift))
        }
    }

    /// The kind of a frame that is known to be neither free nor part of a larger block.
    pub(crate) const fn single(self, odd: bool) -> Kind {
        if self.is_free() {
            if self.code() >= SINGLE {
                Kind::from_bits(self.code() - SINGLE)
            } else {
                Kind::None
            }
        } else if self.code() != 0 {
            Kind::None
        } else {
            Kind::from_bits(self.0 >> if odd { KIND_ODD } else { KIND_EVEN })
        }
    }

    /// The pair after its free single frame left the list: nobody's, the other keeps its kind.
    #[inline]
    pub(crate) const fn unlisted_single(self) -> Self {
        let other = self.code().wrapping_sub(SINGLE) & 15;
        Self(
            other
                << if self.odd_is_free() {
                    KIND_EVEN
                } else {
                    KIND_ODD
                },
        )
    }

    /// What starts at the even (`odd == false`) or odd frame of this pair.
    #[expect(clippy::cast_possible_truncation, reason = "5 bits")]
    pub(crate) const fn slot(self, odd: bool) -> Slot {
        let code = self.code();
        if self.is_free() {
            if code >= SINGLE {
                if odd == (self.0 & HALF != 0) {
                    return Slot::Free(0);
                }
            } else {
                return if odd {
                    Slot::Nothing
                } else {
                    Slot::Free(code as u32)
                };
            }
        } else if code != 0 {
            return if odd {
                Slot::Nothing
            } else {
                Slot::Held(Kind::from_bits(self.0 >> KIND_EVEN), code as u32)
            };
        }
        match self.single(odd) {
            Kind::None => Slot::Nothing,
            kind => Slot::Held(kind, 0),
        }
    }
}

/// The node table of a zone. Shared references suffice to write: only the owner of the zone does,
/// the CPU caches read single nodes without its lock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Nodes<'m> {
    cells: Cells<'m>,
}

impl<'m> Nodes<'m> {
    pub(crate) const fn new(cells: Cells<'m>) -> Self {
        Self { cells }
    }

    #[inline]
    pub(crate) fn get(&self, pair: u32) -> Node {
        Node(self.cells.load(pair as usize))
    }

    /// A node for readers without the lock.
    #[inline(always)]
    pub(crate) fn peek(&self, pair: usize) -> Option<Peek<'m>> {
        self.cells.upper(pair).map(Peek)
    }

    /// Asks for the cache line of a node.
    #[inline(always)]
    pub(crate) fn prefetch(&self, pair: u32) {
        self.cells.prefetch(pair as usize);
    }

    /// Asks for the cache lines of a node's neighbours in its list.
    #[inline(always)]
    pub(crate) fn prefetch_neighbours(&self, node: Node) {
        self.prefetch(node.prev());
        self.prefetch(node.next());
    }

    #[inline]
    pub(crate) fn set(&self, pair: u32, node: Node) {
        self.cells.store(pair as usize, node.0);
    }
}

/// A node as readers without the lock see it: all but the links.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peek<'m>(Upper<'m>);

impl Peek<'_> {
    #[inline(always)]
    pub(crate) fn get(self) -> Node {
        Node(self.0.load())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    const KINDS: [Kind; Kind::COUNT] = [
        Kind::None,
        Kind::Used,
        Kind::Reserved,
        Kind::Isolated,
        Kind::Taken,
        Kind::Inflate,
        Kind::Bulk,
        Kind::Claimed,
    ];

    /// Every state a pair can be in; free ones with links that set all of their bits.
    fn nodes() -> Vec<Node> {
        let mut nodes = Vec::new();
        let linked = |node: Node| node.with_prev(0xfff_ffff).with_next(0xfff_ffff);
        for even in KINDS {
            for odd in KINDS {
                let pair = Node::ZERO.with_single(false, even).with_single(true, odd);
                nodes.push(pair);
                for any_populated in [false, true] {
                    nodes.extend(
                        [false, true].map(|odd| linked(pair.free_single(odd, any_populated))),
                    );
                }
            }
        }
        for order in 1..=18 {
            nodes.extend(
                KINDS
                    .into_iter()
                    .skip(1)
                    .map(|kind| Node::held_block(kind, order)),
            );
            nodes.extend(
                [false, true].map(|any_populated| linked(Node::free_block(order, any_populated))),
            );
        }
        nodes
    }

    #[test]
    fn the_quick_questions_agree_with_the_slot() {
        for node in nodes() {
            for odd in [false, true] {
                for order in (0..=18).step_by(if cfg!(miri) { 9 } else { 1 }) {
                    let slot = node.slot(odd);
                    let used = slot == Slot::Held(Kind::Used, order);
                    assert_eq!(
                        node.is_used_head(odd, order),
                        used,
                        "{node:x?} {odd} {order}"
                    );
                    let free = slot == Slot::Free(order);
                    assert_eq!(
                        node.is_free_head(odd, order),
                        free,
                        "{node:x?} {odd} {order}"
                    );
                }
            }
        }
    }
}
