//! Frames as values: who holds one owns it, and its type says what may be done with it.
//!
//! A frame that was mapped may still be written through a stale translation
//! ([`NeedsFlush`]), then it has unknown content ([`Dirty`]), and only a frame of known zero
//! content ([`Zeroed`]) may enter the cache. Skipping a step does not compile:
//!
//! ```compile_fail
//! use pod_core::{Dirty, Frame, Mfn, Order, Zeroed};
//! let dirty = Frame::<Dirty>::new(Mfn::new(1), Order::FRAME).unwrap();
//! let zeroed: Frame<Zeroed> = dirty; // nobody cleared it
//! ```

use core::fmt;
use core::marker::PhantomData;

use crate::{Budget, Host, Mfn, Order};

mod sealed {
    #[expect(unnameable_types, reason = "sealed: only this file implements it")]
    pub trait Sealed {}
}

/// What is known about a frame. Implemented by [`Dirty`], [`Zeroed`] and [`NeedsFlush`] alone.
pub trait FrameState: sealed::Sealed + fmt::Debug {}

macro_rules! state {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug)]
        #[expect(missing_copy_implementations, reason = "a marker type, never a value")]
        pub enum $name {}
        impl sealed::Sealed for $name {}
        impl FrameState for $name {}
    };
}

state! {
    /// Content unknown; nobody can reach the frame.
    Dirty
}
state! {
    /// Every byte is zero; nobody can reach the frame.
    Zeroed
}
state! {
    /// Out of the table, but a stale translation may still reach it.
    NeedsFlush
}

/// An owned aligned run of machine frames.
#[must_use = "a frame that is dropped is lost to the host"]
pub struct Frame<S: FrameState> {
    mfn: Mfn,
    order: Order,
    state: PhantomData<S>,
}

impl<S: FrameState> Frame<S> {
    /// First machine frame of the run.
    #[must_use]
    pub const fn mfn(&self) -> Mfn {
        self.mfn
    }

    /// Size of the run.
    #[must_use]
    pub const fn order(&self) -> Order {
        self.order
    }

    const fn make(mfn: Mfn, order: Order) -> Self {
        Self {
            mfn,
            order,
            state: PhantomData,
        }
    }

    const fn aligned(mfn: Mfn, order: Order) -> Option<Self> {
        if mfn.is_aligned(order) {
            Some(Self::make(mfn, order))
        } else {
            None
        }
    }
}

impl<S: FrameState> fmt::Debug for Frame<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = core::any::type_name::<S>()
            .rsplit("::")
            .next()
            .unwrap_or_default();
        write!(f, "Frame<{name}>({}, order {})", self.mfn, self.order)
    }
}

impl Frame<Dirty> {
    /// A frame of unknown content, made by the host. `None` if `mfn` is not aligned.
    #[must_use]
    pub const fn new(mfn: Mfn, order: Order) -> Option<Self> {
        Self::aligned(mfn, order)
    }

    /// Clears the frame, one look a page; the only way for unknown content to become known.
    pub(crate) fn cleared<H: Host + ?Sized>(
        self,
        host: &mut H,
        budget: &mut Budget,
    ) -> Frame<Zeroed> {
        budget.spend_on(self.order.frames());
        host.fill(self.mfn, self.order, 0);
        Frame::make(self.mfn, self.order)
    }

    /// The scan after the flush found every byte zero.
    pub(crate) const fn proven_zero(self, _proof: &ScannedZero) -> Frame<Zeroed> {
        Frame::make(self.mfn, self.order)
    }
}

impl Frame<Zeroed> {
    /// A zeroed frame, made by the host, which vouches for the content. `None` if not aligned.
    #[must_use]
    pub const fn new(mfn: Mfn, order: Order) -> Option<Self> {
        Self::aligned(mfn, order)
    }

    /// The cache hands out what it only ever took in zeroed.
    pub(crate) const fn from_cache(mfn: Mfn, order: Order) -> Self {
        Self::make(mfn, order)
    }
}

impl Frame<NeedsFlush> {
    /// A successful table write took the frame out of the table.
    pub(crate) const fn unmapped(mfn: Mfn, order: Order) -> Self {
        Self::make(mfn, order)
    }

    pub(crate) const fn flushed(self, _proof: &Flushed) -> Frame<Dirty> {
        Frame::make(self.mfn, self.order)
    }
}

/// Proof that no stale translation is left.
#[derive(Debug)]
pub(crate) struct Flushed(());

impl Flushed {
    pub(crate) fn new<H: Host + ?Sized>(host: &mut H) -> Self {
        host.flush();
        Self(())
    }
}

/// Proof that all pages were scanned, after the flush, and found zero.
#[derive(Debug)]
pub(crate) struct ScannedZero(());

impl ScannedZero {
    /// Only for the scan itself.
    pub(crate) const fn new(_after: &Flushed) -> Self {
        Self(())
    }
}

/// A frame on its way between host and engine, with what is known about its content.
#[derive(Debug)]
pub enum Backing {
    /// All bytes zero: the engine need not write it.
    Zeroed(Frame<Zeroed>),
    /// Content unknown.
    Dirty(Frame<Dirty>),
}

impl Backing {
    /// First machine frame of the run.
    #[must_use]
    pub const fn mfn(&self) -> Mfn {
        match self {
            Self::Zeroed(frame) => frame.mfn,
            Self::Dirty(frame) => frame.mfn,
        }
    }

    /// Size of the run.
    #[must_use]
    pub const fn order(&self) -> Order {
        match self {
            Self::Zeroed(frame) => frame.order,
            Self::Dirty(frame) => frame.order,
        }
    }

    pub(crate) fn into_zeroed<H: Host + ?Sized>(
        self,
        host: &mut H,
        budget: &mut Budget,
    ) -> Frame<Zeroed> {
        match self {
            Self::Zeroed(frame) => frame,
            Self::Dirty(frame) => frame.cleared(host, budget),
        }
    }
}
