//! What an observer may want to log or count.
//!
//! The engine writes down what happens and calls nobody: it may be deep in an
//! interrupt. Whoever steps it takes the events by value afterwards
//! ([`Engine::take_events`](crate::Engine::take_events)) and shows them with no lock held.

use core::fmt;

use crate::source::Shortage;
use crate::status::Progress;
use crate::units::{FrameCount, Order};

/// Something worth a line in a log; see [`Events`].
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
        /// Why the source had none; [`Shortage::None`] if what was left to give
        /// was less than a block.
        reason: Shortage,
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

/// What happened since an observer last asked, oldest first: at most sixteen different
/// events, each with how often it came.
///
/// A copy, so that whoever shows it holds no lock. An event that came again stands where it
/// came last. If more fell out, [`Event::Lost`] stands first.
#[derive(Clone, Copy, Debug)]
pub struct Events {
    kept: [(Event, u32); Self::LEN],
    len: usize,
    lost: u32,
}

impl Events {
    /// The most different events that are kept.
    pub(crate) const LEN: usize = 16;

    pub(crate) const fn new() -> Self {
        Self {
            kept: [(Event::Lost(0), 0); Self::LEN],
            len: 0,
            lost: 0,
        }
    }

    /// Whether nothing happened.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Each event with how often it came.
    pub fn iter(&self) -> impl Iterator<Item = (Event, u32)> {
        let lost = (self.lost > 0).then_some((Event::Lost(self.lost), 1));
        let kept = self.kept.get(..self.len).unwrap_or_default();
        lost.into_iter().chain(kept.iter().copied())
    }

    pub(crate) fn push(&mut self, event: Event) {
        let kept = self.kept.get_mut(..self.len).unwrap_or_default();
        let same = kept.iter().position(|&(other, _)| other == event);
        // The same one moves to the end, or the oldest falls out of a full row.
        let gap = same.or((self.len == Self::LEN).then_some(0));
        let Some((gap, rest)) = gap.and_then(|at| kept.get_mut(at..)?.split_first_mut()) else {
            if let Some(place) = self.kept.get_mut(self.len) {
                *place = (event, 1);
                self.len += 1;
            }
            return;
        };
        let times = match same {
            Some(_) => gap.1.saturating_add(1),
            None => {
                self.lost = self.lost.saturating_add(gap.1);
                1
            }
        };
        let mut hole = gap;
        for next in rest {
            *hole = *next;
            hole = next;
        }
        *hole = (event, times);
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    fn target(size: u64) -> Event {
        Event::Target(FrameCount::new(size))
    }

    fn events(sizes: impl Iterator<Item = u64>) -> Vec<(Event, u32)> {
        let mut events = Events::new();
        sizes.for_each(|size| events.push(target(size)));
        events.iter().collect()
    }

    #[test]
    fn the_oldest_comes_first_and_falls_out_first() {
        let most = Events::LEN as u64;
        assert_eq!(events(0..0), []);
        let all = (0..most).map(|size| (target(size), 1));
        assert!(events(0..most).into_iter().eq(all));
        let kept = (3..most + 3).map(|size| (target(size), 1));
        let lost = core::iter::once((Event::Lost(3), 1));
        assert!(events(0..most + 3).into_iter().eq(lost.chain(kept)));
    }

    #[test]
    fn equal_events_are_one_that_came_more_than_once() {
        let flood = (0..500).map(|turn| turn % 2);
        assert_eq!(events(flood), [(target(0), 250), (target(1), 250)]);
        assert_eq!(
            events([7, 8, 9, 7].into_iter()),
            [(target(8), 1), (target(9), 1), (target(7), 2)]
        );
    }
}
