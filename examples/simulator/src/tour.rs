//! The same targets over every transport there is end in the same sizes.
//!
//! The targets are those of `tour.txt`, which the guests on real QEMU and real
//! Xen follow, too (`cargo xtask test qemu`, `cargo xtask xen test`). Here they
//! go the way each host has for them (configuration space, store, a field of a
//! fake), and a [`Recorder`] writes down what host and guest said.

use balloon_core::testing::{FakeHost, Recorder, Recording};
use balloon_core::{
    Budget, Bytes, Completer, Engine, FrameCount, FrameRange, Granularity, Ledger as _, Nanos, Pfn,
    Policy, Progress, Shared, Transport, Via,
};
use buddy_alloc::{Backing, Config, Frame, Zone};
use transport_virtio::testing::{self, FakeBalloon, Profile};
use transport_virtio::{DriverOptions, Features, QueueId};
use transport_xen::testing::{FakeClear, FakeP2m, FakeXen, Kind};
use transport_xen::{FrameMap, Reservation, Target, Translated, XenBalloon, store::StoreEvent};

use crate::host::{Host, Model};
use crate::rng::Rng;

const FIRST: u64 = 0x1000;
const FRAMES: u64 = Bytes::new(64 << 20).frames().get();
const SECOND: u64 = 1_000_000_000;

fn memory() -> FrameRange {
    FrameRange::new(Pfn::new(FIRST), FrameCount::new(FRAMES)).unwrap()
}

/// What the tour says.
fn targets() -> Recording {
    let lines = include_str!("../tour.txt").lines();
    let numbers = |line: &str| {
        let (at, mib) = line.trim().split_once(' ').unwrap();
        let mib: u64 = mib.trim().parse().unwrap();
        let size = Bytes::new(mib << 20).frames();
        (Nanos::from_millis(at.parse().unwrap()), size)
    };
    Recording::of_targets(lines.filter(|line| !line.starts_with('#')).map(numbers))
}

/// When a target has stood for a second.
fn checks() -> Vec<Nanos> {
    let tour = targets();
    let starts: Vec<Nanos> = tour.targets().map(|(at, _)| at).collect();
    let ends = starts.iter().skip(1).copied();
    let ends = ends.chain([Nanos::from_millis(16_000)]);
    let stands = |(&at, end): (&Nanos, Nanos)| end.get() - at.get() >= SECOND;
    let check = |(_, end): (_, Nanos)| Nanos::new(end.get() - 1);
    starts
        .iter()
        .zip(ends)
        .filter(|&(at, end)| stands((at, end)))
        .map(check)
        .collect()
}

/// A guest with the real allocator and the real engine follows the tour.
///
/// `aim` tells the host what to want, `work` lets it work.
fn follow<T: Transport>(
    name: &str,
    host: T,
    unit: Granularity,
    mut aim: impl FnMut(&mut T, FrameCount),
    mut work: impl FnMut(&mut T, Completer<'_>),
) -> Recording {
    let shared: &'static Shared<16> = Box::leak(Box::default());
    let mut policy = Policy::DEFAULT;
    policy.granularity = unit;
    let mut engine = Box::new(Engine::new(shared, policy));
    let span =
        buddy_alloc::FrameRange::new(Frame::new(FIRST), buddy_alloc::FrameCount::new(FRAMES));
    let mut metadata = vec![0; Config::new().metadata_words(span)];
    let mut zone = Zone::new(span, Config::new(), &mut metadata).unwrap();
    zone.add_range(span, Backing::Populated).unwrap();
    let mut host = Recorder::new(host);
    let tour = targets();
    let mut wanted = None;
    // Often after each new target, then now and then.
    let busy = |millis: &u64| millis % 1000 < 100 || millis % 50 == 49;
    for millis in (0..16_000).filter(busy) {
        let now = Nanos::from_millis(millis);
        let target = tour.target_at(now);
        if target != wanted {
            wanted = target;
            aim(host.inner_mut(), target.unwrap());
            shared.signal().config_changed();
        }
        host.now = now;
        while engine.step(&mut host, &mut zone, now, Budget::SMALL).more {}
        work(host.inner_mut(), shared.slots().completer());
        shared.signal().used();
        if checks().contains(&Nanos::new(now.get() + 999_999)) {
            let status = engine.status(&zone);
            assert_eq!(
                status.progress,
                Progress::Reached,
                "{name} at {millis} ms: {status:?}"
            );
            assert_eq!(Some(status.size), wanted, "{name} at {millis} ms");
        }
    }
    let held = Via::ALL.map(|via| zone.held(via));
    assert_eq!(held, [FrameCount::ZERO; 2], "{name}: the balloon is empty");
    assert_eq!(zone.stats().free.get(), FRAMES, "{name}: nothing is lost");
    host.into_recording()
}

/// The sizes the host was told last before each check.
fn ends(recording: &Recording) -> Vec<FrameCount> {
    checks()
        .into_iter()
        .map(|at| recording.size_at(at).unwrap())
        .collect()
}

fn virtio(name: &str, profile: Profile, policy: &DriverOptions) -> Recording {
    let balloon: FakeBalloon<16> = testing::bring_up(profile, policy).unwrap();
    let aim = |balloon: &mut FakeBalloon<16>, target: FrameCount| {
        let pages = u32::try_from(target.get()).unwrap();
        balloon.queues_mut().device_mut().set_target(pages);
    };
    let work = |balloon: &mut FakeBalloon<16>, _: Completer<'_>| {
        for queue in [QueueId::Inflate, QueueId::Deflate, QueueId::Reporting] {
            balloon.queues_mut().device_mut().serve(queue);
        }
    };
    follow(name, balloon, Granularity::Frames, aim, work)
}

