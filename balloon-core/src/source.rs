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

use crate::backing::Backing;
use crate::run::RangeSink;
use crate::units::{FrameCount, FrameRange, Order, Pfn};

/// What the engine would like to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct TakeRequest {
    /// Only naturally aligned blocks of at least this order.
    pub order: Order,
    /// Only frames below this one: 32-bit PFN arrays end at 16 TiB.
    pub below: Pfn,
    /// Frames that must stay free: answer [`Shortage::Floor`] rather than go below.
    pub min_free: FrameCount,
    /// Those first that hold nothing of the guest's ([`Backing::Unpopulated`]), and not
    /// those the host has populated: where the host has put memory behind all of them,
    /// and what the guest wrote must be cleared before it leaves. A source that cannot
    /// tell promises nothing.
    pub unpopulated_first: bool,
}

impl TakeRequest {
    /// Any frame below `below`, populated ones first.
    #[must_use]
    pub const fn any(below: Pfn) -> Self {
        Self {
            order: Order::FRAME,
            below,
            min_free: FrameCount::ZERO,
            unpopulated_first: false,
        }
    }
}

/// Why a source or ledger stopped handing out frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Shortage {
    /// The sink is full.
    None,
    /// Free frames are left, but no block of the asked order and place.
    Fragmented,
    /// Free frames are left, but none below [`TakeRequest::below`].
    OutOfReach,
    /// Free frames are left, but the kernel keeps them.
    Floor,
    /// Free frames are left, but something holds them in place: an I/O that may
    /// still write to them, a mapping to be torn down first.
    Pinned,
    /// The bound of one call was reached: the next call looks on behind it.
    Again,
    /// Nothing is left.
    Empty,
}

/// How a frame was given to the host, which decides how it comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Via {
    /// Told one by one (virtio inflate queue, Xen decrease): told again to
    /// return.
    Inflate,
    /// Given as a range the host discards and the guest may simply use again
    /// once the reported size is lowered (virtio reporting queue).
    Bulk,
}

impl Via {
    /// Both paths, cheapest to take back first.
    pub const ALL: [Self; 2] = [Self::Bulk, Self::Inflate];
}

/// The kernel's frame allocator, as the balloon sees it.
///
/// Laws, checked by `testing::check_frame_source_laws`:
/// * what `take` hands out is the caller's alone until `put` accepts it;
/// * `take` pushes nothing outside the request and nothing beyond the sink's
///   [`wanted`](RangeSink::wanted);
/// * asked for [unpopulated](TakeRequest::unpopulated_first) frames first, `take` pushes no
///   populated one while it has others, unless it tells of none;
/// * `take` never triggers relief, and neither call allocates;
/// * `put` and `take_at` take any range of frames that are each in hand, or each free:
///   neighbours together, whichever answers they came in, and parts;
/// * a refused `put` or `take_at` changes nothing;
/// * what `next_free` shows, `take_at` hands out;
/// * `available`, if it counts, goes down and up with what is taken and put.
pub trait FrameSource {
    /// Free → in hand: pushes free frames, as far as the source can tell those first
    /// that the host has populated, or those it has [not](TakeRequest::unpopulated_first).
    ///
    /// A short answer is normal and says why.
    fn take(&mut self, request: TakeRequest, out: &mut RangeSink<'_>) -> Shortage;

    /// In hand → free.
    ///
    /// # Errors
    /// Hands the range back if the source cannot take it (now).
    fn put(&mut self, range: FrameRange, backing: Backing) -> Result<(), FrameRange>;

    /// In hand → allocated: the frames leave the balloon for the kernel's own use, and it
    /// frees them as any other it allocated.
    ///
    /// For a source without tags frames in hand are allocated already; this default
    /// does nothing.
    ///
    /// # Errors
    /// Hands the range back if any frame of it is not in hand.
    fn allocate_taken(&mut self, range: FrameRange) -> Result<(), FrameRange> {
        let _ = range;
        Ok(())
    }

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
    /// [`Policy::min_free`](crate::Policy::min_free), and nothing where something is to be
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
/// * `store` and `recall_at` take any range of frames that may each be stored, or are
///   each held by the path: neighbours together, however they came, and parts;
/// * a refused `store` or `recall_at` changes nothing;
/// * what `next_held` shows, `recall_at` yields.
pub trait Ledger {
    /// In hand → ballooned.
    ///
    /// # Errors
    /// Hands the range back if any frame of it is outside the ledger's memory
    /// or held already.
    fn store(&mut self, range: FrameRange, via: Via) -> Result<(), FrameRange>;

    /// Ballooned → in hand: pushes frames given by `via`, in blocks of `unit`.
    ///
    /// Asked for frames, a ledger that can tell cheaply breaks no whole 2 MiB while
    /// it has others: what comes back in one piece may be mapped as one by the host
    /// again. Stops with [`Shortage::Fragmented`] if it has no more whole blocks. A
    /// search that may take long ends at a bound with [`Shortage::Again`], and the next call goes
    /// on from there: the engine asks anew for each request.
    fn recall(&mut self, via: Via, unit: Order, out: &mut RangeSink<'_>) -> Shortage;

    /// Frames ballooned by `via`.
    fn held(&self, via: Via) -> FrameCount;

    /// Ballooned → in hand: exactly these frames, for a migration.
    ///
    /// # Errors
    /// Hands the range back if any frame of it is not held by `via`, or the
    /// ledger cannot recall by place.
    fn recall_at(&mut self, range: FrameRange, via: Via) -> Result<(), FrameRange> {
        let _ = via;
        Err(range)
    }

    /// The first ballooned frames inside `within` that share a path, clipped
    /// to it.
    ///
    /// Neighbours may come in several answers. `None` also from a ledger that
    /// cannot look. Work is bounded by `within`.
    fn next_held(&mut self, within: FrameRange) -> Option<(FrameRange, Via)> {
        let _ = within;
        None
    }
}

impl<S: FrameSource + ?Sized> FrameSource for &mut S {
    fn take(&mut self, request: TakeRequest, out: &mut RangeSink<'_>) -> Shortage {
        (**self).take(request, out)
    }

    fn put(&mut self, range: FrameRange, backing: Backing) -> Result<(), FrameRange> {
        (**self).put(range, backing)
    }

    fn allocate_taken(&mut self, range: FrameRange) -> Result<(), FrameRange> {
        (**self).allocate_taken(range)
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
    fn store(&mut self, range: FrameRange, via: Via) -> Result<(), FrameRange> {
        (**self).store(range, via)
    }

    fn recall(&mut self, via: Via, unit: Order, out: &mut RangeSink<'_>) -> Shortage {
        (**self).recall(via, unit, out)
    }

    fn held(&self, via: Via) -> FrameCount {
        (**self).held(via)
    }

    fn recall_at(&mut self, range: FrameRange, via: Via) -> Result<(), FrameRange> {
        (**self).recall_at(range, via)
    }

    fn next_held(&mut self, within: FrameRange) -> Option<(FrameRange, Via)> {
        (**self).next_held(within)
    }
}
