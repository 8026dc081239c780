//! The atomics of `core`, or loom's when the models are compiled.

#[cfg(not(loom))]
pub(crate) use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Each atomic operation that orders other memory.
///
/// The models weaken one at a time and must find what it was for: an ordering
/// stronger than needed, or a model too weak to notice, fails them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Site {
    /// A slot becomes the claimer's.
    Claim,
    /// The request may be seen by the host.
    Launch,
    /// A completer looks at the request.
    Complete,
    /// The answer is there.
    Done,
    /// The answer is taken.
    Answer,
    /// The slot is free again.
    Free,
    /// An interrupt handler has news.
    Raise,
    /// A step takes note of them.
    Take,
}

/// The ordering of an operation.
#[cfg(not(loom))]
pub(crate) const fn at(_: Site, ordering: Ordering) -> Ordering {
    ordering
}

#[cfg(loom)]
pub(crate) use weakened::at;

#[cfg(loom)]
pub(crate) mod weakened {
    use core::cell::Cell;

    use super::{Ordering, Site};

    std::thread_local! {
        // loom runs all threads of a model on the one that started it.
        static WEAKENED: Cell<Option<Site>> = const { Cell::new(None) };
    }

    /// The ordering of an operation, relaxed where a model wants it.
    pub(crate) fn at(site: Site, ordering: Ordering) -> Ordering {
        if WEAKENED.get() == Some(site) {
            Ordering::Relaxed
        } else {
            ordering
        }
    }

    /// Relaxes `site` for every model this thread runs from now on.
    #[cfg(test)]
    pub(crate) fn weaken(site: Site) {
        WEAKENED.set(Some(site));
    }
}
