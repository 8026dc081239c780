//! Devices that do not answer, or wrongly.

use super::*;

#[test]
fn a_device_that_never_answers_keeps_nothing_else_waiting() {
    let profile = Profile::qemu(Features::PAGE_REPORTING);
    let mut rig = Rig::new(profile, DriverOptions::new());
    rig.send(Kind::Inflate, Via::Inflate, &[run(1, 256)]);
    let back = rig
        .submit(Kind::Deflate, Via::Inflate, &[run(999, 1)])
        .unwrap();
    rig.balloon.kick(1).unwrap();
    rig.device().serve(QueueId::Deflate);
    rig.reap().unwrap();
    assert!(back.answer().is_ok());
    assert_eq!(rig.balloon.in_flight(QueueId::Inflate), 1);
    // Only a reset ends the wait; it gives everything back.
    let (device, memory) = rig.balloon.reset(&mut NoDelay).unwrap();
    let again =
        FakeBalloon::<16>::bring_up(device, memory, &DriverOptions::new(), &mut NoDelay).unwrap();
    assert_eq!(again.in_flight(QueueId::Inflate), 0);
}

#[test]
fn wrong_and_double_answers_are_counted_and_change_nothing() {
    let profile = Profile::qemu(Features::empty());
    let mut rig = Rig::new(profile, DriverOptions::new());
    let a = rig
        .submit(Kind::Inflate, Via::Inflate, &[run(1, 1)])
        .unwrap();
    let b = rig
        .submit(Kind::Inflate, Via::Inflate, &[run(2, 1)])
        .unwrap();
    rig.balloon.kick(1).unwrap();
    let head = u32::from(rig.device().take(QueueId::Inflate).unwrap().head);
    for id in [16, u32::MAX, head, head, 9] {
        rig.device().answer(QueueId::Inflate, id, u32::MAX);
    }
    rig.reap().unwrap();
    assert!(a.answer().is_ok());
    let b = b.answer().unwrap_err();
    let counters = rig.balloon.counters().queues;
    assert_eq!((counters.answers, counters.odd_lengths), (1, 1));
    let last = u32::from(rig.device().take(QueueId::Inflate).unwrap().head);
    rig.device().answer(QueueId::Inflate, last, 0);
    rig.reap().unwrap();
    assert!(b.answer().is_ok());
    assert_eq!(rig.balloon.counters().queues.spurious_answers, 4);
}

#[test]
fn an_index_that_runs_away_ends_one_queue_not_the_others() {
    let profile = Profile::qemu(Features::empty());
    let mut rig = Rig::new(profile, DriverOptions::new());
    rig.send(Kind::Inflate, Via::Inflate, &[run(1, 1)]);
    let back = rig
        .submit(Kind::Deflate, Via::Inflate, &[run(2, 1)])
        .unwrap();
    rig.balloon.kick(1).unwrap();
    rig.device().jump(QueueId::Inflate, 17);
    rig.device().serve(QueueId::Deflate);
    let broken = rig.reap();
    assert_eq!(
        broken.map_err(|e| e.kind()),
        Err(TransportErrorKind::Broken)
    );
    assert!(back.answer().is_ok());
    assert_eq!(
        rig.balloon.in_flight(QueueId::Inflate),
        1,
        "the frames are still accounted for"
    );
}
