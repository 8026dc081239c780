//! Everything of a balloon that more than one CPU touches.

use crate::signal::Signal;
use crate::slots::Slots;
use crate::sync::{AtomicBool, AtomicU32, Ordering};
use crate::units::{FrameCount, FrameRange, Order, Pfn};

/// The most frames a reserve holds.
pub const EMERGENCY_FRAMES: FrameCount = FrameCount::new(EMERGENCY as u64);

/// Reserved frames have numbers below this: they live in one word each.
pub(crate) const EMERGENCY_BELOW: Pfn = Pfn::new(1 << 31);

const EMERGENCY: usize = 16;
/// The word of an empty place; others hold a block, see [`word_of`].
const EMPTY: u32 = 0;
/// The word of a place that is kept for a block to come: of no block either.
const KEPT: u32 = 1 << 31;

/// A block below [`EMERGENCY_BELOW`] in one word: twice its number, and the number of its frames,
/// which is the lowest bit set.
fn word_of(block: FrameRange) -> Option<u32> {
    let count = block.count();
    let order = Order::new(u8::try_from(count.get().checked_ilog2()?).ok()?)?;
    let whole = count == order.frames() && block.start().is_aligned(order);
    let below = whole && block.end() <= EMERGENCY_BELOW;
    let word = u32::try_from(2 * block.start().get() + count.get()).ok()?;
    (below && word != KEPT).then_some(word)
}

/// The block of a word.
fn block_of(word: u32) -> Option<FrameRange> {
    if word == EMPTY || word == KEPT {
        return None;
    }
    let count = 1 << word.trailing_zeros();
    let start = (u64::from(word) - count) / 2;
    FrameRange::new(Pfn::new(start), FrameCount::new(count))
}

/// The signal and the response slots: one `static` beside each engine.
///
/// ```
/// use balloon_core::{Engine, Policy, Shared};
///
/// static SHARED: Shared<16> = Shared::new();
/// static ENGINE: std::sync::Mutex<Engine<16>> =
///     std::sync::Mutex::new(Engine::new(&SHARED, Policy::DEFAULT));
///
/// fn config_interrupt() {
///     SHARED.signal().config_changed();
/// }
/// # config_interrupt();
/// # assert!(SHARED.signal().is_set());
/// ```
#[derive(Debug)]
pub struct Shared<const N: usize = 16> {
    signal: Signal,
    slots: Slots<N>,
    /// Frames asked back while the engine was busy.
    relief: AtomicU32,
    emergency_pool: [AtomicU32; EMERGENCY],
    /// Somebody is in the balloon.
    inside: AtomicBool,
    /// The engine waits for free frames.
    short: AtomicBool,
}

