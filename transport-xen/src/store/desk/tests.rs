use alloc::vec::Vec;

use super::*;
use crate::testing::{FakePage, FakeStore, Manners};

const MIB: u64 = 1 << 20;

fn desk() -> (Desk<FakePage>, FakeStore) {
    let page = FakePage::new();
    let mut store = FakeStore::new(page.clone());
    store.set("memory/static-max", b"32768");
    store.set("memory/target", b"24576");
    store.set("control/shutdown", b"");
    (Desk::new(Client::new(page), DeskPolicy::DEFAULT), store)
}

fn settle(desk: &mut Desk<FakePage>, store: &mut FakeStore, now: Nanos) -> Vec<Notice> {
    let mut notices = Vec::new();
    for _ in 0..12 {
        while let Some(notice) = desk.step(now).unwrap() {
            notices.push(notice);
        }
        store.run();
    }
    notices
}

#[test]
fn opening_tells_sizes_and_the_target() {
    let (mut desk, mut store) = desk();
    let notices = settle(&mut desk, &mut store, Nanos::ZERO);
    let expected = [
        Notice::StaticMax(Bytes::new(32 * MIB)),
        Notice::Target(Bytes::new(24 * MIB)),
    ];
    assert_eq!(notices, expected);
    assert_eq!(store.nodes["control/feature-suspend"], b"1");
    assert_eq!(desk.wake_at(), None, "at rest");
    assert!(desk.take_notify());
    store.set("memory/target", b"16384");
    let notices = settle(&mut desk, &mut store, Nanos::ZERO);
    assert_eq!(notices, [Notice::Target(Bytes::new(16 * MIB))]);
}

#[test]
fn messages_left_in_the_ring_are_asked_for_at_once() {
    let (mut desk, mut store) = desk();
    settle(&mut desk, &mut store, Nanos::ZERO);
    for _ in 0..30 {
        store.inject_message(2, 0x1234, b"?");
    }
    store.set("memory/target", b"16384");
    store.run();
    let now = Nanos::from_secs(1);
    assert_eq!(desk.step(now), Ok(None), "bounded");
    for _ in 0..4 {
        if desk.wake_at().is_some_and(|at| at <= now) {
            assert_eq!(desk.step(now), Ok(None));
        }
        store.run();
    }
    let read = Notice::Target(Bytes::new(16 * MIB));
    assert_eq!(desk.step(now), Ok(Some(read)));
    assert_eq!(desk.step(now), Ok(None));
    assert_eq!(desk.wake_at(), None, "at rest");
}

#[test]
fn news_for_the_toolstack_ask_for_a_step() {
    let (mut desk, mut store) = desk();
    settle(&mut desk, &mut store, Nanos::ZERO);
    assert_eq!(desk.wake_at(), None);
    desk.publish_unit(Order::FRAME);
    assert_eq!(desk.wake_at(), Some(Nanos::ZERO));
    settle(&mut desk, &mut store, Nanos::ZERO);
    assert_eq!(store.nodes["data/balloon/unit"], b"4");
    desk.publish_unit(Order::FRAME);
    assert_eq!(desk.wake_at(), None, "no news");
}

#[test]
fn a_domain_that_cannot_be_saved_offers_nothing() {
    let (desk, mut store) = desk();
    let policy = DeskPolicy {
        offer_suspend: false,
        ..DeskPolicy::DEFAULT
    };
    let mut desk = Desk::new(desk.client, policy);
    settle(&mut desk, &mut store, Nanos::ZERO);
    assert!(!store.nodes.contains_key("control/feature-suspend"));
}

#[test]
fn garbage_in_the_target_is_told_and_not_believed() {
    let (mut desk, mut store) = desk();
    settle(&mut desk, &mut store, Nanos::ZERO);
    for bad in [
        &b""[..],
        b"-1",
        b"many",
        b"99999999999999999999",
        b"18446744073709551615",
    ] {
        store.set("memory/target", bad);
        let notices = settle(&mut desk, &mut store, Nanos::ZERO);
        assert_eq!(notices, [Notice::BadTarget], "{bad:?}");
    }
    store.nodes.remove("memory/target");
    store.inject_message(15, 0, b"memory/target\0target\0");
    assert_eq!(settle(&mut desk, &mut store, Nanos::ZERO), []);
}

