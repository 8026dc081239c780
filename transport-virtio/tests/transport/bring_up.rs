//! From a device in any state to a running balloon, and to a refused one.

use super::*;

#[test]
fn features_that_another_party_negotiated_are_respected() {
    // A kernel that accepted whatever was offered, poison included.
    let profile = Profile::qemu(Features::PAGE_REPORTING | Features::PAGE_POISON);
    let (device, memory) = testing::pair::<16>(profile);
    let offered = profile.offered();
    let options = DriverOptions::new();
    let rings: Rings<_, _, 16> = Rings::attach(device, memory, offered, offered, &options)
        .map_err(|e| e.error)
        .unwrap();
    assert!(
        rings.device().history().is_empty(),
        "no status register is touched"
    );
    let balloon = VirtioBalloon::attach(rings, offered, &options);
    assert_eq!(balloon.capabilities().bulk, None);
}

#[test]
fn queues_of_any_size_carry_requests() {
    for size in [1, 2, 4, 256, 32768] {
        let profile = Profile::qemu(Features::PAGE_REPORTING)
            .with_size(QueueId::Inflate, size)
            .with_size(QueueId::Reporting, size);
        let mut rig = Rig::new(profile, DriverOptions::new());
        let limits = rig.balloon.capabilities();
        assert_eq!(limits.inflate.in_flight, usize::from(size.min(16)));
        assert_eq!(rig.device().queue_size(QueueId::Inflate), size.min(16));
        let bulk = limits.bulk.unwrap();
        assert!(bulk.runs <= usize::from(size) && bulk.in_flight <= usize::from(size));
        check_transport_laws(&mut rig.balloon, range(0x1000, 4096), serve);
        // Beyond what fits: refused for now, nothing lost.
        if limits.inflate.in_flight < 16 {
            for _ in 0..limits.inflate.in_flight {
                rig.send(Kind::Inflate, Via::Inflate, &[run(7, 1)]);
            }
            let full = rig.submit(Kind::Inflate, Via::Inflate, &[run(8, 1)]);
            let error = VirtioError::Queue(QueueId::Inflate, QueueError::Full);
            assert_eq!(full.err(), Some(error));
        }
    }
}

#[test]
fn bring_up_follows_the_book() {
    let balloon =
        testing::bring_up::<16>(Profile::qemu(Features::empty()), &DriverOptions::new()).unwrap();
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
    let (device, _) = balloon.reset(&mut NoDelay).unwrap();
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
    let refused = FakeBalloon::<16>::bring_up(device, memory, &DriverOptions::new(), &mut NoDelay)
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
    let mut balloon = testing::bring_up::<16>(profile, &DriverOptions::new()).unwrap();
    device(&mut balloon).set_target(77);
    assert_eq!(balloon.read_target(), Ok(FrameCount::new(77)));
    balloon.write_actual(FrameCount::new(5)).unwrap();
    assert_eq!(device(&mut balloon).actual(), 5);
}

#[test]
fn a_restless_configuration_is_an_error_not_a_hang() {
    let profile = Profile::qemu(Features::empty());
    let mut balloon = testing::bring_up::<16>(profile, &DriverOptions::new()).unwrap();
    device(&mut balloon).restless = true;
    assert_eq!(
        balloon.read_target().map_err(|e| e.kind()),
        Err(TransportErrorKind::Unstable)
    );
    assert_eq!(balloon.counters().unstable_reads, 1);
}

/// Steps and serves until the balloon has this size.
fn reach(
    engine: &mut Engine<16>,
    shared: &Shared<16>,
    balloon: &mut FakeBalloon<16>,
    source: &mut FakeSource,
    size: u32,
) {
    let reached = (0..200).any(|_| {
        shared.signal().used();
        engine.step(balloon, source, Nanos::ZERO, Budget::SMALL);
        serve(balloon);
        device(balloon).actual() == size
    });
    assert!(reached, "{:?}", engine.status(source));
}

#[test]
fn a_restart_publishes_nothing_then_follows_the_target() {
    let profile = Profile::qemu(Features::PAGE_REPORTING);
    for options in [DriverOptions::new(), DriverOptions::new().without_bulk()] {
        let new_kernel = || -> (&'static Shared<16>, FakeSource) {
            (
                Box::leak(Box::default()),
                FakeSource::new(range(0x100, 2048)),
            )
        };
        let mut balloon = testing::bring_up::<16>(profile, &options).unwrap();
        let (shared, mut source) = new_kernel();
        let mut engine = Engine::new(shared, Policy::DEFAULT);
        device(&mut balloon).set_target(1000);
        reach(&mut engine, shared, &mut balloon, &mut source, 1000);

        // A device reset: the same kernel, whose balloon is void.
        let (device_, memory) = balloon.reset(&mut NoDelay).unwrap();
        let again = FakeBalloon::<16>::bring_up(device_, memory, &options, &mut NoDelay);
        let mut balloon = again.unwrap();
        engine.resume(Resume::Reset);
        assert_eq!(
            device(&mut balloon).actual(),
            1000,
            "what the host believes"
        );
        reach(&mut engine, shared, &mut balloon, &mut source, 0);
        reach(&mut engine, shared, &mut balloon, &mut source, 1000);
        source.check(FrameCount::ZERO);

        // Another kernel, which nobody told of a balloon.
        let (device_, memory) = balloon.into_queues().into_parts();
        let next = FakeBalloon::<16>::bring_up(device_, memory, &options, &mut NoDelay);
        let mut balloon = next.unwrap();
        let (shared, mut source) = new_kernel();
        let mut engine = Engine::new(shared, Policy::DEFAULT);
        engine.step(&mut balloon, &mut source, Nanos::ZERO, Budget::SMALL);
        assert_eq!(device(&mut balloon).actual(), 0);
        reach(&mut engine, shared, &mut balloon, &mut source, 1000);
        source.check(FrameCount::ZERO);
    }
}

