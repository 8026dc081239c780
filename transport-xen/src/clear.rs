//! Taking what the guest wrote out of memory before Xen gets it.
//!
//! Xen clears memory of domains that die and, unless told to by `scrub-domheap`,
//! no other: what a domain gives as it is, the next one can read. Its manual asks
//! guests to clean what they free, and Linux does by default.

use balloon_core::FrameRange;

/// How the kernel overwrites frames that the host is about to get.
///
/// A kernel brings it for its [`Reservation`](crate::Reservation), or opts out by
/// [`Uncleared`]. Called before frames are given or exchanged, for what is not
/// [untouched](balloon_core::Run::is_untouched), and for none while a
/// [promise stands](crate::Reservation::promise_stands). An
/// extent is one call, of up to 2 MiB, and no more is cleared than the next hypercall
/// names.
///
/// ```
/// use balloon_core::FrameRange;
/// use transport_xen::Clear;
///
/// /// All memory is mapped one to one from here on.
/// struct DirectMap(*mut u8);
///
/// impl Clear for DirectMap {
///     fn clear(&mut self, frames: FrameRange) {
///         let start = usize::try_from(frames.start().get() << 12).unwrap_or(usize::MAX);
///         let bytes = usize::try_from(frames.count().bytes().get()).unwrap_or(0);
///         // SAFETY: the frames are free, and the balloon's alone. No caches are
///         // filled with zeros: `rep stosb`, or stores that go past them, are quickest.
///         unsafe { self.0.wrapping_add(start).write_bytes(0, bytes) };
///     }
/// }
/// ```
pub trait Clear {
    /// Overwrites all of these frames.
    ///
    /// They are the balloon's alone, and mapped as the kernel maps free memory.
    fn clear(&mut self, frames: FrameRange);
}

/// Memory goes to the host as it is, for the next domain to read.
///
/// For a host that clears by itself (`scrub-domheap`), and for guests without secrets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Uncleared;

impl Clear for Uncleared {
    fn clear(&mut self, _: FrameRange) {}
}

impl<C: Clear + ?Sized> Clear for &mut C {
    fn clear(&mut self, frames: FrameRange) {
        (**self).clear(frames);
    }
}