#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn a_burst_of_targets_ends_at_the_last() {
    let (mut desk, mut store) = desk();
    settle(&mut desk, &mut store, Nanos::ZERO);
    let mut last = None;
    for kib in 1..=500u64 {
        store.set("memory/target", alloc::format!("{kib}").as_bytes());
        store.run();
        if let Some(notice) = desk.step(Nanos::ZERO).unwrap() {
            last = Some(notice);
        }
    }
    let more = settle(&mut desk, &mut store, Nanos::ZERO);
    let last = more.last().copied().or(last);
    assert_eq!(last, Some(Notice::Target(Bytes::new(500 * 1024))));
}

#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn silence_is_met_with_ever_rarer_questions() {
    let (mut desk, mut store) = desk();
    store.manners = Manners::Silent;
    let mut now = Nanos::ZERO;
    let mut rounds = 0;
    while now < Nanos::from_secs(3600) {
        settle(&mut desk, &mut store, now);
        let next = desk.wake_at().expect("it keeps waiting for an answer");
        assert!(next > now);
        now = next;
        rounds += 1;
    }
    assert!(rounds <= 120, "{rounds} wake-ups in an hour");
    store.manners = Manners::Good;
    let notices = settle(&mut desk, &mut store, now);
    assert!(notices.contains(&Notice::Target(Bytes::new(24 * MIB))));
    assert_eq!(desk.wake_at(), None);
}

#[test]
fn what_was_refused_is_asked_for_again() {
    let (mut desk, mut store) = desk();
    store.manners = Manners::Refusing;
    let mut now = Nanos::ZERO;
    let mut rounds = 0;
    while now < Nanos::from_secs(3600) {
        assert_eq!(settle(&mut desk, &mut store, now), []);
        let next = desk.wake_at().expect("it tries again");
        assert!(next > now);
        now = next;
        rounds += 1;
    }
    assert!(rounds <= 120, "{rounds} wake-ups in an hour");
    assert_eq!(desk.timeouts(), 0, "it was answered");
    store.manners = Manners::Good;
    let notices = settle(&mut desk, &mut store, now);
    let expected = [
        Notice::StaticMax(Bytes::new(32 * MIB)),
        Notice::Target(Bytes::new(24 * MIB)),
    ];
    assert_eq!(notices, expected);
    assert_eq!(store.nodes["control/feature-suspend"], b"1");
    assert_eq!(desk.wake_at(), None, "at rest");
    store.set("memory/target", b"16384");
    let notices = settle(&mut desk, &mut store, now);
    assert_eq!(notices, [Notice::Target(Bytes::new(16 * MIB))], "watched");
}

#[test]
fn what_this_domain_may_not_write_is_not_written() {
    let page = FakePage::new();
    let mut desk = Desk::new(Client::new(page.clone()), DeskPolicy::DEFAULT);
    let mut store = FakeStore::new(page);
    settle(&mut desk, &mut store, Nanos::ZERO);
    desk.publish_unit(Order::FRAME);
    store.manners = Manners::Silent;
    assert_eq!(settle(&mut desk, &mut store, Nanos::ZERO), []);
    let id = desk.client().counters().requests;
    store.inject_message(16, id, b"EACCES\0");
    store.run();
    assert_eq!(settle(&mut desk, &mut store, Nanos::ZERO), []);
    assert_eq!(desk.wake_at(), None, "at rest");
}

#[test]
fn answers_that_come_late_do_no_harm() {
    let (mut desk, mut store) = desk();
    store.manners = Manners::Gone;
    settle(&mut desk, &mut store, Nanos::ZERO);
    let late = desk.wake_at().unwrap();
    settle(&mut desk, &mut store, late);
    store.manners = Manners::Good;
    let notices = settle(&mut desk, &mut store, late);
    assert_eq!(notices.last(), Some(&Notice::Target(Bytes::new(24 * MIB))));
    assert!(desk.timeouts() > 0);
}

