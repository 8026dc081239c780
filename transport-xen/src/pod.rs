//! Booting under populate-on-demand.
//!
//! A domain started with less memory than its maximum sees all of the maximum
//! in its memory map, but Xen holds only the target ready. Each frame that is
//! touched takes from that cache; one frame too many and Xen kills the domain.
//! So the balloon gives back the difference **before** anything touches the
//! memory it gives.

use balloon_core::{FrameCount, Nanos};

use crate::errno::Errno;
use crate::hypercall::Memory;

/// Frames a domain is charged for that are not in its memory map (rings,
/// firmware tables).
const SPECIAL: FrameCount = FrameCount::new(16);

/// What has to be given before memory may be touched freely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promise {
    owed: FrameCount,
    deadline: Nanos,
}

/// The balloon did not get there in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[error("the balloon holds {given} of the {owed} that must be given before memory is touched")]
pub struct DeadlinePassed {
    /// What had to be given.
    pub owed: FrameCount,
    /// What was.
    pub given: FrameCount,
}

impl Promise {
    /// Compares the guest's memory map, `managed` frames of RAM, with what the
    /// domain is charged for.
    ///
    /// # Errors
    /// When Xen does not tell the reservation.
    pub fn at_boot(
        memory: &mut impl Memory,
        managed: FrameCount,
        deadline: Nanos,
    ) -> Result<Self, Errno> {
        let ready = memory.current_reservation()?.saturating_sub(SPECIAL);
        Ok(Self {
            owed: managed.saturating_sub(ready),
            deadline,
        })
    }

    /// Frames the balloon has to hold first; zero for a domain that started
    /// full.
    #[must_use]
    pub const fn owed(&self) -> FrameCount {
        self.owed
    }

    /// Whether memory may be touched, with a balloon of `given`.
    ///
    /// # Errors
    /// [`DeadlinePassed`]: report it and stop; going on ends in Xen's hands.
    pub fn is_kept(&self, given: FrameCount, now: Nanos) -> Result<bool, DeadlinePassed> {
        if given >= self.owed {
            Ok(true)
        } else if now < self.deadline {
            Ok(false)
        } else {
            Err(DeadlinePassed {
                owed: self.owed,
                given,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use balloon_core::{FrameRange, Pfn};

    use super::*;
    use crate::testing::{FakeXen, Fault, Kind};

    /// A domain charged for 1000 frames.
    fn domain() -> FakeXen {
        let memory = FrameRange::new(Pfn::new(0), FrameCount::new(1000)).unwrap();
        FakeXen::new(Kind::Pvh, memory)
    }

    #[test]
    fn a_promise_is_kept_in_time_or_reported() {
        let deadline = Nanos::from_secs(10);
        let managed = FrameCount::new(3000);
        let promise = Promise::at_boot(&mut domain(), managed, deadline).unwrap();
        let owed = promise.owed();
        assert_eq!(owed, FrameCount::new(3000 - (1000 - SPECIAL.get())));
        let short = owed.saturating_sub(FrameCount::ONE);
        let before = deadline.saturating_sub(Nanos::new(1));
        assert_eq!(promise.is_kept(short, before), Ok(false));
        let given = short;
        assert_eq!(
            promise.is_kept(short, deadline),
            Err(DeadlinePassed { owed, given })
        );
        // Late is better than stopped.
        assert_eq!(promise.is_kept(owed, Nanos::from_secs(11)), Ok(true));
    }

    #[test]
    fn a_full_domain_owes_nothing() {
        let managed = FrameCount::new(900);
        let promise = Promise::at_boot(&mut domain(), managed, Nanos::ZERO).unwrap();
        assert_eq!(promise.owed(), FrameCount::ZERO);
        assert_eq!(promise.is_kept(FrameCount::ZERO, Nanos::ZERO), Ok(true));
    }

    #[test]
    fn nothing_is_promised_where_xen_does_not_tell() {
        let mut xen = domain();
        xen.faults.push_back(Fault::Refuse(Errno::NotPermitted));
        let promise = Promise::at_boot(&mut xen, FrameCount::new(1), Nanos::ZERO);
        assert_eq!(promise, Err(Errno::NotPermitted));
    }
}