#[test]
fn memory_is_handed_back_when_the_device_has_let_go_of_it() {
    let slow = |device: &mut FakeDevice| device.reset_takes = 5;
    let let_go = |device: &FakeDevice| {
        let mut queues = QueueId::ALL.into_iter();
        queues.all(|queue| device.queue_size(queue) == 0)
    };
    let profile = Profile::qemu(Features::empty());
    let mut balloon = testing::bring_up::<16>(profile, &DriverOptions::new()).unwrap();
    slow(device(&mut balloon));
    assert!(!let_go(balloon.queues().device()));
    let (device, memory) = balloon.reset(&mut NoDelay).unwrap();
    assert!(let_go(&device));

    for spoil in [
        (|device| device.refuses = Some(QueueId::Deflate)) as fn(&mut FakeDevice),
        |device| device.fails = true,
    ] {
        let mut device = FakeDevice::new(profile, memory.clone());
        slow(&mut device);
        spoil(&mut device);
        let again = FakeBalloon::<16>::bring_up(
            device,
            memory.clone(),
            &DriverOptions::new(),
            &mut NoDelay,
        );
        let refused = again.map(drop).unwrap_err();
        assert!(let_go(&refused.device), "{}", refused.error);
        assert_eq!(refused.device.history().last(), Some(&DeviceStatus::FAILED));
    }

    // It never does.
    let mut balloon = testing::bring_up::<16>(profile, &DriverOptions::new()).unwrap();
    balloon.queues_mut().device_mut().stuck = true;
    let refused = balloon.reset(&mut NoDelay).unwrap_err();
    assert_eq!(refused.error, BringUpError::Stuck);
}

#[test]
fn the_size_of_a_queue_is_read_once() {
    let memory = FakeMemory::new(Rings::<FakeDevice, FakeMemory, 16>::DMA_BYTES);
    let mut device = FakeDevice::new(Profile::qemu(Features::empty()), memory.clone());
    device.forgets_sizes = true;
    let balloon = FakeBalloon::<16>::bring_up(device, memory, &DriverOptions::new(), &mut NoDelay);
    assert_eq!(
        balloon
            .unwrap()
            .queues()
            .device()
            .queue_size(QueueId::Inflate),
        16
    );
}

/// QEMU with `iommu_platform=on`, and hosts of confidential guests.
#[test]
fn a_device_that_insists_on_the_platform_gets_what_it_wants() {
    let all = Features::ACCESS_PLATFORM | Features::PAGE_REPORTING | Features::FREE_PAGE_HINT;
    let options = DriverOptions::new().with_reporting().with_hints();
    for translated in [false, true] {
        let mut memory = FakeMemory::new(Rings::<FakeDevice, FakeMemory, 16>::DMA_BYTES);
        if translated {
            memory = memory.behind_iommu();
        }
        let device = FakeDevice::new(Profile::qemu(all), memory.clone());
        let balloon = FakeBalloon::<16>::bring_up(device, memory, &options, &mut NoDelay);
        let mut balloon = balloon.map_err(|refused| refused.error).unwrap();
        assert!(balloon.negotiated().contains(Features::ACCESS_PLATFORM));
        let ranges = [
            balloon.capabilities().bulk,
            balloon.report_limits(),
            balloon.hint_limits(),
        ];
        assert_eq!(ranges.map(|limits| limits.is_none()), [translated; 3]);
        check_transport_laws(&mut balloon, range(0x1000, 4096), serve);
    }
    // Without it a device has guest-physical addresses, whatever the platform does.
    let memory = FakeMemory::new(Rings::<FakeDevice, FakeMemory, 16>::DMA_BYTES).behind_iommu();
    let profile = Profile::qemu(Features::PAGE_REPORTING);
    let device = FakeDevice::new(profile, memory.clone());
    let balloon = FakeBalloon::<16>::bring_up(device, memory, &options, &mut NoDelay);
    let balloon = balloon.map_err(|refused| refused.error).unwrap();
    assert!(balloon.capabilities().bulk.is_some());
}
