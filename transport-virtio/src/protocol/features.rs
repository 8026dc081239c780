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

/// What the embedding kernel wants from the device.
///
/// ```
/// use transport_virtio::Policy;
///
/// // Everything a device offers, interrupts connected:
/// const FULL: Policy = Policy::new();
/// // A kernel that connects no interrupt:
/// const POLLED: Policy = Policy::new().polled();
/// assert!(FULL.interrupts() && !POLLED.interrupts());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    bulk: bool,
    interrupts: bool,
    event_idx: bool,
    indirect: bool,
    statistics: bool,
    hints: bool,
    reporting: bool,
    superpages: bool,
    poison: Option<u32>,
}

impl Policy {
    /// Every give path, interrupts connected, notifications by ring position.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            bulk: true,
            interrupts: true,
            event_idx: true,
            indirect: true,
            statistics: false,
            hints: false,
            reporting: false,
            superpages: false,
            poison: None,
        }
    }

    /// No interrupt reaches the kernel: the device is asked for none.
    #[must_use]
    pub const fn polled(mut self) -> Self {
        self.interrupts = false;
        self
    }

    /// Never gives ranges through the reporting queue.
    ///
    /// The frames then take the inflate queue, as 4 KiB page numbers. For hosts
    /// that account for the two differently.
    #[must_use]
    pub const fn without_bulk(mut self) -> Self {
        self.bulk = false;
        self
    }

    /// The host backs the guest with pages of 2 MiB that it cannot split
    /// (hugetlbfs).
    ///
    /// QEMU frees such a page only if one request names all of it, which takes
    /// 512 page numbers: two descriptors of 256, since others lose longer ones.
    /// The engine then gives whole pages first. Only for hosts known to be so:
    /// Firecracker reads the first descriptor alone.
    #[must_use]
    pub const fn with_host_superpages(mut self) -> Self {
        self.superpages = true;
        self
    }

    /// Whether the host's pages are of 2 MiB.
    #[must_use]
    pub const fn host_superpages(&self) -> bool {
        self.superpages
    }

    /// Declines notification suppression by ring position.
    #[must_use]
    pub const fn without_event_idx(mut self) -> Self {
        self.event_idx = false;
        self
    }

    /// Declines tables of descriptors: each range costs a descriptor then.
    #[must_use]
    pub const fn without_indirect(mut self) -> Self {
        self.indirect = false;
        self
    }

    /// The kernel steps [`Statistics`](crate::Statistics).
    #[must_use]
    pub const fn with_statistics(mut self) -> Self {
        self.statistics = true;
        self
    }

    /// The kernel steps [`Hinting`](crate::Hinting).
    #[must_use]
    pub const fn with_hints(mut self) -> Self {
        self.hints = true;
        self
    }

    /// The kernel steps [`Reporting`](crate::Reporting).
    ///
    /// It shares the reporting queue with the bulk path, half each.
    #[must_use]
    pub const fn with_reporting(mut self) -> Self {
        self.reporting = true;
        self
    }

    /// Every free frame of the kernel holds this value, repeated, and the
    /// kernel relies on it.
    ///
    /// Its frame source must fill what is put back, since ballooned frames come
    /// back with any content. Ranges are then never given in bulk, and reported
    /// only to a device that knows the value.
    #[must_use]
    pub const fn with_poison(mut self, value: u32) -> Self {
        self.poison = Some(value);
        self
    }

    /// What free frames hold, if the kernel relies on it.
    #[must_use]
    pub const fn poison(&self) -> Option<u32> {
        self.poison
    }

    /// Whether interrupts are connected.
    #[must_use]
    pub const fn interrupts(&self) -> bool {
        self.interrupts
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::new()
    }
}

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
    if policy.poison.is_some() {
        wanted = wanted.union(Features::PAGE_POISON);
    }
    let bulk =
        policy.bulk && policy.poison.is_none() && !offered.contains(Features::MUST_TELL_HOST);
    let known = policy.poison.is_none() || offered.contains(Features::PAGE_POISON);
    if bulk || (policy.reporting && known) {
        wanted = wanted.union(Features::PAGE_REPORTING);
    }
    if policy.statistics {
        wanted = wanted.union(Features::STATS_VQ);
    }
    if policy.hints {
        wanted = wanted.union(Features::FREE_PAGE_HINT);
    }
    if policy.indirect {
        wanted = wanted.union(Features::INDIRECT_DESC);
    }
    if policy.event_idx {
        wanted = wanted.union(Features::EVENT_IDX);
    }
    wanted.intersection(offered)
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
    policy.bulk
        && policy.poison.is_none()
        && negotiated.contains(Features::PAGE_REPORTING)
        && !negotiated.intersects(Features::PAGE_POISON.union(Features::MUST_TELL_HOST))
}

/// Whether free ranges may be reported while they stay free.
///
/// A device that was told a poison value must preserve it, one that was not may
/// not: a kernel that relies on what its free frames hold must have told it.
#[must_use]
pub const fn reporting_allowed(negotiated: Features, policy: &Policy) -> bool {
    let told = negotiated.contains(Features::PAGE_POISON);
    policy.reporting
        && negotiated.contains(Features::PAGE_REPORTING)
        && told == policy.poison.is_some()
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