#[test]
fn every_kind_of_bad_manners_ends_at_the_target() {
    for manners in [Manners::Backwards, Manners::Babbling] {
        let (mut desk, mut store) = desk();
        store.manners = manners;
        let notices = settle(&mut desk, &mut store, Nanos::ZERO);
        let target = Notice::Target(Bytes::new(24 * MIB));
        assert!(notices.contains(&target), "{manners:?}");
    }
}

#[test]
fn a_restore_begins_anew_and_publishes_again() {
    let (mut desk, mut store) = desk();
    desk.publish_unit(Order::FRAME);
    desk.publish_downgrades(12);
    settle(&mut desk, &mut store, Nanos::ZERO);
    assert_eq!(store.nodes["data/balloon/unit"], b"4");
    assert_eq!(store.nodes["data/balloon/downgrades"], b"12");
    desk.publish_unit(Order::SUPERPAGE);
    settle(&mut desk, &mut store, Nanos::ZERO);
    assert_eq!(store.nodes["data/balloon/unit"], b"2048");
    store.reset();
    store.nodes.remove("data/balloon/downgrades");
    desk.restored();
    let notices = settle(&mut desk, &mut store, Nanos::ZERO);
    assert!(notices.contains(&Notice::Target(Bytes::new(24 * MIB))));
    assert_eq!(store.nodes["data/balloon/downgrades"], b"12");
    store.set("memory/target", b"1024");
    let notices = settle(&mut desk, &mut store, Nanos::ZERO);
    assert_eq!(notices, [Notice::Target(Bytes::new(MIB))], "watched again");
}

#[test]
fn a_request_to_suspend_is_acknowledged() {
    let (mut desk, mut store) = desk();
    settle(&mut desk, &mut store, Nanos::ZERO);
    store.set("control/shutdown", b"suspend");
    let notices = settle(&mut desk, &mut store, Nanos::ZERO);
    assert_eq!(notices, [Notice::Shutdown(ShutdownRequest::Suspend)]);
    desk.acknowledge();
    let notices = settle(&mut desk, &mut store, Nanos::ZERO);
    assert_eq!(notices, [Notice::Acknowledged(ShutdownRequest::Suspend)]);
    assert_eq!(store.nodes["control/shutdown"], b"");
    assert_eq!(store.open_transactions(), 0);
    desk.reread();
    let notices = settle(&mut desk, &mut store, Nanos::ZERO);
    assert_eq!(notices, [Notice::Target(Bytes::new(24 * MIB))]);
}

/// One step of the desk, then one of the store.
fn turn(desk: &mut Desk<FakePage>, store: &mut FakeStore) -> Option<Notice> {
    let notice = desk.step(Nanos::ZERO).unwrap();
    store.run();
    notice
}

/// A desk that was told of a suspend.
fn asked() -> (Desk<FakePage>, FakeStore) {
    let (mut desk, mut store) = desk();
    settle(&mut desk, &mut store, Nanos::ZERO);
    store.set("control/shutdown", b"suspend");
    settle(&mut desk, &mut store, Nanos::ZERO);
    (desk, store)
}

#[test]
fn a_request_made_during_the_acknowledgement_is_not_wiped() {
    // After each of its answers: begun, read, written, committed.
    for turns in 1..8 {
        let (mut desk, mut store) = asked();
        desk.acknowledge();
        let mut notices: Vec<Notice> = (0..turns)
            .filter_map(|_| turn(&mut desk, &mut store))
            .collect();
        store.set("control/shutdown", b"reboot");
        notices.extend(settle(&mut desk, &mut store, Nanos::ZERO));
        let acknowledged = |request| notices.contains(&Notice::Acknowledged(request));
        if acknowledged(ShutdownRequest::Suspend) {
            // It came too late for that: it still stands, and was told.
            assert_eq!(store.nodes["control/shutdown"], b"reboot", "{turns}");
            let told = Notice::Shutdown(ShutdownRequest::Reboot);
            assert_eq!(notices.last(), Some(&told), "{turns}");
        } else {
            assert!(acknowledged(ShutdownRequest::Reboot), "{turns} {notices:?}");
            assert_eq!(store.nodes["control/shutdown"], b"", "{turns}");
        }
        assert_eq!(store.open_transactions(), 0);
    }
}

