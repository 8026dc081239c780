//! What goes over each path, and in which shape.

use super::*;

#[test]
fn many_requests_take_one_notification() {
    let mut rig = Rig::new(Profile::qemu(Features::empty()), DriverOptions::new());
    for index in 0..16 {
        let runs = [run(index * 1000, 255), run(index * 1000 + 500, 1)];
        rig.send(Kind::Inflate, Via::Inflate, &runs);
    }
    assert_eq!(rig.balloon.kick(8), Ok(false));
    assert_eq!(rig.balloon.kick(8), Ok(false));
    assert_eq!(rig.device().notified(QueueId::Inflate), 1);
    let served = rig.device().serve(QueueId::Inflate);
    assert_eq!(served.len(), 16);
    for (index, chain) in (0..).zip(&served) {
        assert_eq!(chain.descriptors.len(), 1);
        assert!(!chain.descriptors[0].writable);
        let pfns = rig.device().pfns(chain);
        assert!(pfns.is_sorted() && pfns.len() == 256);
        assert_eq!((pfns[0], pfns[255]), (index * 1000, index * 1000 + 500));
    }
    // One interrupt for eight of sixteen, none for the rest.
    assert_eq!(rig.device().interrupts(), 1);
    assert_eq!(rig.balloon.kick(8), Ok(true), "answered already");
    rig.reap().unwrap();
    assert_eq!(
        (
            rig.balloon.in_flight(QueueId::Inflate),
            rig.balloon.counters().queues.answers
        ),
        (0, 16)
    );
}

#[test]
fn a_device_that_is_awake_is_not_notified() {
    let options = DriverOptions::new().without_event_idx();
    let mut rig = Rig::new(Profile::qemu(Features::empty()), options);
    rig.device().silence(QueueId::Inflate, true);
    rig.send(Kind::Inflate, Via::Inflate, &[run(1, 1)]);
    rig.balloon.kick(1).unwrap();
    assert_eq!(rig.device().notified(QueueId::Inflate), 0);
    assert_eq!(rig.balloon.counters().queues.kicks_saved, 1);
    rig.device().silence(QueueId::Inflate, false);
    rig.send(Kind::Inflate, Via::Inflate, &[run(2, 1)]);
    rig.balloon.kick(1).unwrap();
    assert_eq!(rig.device().notified(QueueId::Inflate), 1);
}

#[test]
fn ranges_go_out_as_writable_descriptors_below_4_gib() {
    let profile = Profile::qemu(Features::PAGE_REPORTING);
    let mut rig = Rig::new(profile, DriverOptions::new());
    let limits = rig.balloon.capabilities().bulk.unwrap();
    // A queue of sixteen, tables of as many; also above 16 TiB.
    assert_eq!((limits.runs, limits.in_flight), (16, 16));
    let runs = [run(0x200, 512), run(1 << 32, limits.run.get() - 512)];
    rig.send(Kind::Inflate, Via::Bulk, &runs);
    rig.balloon.kick(1).unwrap();
    let chains = rig.device().serve(QueueId::Reporting);
    let [first, second] = chains[0].descriptors[..] else {
        panic!("two ranges")
    };
    assert_eq!(
        (first.address, first.len, first.writable),
        (0x20_0000, 0x20_0000, true)
    );
    assert_eq!((second.address, second.len), (1 << 44, 0xffc0_0000));
    // No chain is longer than 4 GiB in all.
    let too_many = [run(0x200, 512), run(1 << 32, limits.run.get())];
    let refused = rig.submit(Kind::Inflate, Via::Bulk, &too_many);
    assert_eq!(refused.err(), Some(VirtioError::TooLarge));
    let too_long = [run(0x200, limits.run.get() + 1)];
    let refused = rig.submit(Kind::Inflate, Via::Bulk, &too_long);
    assert_eq!(refused.err(), Some(VirtioError::TooLarge));
}

#[test]
fn bulk_and_plain_are_separate_queues() {
    let profile = Profile::qemu(Features::PAGE_REPORTING);
    let mut rig = Rig::new(profile, DriverOptions::new());
    let told = rig
        .submit(Kind::Inflate, Via::Inflate, &[run(1, 1)])
        .unwrap();
    let bulk = rig.submit(Kind::Inflate, Via::Bulk, &[run(2, 1)]).unwrap();
    rig.balloon.kick(1).unwrap();
    rig.device().serve(QueueId::Reporting);
    rig.reap().unwrap();
    assert!(bulk.answer().is_ok());
    assert!(told.answer().is_err());
}

#[test]
fn frames_above_16_tib_are_refused_by_the_plain_path() {
    let profile = Profile::qemu(Features::empty());
    let mut rig = Rig::new(profile, DriverOptions::new());
    for kind in [Kind::Inflate, Kind::Deflate] {
        let refused = rig.submit(kind, Via::Inflate, &[run(1 << 32, 1)]);
        assert_eq!(
            refused.err().map(|e| e.kind()),
            Some(TransportErrorKind::TooLarge)
        );
        assert_eq!(rig.balloon.in_flight(QueueId::Inflate), 0);
    }
    assert!(rig.device().take(QueueId::Inflate).is_none());
}

