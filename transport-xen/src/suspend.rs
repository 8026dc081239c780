//! Being asked to stop, and coming back from a save.
//!
//! A saved domain comes back as a new one: memory, page tables and the holes of
//! the balloon are as they were, everything that tied it to the old domain is
//! gone. [`Suspension`] says what is to be done when; it owns nothing and calls
//! nothing but the one hypercall that stops the domain.
//!
//! Bring the balloon to its target before the suspend, if that takes no longer
//! than the toolstack waits (a minute): the target is the restored domain's limit,
//! and `xl` restores no domain that owned more.
//!
//! ```text
//!  running ── asked ──► acknowledging ── acknowledged ──► ready ── suspend ──┐
//!     ▲                                                                     │
//!     └────────────── cancelled: go on / restored: rebuild first ◄──────────┘
//! ```

use crate::errno::Errno;
use crate::hypercall::calls::{Domain, ShutdownReason, Woken};

/// What the toolstack asks through `control/shutdown`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum ShutdownRequest {
    /// Stop for good.
    PowerOff,
    /// Start again.
    Reboot,
    /// Stop to be saved or moved.
    Suspend,
}

impl ShutdownRequest {
    /// Reads the node; `None` for the empty value that acknowledges, and for
    /// what is not known.
    #[must_use]
    pub fn from_value(value: &[u8]) -> Option<Self> {
        match value.strip_suffix(b"\0").unwrap_or(value) {
            b"poweroff" | b"halt" => Some(Self::PowerOff),
            b"reboot" => Some(Self::Reboot),
            b"suspend" => Some(Self::Suspend),
            _ => None,
        }
    }
}

/// What the kernel is to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum SuspendAction {
    /// Write the acknowledgement ([`BalloonNodes::acknowledge`](crate::store::BalloonNodes::acknowledge)).
    Acknowledge,
    /// Bring devices and other CPUs to rest, then call [`Suspension::suspend`].
    Suspend,
    /// Power off or reboot.
    Stop(ShutdownRequest),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Running,
    Acknowledging,
    Ready,
}

/// The way down and up again.
#[derive(Debug, Default)]
pub struct Suspension {
    state: State,
}

impl Suspension {
    /// A running domain.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            state: State::Running,
        }
    }

    /// The toolstack asked for something. A second request while one is under way
    /// is ignored: the acknowledgement names the one that counts.
    pub fn asked(&mut self) -> Option<SuspendAction> {
        if self.state != State::Running {
            return None;
        }
        self.state = State::Acknowledging;
        Some(SuspendAction::Acknowledge)
    }

    /// The acknowledgement of this request is written; it may be a newer one.
    ///
    /// Not before: a toolstack that sees the domain stop without one gives up.
    pub fn acknowledged(&mut self, request: ShutdownRequest) -> Option<SuspendAction> {
        if self.state != State::Acknowledging {
            return None;
        }
        if request == ShutdownRequest::Suspend {
            self.state = State::Ready;
            Some(SuspendAction::Suspend)
        } else {
            self.state = State::Running;
            Some(SuspendAction::Stop(request))
        }
    }

    /// There is nothing to acknowledge any more: the domain goes on.
    pub fn withdrawn(&mut self) {
        if self.state == State::Acknowledging {
            self.state = State::Running;
        }
    }

    /// Stops the domain and returns when it runs again.
    ///
    /// After [`Woken::Restored`] first of all
    /// [`Platform::rebuild`](crate::platform::Platform::rebuild), then
    /// [`BalloonNodes::restored`](crate::store::BalloonNodes::restored) and
    /// [`XenBalloon::restored`](crate::XenBalloon::restored). After
    /// [`Woken::Cancelled`] everything is still in place, and
    /// [`BalloonNodes::reread`](crate::store::BalloonNodes::reread) finds what came meanwhile.
    ///
    /// # Errors
    /// When no suspend was acknowledged ([`Errno::Invalid`]), or Xen refuses:
    /// the domain goes on as after [`Woken::Cancelled`].
    pub fn suspend(&mut self, domain: &mut impl Domain) -> Result<Woken, Errno> {
        if self.state != State::Ready {
            return Err(Errno::Invalid);
        }
        self.state = State::Running;
        domain.shutdown(ShutdownReason::Suspend)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_the_node() {
        use ShutdownRequest::{PowerOff, Reboot, Suspend};
        let read = ShutdownRequest::from_value;
        assert_eq!(read(b"suspend"), Some(Suspend));
        assert_eq!(read(b"halt"), Some(PowerOff));
        assert_eq!(read(b"reboot\0"), Some(Reboot));
        assert_eq!(read(b""), None);
        assert_eq!(read(b"suspend now"), None);
    }

    #[test]
    fn nothing_stops_before_it_is_acknowledged() {
        use ShutdownRequest::Suspend;
        let mut way = Suspension::new();
        assert_eq!(way.acknowledged(Suspend), None);
        assert_eq!(way.asked(), Some(SuspendAction::Acknowledge));
        assert_eq!(way.asked(), None, "one at a time");
        assert_eq!(way.acknowledged(Suspend), Some(SuspendAction::Suspend));
        assert_eq!(way.acknowledged(Suspend), None);
    }

    #[test]
    fn what_is_acknowledged_is_done() {
        use ShutdownRequest::PowerOff;
        let mut way = Suspension::new();
        way.asked();
        let stop = Some(SuspendAction::Stop(PowerOff));
        assert_eq!(way.acknowledged(PowerOff), stop);
    }

    #[test]
    fn a_request_that_was_withdrawn_makes_way_for_another() {
        let mut way = Suspension::new();
        way.asked();
        way.withdrawn();
        assert_eq!(way.acknowledged(ShutdownRequest::Suspend), None);
        assert_eq!(way.asked(), Some(SuspendAction::Acknowledge));
    }
}
