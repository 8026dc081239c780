//! What a program is made of: every operation of a zone with small numbers as arguments.

use alloc::vec::Vec;

use crate::{Backing, Config, FrameRange, Order, Preference};

/// One step. Numbers are reduced to what makes sense, so that any value is a valid action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the method of the same name")]
pub enum Action {
    Allocate {
        order: u8,
        preference: u8,
    },
    AllocateRange {
        count: u16,
        align: u8,
        preference: u8,
    },
    AllocateAt {
        at: u32,
        order: u8,
    },
    AllocateRangeAt {
        at: u32,
        count: u16,
    },
    /// Frees the n-th used block properly.
    Free {
        nth: u16,
    },
    /// Frees whatever is there, with any order.
    FreeWild {
        at: u32,
        order: u8,
    },
    FreeRange {
        at: u32,
        count: u16,
    },
    FreeUnpopulated {
        at: u32,
        count: u16,
    },
    /// Splits the n-th used block.
    Split {
        nth: u16,
        into: u8,
    },
    Reserve {
        at: u32,
        count: u16,
    },
    Unreserve {
        at: u32,
        count: u16,
        backing: u8,
    },
    Add {
        at: u32,
        count: u16,
        backing: u8,
    },
    Take {
        wanted: u16,
        ranges: u8,
        unit: u8,
        preference: u8,
        only: bool,
        below: Option<u32>,
    },
    TakeAt {
        at: u32,
        count: u16,
    },
    Put {
        nth: u16,
        backing: u8,
    },
    PutUnchanged {
        nth: u16,
    },
    Store {
        nth: u16,
        bulk: bool,
    },
    Recall {
        wanted: u16,
        ranges: u8,
        unit: u8,
        bulk: bool,
    },
    Isolate {
        order: u8,
        populated: u16,
    },
    IsolateAt {
        at: u32,
        order: u8,
    },
    AllocateBatch {
        wanted: u16,
        ranges: u8,
        unit: u8,
        preference: u8,
    },
    /// Frees some of the used blocks from the n-th on, and then whatever is at a place.
    FreeBatch {
        nth: u16,
        ranges: u8,
        at: u32,
    },
    Unisolate {
        nth: u16,
        backing: u8,
    },
}

/// A zone and what to do with it.
#[derive(Clone, Debug)]
pub struct Program {
    /// Frames of the span.
    pub span: FrameRange,
    /// Settings of the zone.
    pub config: Config,
    /// Whether all of the span is added first, and as what.
    pub added: Option<Backing>,
    /// What to do.
    pub actions: Vec<Action>,
}

const PREFERENCES: [Preference; 3] = [
    Preference::Populated,
    Preference::Unpopulated,
    Preference::Any,
];
const BACKINGS: [Backing; 3] = [Backing::Populated, Backing::Unpopulated, Backing::Unknown];

pub(super) fn order_of(number: u8) -> Order {
    Order::new(number % 20).unwrap_or(Order::MAX)
}

#[expect(clippy::indexing_slicing, reason = "reduced")]
pub(super) fn preference_of(number: u8) -> Preference {
    PREFERENCES[usize::from(number) % 3]
}

#[expect(clippy::indexing_slicing, reason = "reduced")]
pub(super) fn backing_of(number: u8) -> Backing {
    BACKINGS[usize::from(number) % 3]
}
