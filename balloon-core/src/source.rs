//! Where frames come from and where given frames are remembered.
//!
//! A frame is in one of three places: *free* in the kernel's allocator, *in
//! hand* (the engine moves it), or *ballooned* (the host has it). The engine
//! alone moves frames through its hand; the two traits here are the doors.
//!
//! ```text
//!          take                     store
//!  free ─────────►  in hand  ─────────────►  ballooned
//!       ◄─────────           ◄─────────────
//!          put                     recall
//! ```
//!
//! [`FrameSource`] (`take`, `put`) is the kernel's allocator. [`Ledger`]
//! (`store`, `recall`) remembers ballooned frames and how each was given. An
//! allocator with owner tags implements both; any other is paired with a
//! [`BitmapLedger`](crate::BitmapLedger) by [`Ledgered`](crate::Ledgered).
//!
//! The traits are safe: they exchange numbers, and the engine never touches
//! memory through them. None of the calls may allocate, block, or trigger
//! memory relief.
//!
//! Migration needs both doors at a known place: [`FrameSource::take_at`],
//! [`FrameSource::next_free`], [`Ledger::recall_at`] and [`Ledger::next_held`].
//! Their defaults refuse and see nothing, which leaves a balloon that cannot be
//! compacted and is complete otherwise.

use crate::run::RangeSink;
use crate::units::{FrameCount, FrameRange, Order, Pfn};

/// What the engine would like to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Ask {
    /// Only naturally aligned blocks of at least this order.
    pub order: Order,
    /// Only frames below this one: 32-bit PFN arrays end at 16 TiB.
    pub below: Pfn,
    /// Frames that must stay free: answer [`Stop::Floor`] rather than go below.
    pub keep: FrameCount,
}

impl Ask {
    /// Any frame below `below`.
    #[must_use]
    pub const fn any(below: Pfn) -> Self {
        Self {
            order: Order::FRAME,
            below,
            keep: FrameCount::ZERO,
        }
    }
}

/// Why a source or ledger stopped handing out frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Stop {
    /// The sink is full.
    Enough,
    /// Free frames are left, but no block of the asked order and place.
    Fragmented,
    /// Free frames are left, but the kernel keeps them.
    Floor,
    /// Free frames are left, but something holds them in place: an I/O that may
    /// still write to them, a mapping to be torn down first.
    Pinned,
    /// Nothing is left.
    Empty,
}

/// What the host is believed to have behind a range.
///
/// An over-estimate is fine (allocated but never written), an under-estimate
/// costs the host memory: a frame called unpopulated is given last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Backing {
    /// Every frame has memory behind it.
    Populated,
    /// This many frames of the range have.
    Partly(FrameCount),
    /// None has: giving it frees nothing, touching it costs a page fault.
    Unpopulated,
    /// Nobody knows, as after a reset or a restore.
    Unknown,
}

impl Backing {
    /// How many of `count` frames count as populated; unknown ones do.
    #[must_use]
    pub const fn populated(self, count: FrameCount) -> FrameCount {
        match self {
            Self::Populated | Self::Unknown => count,
            Self::Partly(some) if some.get() < count.get() => some,
            Self::Partly(_) => count,
            Self::Unpopulated => FrameCount::ZERO,
        }
    }
}

/// How a frame was given to the host, which decides how it comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum GivePath {
    /// Told one by one (virtio inflate queue, Xen decrease): told again to
    /// return.
    Told,
    /// Given as a range the host discards and the guest may simply use again
    /// once the reported size is lowered (virtio reporting queue).
    Bulk,
}

impl GivePath {
    /// Both paths, cheapest to take back first.
    pub const ALL: [Self; 2] = [Self::Bulk, Self::Told];
}