/// Proof that its holder alone is in the balloon; dropping it lets others in.
#[derive(Debug)]
#[must_use = "dropping it lets others in"]
pub struct Entered(&'static AtomicBool);

impl Drop for Entered {
    fn drop(&mut self) {
        // Release: whoever enters next sees what was done.
        self.0.store(false, Ordering::Release);
    }
}

impl<const N: usize> Shared<N> {
    /// Nothing signalled, all slots free.
    #[cfg(not(loom))]
    #[must_use]
    pub const fn new() -> Self {
        Self {
            signal: Signal::new(),
            slots: Slots::new(),
            relief: AtomicU32::new(0),
            emergency_pool: [const { AtomicU32::new(EMPTY) }; EMERGENCY],
            inside: AtomicBool::new(false),
            short: AtomicBool::new(false),
        }
    }

    /// Nothing signalled, all slots free.
    #[cfg(loom)]
    #[must_use]
    pub fn new() -> Self {
        Self {
            signal: Signal::new(),
            slots: Slots::new(),
            relief: AtomicU32::new(0),
            emergency_pool: core::array::from_fn(|_| AtomicU32::new(EMPTY)),
            inside: AtomicBool::new(false),
            short: AtomicBool::new(false),
        }
    }

    /// What interrupt handlers set.
    pub const fn signal(&self) -> &Signal {
        &self.signal
    }

    /// The response slots; [`Slots::completer`] is for whoever sees answers.
    pub const fn slots(&self) -> &Slots<N> {
        &self.slots
    }

    /// Enters the balloon for [`Balloon::relieve`](crate::Balloon::relieve), before its lock is
    /// taken; `None` while somebody steps it.
    ///
    /// An allocation may fail while the balloon itself is stepped. Where a kernel's lock has a
    /// state, `try_lock` finds out. Locks of kernels with one CPU often have none: they
    /// always succeed, and the balloon would be borrowed twice. This does find out, and it
    /// never waits.
    ///
    /// ```
    /// # use balloon_core::*;
    /// static SHARED: Shared = Shared::new();
    /// let inside = SHARED.enter().expect("nobody is in the balloon");
    /// assert!(SHARED.enter().is_none());
    /// drop(inside);
    /// assert!(SHARED.enter().is_some());
    /// ```
    pub fn enter(&'static self) -> Option<Entered> {
        // Acquire: what the last one inside did is seen.
        self.inside
            .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
            .ok()?;
        Some(Entered(&self.inside))
    }

    /// Says that frames became free, from wherever they do: it is wait-free, and costs a load
    /// unless the balloon waits for frames.
    ///
    /// Without it the balloon looks again after delays that grow
    /// ([`Policy::retry`](crate::Policy::retry)).
    pub fn memory_freed(&self) {
        if self.short.load(Ordering::Relaxed) && self.short.swap(false, Ordering::Release) {
            self.signal.used();
        }
    }

    /// Whether the engine waits for free frames, and none were freed since.
    pub(crate) fn is_short(&self) -> bool {
        self.short.load(Ordering::Acquire)
    }

    pub(crate) fn set_short(&self, short: bool) {
        self.short.store(short, Ordering::Release);
    }

    /// Asks the engine, wherever it runs, for relief: wait-free, for an
    /// out-of-memory hook that cannot have the engine.
    ///
    /// The next step honours it, and sets the signal for it.
    pub fn request_relief(&self, frames: FrameCount) {
        let frames = u32::try_from(frames.get()).unwrap_or(u32::MAX);
        self.relief.fetch_max(frames, Ordering::Release);
        self.signal.used();
    }

    pub(crate) fn is_relief_requested(&self) -> bool {
        self.relief.load(Ordering::Relaxed) != 0
    }

    pub(crate) fn take_relief_request(&self) -> FrameCount {
        FrameCount::new(self.relief.swap(0, Ordering::Acquire).into())
    }

    /// Takes one frame of the small reserve, without the engine: a whole page of the kernel's where
    /// [`Granularity::Whole`](crate::Granularity::Whole) says so.
    ///
    /// The frame is the caller's, allocated and no part of the balloon: it returns to the
    /// allocator as any other that was allocated.
    /// The engine refills the reserve up to
    /// [`Policy::emergency_pool`](crate::Policy::emergency_pool) when memory is at ease.
    pub fn take_emergency(&self) -> Option<FrameRange> {
        self.emergency_pool.iter().find_map(|place| {
            let word = place.load(Ordering::Relaxed);
            let block = block_of(word)?;
            place
                .compare_exchange(word, EMPTY, Ordering::Acquire, Ordering::Relaxed)
                .ok()?;
            Some(block)
        })
    }

    /// Frames in the reserve; a snapshot.
    pub fn emergency_frames(&self) -> FrameCount {
        let block = |place: &AtomicU32| block_of(place.load(Ordering::Relaxed));
        let blocks = self.emergency_pool.iter().filter_map(block);
        FrameCount::new(blocks.map(|block| block.count().get()).sum())
    }

    /// Keeps an empty place of the reserve for a frame: whoever has one loses none for
    /// want of room.
    pub(crate) fn keep_place(&self) -> Option<ReservePlace<'_>> {
        let min_free = |place: &&AtomicU32| {
            place
                .compare_exchange(EMPTY, KEPT, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        };
        self.emergency_pool.iter().find(min_free).map(ReservePlace)
    }
}

/// A place of the reserve that nobody else fills; empty again when dropped.
#[derive(Debug)]
pub(crate) struct ReservePlace<'a>(&'a AtomicU32);

impl ReservePlace<'_> {
    /// The block is in the reserve; handed back if it is none or its number is too high.
    pub(crate) fn put(self, block: FrameRange) -> Result<(), FrameRange> {
        let word = word_of(block).ok_or(block)?;
        // Release: whoever takes it has it as it was put.
        self.0.store(word, Ordering::Release);
        core::mem::forget(self);
        Ok(())
    }
}

impl Drop for ReservePlace<'_> {
    fn drop(&mut self) {
        self.0.store(EMPTY, Ordering::Relaxed);
    }
}

impl<const N: usize> Default for Shared<N> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, not(any(loom, miri))))]
pub(crate) mod tests {
    use alloc::boxed::Box;

    use super::Shared;

    /// One for an engine of a test; it lives as long as the program.
    pub(crate) fn leaked<const N: usize>() -> &'static Shared<N> {
        Box::leak(Box::default())
    }
}
