//! Statistics, hints, poison: rules 5, 10, 23 to 37.

use transport_virtio::{BringUpError, DeviceStatus};

use super::*;

#[test]
fn rule_23_24_25_26_27_one_whole_statistics_buffer_again_and_again() {
    let mut guest = Guest::new(Profile::qemu(Features::empty()), serving());
    // The first one without being asked, filled.
    guest.serve_host();
    for _ in 0..3 {
        let chain = guest.device().take(QueueId::Statistics).unwrap();
        assert_eq!(guest.device().content(chain.descriptors[0]).len(), 30);
        guest.serve_host();
        assert_eq!(guest.device().take(QueueId::Statistics), None);
        let id = chain.head.into();
        guest.device().answer(QueueId::Statistics, id, 0);
        guest.serve_host();
    }
    assert_eq!(guest.broken(), [""; 0]);
}

#[test]
fn rule_29_r9_unknown_tags_are_sent_and_few() {
    // Tag 10 is beyond the specification's list; devices ignore what they do
    // not know, but not more than 256 entries.
    let profile = Profile::firecracker(Features::STATS_VQ);
    let mut guest = Guest::new(profile, serving());
    guest.serve_host();
    let chain = guest.device().take(QueueId::Statistics).unwrap();
    let content = guest.device().content(chain.descriptors[0]);
    assert_eq!(content[20..22], [10, 0]);
    assert!(content.len() <= 2560);
}

#[test]
fn rule_30_31_32_33_r4b_a_round_of_hints() {
    let mut guest = Guest::new(Profile::qemu(Features::FREE_PAGE_HINT), serving());
    guest.device().set_hint_command(9);
    let mut chains = Vec::new();
    for _ in 0..FRAMES + 50 {
        guest.serve_host();
        guest.device().serve(QueueId::Statistics);
        chains.extend(guest.device().serve(QueueId::Hint));
        guest.device().serve(QueueId::Reporting);
    }
    let commands = chains.iter().filter(|chain| !chain.descriptors[0].writable);
    assert_eq!(commands.count(), 2, "opened once, closed once");
    let last = chains.last().unwrap().descriptors[0];
    assert!(!last.writable, "closed when there is nothing more to offer");
    assert_eq!(guest.broken(), [""; 0]);
}

#[test]
fn rule_34_35_36_hinted_frames_are_kept_until_done() {
    let mut guest = Guest::new(Profile::qemu(Features::FREE_PAGE_HINT), serving());
    let held = |guest: &Guest| guest.hinted.held(Via::Inflate).get();
    let run = |guest: &mut Guest| {
        for _ in 0..FRAMES + 50 {
            guest.serve_host();
            guest.device().serve(QueueId::Hint);
            guest.device().serve(QueueId::Reporting);
        }
    };
    guest.device().set_hint_command(9);
    run(&mut guest);
    let hinted = held(&guest);
    assert!(hinted > FRAMES / 2, "{hinted}");
    guest.device().set_hint_command(0);
    run(&mut guest);
    assert_eq!(held(&guest), hinted, "kept at STOP");
    guest.device().set_hint_command(1);
    run(&mut guest);
    assert_eq!(held(&guest), 0, "released at DONE");
}

#[test]
fn rule_05_10_40_poison_is_told_first_and_once() {
    let both = Features::PAGE_POISON | Features::PAGE_REPORTING;
    let options = serving().with_poison(0x5a5a_5a5a);
    let mut guest = Guest::new(Profile::qemu(both), options);
    assert!(guest.balloon.negotiated().contains(both));
    assert_eq!(guest.device().poison(), 0x5a5a_5a5a);
    // Who relies on the value does not report to who does not know it.
    let deaf = Profile::qemu(Features::PAGE_REPORTING);
    let guest = Guest::new(deaf, options);
    assert!(
        !guest
            .balloon
            .negotiated()
            .contains(Features::PAGE_REPORTING)
    );
}

#[test]
fn rule_28_37_the_legacy_interface_is_not_driven() {
    // Its statistics and command ids have the guest's byte order, unknown to us.
    let all = Features::STATS_VQ | Features::FREE_PAGE_HINT;
    let legacy = Profile::qemu(all).without(Features::VERSION_1);
    let refused = testing::bring_up::<16>(legacy, &serving()).unwrap_err();
    assert_eq!(refused.error, BringUpError::Unsuitable(Features::VERSION_1));
    assert!(
        QUEUES
            .iter()
            .all(|&queue| refused.device.queue_size(queue) == 0)
    );
    assert_eq!(refused.device.history().last(), Some(&DeviceStatus::FAILED));
}
