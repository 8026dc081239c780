//! A driver that breaks rules is caught: each case with the rule it breaks.

use super::*;

use balloon_core::{Kind, Run};
use transport_virtio::{Body, DeviceStatus, Queues, RequestId};

fn balloon() -> FakeBalloon<16> {
    let all = Features::MUST_TELL_HOST | Features::PAGE_REPORTING;
    fake::bring_up::<16>(Profile::specification(all), &Policy::new()).unwrap()
}

/// Puts page numbers on a queue behind the driver's back.
fn tell(balloon: &mut FakeBalloon<16>, queue: QueueId, pfns: &[u32]) {
    let slots = Slots::<1>::new();
    let slot = slots.claim(Kind::Inflate).unwrap().slot();
    let bytes: Vec<u8> = pfns.iter().flat_map(|pfn| pfn.to_le_bytes()).collect();
    let request = RequestId {
        kind: Kind::Inflate,
        slot,
    };
    balloon
        .queues_mut()
        .submit(queue, request, Body::Bytes(&bytes))
        .unwrap();
    balloon.queues_mut().device_mut().take(queue);
}

fn answer(balloon: &mut FakeBalloon<16>, queue: QueueId, head: u32) {
    balloon.queues_mut().device_mut().answer(queue, head, 0);
    balloon.queues_mut().pop(queue).unwrap();
}

fn uses(balloon: &mut FakeBalloon<16>, pfn: u64) {
    balloon
        .queues_mut()
        .device_mut()
        .judge_mut()
        .uses(Pfn::new(pfn));
}

fn caught(balloon: &FakeBalloon<16>) -> Vec<&'static str> {
    broken(balloon.queues().device())
}

#[test]
fn frames_used_too_early() {
    let mut balloon = balloon();
    tell(&mut balloon, QueueId::Inflate, &[7, 8]);
    uses(&mut balloon, 7);
    assert_eq!(caught(&balloon), ["17"]);
    answer(&mut balloon, QueueId::Inflate, 0);
    uses(&mut balloon, 8);
    assert_eq!(caught(&balloon), ["15", "17"]);
    tell(&mut balloon, QueueId::Deflate, &[8]);
    uses(&mut balloon, 8);
    assert_eq!(caught(&balloon), ["15", "16", "17"]);
    answer(&mut balloon, QueueId::Deflate, 0);
    uses(&mut balloon, 8);
    assert_eq!(caught(&balloon).len(), 3);
}

#[test]
fn frames_told_back_too_early_or_twice() {
    let mut balloon = balloon();
    tell(&mut balloon, QueueId::Inflate, &[7]);
    tell(&mut balloon, QueueId::Deflate, &[7]);
    assert_eq!(caught(&balloon), ["18"]);
}

#[test]
fn lists_that_do_not_rise_or_leave_memory() {
    let mut balloon = balloon();
    let device = balloon.queues_mut().device_mut();
    device.judge_mut().set_memory(Pfn::new(0)..Pfn::new(10));
    tell(&mut balloon, QueueId::Inflate, &[8, 7]);
    assert_eq!(caught(&balloon), ["R3"]);
    tell(&mut balloon, QueueId::Inflate, &[10]);
    assert_eq!(caught(&balloon), ["20", "R3"]);
}

#[test]
fn statistics_and_hints_out_of_form() {
    let all = Features::STATS_VQ | Features::FREE_PAGE_HINT;
    let mut balloon: FakeBalloon<16> =
        fake::bring_up(Profile::specification(all), &serving()).unwrap();
    tell(&mut balloon, QueueId::Statistics, &[0, 0]);
    assert_eq!(caught(&balloon), ["27"]);
    answer(&mut balloon, QueueId::Statistics, 0);
    tell(&mut balloon, QueueId::Statistics, &[0; 5]);
    assert_eq!(caught(&balloon), ["25", "26", "27"]);
    tell(&mut balloon, QueueId::Hint, &[9]);
    assert_eq!(caught(&balloon).len(), 3);
    tell(&mut balloon, QueueId::Hint, &[9]);
    assert_eq!(caught(&balloon), ["25", "26", "27", "31"]);
    tell(&mut balloon, QueueId::Hint, &[0]);
    let slots = Slots::<1>::new();
    let slot = slots.claim(Kind::Hint).unwrap().launch();
    let range = FrameRange::single(Pfn::new(5)).and_then(Run::new).unwrap();
    let runs = [range];
    let request = slot.request(GivePath::Told, &runs);
    balloon.submit(request, slots.completer()).unwrap();
    balloon.queues_mut().device_mut().take(QueueId::Hint);
    assert_eq!(caught(&balloon), ["25", "26", "27", "31", "32"]);
}

#[test]
fn registers_out_of_turn() {
    let mut balloon = balloon();
    let device = balloon.queues_mut().device_mut();
    let _ = device.read_config(8);
    let _ = device.read_config(16);
    assert_eq!(broken(device), ["8"]);
    device.write_config(12, 1);
    assert_eq!(broken(device), ["10", "8"]);
    let queue = transport_virtio::QueueIndex::new;
    let at = transport_virtio::RingAddresses {
        descriptors: 0,
        driver: 0,
        device: 0,
    };
    let _ = device.set_queue(queue(7), 2, at);
    assert_eq!(broken(device), ["10", "8", "9", "R5"]);
}

#[test]
fn a_handshake_without_manners() {
    let offered = Features::MUST_TELL_HOST | Features::ACCESS_PLATFORM | SUSPEND;
    let (mut device, _) = fake::pair::<16>(Profile::specification(offered));
    device.set_status(DeviceStatus::empty());
    device.accept_features(Features::ACCESS_PLATFORM | SUSPEND);
    device.notify(transport_virtio::QueueIndex::new(0));
    device.set_status(DeviceStatus::FEATURES_OK);
    assert_eq!(broken(&device), ["3", "6", "9", "R10", "R11"]);
}
