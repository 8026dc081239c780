//! What an observer may want to log or count.
//!
//! The engine writes down what happens and calls nobody: it may be deep in an
//! interrupt. Whoever steps it hands the events on afterwards, to one closure,
//! with the engine at rest ([`Engine::drain_events`]).
//!
//! [`Engine::drain_events`]: crate::Engine::drain_events

use core::fmt;

use crate::source::Stop;
use crate::status::Progress;
use crate::units::{FrameCount, Order};

/// Something worth a line in a log; see [`Engine::drain_events`].
///
/// [`Engine::drain_events`]: crate::Engine::drain_events
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Event {
    /// So many events before this one were forgotten: nobody asked in time.
    Lost(u32),
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

impl Event {
    /// Whether somebody may have to do something about it.
    #[must_use]
    pub const fn is_warning(self) -> bool {
        match self {
            Self::Lost(_) | Self::Downgraded { .. } | Self::Relieved(_) => true,
            Self::Progress(progress) => matches!(progress, Progress::Blocked(_)),
            Self::Target(_) | Self::Upgraded(_) => false,
        }
    }

    /// Writes a line to `log` and `defmt`, whichever of the two features is on:
    /// a warning or an information.
    #[cfg(any(feature = "log", feature = "defmt"))]
    #[cfg_attr(docsrs, doc(cfg(any(feature = "log", feature = "defmt"))))]
    pub fn log(self) {
        #[cfg(feature = "log")]
        {
            let level = if self.is_warning() {
                log::Level::Warn
            } else {
                log::Level::Info
            };
            log::log!(level, "{self}");
        }
        #[cfg(feature = "defmt")]
        if self.is_warning() {
            defmt::warn!("{}", self);
        } else {
            defmt::info!("{}", self);
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(events) => write!(f, "{events} events of the balloon were missed"),
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

/// The last few events; the oldest fall out and are counted.
#[derive(Debug)]
pub(crate) struct Events {
    ring: [Option<Event>; Self::LEN],
    next: usize,
    lost: u32,
}

impl Events {
    pub(crate) const LEN: usize = 16;

    pub(crate) const fn new() -> Self {
        Self {
            ring: [None; Self::LEN],
            next: 0,
            lost: 0,
        }
    }

    pub(crate) fn push(&mut self, event: Event) {
        if let Some(place) = self.ring.get_mut(self.next) {
            self.lost = self.lost.saturating_add(place.is_some().into());
            *place = Some(event);
        }
        self.next = (self.next + 1) % Self::LEN;
    }

    /// Shows and forgets all, oldest first.
    pub(crate) fn drain(&mut self, mut observer: impl FnMut(Event)) {
        let lost = core::mem::take(&mut self.lost);
        if lost > 0 {
            observer(Event::Lost(lost));
        }
        let (newer, older) = self.ring.split_at_mut(self.next);
        let kept = older.iter_mut().chain(newer);
        kept.filter_map(Option::take).for_each(observer);
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    fn drained(events: &mut Events) -> Vec<Event> {
        let mut seen = Vec::new();
        events.drain(|event| seen.push(event));
        seen
    }

    #[test]
    fn the_oldest_comes_first_and_falls_out_first() {
        let target = |size| Event::Target(FrameCount::new(size));
        let mut events = Events::new();
        assert_eq!(drained(&mut events), []);
        let most = Events::LEN as u64;
        (0..most).for_each(|size| events.push(target(size)));
        assert!(drained(&mut events).into_iter().eq((0..most).map(target)));
        (0..most + 3).for_each(|size| events.push(target(size)));
        let lost = core::iter::once(Event::Lost(3));
        let kept = lost.chain((3..most + 3).map(target));
        assert!(drained(&mut events).into_iter().eq(kept));
        assert_eq!(drained(&mut events), []);
    }
}
