//! The transport against a device in the same process: what the engine relies
//! on, on each device model, and what a device may do to it.

// Whole guests on memory that is safe code: hours under Miri, and nothing for it
// to find. What is unsafe it sees in the unit tests.
#![cfg(not(any(miri, loom)))]
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use balloon_core::testing::{FakeSource, check_transport_laws};
use balloon_core::{
    Budget, Engine, FrameCount, FrameRange, GivePath, InFlight, Kind, Ledger, Nanos, Pfn,
    Policy as Pace, Progress, Run, Shared, Slots, Transport, TransportError, TransportErrorKind,
};
use transport_virtio::fake::{self, FakeBalloon, FakeDevice, FakeMemory, NoDelay, Profile};
use transport_virtio::{
    AttachError, BringUpError, DeviceStatus, Features, Policy, QueueError, QueueId, Rings,
    VirtioBalloon, VirtioError,
};

const ALL: [QueueId; 3] = [QueueId::Inflate, QueueId::Deflate, QueueId::Reporting];

fn profiles() -> [(&'static str, Profile); 6] {
    let all = Features::STATS_VQ | Features::FREE_PAGE_HINT | Features::PAGE_REPORTING;
    [
        (
            "specification",
            Profile::specification(Features::PAGE_REPORTING),
        ),
        ("qemu", Profile::qemu(Features::PAGE_REPORTING)),
        (
            "firecracker",
            Profile::firecracker(Features::FREE_PAGE_HINT | Features::PAGE_REPORTING),
        ),
        (
            "cloud-hypervisor",
            Profile::cloud_hypervisor(Features::PAGE_REPORTING),
        ),
        (
            "crosvm",
            Profile::crosvm(Features::STATS_VQ | Features::PAGE_REPORTING),
        ),
        ("libkrun", Profile::libkrun(all)),
    ]
}

fn device(balloon: &mut FakeBalloon<16>) -> &mut FakeDevice {
    balloon.queues_mut().device_mut()
}

fn serve(balloon: &mut FakeBalloon<16>) {
    for queue in ALL {
        device(balloon).serve(queue);
    }
}

fn range(start: u64, count: u64) -> FrameRange {
    FrameRange::new(Pfn::new(start), FrameCount::new(count)).unwrap()
}

fn run(start: u64, count: u64) -> Run {
    Run::new(range(start, count)).unwrap()
}

/// Claims a slot and submits; a refused request leaves no slot behind.
fn submit<'a>(
    balloon: &mut FakeBalloon<16>,
    slots: &'a Slots<16>,
    kind: Kind,
    path: GivePath,
    runs: &[Run],
) -> Result<InFlight<'a>, VirtioError> {
    let slot = slots.claim(kind).unwrap().launch();
    match balloon.submit(slot.request(path, runs), slots.completer()) {
        Ok(()) => Ok(slot),
        Err(error) => {
            assert!(slot.revoke().is_ok());
            Err(error)
        }
    }
}

/// Submits a request nobody waits for.
fn send(
    balloon: &mut FakeBalloon<16>,
    slots: &Slots<16>,
    kind: Kind,
    path: GivePath,
    runs: &[Run],
) {
    submit(balloon, slots, kind, path, runs).map(drop).unwrap();
}

#[test]
fn the_laws_hold_on_every_device_model() {
    for (name, profile) in profiles() {
        for policy in [Policy::new(), Policy::new().polled().without_event_idx()] {
            let mut balloon = fake::bring_up::<16>(profile, &policy).expect(name);
            assert!(balloon.capabilities().bulk.is_some(), "{name}");
            check_transport_laws(&mut balloon, range(0x1000, 4096), serve);
        }
    }
}

#[test]
fn a_balloon_follows_its_target_on_every_device_model() {
    for (name, profile) in profiles() {
        for policy in [Policy::new(), Policy::new().without_bulk()] {
            let shared: &'static Shared<16> = Box::leak(Box::default());
            let mut balloon = fake::bring_up::<16>(profile, &policy).expect(name);
            let mut engine = Engine::new(shared, Pace::DEFAULT);
            let mut source = FakeSource::new(range(0x100, 2048)).scattered();
            let mut now = 0;
            for target in [1500, 100, 1024, 0] {
                device(&mut balloon).set_target(target);
                shared.signal().config_changed();
                let reached = (0..2000).any(|_| {
                    now += 1;
                    let interrupts = balloon.queues().device().interrupts();
                    engine.step(
                        &mut balloon,
                        &mut source,
                        Nanos::from_millis(now),
                        Budget::SMALL,
                    );
                    serve(&mut balloon);
                    // The interrupt handler of this test.
                    if balloon.queues().device().interrupts() != interrupts {
                        shared.signal().used();
                    }
                    let reached = engine.status(&source).progress == Progress::Reached;
                    reached && balloon.queues().device().actual() == target
                });
                assert!(reached, "{name} at {target}: {:?}", engine.status(&source));
                source.check(FrameCount::ZERO);
            }
            assert_eq!(source.held(GivePath::Bulk), FrameCount::ZERO);
        }
    }
}

