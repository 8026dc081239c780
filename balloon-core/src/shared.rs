//! Everything of a balloon that more than one CPU touches.

use crate::signal::Signal;
use crate::slots::Slots;
use crate::sync::{AtomicU32, Ordering};
use crate::units::{FrameCount, FrameRange, Pfn};

/// The most frames a reserve holds.
pub const RESERVE_FRAMES: FrameCount = FrameCount::new(RESERVE as u64);

/// Reserved frames have numbers below this: they live in one word each.
pub(crate) const RESERVE_BELOW: Pfn = Pfn::new(u32::MAX as u64);

const RESERVE: usize = 16;
/// The word of an empty place: no frame below [`RESERVE_BELOW`].
const EMPTY: u32 = u32::MAX;

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
/// # assert!(SHARED.signal().pending());
/// ```
#[derive(Debug)]
pub struct Shared<const N: usize = 16> {
    signal: Signal,
    slots: Slots<N>,
    /// Frames asked back while the engine was busy.
    relief: AtomicU32,
    reserve: [AtomicU32; RESERVE],
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
            reserve: [const { AtomicU32::new(EMPTY) }; RESERVE],
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
            reserve: core::array::from_fn(|_| AtomicU32::new(EMPTY)),
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

    /// Asks the engine, wherever it runs, for relief: wait-free, for an
    /// out-of-memory hook that cannot have the engine.
    ///
    /// The next step honours it; [`Signal::pending`] is true until then.
    pub fn request_relief(&self, frames: FrameCount) {
        let frames = u32::try_from(frames.get()).unwrap_or(u32::MAX);
        self.relief.fetch_max(frames, Ordering::Release);
        self.signal.used();
    }

    pub(crate) fn take_relief_request(&self) -> FrameCount {
        FrameCount::new(self.relief.swap(0, Ordering::Acquire).into())
    }

    /// Takes one frame of the small reserve, without the engine.
    ///
    /// The frame is the caller's; it returns to the allocator like any other.
    /// The engine refills the reserve up to
    /// [`Policy::reserve`](crate::Policy::reserve) when memory is at ease.
    pub fn take_reserve(&self) -> Option<FrameRange> {
        self.reserve.iter().find_map(|place| {
            let word = place.load(Ordering::Relaxed);
            if word == EMPTY {
                return None;
            }
            place
                .compare_exchange(word, EMPTY, Ordering::Acquire, Ordering::Relaxed)
                .ok()?;
            FrameRange::single(Pfn::new(word.into()))
        })
    }

    /// Frames in the reserve; a snapshot.
    pub fn reserved(&self) -> FrameCount {
        let full = |place: &&AtomicU32| place.load(Ordering::Relaxed) != EMPTY;
        FrameCount::new(self.reserve.iter().filter(full).count() as u64)
    }

    /// Adds a frame; handed back if there is no room or its number is too high.
    pub(crate) fn put_reserve(&self, frame: FrameRange) -> Result<(), FrameRange> {
        let word = u32::try_from(frame.start().get()).map_err(|_| frame)?;
        let put = |place: &AtomicU32| {
            place
                .compare_exchange(EMPTY, word, Ordering::Release, Ordering::Relaxed)
                .is_ok()
        };
        if word != EMPTY && self.reserve.iter().any(put) {
            Ok(())
        } else {
            Err(frame)
        }
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
