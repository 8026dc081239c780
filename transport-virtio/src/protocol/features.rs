//! Feature bits, and which of them to accept.

use bitflags::bitflags;

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
        /// The device has addresses as the platform gives them, be it through an IOMMU.
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
    .union(Features::EVENT_IDX)
    .union(Features::ACCESS_PLATFORM);

/// Frames are told in chunks: bit 3, since then free page hinting.
#[doc(alias = "VIRTIO_BALLOON_F_CHUNK_TRANSFER")]
pub const CHUNK_TRANSFER: Features = Features::FREE_PAGE_HINT;

/// The host may ask for unused pages: bit 4, since then page poisoning.
#[doc(alias = "VIRTIO_BALLOON_F_HOST_REQ_VQ")]
pub const HOST_REQUESTS: Features = Features::PAGE_POISON;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::negotiation::{bulk_allowed, reporting_allowed, wanted_features};
    use crate::protocol::options::DriverOptions;

    #[test]
    fn never_accepts_what_is_not_offered_or_not_understood() {
        let all = Features::from_bits_retain(u64::MAX);
        let wanted = wanted_features(all, &DriverOptions::new());
        assert_eq!(
            wanted.difference(REQUIRED.union(OPTIONAL)),
            Features::empty()
        );
        assert_eq!(
            wanted_features(Features::empty(), &DriverOptions::new()),
            Features::empty()
        );
    }

    #[test]
    fn must_tell_host_excludes_the_bulk_path() {
        let offered = Features::VERSION_1 | Features::MUST_TELL_HOST | Features::PAGE_REPORTING;
        let wanted = wanted_features(offered, &DriverOptions::new());
        assert_eq!(wanted, Features::VERSION_1 | Features::MUST_TELL_HOST);
        assert!(!bulk_allowed(offered, &DriverOptions::new()));
    }

    #[test]
    fn bulk_has_preconditions() {
        let plain = Features::VERSION_1 | Features::PAGE_REPORTING;
        assert!(bulk_allowed(plain, &DriverOptions::new()));
        assert!(!bulk_allowed(plain, &DriverOptions::new().without_bulk()));
        assert!(!bulk_allowed(
            plain | Features::PAGE_POISON,
            &DriverOptions::new()
        ));
        assert!(!bulk_allowed(Features::VERSION_1, &DriverOptions::new()));
    }

    #[test]
    fn who_relies_on_free_content_reports_only_to_who_knows_it() {
        let options = DriverOptions::new()
            .with_reporting()
            .with_poison(0xaaaa_aaaa);
        let report = Features::VERSION_1 | Features::PAGE_REPORTING;
        assert_eq!(wanted_features(report, &options), Features::VERSION_1);
        assert!(!reporting_allowed(report, &options));
        let both = report | Features::PAGE_POISON;
        assert_eq!(wanted_features(both, &options), both);
        assert!(reporting_allowed(both, &options) && !bulk_allowed(both, &options));
        // Somebody else accepted poison for a kernel that fills nothing.
        assert!(!reporting_allowed(
            both,
            &DriverOptions::new().with_reporting()
        ));
    }

    #[test]
    fn services_that_nobody_steps_are_declined() {
        let queues = Features::STATS_VQ | Features::FREE_PAGE_HINT;
        let all = REQUIRED | queues | Features::PAGE_REPORTING;
        assert!(!wanted_features(all, &DriverOptions::new()).intersects(queues));
        let served = DriverOptions::new()
            .with_statistics()
            .with_hints()
            .without_bulk();
        assert_eq!(wanted_features(all, &served), REQUIRED | queues);
        let served = served.with_reporting();
        assert_eq!(wanted_features(all, &served), all);
    }

    #[test]
    fn policies_decline() {
        let all = Features::VERSION_1 | Features::PAGE_REPORTING | Features::EVENT_IDX;
        let options = DriverOptions::new().without_bulk().without_event_idx();
        assert_eq!(wanted_features(all, &options), Features::VERSION_1);
    }
}
