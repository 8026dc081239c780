//! The fences of `core`, or loom's when the models are compiled.

pub(crate) use core::sync::atomic::Ordering;

/// Each fence of the rings.
///
/// The models leave out one at a time and must find what it was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Site {
    /// Between a request and the index that offers it.
    Publish,
    /// Between our wishes and a look at the device's.
    Kick,
    /// Between the index that covers an answer and the answer.
    Take,
    /// Between a wish moved on and the next look at the answers.
    Postpone,
}

#[cfg(not(loom))]
pub(crate) fn fence(_: Site, ordering: Ordering) {
    core::sync::atomic::fence(ordering);
}

#[cfg(loom)]
pub(crate) use weakened::fence;

#[cfg(loom)]
pub(crate) mod weakened {
    use core::cell::Cell;

    use super::{Ordering, Site};

    std::thread_local! {
        // loom runs all threads of a model on the one that started it.
        static WEAKENED: Cell<Option<Site>> = const { Cell::new(None) };
    }

    /// A fence, except where a model wants none.
    pub(crate) fn fence(site: Site, ordering: Ordering) {
        if WEAKENED.get() != Some(site) {
            loom::sync::atomic::fence(ordering);
        }
    }

    /// Leaves out `site` in every model this thread runs from now on.
    #[cfg(test)]
    pub(crate) fn weaken(site: Site) {
        WEAKENED.set(Some(site));
    }
}