#[test]
fn no_bulk_path_where_its_preconditions_fail() {
    let tell = Features::MUST_TELL_HOST | Features::PAGE_REPORTING;
    let options = DriverOptions::new();
    let cases = [
        (Profile::qemu(tell), options),
        (
            Profile::qemu(Features::PAGE_REPORTING),
            options.without_bulk(),
        ),
        (Profile::qemu(Features::empty()), options),
        (
            Profile::specification(Features::PAGE_REPORTING).with_size(QueueId::Reporting, 0),
            options,
        ),
    ];
    for (profile, options) in cases {
        let mut rig = Rig::new(profile, options);
        assert_eq!(rig.balloon.capabilities().bulk, None);
        let refused = rig.submit(Kind::Inflate, Via::Bulk, &[run(1, 1)]);
        assert_eq!(refused.err(), Some(VirtioError::Unsupported));
    }
}

#[test]
fn without_tables_two_requests_share_the_descriptors() {
    let profile = Profile::qemu(Features::PAGE_REPORTING);
    let options = DriverOptions::new().without_indirect();
    let mut balloon = testing::bring_up::<16>(profile, &options).unwrap();
    let limits = balloon.capabilities().bulk.unwrap();
    assert_eq!((limits.runs, limits.in_flight), (8, 2));
    check_transport_laws(&mut balloon, range(0x1000, 4096), serve);
}

#[test]
fn a_full_ring_of_full_tables_goes_through_and_comes_back() {
    let profile = Profile::qemu(Features::PAGE_REPORTING);
    let mut rig = Rig::new(profile, DriverOptions::new());
    for round in 0..3 {
        rig.slots = Box::leak(Box::default());
        let runs: Vec<Run> = (0..16).map(|i| run(0x1000 + 2 * i, 1)).collect();
        for _ in 0..16 {
            rig.send(Kind::Inflate, Via::Bulk, &runs);
        }
        rig.balloon.kick(1).unwrap();
        let chains = rig.device().serve(QueueId::Reporting);
        assert_eq!(chains.len(), 16, "round {round}");
        for chain in chains {
            let starts = chain.descriptors.iter().map(|d| (d.address >> 12, d.len));
            assert!(starts.eq((0..16).map(|i| (0x1000 + 2 * i, 4096))));
        }
        rig.reap().unwrap();
        assert_eq!(rig.balloon.in_flight(QueueId::Reporting), 0);
    }
}

#[test]
fn a_host_page_of_2_mib_takes_two_descriptors_of_256_page_numbers() {
    let options = DriverOptions::new().with_host_superpages();
    let mut rig = Rig::new(Profile::qemu(Features::empty()), options);
    let Capabilities { inflate, unit, .. } = rig.balloon.capabilities();
    // A queue of sixteen.
    assert_eq!((inflate.in_flight, unit), (8, Order::SUPERPAGE));
    for block in 1..=8 {
        let runs = [run(block * 512, 512)];
        rig.send(Kind::Inflate, Via::Inflate, &runs);
    }
    let ninth = rig.submit(Kind::Inflate, Via::Inflate, &[run(1, 1)]);
    assert_eq!(
        ninth.err(),
        Some(VirtioError::Queue(QueueId::Inflate, QueueError::Full))
    );
    rig.balloon.kick(1).unwrap();
    let chains = rig.device().serve(QueueId::Inflate);
    for (block, chain) in (1..).zip(&chains) {
        let lengths: Vec<u32> = chain.descriptors.iter().map(|d| d.len).collect();
        assert_eq!(lengths, [1024, 1024]);
        let pfns: Vec<u32> = (block * 512..(block + 1) * 512).collect();
        assert_eq!(rig.device().pfns(chain), pfns);
    }
    assert_eq!(chains.len(), 8);
    // Less than half a page goes in one.
    rig.reap().unwrap();
    rig.send(Kind::Deflate, Via::Inflate, &[run(512, 256)]);
    let chains = rig.device().serve(QueueId::Deflate);
    assert_eq!(chains[0].descriptors.len(), 1);
    let too_long = [run(1024, 512), run(2000, 1)];
    let refused = rig.submit(Kind::Inflate, Via::Inflate, &too_long);
    assert_eq!(refused.err(), Some(VirtioError::TooLarge));
}

#[test]
fn a_queue_of_one_descriptor_carries_what_a_host_page_of_2_mib_does_not_need() {
    let options = DriverOptions::new().with_host_superpages();
    let profile = Profile::qemu(Features::empty()).with_size(QueueId::Deflate, 1);
    let mut rig = Rig::new(profile, options);
    let Capabilities {
        inflate, deflate, ..
    } = rig.balloon.capabilities();
    assert_eq!((inflate.runs, inflate.in_flight), (512, 8));
    // What is given can be taken back, if slowly.
    assert_eq!((deflate.runs, deflate.in_flight), (256, 1));
    let (kind, via) = (Kind::Deflate, Via::Inflate);
    rig.send(kind, via, &[run(512, 256)]);
    assert_eq!(rig.device().serve(QueueId::Deflate).len(), 1);
}