#[test]
fn many_requests_take_one_notification() {
    let mut balloon =
        fake::bring_up::<16>(Profile::qemu(Features::empty()), &Policy::new()).unwrap();
    let slots = Slots::<16>::new();
    for index in 0..16 {
        let runs = [run(index * 1000, 255), run(index * 1000 + 500, 1)];
        send(&mut balloon, &slots, Kind::Inflate, GivePath::Told, &runs);
    }
    assert_eq!(balloon.kick(8), Ok(false));
    assert_eq!(balloon.kick(8), Ok(false));
    assert_eq!(device(&mut balloon).notified(QueueId::Inflate), 1);
    let served = device(&mut balloon).serve(QueueId::Inflate);
    assert_eq!(served.len(), 16);
    for (index, chain) in (0..).zip(&served) {
        assert_eq!(chain.descriptors.len(), 1);
        assert!(!chain.descriptors[0].writable);
        let pfns = device(&mut balloon).pfns(chain);
        assert!(pfns.is_sorted() && pfns.len() == 256);
        assert_eq!((pfns[0], pfns[255]), (index * 1000, index * 1000 + 500));
    }
    // One interrupt for eight of sixteen, none for the rest.
    assert_eq!(device(&mut balloon).interrupts(), 1);
    assert_eq!(balloon.kick(8), Ok(true), "answered already");
    balloon.reap(slots.completer()).unwrap();
    assert_eq!(
        (
            balloon.in_flight(QueueId::Inflate),
            balloon.counters().queues.answers
        ),
        (0, 16)
    );
}

#[test]
fn a_device_that_is_awake_is_not_notified() {
    let policy = Policy::new().without_event_idx();
    let mut balloon = fake::bring_up::<16>(Profile::qemu(Features::empty()), &policy).unwrap();
    let slots = Slots::<16>::new();
    device(&mut balloon).silence(QueueId::Inflate, true);
    send(
        &mut balloon,
        &slots,
        Kind::Inflate,
        GivePath::Told,
        &[run(1, 1)],
    );
    balloon.kick(1).unwrap();
    assert_eq!(device(&mut balloon).notified(QueueId::Inflate), 0);
    assert_eq!(balloon.counters().queues.kicks_saved, 1);
    device(&mut balloon).silence(QueueId::Inflate, false);
    send(
        &mut balloon,
        &slots,
        Kind::Inflate,
        GivePath::Told,
        &[run(2, 1)],
    );
    balloon.kick(1).unwrap();
    assert_eq!(device(&mut balloon).notified(QueueId::Inflate), 1);
}

#[test]
fn ranges_go_out_as_writable_descriptors_below_4_gib() {
    let profile = Profile::qemu(Features::PAGE_REPORTING);
    let mut balloon = fake::bring_up::<16>(profile, &Policy::new()).unwrap();
    let slots = Slots::<16>::new();
    let limits = balloon.capabilities().bulk.unwrap();
    // A queue of sixteen, tables of as many; also above 16 TiB.
    assert_eq!((limits.runs, limits.in_flight), (16, 16));
    let runs = [run(0x200, 512), run(1 << 32, limits.run.get())];
    send(&mut balloon, &slots, Kind::Inflate, GivePath::Bulk, &runs);
    balloon.kick(1).unwrap();
    let chains = device(&mut balloon).serve(QueueId::Reporting);
    let [first, second] = chains[0].descriptors[..] else {
        panic!("two ranges")
    };
    assert_eq!(
        (first.address, first.len, first.writable),
        (0x20_0000, 0x20_0000, true)
    );
    assert_eq!((second.address, second.len), (1 << 44, 0xffe0_0000));
    let too_long = [run(0x200, limits.run.get() + 1)];
    let refused = submit(
        &mut balloon,
        &slots,
        Kind::Inflate,
        GivePath::Bulk,
        &too_long,
    );
    assert_eq!(refused.err(), Some(VirtioError::TooLarge));
}

