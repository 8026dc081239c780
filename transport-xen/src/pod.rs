//! Booting under populate-on-demand.
//!
//! A domain started with less memory than its maximum sees all of the maximum
//! in its memory map, but Xen holds only the target ready. Each frame that is
//! touched takes from that cache; one frame too many and Xen kills the domain.
//! So the balloon gives back the difference **before** anything touches the
//! memory it gives. Until then nothing is cleared, and nothing migrated by compaction: to
//! move a frame, Xen keeps its promise first. So the kernel tells its
//! [`Reservation`](crate::Reservation::promise_stands) that the promise stands, and
//! that it is kept. What a kernel has written by then is not to be among the free
//! memory of its source.
//!
//! A kernel that was started by another one, as by kexec, has no promise to keep: the
//! first kernel did, and its balloon is found by [`holes`](crate::holes).

use balloon_core::{FrameCount, Nanos};

use crate::errno::Errno;
use crate::hypercall::calls::Memory;

/// What has to be given before memory may be touched freely.
///
/// Xen charges a domain for its part of the memory map, and for frames beyond it:
/// rings, firmware tables, of some kinds video memory. How many those are differs
/// from release to release, and nobody tells the guest. So what the domain is
/// charged for says how much it owes at least; all of it is what the toolstack's
/// target asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodDeadline {
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

impl PodDeadline {
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
        let charged = memory.current_reservation()?;
        Ok(Self {
            owed: managed.saturating_sub(charged),
            deadline,
        })
    }

    /// Frames the balloon has to hold first, at least; zero for a domain that
    /// started full.
    #[must_use]
    pub const fn owed(&self) -> FrameCount {
        self.owed
    }

    /// Whether memory may be touched, with a balloon of `given`.
    ///
    /// `target` is the size the toolstack wants it to have, as soon as it was read
    /// ([`Status::target`](balloon_core::Status::target)). Where it is not known
    /// by the deadline, what is owed at least has to do.
    ///
    /// # Errors
    /// [`DeadlinePassed`]: report it and stop; going on ends in Xen's hands.
    pub fn is_kept(
        &self,
        given: FrameCount,
        target: Option<FrameCount>,
        now: Nanos,
    ) -> Result<bool, DeadlinePassed> {
        let owed = self.owed;
        if target.is_some_and(|target| given >= target.max(owed)) {
            Ok(true)
        } else if now < self.deadline {
            Ok(false)
        } else if given >= owed {
            Ok(true)
        } else {
            Err(DeadlinePassed { owed, given })
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
        let promise = PodDeadline::at_boot(&mut domain(), managed, deadline).unwrap();
        let owed = promise.owed();
        assert_eq!(owed, FrameCount::new(2000));
        let short = owed.saturating_sub(FrameCount::ONE);
        let before = deadline.saturating_sub(Nanos::new(1));
        for target in [None, Some(short), Some(owed)] {
            assert_eq!(promise.is_kept(short, target, before), Ok(false));
            let given = short;
            assert_eq!(
                promise.is_kept(short, target, deadline),
                Err(DeadlinePassed { owed, given })
            );
            // Late is better than stopped.
            assert_eq!(promise.is_kept(owed, target, deadline), Ok(true));
        }
    }

    #[test]
    fn frames_beyond_the_map_hide_a_part_of_what_is_owed() {
        let (before, deadline) = (Nanos::ZERO, Nanos::from_secs(10));
        // 16 frames of the 1000 are none of the map's.
        let managed = FrameCount::new(3000);
        let promise = PodDeadline::at_boot(&mut domain(), managed, deadline).unwrap();
        let target = FrameCount::new(2016);
        assert_eq!(promise.is_kept(promise.owed(), None, before), Ok(false));
        assert_eq!(
            promise.is_kept(promise.owed(), Some(target), before),
            Ok(false)
        );
        assert_eq!(promise.is_kept(target, Some(target), before), Ok(true));
    }

    #[test]
    fn a_full_domain_owes_nothing_however_much_lies_beyond_its_map() {
        for beyond in [0, 15, 16, 4096] {
            let managed = FrameCount::new(1000_u64.saturating_sub(beyond));
            let deadline = Nanos::from_secs(10);
            let promise = PodDeadline::at_boot(&mut domain(), managed, deadline).unwrap();
            assert_eq!(promise.owed(), FrameCount::ZERO);
            let (none, full) = (FrameCount::ZERO, Some(FrameCount::ZERO));
            assert_eq!(promise.is_kept(none, full, Nanos::ZERO), Ok(true));
            // Not before the toolstack has said so, but for ever without it.
            assert_eq!(promise.is_kept(none, None, Nanos::ZERO), Ok(false));
            assert_eq!(promise.is_kept(none, None, deadline), Ok(true));
        }
    }

    #[test]
    fn nothing_is_promised_where_xen_does_not_tell() {
        let mut xen = domain();
        xen.faults.push_back(Fault::Refuse(Errno::NotPermitted));
        let promise = PodDeadline::at_boot(&mut xen, FrameCount::new(1), Nanos::ZERO);
        assert_eq!(promise, Err(Errno::NotPermitted));
    }
}