/// The kernel's frame allocator, as the balloon sees it.
///
/// Laws, checked by `testing::check_frame_source_laws`:
/// * what `take` hands out is the caller's alone until `put` accepts it;
/// * `take` pushes nothing outside the ask and nothing beyond the sink's
///   [`wanted`](RangeSink::wanted);
/// * `take` never triggers relief, and neither call allocates;
/// * a refused `put` or `take_at` changes nothing;
/// * what `next_free` shows, `take_at` hands out;
/// * `available`, if it counts, goes down and up with what is taken and put.
pub trait FrameSource {
    /// Free → in hand: pushes free frames, those the host has populated first.
    ///
    /// A short answer is normal and says why.
    fn take(&mut self, ask: Ask, out: &mut RangeSink<'_>) -> Stop;

    /// In hand → free.
    ///
    /// # Errors
    /// Hands the range back if the source cannot take it (now).
    fn put(&mut self, range: FrameRange, backing: Backing) -> Result<(), FrameRange>;

    /// Free → in hand: exactly these frames, for a migration.
    ///
    /// As many come back, so no floor applies: where fewer may, the compactor
    /// looks at [`available`](Self::available) first.
    ///
    /// # Errors
    /// Hands the range back if any frame of it is not free, or the source
    /// cannot take by place.
    fn take_at(&mut self, range: FrameRange) -> Result<Backing, FrameRange> {
        Err(range)
    }

    /// The first free frames inside `within`, clipped to it.
    ///
    /// Free neighbours may come in several answers. `None` also from a source
    /// that cannot look. Work is bounded by `within`.
    fn next_free(&mut self, within: FrameRange) -> Option<FrameRange> {
        let _ = within;
        None
    }

    /// Free frames that `take` would hand out, were nothing asked to be kept;
    /// `None` from a source that does not count.
    ///
    /// A migration in two steps leaves the guest fewer frames for a while, and for
    /// good if the host refuses the second. So it takes no more than this less
    /// [`Policy::keep`](crate::Policy::keep), and nothing where something is to be
    /// kept of frames that are not counted.
    fn available(&mut self) -> Option<FrameCount> {
        None
    }
}

/// The memory of which frames are ballooned.
///
/// Laws, checked by `testing::check_ledger_laws`:
/// * `recall` yields only frames that were stored with that path, each once, and
///   only in naturally aligned blocks of the unit that are held from end to end;
/// * `held` is the sum of what was stored less what was recalled;
/// * a refused `store` or `recall_at` changes nothing;
/// * what `next_held` shows, `recall_at` yields.
pub trait Ledger {
    /// In hand → ballooned.
    ///
    /// # Errors
    /// Hands the range back if any frame of it is outside the ledger's memory
    /// or held already.
    fn store(&mut self, range: FrameRange, path: GivePath) -> Result<(), FrameRange>;

    /// Ballooned → in hand: pushes frames given by `path`, in blocks of `unit`.
    ///
    /// Asked for frames, a ledger that can tell cheaply breaks no whole 2 MiB while
    /// it has others: what comes back in one piece may be mapped as one by the host
    /// again. Stops with [`Stop::Fragmented`] if it has no more whole blocks; the
    /// engine asks anew for each request, so a look in vain should cost little.
    fn recall(&mut self, path: GivePath, unit: Order, out: &mut RangeSink<'_>) -> Stop;

    /// Frames ballooned by `path`.
    fn held(&self, path: GivePath) -> FrameCount;

    /// Ballooned → in hand: exactly these frames, for a migration.
    ///
    /// # Errors
    /// Hands the range back if any frame of it is not held by `path`, or the
    /// ledger cannot recall by place.
    fn recall_at(&mut self, range: FrameRange, path: GivePath) -> Result<(), FrameRange> {
        let _ = path;
        Err(range)
    }

    /// The first ballooned frames inside `within` that share a path, clipped
    /// to it.
    ///
    /// Neighbours may come in several answers. `None` also from a ledger that
    /// cannot look. Work is bounded by `within`.
    fn next_held(&mut self, within: FrameRange) -> Option<(FrameRange, GivePath)> {
        let _ = within;
        None
    }
}

impl<S: FrameSource + ?Sized> FrameSource for &mut S {
    fn take(&mut self, ask: Ask, out: &mut RangeSink<'_>) -> Stop {
        (**self).take(ask, out)
    }

    fn put(&mut self, range: FrameRange, backing: Backing) -> Result<(), FrameRange> {
        (**self).put(range, backing)
    }

    fn take_at(&mut self, range: FrameRange) -> Result<Backing, FrameRange> {
        (**self).take_at(range)
    }

    fn next_free(&mut self, within: FrameRange) -> Option<FrameRange> {
        (**self).next_free(within)
    }

    fn available(&mut self) -> Option<FrameCount> {
        (**self).available()
    }
}

impl<L: Ledger + ?Sized> Ledger for &mut L {
    fn store(&mut self, range: FrameRange, path: GivePath) -> Result<(), FrameRange> {
        (**self).store(range, path)
    }

    fn recall(&mut self, path: GivePath, unit: Order, out: &mut RangeSink<'_>) -> Stop {
        (**self).recall(path, unit, out)
    }

    fn held(&self, path: GivePath) -> FrameCount {
        (**self).held(path)
    }

    fn recall_at(&mut self, range: FrameRange, path: GivePath) -> Result<(), FrameRange> {
        (**self).recall_at(range, path)
    }

    fn next_held(&mut self, within: FrameRange) -> Option<(FrameRange, GivePath)> {
        (**self).next_held(within)
    }
}