#[test]
fn bulk_and_plain_are_separate_queues() {
    let profile = Profile::qemu(Features::PAGE_REPORTING);
    let mut balloon = fake::bring_up::<16>(profile, &Policy::new()).unwrap();
    let slots = Slots::<16>::new();
    let told = submit(
        &mut balloon,
        &slots,
        Kind::Inflate,
        GivePath::Told,
        &[run(1, 1)],
    )
    .unwrap();
    let bulk = submit(
        &mut balloon,
        &slots,
        Kind::Inflate,
        GivePath::Bulk,
        &[run(2, 1)],
    )
    .unwrap();
    balloon.kick(1).unwrap();
    device(&mut balloon).serve(QueueId::Reporting);
    balloon.reap(slots.completer()).unwrap();
    assert!(bulk.answer().is_ok());
    assert!(told.answer().is_err());
}

#[test]
fn frames_above_16_tib_are_refused_by_the_plain_path() {
    let profile = Profile::qemu(Features::empty());
    let mut balloon = fake::bring_up::<16>(profile, &Policy::new()).unwrap();
    let slots = Slots::<16>::new();
    for kind in [Kind::Inflate, Kind::Deflate] {
        let refused = submit(
            &mut balloon,
            &slots,
            kind,
            GivePath::Told,
            &[run(1 << 32, 1)],
        );
        assert_eq!(
            refused.err().map(|e| e.kind()),
            Some(TransportErrorKind::TooLarge)
        );
        assert_eq!(balloon.in_flight(QueueId::Inflate), 0);
    }
    assert!(device(&mut balloon).take(QueueId::Inflate).is_none());
}

#[test]
fn no_bulk_path_where_its_preconditions_fail() {
    let tell = Features::MUST_TELL_HOST | Features::PAGE_REPORTING;
    let policy = Policy::new();
    let cases = [
        (Profile::qemu(tell), policy),
        (
            Profile::qemu(Features::PAGE_REPORTING),
            policy.without_bulk(),
        ),
        (Profile::qemu(Features::empty()), policy),
        (
            Profile::specification(Features::PAGE_REPORTING).with_size(QueueId::Reporting, 0),
            policy,
        ),
    ];
    for (profile, policy) in cases {
        let mut balloon = fake::bring_up::<16>(profile, &policy).unwrap();
        assert_eq!(balloon.capabilities().bulk, None);
        let slots = Slots::<16>::new();
        let refused = submit(
            &mut balloon,
            &slots,
            Kind::Inflate,
            GivePath::Bulk,
            &[run(1, 1)],
        );
        assert_eq!(refused.err(), Some(VirtioError::Unsupported));
    }
}

#[test]
fn features_that_another_party_negotiated_are_respected() {
    // A kernel that accepted whatever was offered, poison included.
    let profile = Profile::qemu(Features::PAGE_REPORTING | Features::PAGE_POISON);
    let (device, memory) = fake::pair::<16>(profile);
    let offered = profile.offered();
    let policy = Policy::new();
    let rings: Rings<_, _, 16> = Rings::attach(device, memory, offered, offered, &policy)
        .map_err(|e| e.error)
        .unwrap();
    assert!(
        rings.device().history().is_empty(),
        "no status register is touched"
    );
    let balloon = VirtioBalloon::attach(rings, offered, &policy);
    assert_eq!(balloon.capabilities().bulk, None);
}

#[test]
fn queues_of_any_size_carry_requests() {
    for size in [1, 2, 4, 256, 32768] {
        let profile = Profile::qemu(Features::PAGE_REPORTING)
            .with_size(QueueId::Inflate, size)
            .with_size(QueueId::Reporting, size);
        let mut balloon = fake::bring_up::<16>(profile, &Policy::new()).unwrap();
        let limits = balloon.capabilities();
        assert_eq!(limits.inflate.in_flight, usize::from(size.min(16)));
        assert_eq!(
            device(&mut balloon).queue_size(QueueId::Inflate),
            size.min(16)
        );
        let bulk = limits.bulk.unwrap();
        assert!(bulk.runs <= usize::from(size) && bulk.in_flight <= usize::from(size));
        check_transport_laws(&mut balloon, range(0x1000, 4096), serve);
        // Beyond what fits: refused for now, nothing lost.
        let slots = Slots::<16>::new();
        if limits.inflate.in_flight < 16 {
            for _ in 0..limits.inflate.in_flight {
                send(
                    &mut balloon,
                    &slots,
                    Kind::Inflate,
                    GivePath::Told,
                    &[run(7, 1)],
                );
            }
            let full = submit(
                &mut balloon,
                &slots,
                Kind::Inflate,
                GivePath::Told,
                &[run(8, 1)],
            );
            assert_eq!(
                full.err(),
                Some(VirtioError::Queue(QueueId::Inflate, QueueError::Full))
            );
        }
    }
}

