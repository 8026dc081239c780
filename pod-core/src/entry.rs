//! What a second-stage table says about a guest frame.

use crate::{Gfn, Mfn, Order};

/// A fill pattern by its index in [`Config::patterns`](crate::Config); 0 is all zero.
///
/// A promise carries one: the content the guest finds when it touches the page first, and the
/// content a page must have to become a promise again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Pattern(u8);

impl Pattern {
    /// All bytes zero.
    pub const ZERO: Self = Self(0);
    /// How many patterns a configuration holds.
    pub const LIMIT: usize = 4;

    /// The pattern with this index, if the configuration can hold it.
    #[must_use]
    pub const fn new(index: u8) -> Option<Self> {
        if (index as usize) < Self::LIMIT {
            Some(Self(index))
        } else {
            None
        }
    }

    /// The plain index.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }
}

/// State of a RAM entry as the host knows it; equal values may share one leaf.
///
/// The engine only compares it: log-dirty, read-only or not executable mean nothing here, except
/// that entries in different states never become one superpage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Attr(u8);

impl Attr {
    /// What the engine gives to pages it populates.
    pub const PLAIN: Self = Self(0);

    /// An attribute value of the host's choice.
    #[must_use]
    pub const fn new(bits: u8) -> Self {
        Self(bits)
    }

    /// The plain value.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }
}

/// One entry of the second-stage table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Entry {
    /// Nothing there.
    Hole,
    /// Populated on first touch.
    Promise(Pattern),
    /// Guest RAM. In a run, frame i of the guest run lies on `mfn + i`.
    Ram {
        /// First machine frame of the run.
        mfn: Mfn,
        /// State of the entry.
        attr: Attr,
    },
    /// Grant, foreign, direct MMIO, identity map, shared, paged out, broken: never touched.
    Special,
}

impl Entry {
    /// RAM in the state the engine populates with.
    #[must_use]
    pub const fn ram(mfn: Mfn) -> Self {
        Self::Ram {
            mfn,
            attr: Attr::PLAIN,
        }
    }

    /// The entry of the page `pages` further into the same run.
    #[must_use]
    pub const fn advanced(self, pages: u64) -> Self {
        match self {
            Self::Ram { mfn, attr } => Self::Ram {
                mfn: mfn.plus(pages),
                attr,
            },
            other => other,
        }
    }
}

/// A leaf of the table: an aligned run of guest frames with one entry.
///
/// Absent table levels count as leaves too: a whole empty 1 GiB slot is a hole of order 18.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// First frame, aligned to `order`.
    pub start: Gfn,
    /// Size of the run.
    pub order: Order,
    /// What the run holds; for RAM the frame of `start`.
    pub entry: Entry,
}

impl Leaf {
    /// The entry of one frame inside the leaf.
    #[must_use]
    pub const fn at(&self, gfn: Gfn) -> Entry {
        self.entry
            .advanced(gfn.get().wrapping_sub(self.start.get()))
    }

    /// Frames from `gfn` to the end of the leaf.
    pub(crate) const fn room_from(&self, gfn: Gfn) -> u64 {
        let into = gfn.get().wrapping_sub(self.start.get());
        self.order.frames().get().saturating_sub(into)
    }
}