#[test]
fn a_request_that_was_withdrawn_is_not_acknowledged() {
    for gone in [&b""[..], b"suspend, please"] {
        let (mut desk, mut store) = asked();
        store.set("control/shutdown", gone);
        desk.acknowledge();
        let notices = settle(&mut desk, &mut store, Nanos::ZERO);
        assert_eq!(notices, [Notice::Withdrawn]);
        assert_eq!(store.nodes["control/shutdown"], gone);
        assert_eq!(store.open_transactions(), 0);
    }
    let (mut desk, mut store) = asked();
    store.nodes.remove("control/shutdown");
    desk.acknowledge();
    let notices = settle(&mut desk, &mut store, Nanos::ZERO);
    assert_eq!(notices, [Notice::Withdrawn]);
}

#[test]
fn a_request_unseen_by_the_transaction_is_told_when_that_is_over() {
    let (mut desk, mut store) = asked();
    store.set("control/shutdown", b"");
    settle(&mut desk, &mut store, Nanos::ZERO);
    desk.acknowledge();
    turn(&mut desk, &mut store);
    // The transaction has begun and goes by what was there.
    store.set("control/shutdown", b"reboot");
    store.run();
    let notices = settle(&mut desk, &mut store, Nanos::ZERO);
    let told = Notice::Shutdown(ShutdownRequest::Reboot);
    assert_eq!(notices, [told, Notice::Withdrawn, told]);
}

#[test]
fn conflicts_are_met_with_patience_and_an_end() {
    let (mut desk, mut store) = asked();
    desk.acknowledge();
    store.conflict = true;
    let notices = settle(&mut desk, &mut store, Nanos::ZERO);
    assert_eq!(notices, [Notice::Acknowledged(ShutdownRequest::Suspend)]);

    let (mut desk, mut store) = asked();
    desk.acknowledge();
    let requests = store.seen.len();
    let mut outcome = None;
    for _ in 0..1000 {
        store.conflict = true;
        outcome = outcome.or(turn(&mut desk, &mut store));
    }
    assert_eq!(outcome, Some(Notice::Withdrawn));
    assert!(store.seen.len() - requests < 50, "bounded");
    assert_eq!(store.nodes["control/shutdown"], b"suspend");
    told_again(&mut desk, &mut store);
}

/// The request that still stands is told once more, after a pause.
fn told_again(desk: &mut Desk<FakePage>, store: &mut FakeStore) {
    let requests = store.seen.len();
    assert_eq!(settle(desk, store, Nanos::ZERO), []);
    assert_eq!(store.seen.len(), requests, "not at once");
    let later = DeskPolicy::DEFAULT.cap;
    assert_eq!(desk.wake_at(), Some(later));
    let told = Notice::Shutdown(ShutdownRequest::Suspend);
    assert_eq!(settle(desk, store, later), [told]);
    assert_eq!(desk.wake_at(), None, "at rest");
}

#[test]
fn a_request_that_may_not_be_acknowledged_is_told_again_later() {
    let (begun, ok, refused) = ((6, &b"7"[..]), (7, &b"OK\0"[..]), (16, &b"EACCES\0"[..]));
    let wrote = (11, &b"OK\0"[..]);
    let found = (2, &b"suspend"[..]);
    let stories = [
        &[refused][..],
        &[begun, refused, ok],
        &[begun, found, refused, ok],
        &[begun, found, wrote, refused],
    ];
    for story in stories {
        let (mut desk, mut store) = asked();
        desk.acknowledge();
        store.manners = Manners::Silent;
        for &(kind, payload) in story {
            assert_eq!(turn(&mut desk, &mut store), None);
            // Ids go up one by one.
            let id = desk.client().counters().requests;
            store.inject_message(kind, id, payload);
            store.run();
        }
        assert_eq!(turn(&mut desk, &mut store), Some(Notice::Withdrawn));
        store.manners = Manners::Good;
        told_again(&mut desk, &mut store);
    }
}