#[test]
fn bring_up_follows_the_book() {
    let balloon = fake::bring_up::<16>(Profile::qemu(Features::empty()), &Policy::new()).unwrap();
    let (seen, noticed) = (DeviceStatus::ACKNOWLEDGE, DeviceStatus::DRIVER);
    let ready = seen | noticed | DeviceStatus::FEATURES_OK;
    let history = [
        DeviceStatus::empty(),
        seen,
        seen | noticed,
        ready,
        ready | DeviceStatus::DRIVER_OK,
    ];
    assert_eq!(balloon.queues().device().history(), history);
    let (device, _) = balloon.reset();
    assert_eq!(device.history().last(), Some(&DeviceStatus::empty()));
}

/// What bringing up fails with; the device must have been told.
fn failure(
    profile: Profile,
    spoil: impl FnOnce(&mut FakeDevice),
    memory: FakeMemory,
) -> BringUpError {
    let mut device = FakeDevice::new(profile, memory.clone());
    spoil(&mut device);
    let refused = FakeBalloon::<16>::bring_up(device, memory, &Policy::new(), &mut NoDelay)
        .map(drop)
        .unwrap_err();
    assert_eq!(refused.device.history().last(), Some(&DeviceStatus::FAILED));
    refused.error
}

#[test]
fn unsuitable_devices_are_refused_with_a_reason() {
    let enough = || FakeMemory::new(Rings::<FakeDevice, FakeMemory, 16>::DMA_BYTES);
    let good = Profile::qemu(Features::empty());
    let attach = BringUpError::Attach;
    assert_eq!(
        failure(good, |d| d.stuck = true, enough()),
        BringUpError::Stuck
    );
    assert!(matches!(
        failure(good, |d| d.picky = true, enough()),
        BringUpError::FeaturesRefused(_)
    ));
    let legacy = good.without(Features::VERSION_1);
    assert_eq!(
        failure(legacy, |_| (), enough()),
        BringUpError::Unsuitable(Features::VERSION_1)
    );
    let small = good.with_config(4);
    assert_eq!(
        failure(small, |_| (), enough()),
        attach(AttachError::ConfigTooSmall(4))
    );
    for queue in [QueueId::Inflate, QueueId::Deflate] {
        let missing = good.with_size(queue, 0);
        assert_eq!(
            failure(missing, |_| (), enough()),
            attach(AttachError::MissingQueue(queue))
        );
    }
    let too_small = FakeMemory::new(4096);
    assert_eq!(
        failure(good, |_| (), too_small),
        attach(AttachError::MemoryTooSmall(4096))
    );
}

#[test]
fn eight_bytes_of_configuration_are_enough() {
    let profile = Profile::cloud_hypervisor(Features::PAGE_REPORTING).with_config(8);
    let mut balloon = fake::bring_up::<16>(profile, &Policy::new()).unwrap();
    device(&mut balloon).set_target(77);
    assert_eq!(balloon.read_target(), Ok(FrameCount::new(77)));
    balloon.write_actual(FrameCount::new(5)).unwrap();
    assert_eq!(device(&mut balloon).actual(), 5);
}

#[test]
fn a_restless_configuration_is_an_error_not_a_hang() {
    let profile = Profile::qemu(Features::empty());
    let mut balloon = fake::bring_up::<16>(profile, &Policy::new()).unwrap();
    device(&mut balloon).restless = true;
    assert_eq!(
        balloon.read_target().map_err(|e| e.kind()),
        Err(TransportErrorKind::Unstable)
    );
    assert_eq!(balloon.counters().unstable_reads, 1);
}

#[test]
fn a_device_that_never_answers_keeps_nothing_else_waiting() {
    let profile = Profile::qemu(Features::PAGE_REPORTING);
    let mut balloon = fake::bring_up::<16>(profile, &Policy::new()).unwrap();
    let slots = Slots::<16>::new();
    send(
        &mut balloon,
        &slots,
        Kind::Inflate,
        GivePath::Told,
        &[run(1, 256)],
    );
    let back = submit(
        &mut balloon,
        &slots,
        Kind::Deflate,
        GivePath::Told,
        &[run(999, 1)],
    )
    .unwrap();
    balloon.kick(1).unwrap();
    device(&mut balloon).serve(QueueId::Deflate);
    balloon.reap(slots.completer()).unwrap();
    assert!(back.answer().is_ok());
    assert_eq!(balloon.in_flight(QueueId::Inflate), 1);
    // Only a reset ends the wait; it gives everything back.
    let (device, memory) = balloon.reset();
    let again = FakeBalloon::<16>::bring_up(device, memory, &Policy::new(), &mut NoDelay).unwrap();
    assert_eq!(again.in_flight(QueueId::Inflate), 0);
}