fn xen<F: FrameMap>(name: &str, xen: FakeXen, map: F) -> Recording {
    let clear = FakeClear::of(&xen);
    let reservation = Reservation::new(xen, map, clear);
    let balloon = XenBalloon::new(reservation, Target::new(memory().count()));
    let aim = |balloon: &mut XenBalloon<FakeXen, F, FakeClear>, target: FrameCount| {
        let left = memory().count().saturating_sub(target).bytes();
        assert!(balloon.handle_event(StoreEvent::Target(left)));
    };
    follow(name, balloon, Granularity::Adaptive, aim, |_, _| {})
}

#[test]
fn the_same_trace_over_every_transport_ends_in_the_same_sizes() {
    let expected: Vec<FrameCount> = checks()
        .into_iter()
        .map(|at| targets().target_at(at).unwrap())
        .collect();
    assert!(expected.len() >= 5);

    let plain = |host: &mut FakeHost, target| host.target = target;
    let recorded = follow(
        "plain",
        FakeHost::plain(),
        Granularity::Frames,
        plain,
        |_, _| {},
    );
    let bulk = follow(
        "bulk",
        FakeHost::bulk(),
        Granularity::Frames,
        plain,
        |_, _| {},
    );
    let reporting = Features::PAGE_REPORTING;
    let fake_xen = || FakeXen::new(Kind::Pv, memory());
    let p2m = FakeP2m::of(&fake_xen());
    let mut all = vec![
        ("bulk", bulk),
        (
            "virtio, page by page",
            virtio(
                "PFN",
                Profile::qemu(Features::empty()),
                &DriverOptions::new(),
            ),
        ),
        (
            "virtio, ranges",
            virtio("bulk", Profile::qemu(reporting), &DriverOptions::new()),
        ),
        (
            "Xen PVH",
            xen("PVH", FakeXen::new(Kind::Pvh, memory()), Translated::<true>),
        ),
        (
            "Xen Arm",
            xen(
                "Arm",
                FakeXen::new(Kind::Arm, memory()),
                Translated::<false>,
            ),
        ),
        ("Xen PV", xen("PV", fake_xen(), p2m)),
    ];
    for model in Model::ALL {
        let host = Host::new(model, memory(), Rng::new(7));
        let aim = |host: &mut Host, target| host.target = target;
        let work = |host: &mut Host, done: Completer<'_>| host.work(3, done);
        all.push((
            model.name(),
            follow(model.name(), host, Granularity::Adaptive, aim, work),
        ));
    }
    assert_eq!(ends(&recorded), expected, "plain");
    for (name, recording) in &all {
        assert_eq!(ends(recording), expected, "{name}");
        assert!(
            recording.targets().eq(recorded.targets()),
            "{name} was told other targets"
        );
    }
}
