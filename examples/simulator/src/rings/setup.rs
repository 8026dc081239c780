//! What a seed makes of the guest: features, policies, services, zones.

use anyhow::{Context as _, Result, bail, ensure};
use balloon_core::{BitmapLedger, Delays, FrameCount, Granularity, Nanos, Order};
use buddy_alloc::{Backing, Config, Zone, Zones};
use transport_virtio::testing::{FakeDevice, FakeMemory, NoDelay, Profile};
use transport_virtio::{
    DriverOptions, Features, Hinting, ReportPace, Reporting, Rings, Statistics, Tag, UnusedPages,
};

use super::{Balloon, FRAMES, Ground, RING, Remembered, Services, Source};
use crate::rng::Rng;

impl Services {
    pub(super) fn new(rng: &mut Rng, balloon: &Balloon, ground: Ground) -> Result<Self> {
        let negotiated = balloon.negotiated();
        let min_free = FrameCount::new(rng.below(200));
        let held = || -> Result<Remembered> {
            let words = usize::try_from(BitmapLedger::words(FrameCount::new(FRAMES)))?;
            Ok(BitmapLedger::new(vec![0; words], &[ground.all()?])?)
        };
        let hinting = match balloon.hint_limits() {
            Some(_) => Some((Hinting::new(min_free), held()?)),
            None => None,
        };
        let unused = if balloon.takes_host_requests() {
            Some((UnusedPages::new(min_free), held()?))
        } else {
            None
        };
        let mut pace = ReportPace::DEFAULT;
        pace.order = Order::new(if rng.chance(500) { 3 } else { 0 }).unwrap_or(Order::SUPERPAGE);
        pace.rest = Nanos::from_millis(50 + rng.below(500));
        pace.gap = Nanos::from_millis(rng.below(3) * 5);
        Ok(Self {
            hinting,
            unused,
            reporting: balloon.report_limits().map(|_| Reporting::new(pace)),
            statistics: negotiated
                .contains(Features::STATS_VQ)
                .then(|| Statistics::new(&[Tag::FREE])),
        })
    }
}

/// What the device offers, and what the guest wants of it.
pub(super) fn agree(rng: &mut Rng, ground: Ground, chunks: bool) -> (Profile, DriverOptions) {
    let mut offered = Features::empty();
    for feature in [
        Features::EVENT_IDX,
        Features::INDIRECT_DESC,
        Features::PAGE_REPORTING,
        Features::DEFLATE_ON_OOM,
        Features::FREE_PAGE_HINT,
        Features::STATS_VQ,
    ] {
        if rng.chance(600) {
            offered |= feature;
        }
    }
    if rng.chance(250) {
        offered |= Features::MUST_TELL_HOST;
    }
    let mut policy = DriverOptions::new();
    if rng.chance(300) {
        policy = policy.polled();
    }
    if rng.chance(300) {
        policy = policy.with_statistics();
    }
    if chunks {
        offered |= Features::FREE_PAGE_HINT;
        if rng.chance(800) {
            offered |= Features::PAGE_POISON;
        }
        offered.remove(Features::PAGE_REPORTING);
        return (
            Profile::specification(offered),
            policy.with_chunk_transfer(),
        );
    }
    if ground.is_low() && rng.chance(300) {
        policy = policy.without_bulk();
    }
    if rng.chance(400) {
        policy = policy.with_reporting();
    }
    if rng.chance(400) {
        policy = policy.with_hints();
    }
    if rng.chance(300) {
        policy = policy.with_host_superpages();
    }
    let profile = match rng.below(3) {
        0 => Profile::qemu(offered),
        1 => Profile::specification(offered),
        _ => Profile::cloud_hypervisor(offered),
    };
    (profile, policy)
}

pub(super) fn policy(rng: &mut Rng, ground: Ground) -> balloon_core::Policy {
    let mut policy = balloon_core::Policy::DEFAULT;
    policy.granularity = if rng.chance(300) {
        Granularity::Frames
    } else {
        Granularity::Adaptive
    };
    // A reserve could be of frames that no number reaches.
    policy.emergency_pool = FrameCount::new(if ground.is_low() { rng.below(4) } else { 0 });
    policy.min_free = FrameCount::new(if rng.chance(500) { 0 } else { rng.below(400) });
    policy.cool_down = Nanos::from_millis(if rng.chance(300) { 0 } else { rng.below(2000) });
    policy.min_read_interval = Nanos::from_millis(rng.below(20));
    policy.retry = Delays {
        first: Nanos::from_millis(1 + rng.below(300)),
        cap: Nanos::from_millis(400 + rng.below(3000)),
    };
    policy.silent_after = Nanos::from_millis(500 + rng.below(2000));
    policy
}

pub(super) fn zones<'m>(
    rng: &mut Rng,
    ground: Ground,
    metadata: &'m mut [u64],
) -> Result<Source<'m>> {
    let order = u8::try_from(3 + rng.below(16))?;
    let config = Config::new().with_max_order(buddy_alloc::Order::new(order).context("an order")?);
    let backing = if rng.chance(500) {
        Backing::Populated
    } else {
        Backing::Unpopulated
    };
    let mut zones = Zones::new();
    let mut left = metadata;
    for span in ground.spans() {
        let words = left.split_at_mut_checked(config.metadata_words(span));
        let (words, rest) = words.context("too few words of metadata")?;
        words.fill(0);
        left = rest;
        let mut zone = Zone::new(span, config, words)?;
        zone.add_range(span, backing)?;
        ensure!(zones.add_zone(zone).is_ok(), "there is room for two zones");
    }
    Ok(zones)
}

pub(super) fn bring_up(profile: Profile, policy: &DriverOptions) -> Result<Balloon> {
    // Twice as much as the rings need: the chunk dialect has longer requests.
    let bytes = Rings::<FakeDevice, FakeMemory, RING>::DMA_BYTES * 2;
    let memory = FakeMemory::new(bytes);
    let device = FakeDevice::new(profile, memory.clone());
    match Balloon::bring_up(device, memory, policy, &mut NoDelay) {
        Ok(balloon) => Ok(balloon),
        Err(refused) => bail!("{}", refused.error),
    }
}