#[test]
fn wrong_and_double_answers_are_counted_and_change_nothing() {
    let profile = Profile::qemu(Features::empty());
    let mut balloon = fake::bring_up::<16>(profile, &Policy::new()).unwrap();
    let slots = Slots::<16>::new();
    let a = submit(
        &mut balloon,
        &slots,
        Kind::Inflate,
        GivePath::Told,
        &[run(1, 1)],
    )
    .unwrap();
    let b = submit(
        &mut balloon,
        &slots,
        Kind::Inflate,
        GivePath::Told,
        &[run(2, 1)],
    )
    .unwrap();
    balloon.kick(1).unwrap();
    let head = u32::from(device(&mut balloon).take(QueueId::Inflate).unwrap().head);
    for id in [16, u32::MAX, head, head, 9] {
        device(&mut balloon).answer(QueueId::Inflate, id, u32::MAX);
    }
    balloon.reap(slots.completer()).unwrap();
    assert!(a.answer().is_ok());
    let b = b.answer().unwrap_err();
    let counters = balloon.counters().queues;
    assert_eq!((counters.answers, counters.odd_lengths), (1, 1));
    let last = u32::from(device(&mut balloon).take(QueueId::Inflate).unwrap().head);
    device(&mut balloon).answer(QueueId::Inflate, last, 0);
    balloon.reap(slots.completer()).unwrap();
    assert!(b.answer().is_ok());
    assert_eq!(balloon.counters().queues.spurious_answers, 4);
}

#[test]
fn an_index_that_runs_away_ends_one_queue_not_the_others() {
    let profile = Profile::qemu(Features::empty());
    let mut balloon = fake::bring_up::<16>(profile, &Policy::new()).unwrap();
    let slots = Slots::<16>::new();
    send(
        &mut balloon,
        &slots,
        Kind::Inflate,
        GivePath::Told,
        &[run(1, 1)],
    );
    let back = submit(
        &mut balloon,
        &slots,
        Kind::Deflate,
        GivePath::Told,
        &[run(2, 1)],
    )
    .unwrap();
    balloon.kick(1).unwrap();
    device(&mut balloon).jump(QueueId::Inflate, 17);
    device(&mut balloon).serve(QueueId::Deflate);
    let broken = balloon.reap(slots.completer());
    assert_eq!(
        broken.map_err(|e| e.kind()),
        Err(TransportErrorKind::Broken)
    );
    assert!(back.answer().is_ok());
    assert_eq!(
        balloon.in_flight(QueueId::Inflate),
        1,
        "the frames are still accounted for"
    );
}

#[test]
fn without_tables_two_requests_share_the_descriptors() {
    let profile = Profile::qemu(Features::PAGE_REPORTING);
    let policy = Policy::new().without_indirect();
    let mut balloon = fake::bring_up::<16>(profile, &policy).unwrap();
    let limits = balloon.capabilities().bulk.unwrap();
    assert_eq!((limits.runs, limits.in_flight), (8, 2));
    check_transport_laws(&mut balloon, range(0x1000, 4096), serve);
}

#[test]
fn a_full_ring_of_full_tables_goes_through_and_comes_back() {
    let profile = Profile::qemu(Features::PAGE_REPORTING);
    let mut balloon = fake::bring_up::<16>(profile, &Policy::new()).unwrap();
    for round in 0..3 {
        let slots = Slots::<16>::new();
        let runs: Vec<Run> = (0..16).map(|i| run(0x1000 + 2 * i, 1)).collect();
        for _ in 0..16 {
            send(&mut balloon, &slots, Kind::Inflate, GivePath::Bulk, &runs);
        }
        balloon.kick(1).unwrap();
        let chains = device(&mut balloon).serve(QueueId::Reporting);
        assert_eq!(chains.len(), 16, "round {round}");
        for chain in chains {
            let starts = chain.descriptors.iter().map(|d| (d.address >> 12, d.len));
            assert!(starts.eq((0..16).map(|i| (0x1000 + 2 * i, 4096))));
        }
        balloon.reap(slots.completer()).unwrap();
        assert_eq!(balloon.in_flight(QueueId::Reporting), 0);
    }
}
