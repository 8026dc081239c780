//! What an observer may want to log or count.

use core::fmt;

use crate::source::Stop;
use crate::status::Progress;
use crate::units::{FrameCount, Order};

/// Something worth a line in a log; see [`Engine::take_event`].
///
/// [`Engine::take_event`]: crate::Engine::take_event
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Event {
    /// The host wants this size.
    Target(FrameCount),
    /// The answer to "how is it going" changed.
    Progress(Progress),
    /// Blocks of order `from` ran out: 4 KiB frames are given from now on,
    /// which costs the host its large mappings.
    Downgraded {
        /// The unit given up.
        from: Order,
        /// Why the source had none; [`Stop::Enough`] if what was left to give
        /// was less than a block.
        reason: Stop,
    },
    /// All given blocks are whole again: back to this unit.
    Upgraded(Order),
    /// Memory ran short: so many frames came back at once.
    Relieved(FrameCount),
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Target(size) => write!(f, "the host asks for a balloon of {size}"),
            Self::Progress(progress) => write!(f, "balloon {progress}"),
            Self::Downgraded { from, reason } => {
                write!(
                    f,
                    "no free block of order {} ({reason:?}): giving 4 KiB frames",
                    from.get()
                )
            }
            Self::Upgraded(to) => write!(f, "giving blocks of order {} again", to.get()),
            Self::Relieved(frames) => write!(f, "{frames} came back to relieve memory pressure"),
        }
    }
}

/// The last few events; the oldest fall out.
#[derive(Debug)]
pub(crate) struct Events {
    ring: [Option<Event>; Self::LEN],
    next: usize,
}

impl Events {
    const LEN: usize = 8;

    pub(crate) const fn new() -> Self {
        Self {
            ring: [None; Self::LEN],
            next: 0,
        }
    }

    pub(crate) fn push(&mut self, event: Event) {
        if let Some(place) = self.ring.get_mut(self.next) {
            *place = Some(event);
        }
        self.next = (self.next + 1) % Self::LEN;
    }

    /// The oldest event, once.
    pub(crate) fn take(&mut self) -> Option<Event> {
        let (newer, older) = self.ring.split_at_mut_checked(self.next)?;
        older.iter_mut().chain(newer).find_map(Option::take)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_comes_first_and_falls_out_first() {
        let mut events = Events::new();
        assert_eq!(events.take(), None);
        for size in 0..11 {
            events.push(Event::Target(FrameCount::new(size)));
        }
        for size in 3..11 {
            assert_eq!(events.take(), Some(Event::Target(FrameCount::new(size))));
        }
        assert_eq!(events.take(), None);
    }
}
