//! Devices that do not answer, or wrongly.

use super::*;

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
