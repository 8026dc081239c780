//! Feature bits, and which of them to accept.

use bitflags::bitflags;

use super::{CHUNK_TRANSFER, HOST_REQUESTS, Policy};

bitflags! {
    /// Feature bits of the balloon and of virtio itself.
    ///
    /// Bits of private dialects have no name here: bit 6 alone has five
    /// claimants. Unknown bits survive in the value and are never accepted.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Features: u64 {
        /// A frame is usable only once its deflation is answered.
        #[doc(alias = "VIRTIO_BALLOON_F_MUST_TELL_HOST")]
        const MUST_TELL_HOST = 1 << 0;
        /// The statistics queue.
        #[doc(alias = "VIRTIO_BALLOON_F_STATS_VQ")]
        const STATS_VQ = 1 << 1;
        /// The guest may deflate against the target when it runs out of memory.
        #[doc(alias = "VIRTIO_BALLOON_F_DEFLATE_ON_OOM")]
        const DEFLATE_ON_OOM = 1 << 2;
        /// The free page hinting queue.
        #[doc(alias = "VIRTIO_BALLOON_F_FREE_PAGE_HINT")]
        const FREE_PAGE_HINT = 1 << 3;
        /// The guest fills free pages with a value.
        #[doc(alias = "VIRTIO_BALLOON_F_PAGE_POISON")]
        const PAGE_POISON = 1 << 4;
        /// The free page reporting queue.
        #[doc(alias = "VIRTIO_BALLOON_F_PAGE_REPORTING")]
        const PAGE_REPORTING = 1 << 5;
        /// Descriptors may point to tables of descriptors.
        #[doc(alias = "VIRTIO_F_INDIRECT_DESC")]
        const INDIRECT_DESC = 1 << 28;
        /// Notifications are asked for at ring positions.
        #[doc(alias = "VIRTIO_F_EVENT_IDX")]
        const EVENT_IDX = 1 << 29;
        /// The device follows virtio 1.0 or later.
        #[doc(alias = "VIRTIO_F_VERSION_1")]
        const VERSION_1 = 1 << 32;
        /// The device sees memory through an IOMMU.
        #[doc(alias = "VIRTIO_F_ACCESS_PLATFORM")]
        const ACCESS_PLATFORM = 1 << 33;

        const _ = !0;
    }
}

impl Features {
    /// Whether the device offers a balloon feature this crate has no name for.
    ///
    /// Such a device may have queues of its own behind the known ones.
    #[must_use]
    pub(crate) const fn has_private_bits(self) -> bool {
        const PRIVATE: u64 = 0xff_ffc0;
        self.bits() & PRIVATE != 0
    }
}

/// Without these there is no balloon: a legacy-only device is not driven.
pub const REQUIRED: Features = Features::VERSION_1;

/// All that this crate may accept beyond [`REQUIRED`], whatever the policy.
pub const OPTIONAL: Features = Features::MUST_TELL_HOST
    .union(Features::STATS_VQ)
    .union(Features::FREE_PAGE_HINT)
    .union(Features::PAGE_POISON)
    .union(Features::DEFLATE_ON_OOM)
    .union(Features::PAGE_REPORTING)
    .union(Features::INDIRECT_DESC)
    .union(Features::EVENT_IDX);

/// The features to accept of those offered: pure, for kernels that negotiate
/// before the driver exists.
///
/// * `MUST_TELL_HOST` is accepted whenever it is offered, as the specification
///   asks; it excludes the bulk path, so reporting is then left alone.
/// * `DEFLATE_ON_OOM` is accepted: it permits, and obliges to nothing.
/// * `PAGE_POISON` is not, unless the policy names a value: its driver has to
///   fill every frame it takes back, and a value makes QEMU skip reports.
/// * `PAGE_REPORTING` is not if the kernel relies on what free frames hold and
///   the device will not be told.
/// * Statistics and hints are accepted only if the kernel serves them.
/// * Under the `CHUNK_TRANSFER` dialect bits 3 and 4 are the dialect's, and
///   statistics are accepted since it counts on their queue.
/// * `ACCESS_PLATFORM` is not: page numbers are guest-physical, whatever sits
///   between device and memory.
///
/// ```
/// use transport_virtio::{Features, Policy, wanted_features};
///
/// let qemu = Features::from_bits_retain(0x1_3000_0036);
/// assert_eq!(
///     wanted_features(qemu, &Policy::new()),
///     Features::VERSION_1
///         | Features::DEFLATE_ON_OOM
///         | Features::PAGE_REPORTING
///         | Features::INDIRECT_DESC
///         | Features::EVENT_IDX,
/// );
/// ```
#[must_use]
pub const fn wanted_features(offered: Features, policy: &Policy) -> Features {
    let mut wanted = REQUIRED
        .union(Features::MUST_TELL_HOST)
        .union(Features::DEFLATE_ON_OOM);
    let standard = policy.standard(offered);
    if policy.poison().is_some() {
        wanted = wanted.union(Features::PAGE_POISON);
    }
    let bulk = policy.bulk()
        && !policy.chunk_transfer()
        && policy.poison().is_none()
        && !offered.contains(Features::MUST_TELL_HOST);
    let known = policy.poison().is_none() || standard.contains(Features::PAGE_POISON);
    if bulk || (policy.reporting() && known) {
        wanted = wanted.union(Features::PAGE_REPORTING);
    }
    if policy.statistics() {
        wanted = wanted.union(Features::STATS_VQ);
    }
    if policy.hints() {
        wanted = wanted.union(Features::FREE_PAGE_HINT);
    }
    if policy.indirect() {
        wanted = wanted.union(Features::INDIRECT_DESC);
    }
    if policy.event_idx() {
        wanted = wanted.union(Features::EVENT_IDX);
    }
    wanted = wanted.intersection(standard);
    if policy.chunk_transfer() {
        let dialect = CHUNK_TRANSFER
            .union(HOST_REQUESTS)
            .union(Features::STATS_VQ);
        wanted = wanted.union(dialect.intersection(offered));
    }
    wanted
}