#[test]
fn an_acknowledgement_survives_a_late_store_and_a_new_connection() {
    let (mut desk, mut store) = asked();
    desk.acknowledge();
    store.manners = Manners::Gone;
    let late = Nanos::from_secs(63);
    assert_eq!(settle(&mut desk, &mut store, Nanos::ZERO), []);
    assert_eq!(settle(&mut desk, &mut store, late), []);
    store.manners = Manners::Good;
    let notices = settle(&mut desk, &mut store, late);
    assert_eq!(notices, [Notice::Acknowledged(ShutdownRequest::Suspend)]);
    assert_eq!(desk.timeouts(), 0, "it was waited for");

    // Read and never answered.
    let (mut desk, mut store) = asked();
    desk.acknowledge();
    store.manners = Manners::Silent;
    assert_eq!(settle(&mut desk, &mut store, late), []);
    store.manners = Manners::Good;
    assert_eq!(settle(&mut desk, &mut store, late), []);
    let hour = desk.wake_at().unwrap();
    let notices = settle(&mut desk, &mut store, hour);
    assert_eq!(notices, [Notice::Acknowledged(ShutdownRequest::Suspend)]);

    // Begun, and then never answered.
    let (mut desk, mut store) = asked();
    desk.acknowledge();
    turn(&mut desk, &mut store);
    store.manners = Manners::Silent;
    assert_eq!(settle(&mut desk, &mut store, Nanos::ZERO), []);
    store.manners = Manners::Good;
    let notices = settle(&mut desk, &mut store, hour);
    assert_eq!(notices, [Notice::Acknowledged(ShutdownRequest::Suspend)]);
    assert_eq!(store.open_transactions(), 0);

    let (mut desk, mut store) = asked();
    desk.acknowledge();
    turn(&mut desk, &mut store);
    store.reset();
    desk.restored();
    let notices = settle(&mut desk, &mut store, hour);
    let done = Notice::Acknowledged(ShutdownRequest::Suspend);
    assert!(notices.contains(&done), "{notices:?}");
}

#[test]
fn a_store_that_answers_an_acknowledgement_with_nonsense_gets_nothing() {
    // To the beginning, the reading, the writing and the end of a transaction.
    let answers: [(u32, &[u8]); 6] = [
        (6, b"0"),
        (6, b"x"),
        (16, b"ENOSYS\0"),
        (16, b"EAGAIN\0"),
        (6, b"4294967296"),
        (6, &[0xff; 4096]),
    ];
    for (kind, payload) in answers {
        let (mut desk, mut store) = asked();
        desk.acknowledge();
        store.manners = Manners::Silent;
        let mut outcome = None;
        for _ in 0..100 {
            outcome = outcome.or(turn(&mut desk, &mut store));
            // Ids go up one by one.
            let id = desk.client().counters().requests;
            store.inject_message(kind, id, payload);
            store.run();
        }
        assert_eq!(outcome, Some(Notice::Withdrawn), "{kind} {payload:?}");
    }
}

#[test]
fn a_ring_that_breaks_for_good_is_an_error() {
    let page = FakePage::new();
    let mut desk = Desk::new(Client::new(page.clone()), DeskPolicy::DEFAULT);
    let mut other = page;
    other.store(2060, 5000);
    let gone = desk.step(Nanos::ZERO);
    assert!(matches!(gone, Err(DeskError::Gone(_))));
    desk.restored();
    other.fill(0);
    // Requests are out, and an acknowledgement.
    desk.acknowledge();
    assert_eq!(desk.step(Nanos::ZERO), Ok(None));
    other.store(2060, 5000);
    for _ in 0..2 {
        assert!(desk.step(Nanos::from_secs(100)).is_err());
        assert_eq!(desk.wake_at(), None, "nothing to wait for");
    }
    desk.restored();
    other.fill(0);
    assert_eq!(desk.step(Nanos::ZERO), Ok(None));
}
