//! Which features to accept, and what those agreed allow.

use super::features::{CHUNK_TRANSFER, Features, HOST_REQUESTS, REQUIRED};
use super::options::DriverOptions;

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
/// * `ACCESS_PLATFORM` is accepted: hosts insist on it. Page numbers stay guest-physical;
///   rings and buffers are where [`Dma`](crate::Dma) says. Ranges are descriptors, which
///   the platform translates, so they are named only where
///   [a bus address is a guest-physical one](crate::Dma::bus_is_physical).
///
/// ```
/// use transport_virtio::{DriverOptions, Features, wanted_features};
///
/// let qemu = Features::from_bits_retain(0x1_3000_0036);
/// assert_eq!(
///     wanted_features(qemu, &DriverOptions::new()),
///     Features::VERSION_1
///         | Features::DEFLATE_ON_OOM
///         | Features::PAGE_REPORTING
///         | Features::INDIRECT_DESC
///         | Features::EVENT_IDX,
/// );
/// ```
#[must_use]
pub const fn wanted_features(offered: Features, options: &DriverOptions) -> Features {
    let mut wanted = REQUIRED
        .union(Features::MUST_TELL_HOST)
        .union(Features::DEFLATE_ON_OOM)
        .union(Features::ACCESS_PLATFORM);
    let standard = options.standard(offered);
    if options.poison().is_some() {
        wanted = wanted.union(Features::PAGE_POISON);
    }
    let bulk = options.bulk()
        && !options.chunk_transfer()
        && options.poison().is_none()
        && !offered.contains(Features::MUST_TELL_HOST);
    let known = options.poison().is_none() || standard.contains(Features::PAGE_POISON);
    if bulk || (options.reporting() && known) {
        wanted = wanted.union(Features::PAGE_REPORTING);
    }
    if options.statistics() {
        wanted = wanted.union(Features::STATS_VQ);
    }
    if options.hints() {
        wanted = wanted.union(Features::FREE_PAGE_HINT);
    }
    if options.indirect() {
        wanted = wanted.union(Features::INDIRECT_DESC);
    }
    if options.event_idx() {
        wanted = wanted.union(Features::EVENT_IDX);
    }
    wanted = wanted.intersection(standard);
    if options.chunk_transfer() {
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
pub const fn bulk_allowed(negotiated: Features, options: &DriverOptions) -> bool {
    let negotiated = options.standard(negotiated);
    options.bulk()
        && !options.chunk_transfer()
        && options.poison().is_none()
        && negotiated.contains(Features::PAGE_REPORTING)
        && !negotiated.intersects(Features::PAGE_POISON.union(Features::MUST_TELL_HOST))
}

/// Whether free ranges may be reported while they stay free.
///
/// A device that was told a poison value must preserve it, one that was not may
/// not: a kernel that relies on what its free frames hold must have told it.
#[must_use]
pub const fn reporting_allowed(negotiated: Features, options: &DriverOptions) -> bool {
    let negotiated = options.standard(negotiated);
    let told = negotiated.contains(Features::PAGE_POISON);
    options.reporting()
        && negotiated.contains(Features::PAGE_REPORTING)
        && told == options.poison().is_some()
}