/// Whether frames may be given as ranges through the reporting queue.
///
/// A report is a promise that the content may go, nothing more; so a balloon
/// may make it and simply keep the frames. Two features give that promise
/// another meaning: with `PAGE_POISON` the host must preserve the fill value, and
/// with `MUST_TELL_HOST` the guest must ask before it uses a ballooned frame
/// again, which the reporting queue has no words for.
#[must_use]
pub const fn bulk_allowed(negotiated: Features, policy: &Policy) -> bool {
    let negotiated = policy.standard(negotiated);
    policy.bulk()
        && !policy.chunk_transfer()
        && policy.poison().is_none()
        && negotiated.contains(Features::PAGE_REPORTING)
        && !negotiated.intersects(Features::PAGE_POISON.union(Features::MUST_TELL_HOST))
}

/// Whether free ranges may be reported while they stay free.
///
/// A device that was told a poison value must preserve it, one that was not may
/// not: a kernel that relies on what its free frames hold must have told it.
#[must_use]
pub const fn reporting_allowed(negotiated: Features, policy: &Policy) -> bool {
    let negotiated = policy.standard(negotiated);
    let told = negotiated.contains(Features::PAGE_POISON);
    policy.reporting()
        && negotiated.contains(Features::PAGE_REPORTING)
        && told == policy.poison().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_accepts_what_is_not_offered_or_not_understood() {
        let all = Features::from_bits_retain(u64::MAX);
        let wanted = wanted_features(all, &Policy::new());
        assert_eq!(
            wanted.difference(REQUIRED.union(OPTIONAL)),
            Features::empty()
        );
        assert_eq!(
            wanted_features(Features::empty(), &Policy::new()),
            Features::empty()
        );
    }

    #[test]
    fn must_tell_host_excludes_the_bulk_path() {
        let offered = Features::VERSION_1 | Features::MUST_TELL_HOST | Features::PAGE_REPORTING;
        let wanted = wanted_features(offered, &Policy::new());
        assert_eq!(wanted, Features::VERSION_1 | Features::MUST_TELL_HOST);
        assert!(!bulk_allowed(offered, &Policy::new()));
    }

    #[test]
    fn bulk_has_preconditions() {
        let plain = Features::VERSION_1 | Features::PAGE_REPORTING;
        assert!(bulk_allowed(plain, &Policy::new()));
        assert!(!bulk_allowed(plain, &Policy::new().without_bulk()));
        assert!(!bulk_allowed(plain | Features::PAGE_POISON, &Policy::new()));
        assert!(!bulk_allowed(Features::VERSION_1, &Policy::new()));
    }

    #[test]
    fn who_relies_on_free_content_reports_only_to_who_knows_it() {
        let policy = Policy::new().with_reporting().with_poison(0xaaaa_aaaa);
        let report = Features::VERSION_1 | Features::PAGE_REPORTING;
        assert_eq!(wanted_features(report, &policy), Features::VERSION_1);
        assert!(!reporting_allowed(report, &policy));
        let both = report | Features::PAGE_POISON;
        assert_eq!(wanted_features(both, &policy), both);
        assert!(reporting_allowed(both, &policy) && !bulk_allowed(both, &policy));
        // Somebody else accepted poison for a kernel that fills nothing.
        assert!(!reporting_allowed(both, &Policy::new().with_reporting()));
    }

    #[test]
    fn services_that_nobody_steps_are_declined() {
        let queues = Features::STATS_VQ | Features::FREE_PAGE_HINT;
        let all = REQUIRED | queues | Features::PAGE_REPORTING;
        assert!(!wanted_features(all, &Policy::new()).intersects(queues));
        let served = Policy::new().with_statistics().with_hints().without_bulk();
        assert_eq!(wanted_features(all, &served), REQUIRED | queues);
        let served = served.with_reporting();
        assert_eq!(wanted_features(all, &served), all);
    }

    #[test]
    fn policies_decline() {
        let all = Features::VERSION_1 | Features::PAGE_REPORTING | Features::EVENT_IDX;
        let policy = Policy::new().without_bulk().without_event_idx();
        assert_eq!(wanted_features(all, &policy), Features::VERSION_1);
    }
}
