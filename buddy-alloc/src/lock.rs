//! What the caller's lock has to do.

/// Mutual exclusion around a value. Implement it for the kernel's own lock in five lines.
///
/// `with` is not nested by this crate. What a caller passes to
/// [`CachedZone::with`](crate::CachedZone::with) runs under the lock, and must not call the
/// allocator through its front again.
///
/// ```
/// use buddy_alloc::Lock;
///
/// struct KernelLock<T>(std::sync::Mutex<T>);
///
/// impl<T> Lock<T> for KernelLock<T> {
///     fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
///         f(&mut self.0.lock().unwrap())
///     }
/// }
/// # assert_eq!(KernelLock(std::sync::Mutex::new(1)).with(|n| { *n += 1; *n }), 2);
/// ```
pub trait Lock<T> {
    /// Runs `f` with exclusive access.
    fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R;
}

#[cfg(feature = "spin")]
impl<T> Lock<T> for spin::Mutex<T> {
    #[inline]
    fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        f(&mut self.lock())
    }
}
