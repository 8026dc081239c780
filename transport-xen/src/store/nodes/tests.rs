use alloc::vec::Vec;

use super::*;
use crate::suspend::ShutdownRequest;
use crate::testing::{Behaviour, FakePage, FakeStore};
use balloon_core::Bytes;

const MIB: u64 = 1 << 20;

fn nodes() -> (BalloonNodes<FakePage>, FakeStore) {
    let page = FakePage::new();
    let mut store = FakeStore::new(page.clone());
    store.set("memory/static-max", b"32768");
    store.set("memory/target", b"24576");
    store.set("control/shutdown", b"");
    (
        BalloonNodes::new(Client::new(page), NodesConfig::DEFAULT),
        store,
    )
}

fn settle(
    nodes: &mut BalloonNodes<FakePage>,
    store: &mut FakeStore,
    now: Nanos,
) -> Vec<StoreEvent> {
    let mut events = Vec::new();
    for _ in 0..12 {
        while let Some(event) = nodes.step(now).unwrap() {
            events.push(event);
        }
        store.run();
    }
    events
}

#[test]
fn opening_tells_sizes_and_the_target() {
    let (mut nodes, mut store) = nodes();
    let events = settle(&mut nodes, &mut store, Nanos::ZERO);
    let expected = [
        StoreEvent::StaticMax(Bytes::new(32 * MIB)),
        StoreEvent::Target(Bytes::new(24 * MIB)),
    ];
    assert_eq!(events, expected);
    assert_eq!(store.nodes["control/feature-suspend"], b"1");
    assert_eq!(nodes.wake_at(), None, "at rest");
    assert!(nodes.take_notify());
    store.set("memory/target", b"16384");
    let events = settle(&mut nodes, &mut store, Nanos::ZERO);
    assert_eq!(events, [StoreEvent::Target(Bytes::new(16 * MIB))]);
}

#[test]
fn maxima_are_heard_when_they_change() {
    let (mut nodes, mut store) = nodes();
    settle(&mut nodes, &mut store, Nanos::ZERO);
    store.set("memory/static-max", b"65536");
    store.set("memory/hotplug-max", b"131072");
    store.set("memory/target", b"49152");
    let events = settle(&mut nodes, &mut store, Nanos::ZERO);
    let mib = |mib| Bytes::new(mib * MIB);
    let expected = [
        StoreEvent::StaticMax(mib(64)),
        StoreEvent::HotplugMax(mib(128)),
        StoreEvent::Target(mib(48)),
    ];
    assert_eq!(events, expected);
    store.set("memory/target", b"32768");
    let events = settle(&mut nodes, &mut store, Nanos::ZERO);
    assert_eq!(events, [StoreEvent::Target(mib(32))]);
}

#[test]
fn messages_left_in_the_ring_are_asked_for_at_once() {
    let (mut nodes, mut store) = nodes();
    settle(&mut nodes, &mut store, Nanos::ZERO);
    for _ in 0..30 {
        store.inject_message(2, 0x1234, b"?");
    }
    store.set("memory/target", b"16384");
    store.run();
    let now = Nanos::from_secs(1);
    assert_eq!(nodes.step(now), Ok(None), "bounded");
    for _ in 0..4 {
        if nodes.wake_at().is_some_and(|at| at <= now) {
            assert_eq!(nodes.step(now), Ok(None));
        }
        store.run();
    }
    let read = StoreEvent::Target(Bytes::new(16 * MIB));
    assert_eq!(nodes.step(now), Ok(Some(read)));
    assert_eq!(nodes.step(now), Ok(None));
    assert_eq!(nodes.wake_at(), None, "at rest");
}

#[test]
fn a_store_that_is_still_to_come_is_waited_for() {
    // Xen has laid out the page, and whoever serves it starts later.
    let mut page = FakePage::new();
    page.store(2068, 1);
    let mut nodes = BalloonNodes::new(Client::new(page.clone()), NodesConfig::DEFAULT);
    assert_eq!(nodes.step(Nanos::ZERO), Ok(None));
    assert_eq!(nodes.wake_at(), None, "its event says when");
    assert_eq!(page.load(2052), 0, "nothing is sent before");
    let mut store = FakeStore::without_reconnect(page);
    store.set("memory/target", b"24576");
    store.run();
    let events = settle(&mut nodes, &mut store, Nanos::ZERO);
    assert_eq!(events, [StoreEvent::Target(Bytes::new(24 * MIB))]);
    assert_eq!(nodes.wake_at(), None, "at rest");
}

#[test]
fn news_for_the_toolstack_ask_for_a_step() {
    let (mut nodes, mut store) = nodes();
    settle(&mut nodes, &mut store, Nanos::ZERO);
    assert_eq!(nodes.wake_at(), None);
    nodes.publish_unit(Order::FRAME);
    assert_eq!(nodes.wake_at(), Some(Nanos::ZERO));
    settle(&mut nodes, &mut store, Nanos::ZERO);
    assert_eq!(store.nodes["data/balloon/unit"], b"4");
    nodes.publish_unit(Order::FRAME);
    assert_eq!(nodes.wake_at(), None, "no news");
}

#[test]
fn a_domain_that_cannot_be_saved_offers_nothing() {
    let (nodes, mut store) = nodes();
    let policy = NodesConfig {
        offer_suspend: false,
        ..NodesConfig::DEFAULT
    };
    let mut nodes = BalloonNodes::new(nodes.client, policy);
    settle(&mut nodes, &mut store, Nanos::ZERO);
    assert!(!store.nodes.contains_key("control/feature-suspend"));
}

#[test]
fn garbage_in_the_target_is_told_and_not_believed() {
    let (mut nodes, mut store) = nodes();
    settle(&mut nodes, &mut store, Nanos::ZERO);
    for bad in [
        &b""[..],
        b"-1",
        b"many",
        b"99999999999999999999",
        b"18446744073709551615",
    ] {
        store.set("memory/target", bad);
        let events = settle(&mut nodes, &mut store, Nanos::ZERO);
        assert_eq!(events, [StoreEvent::BadTarget], "{bad:?}");
    }
    store.nodes.remove("memory/target");
    store.inject_message(15, 0, b"memory/target\0target\0");
    assert_eq!(settle(&mut nodes, &mut store, Nanos::ZERO), []);
}

#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn a_burst_of_targets_ends_at_the_last() {
    let (mut nodes, mut store) = nodes();
    settle(&mut nodes, &mut store, Nanos::ZERO);
    let mut last = None;
    for kib in 1..=500u64 {
        store.set("memory/target", alloc::format!("{kib}").as_bytes());
        store.run();
        if let Some(event) = nodes.step(Nanos::ZERO).unwrap() {
            last = Some(event);
        }
    }
    let more = settle(&mut nodes, &mut store, Nanos::ZERO);
    let last = more.last().copied().or(last);
    assert_eq!(last, Some(StoreEvent::Target(Bytes::new(500 * 1024))));
}

#[test]
#[cfg_attr(miri, ignore = "safe code all the way, and minutes long")]
fn silence_is_met_with_ever_rarer_questions() {
    let (mut nodes, mut store) = nodes();
    store.behaviour = Behaviour::Silent;
    let mut now = Nanos::ZERO;
    let mut rounds = 0;
    while now < Nanos::from_secs(3600) {
        settle(&mut nodes, &mut store, now);
        let next = nodes.wake_at().expect("it keeps waiting for an answer");
        assert!(next > now);
        now = next;
        rounds += 1;
    }
    assert!(rounds <= 120, "{rounds} wake-ups in an hour");
    store.behaviour = Behaviour::Good;
    let events = settle(&mut nodes, &mut store, now);
    assert!(events.contains(&StoreEvent::Target(Bytes::new(24 * MIB))));
    assert_eq!(nodes.wake_at(), None);
}

#[test]
fn what_was_refused_is_asked_for_again() {
    let (mut nodes, mut store) = nodes();
    store.behaviour = Behaviour::Refusing;
    let mut now = Nanos::ZERO;
    let mut rounds = 0;
    while now < Nanos::from_secs(3600) {
        assert_eq!(settle(&mut nodes, &mut store, now), []);
        let next = nodes.wake_at().expect("it tries again");
        assert!(next > now);
        now = next;
        rounds += 1;
    }
    assert!(rounds <= 120, "{rounds} wake-ups in an hour");
    assert_eq!(nodes.timeouts(), 0, "it was answered");
    store.behaviour = Behaviour::Good;
    let mut events = settle(&mut nodes, &mut store, now);
    // Read once more, as it is watched now.
    events.dedup();
    let expected = [
        StoreEvent::StaticMax(Bytes::new(32 * MIB)),
        StoreEvent::Target(Bytes::new(24 * MIB)),
    ];
    assert_eq!(events, expected);
    assert_eq!(store.nodes["control/feature-suspend"], b"1");
    assert_eq!(nodes.wake_at(), None, "at rest");
    store.set("memory/target", b"16384");
    let events = settle(&mut nodes, &mut store, now);
    assert_eq!(
        events,
        [StoreEvent::Target(Bytes::new(16 * MIB))],
        "watched"
    );
}

#[test]
fn nodes_that_cannot_be_watched_are_read_now_and_then() {
    let (mut nodes, mut store) = nodes();
    store.behaviour = Behaviour::Unwatchable;
    let target = |mib| StoreEvent::Target(Bytes::new(mib * MIB));
    let static_max = StoreEvent::StaticMax(Bytes::new(32 * MIB));
    let events = settle(&mut nodes, &mut store, Nanos::ZERO);
    assert_eq!(events, [static_max, target(24)]);
    store.set("memory/target", b"16384");
    store.set("control/shutdown", b"suspend");
    let mut now = Nanos::ZERO;
    let mut news = Vec::new();
    let mut rounds = 0;
    while now < Nanos::from_secs(3600) {
        now = nodes.wake_at().expect("it tries again");
        news.extend(settle(&mut nodes, &mut store, now));
        rounds += 1;
    }
    assert!(rounds <= 120, "{rounds} wake-ups in an hour");
    assert_eq!(news.first(), Some(&target(16)));
    assert!(news.contains(&StoreEvent::Shutdown(ShutdownRequest::Suspend)));
    store.behaviour = Behaviour::Good;
    now = nodes.wake_at().unwrap();
    settle(&mut nodes, &mut store, now);
    assert_eq!(nodes.wake_at(), None, "watched");
}

#[test]
fn nodes_that_are_watched_already_are_read() {
    let (mut nodes, mut store) = nodes();
    store.set("control/shutdown", b"suspend");
    for (path, token) in [
        ("memory/target", "target"),
        ("control/shutdown", "shutdown"),
    ] {
        store.watches.push((path.into(), token.into()));
    }
    let events = settle(&mut nodes, &mut store, Nanos::ZERO);
    assert!(events.contains(&StoreEvent::Target(Bytes::new(24 * MIB))));
    assert!(events.contains(&StoreEvent::Shutdown(ShutdownRequest::Suspend)));
    assert_eq!(nodes.wake_at(), None, "at rest");
}

#[test]
fn a_store_that_talks_for_ever_is_listened_to_now_and_then() {
    let (mut nodes, mut store) = nodes();
    settle(&mut nodes, &mut store, Nanos::ZERO);
    store.set("memory/target", b"16384");
    let mut now = Nanos::from_secs(1);
    let (mut steps, mut most, mut rests, mut told) = (0, 0, 0, 0);
    for _ in 0..1000 {
        for _ in 0..10 {
            store.inject_message(15, 0, b"memory/target\0target\0");
        }
        store.run();
        let event = nodes.step(now).unwrap();
        told += usize::from(event == Some(StoreEvent::Target(Bytes::new(16 * MIB))));
        steps += 1;
        let next = nodes.wake_at().expect("there is more");
        if next > now {
            rests += 1;
            most = most.max(steps);
            (steps, now) = (0, next);
        }
    }
    assert!(most <= 32, "{most} steps at one moment");
    assert!(rests > 100, "{rests} rests");
    assert!(told > 0, "the answer is behind other messages, and comes");
}

#[test]
fn news_without_end_end_for_the_moment() {
    let (mut nodes, mut store) = nodes();
    settle(&mut nodes, &mut store, Nanos::ZERO);
    let now = Nanos::from_secs(1);
    let mut events = 0;
    for _ in 0..1000 {
        for _ in 0..10 {
            store.inject_message(15, 0, b"memory/target\0target\0");
        }
        store.run();
        match nodes.step(now).unwrap() {
            Some(_) => events += 1,
            None if events > 0 && nodes.wake_at().is_some_and(|at| at > now) => break,
            None => {}
        }
        assert!(
            events < 100,
            "a kernel that reads all there is never goes on"
        );
    }
    assert!(events > 0);
    assert!(nodes.wake_at().is_some_and(|at| at > now));
}

#[test]
fn what_this_domain_may_not_write_is_not_written() {
    let page = FakePage::new();
    let mut nodes = BalloonNodes::new(Client::new(page.clone()), NodesConfig::DEFAULT);
    let mut store = FakeStore::new(page);
    settle(&mut nodes, &mut store, Nanos::ZERO);
    nodes.publish_unit(Order::FRAME);
    store.behaviour = Behaviour::Silent;
    assert_eq!(settle(&mut nodes, &mut store, Nanos::ZERO), []);
    let id = nodes.client().counters().requests;
    store.inject_message(16, id, b"EACCES\0");
    store.run();
    assert_eq!(settle(&mut nodes, &mut store, Nanos::ZERO), []);
    assert_eq!(nodes.wake_at(), None, "at rest");
}

#[test]
fn answers_that_come_late_do_no_harm() {
    let (mut nodes, mut store) = nodes();
    store.behaviour = Behaviour::Gone;
    settle(&mut nodes, &mut store, Nanos::ZERO);
    let late = nodes.wake_at().unwrap();
    settle(&mut nodes, &mut store, late);
    store.behaviour = Behaviour::Good;
    let events = settle(&mut nodes, &mut store, late);
    assert_eq!(
        events.last(),
        Some(&StoreEvent::Target(Bytes::new(24 * MIB)))
    );
    assert!(nodes.timeouts() > 0);
}

#[test]
fn every_bad_behaviour_ends_at_the_target() {
    for behaviour in [Behaviour::Backwards, Behaviour::Babbling] {
        let (mut nodes, mut store) = nodes();
        store.behaviour = behaviour;
        let events = settle(&mut nodes, &mut store, Nanos::ZERO);
        let target = StoreEvent::Target(Bytes::new(24 * MIB));
        assert!(events.contains(&target), "{behaviour:?}");
    }
}

#[test]
fn a_restore_begins_anew_and_publishes_again() {
    let (mut nodes, mut store) = nodes();
    nodes.publish_unit(Order::FRAME);
    nodes.publish_downgrades(12);
    settle(&mut nodes, &mut store, Nanos::ZERO);
    assert_eq!(store.nodes["data/balloon/unit"], b"4");
    assert_eq!(store.nodes["data/balloon/downgrades"], b"12");
    nodes.publish_unit(Order::SUPERPAGE);
    settle(&mut nodes, &mut store, Nanos::ZERO);
    assert_eq!(store.nodes["data/balloon/unit"], b"2048");
    store.reset();
    store.nodes.remove("data/balloon/downgrades");
    nodes.restored();
    let events = settle(&mut nodes, &mut store, Nanos::ZERO);
    assert!(events.contains(&StoreEvent::Target(Bytes::new(24 * MIB))));
    assert_eq!(store.nodes["data/balloon/downgrades"], b"12");
    store.set("memory/target", b"1024");
    let events = settle(&mut nodes, &mut store, Nanos::ZERO);
    assert_eq!(
        events,
        [StoreEvent::Target(Bytes::new(MIB))],
        "watched again"
    );
}

#[test]
fn a_request_to_suspend_is_acknowledged() {
    let (mut nodes, mut store) = nodes();
    settle(&mut nodes, &mut store, Nanos::ZERO);
    store.set("control/shutdown", b"suspend");
    let events = settle(&mut nodes, &mut store, Nanos::ZERO);
    assert_eq!(events, [StoreEvent::Shutdown(ShutdownRequest::Suspend)]);
    nodes.acknowledge();
    let events = settle(&mut nodes, &mut store, Nanos::ZERO);
    assert_eq!(events, [StoreEvent::Acknowledged(ShutdownRequest::Suspend)]);
    assert_eq!(store.nodes["control/shutdown"], b"");
    assert_eq!(store.open_transactions(), 0);
    nodes.reread();
    let events = settle(&mut nodes, &mut store, Nanos::ZERO);
    assert_eq!(events, [StoreEvent::Target(Bytes::new(24 * MIB))]);
}

/// One step of the client, then one of the store.
fn turn(nodes: &mut BalloonNodes<FakePage>, store: &mut FakeStore) -> Option<StoreEvent> {
    let event = nodes.step(Nanos::ZERO).unwrap();
    store.run();
    event
}

/// A client that was told of a suspend.
fn asked() -> (BalloonNodes<FakePage>, FakeStore) {
    let (mut nodes, mut store) = nodes();
    settle(&mut nodes, &mut store, Nanos::ZERO);
    store.set("control/shutdown", b"suspend");
    settle(&mut nodes, &mut store, Nanos::ZERO);
    (nodes, store)
}

#[test]
fn a_request_made_during_the_acknowledgement_is_not_wiped() {
    // After each of its answers: begun, read, written, committed.
    for turns in 1..8 {
        let (mut nodes, mut store) = asked();
        nodes.acknowledge();
        let mut events: Vec<StoreEvent> = (0..turns)
            .filter_map(|_| turn(&mut nodes, &mut store))
            .collect();
        store.set("control/shutdown", b"reboot");
        events.extend(settle(&mut nodes, &mut store, Nanos::ZERO));
        let acknowledged = |request| events.contains(&StoreEvent::Acknowledged(request));
        if acknowledged(ShutdownRequest::Suspend) {
            // It came too late for that: it still stands, and was told.
            assert_eq!(store.nodes["control/shutdown"], b"reboot", "{turns}");
            let told = StoreEvent::Shutdown(ShutdownRequest::Reboot);
            assert_eq!(events.last(), Some(&told), "{turns}");
        } else {
            assert!(acknowledged(ShutdownRequest::Reboot), "{turns} {events:?}");
            assert_eq!(store.nodes["control/shutdown"], b"", "{turns}");
        }
        assert_eq!(store.open_transactions(), 0);
    }
}

#[test]
fn a_request_that_was_withdrawn_is_not_acknowledged() {
    for gone in [&b""[..], b"suspend, please"] {
        let (mut nodes, mut store) = asked();
        store.set("control/shutdown", gone);
        nodes.acknowledge();
        let events = settle(&mut nodes, &mut store, Nanos::ZERO);
        assert_eq!(events, [StoreEvent::Withdrawn]);
        assert_eq!(store.nodes["control/shutdown"], gone);
        assert_eq!(store.open_transactions(), 0);
    }
    let (mut nodes, mut store) = asked();
    store.nodes.remove("control/shutdown");
    nodes.acknowledge();
    let events = settle(&mut nodes, &mut store, Nanos::ZERO);
    assert_eq!(events, [StoreEvent::Withdrawn]);
}

#[test]
fn a_request_unseen_by_the_transaction_is_told_when_that_is_over() {
    let (mut nodes, mut store) = asked();
    store.set("control/shutdown", b"");
    settle(&mut nodes, &mut store, Nanos::ZERO);
    nodes.acknowledge();
    turn(&mut nodes, &mut store);
    // The transaction has begun and goes by what was there.
    store.set("control/shutdown", b"reboot");
    store.run();
    let events = settle(&mut nodes, &mut store, Nanos::ZERO);
    let told = StoreEvent::Shutdown(ShutdownRequest::Reboot);
    assert_eq!(events, [told, StoreEvent::Withdrawn, told]);
}

#[test]
fn conflicts_are_met_with_patience_and_an_end() {
    let (mut nodes, mut store) = asked();
    nodes.acknowledge();
    store.conflict = true;
    let events = settle(&mut nodes, &mut store, Nanos::ZERO);
    assert_eq!(events, [StoreEvent::Acknowledged(ShutdownRequest::Suspend)]);

    let (mut nodes, mut store) = asked();
    nodes.acknowledge();
    let requests = store.seen.len();
    let mut outcome = None;
    for _ in 0..1000 {
        store.conflict = true;
        outcome = outcome.or(turn(&mut nodes, &mut store));
    }
    assert_eq!(outcome, Some(StoreEvent::Withdrawn));
    assert!(store.seen.len() - requests < 50, "bounded");
    assert_eq!(store.nodes["control/shutdown"], b"suspend");
    told_again(&mut nodes, &mut store);
}

/// The request that still stands is told once more, after a pause.
fn told_again(nodes: &mut BalloonNodes<FakePage>, store: &mut FakeStore) {
    let requests = store.seen.len();
    assert_eq!(settle(nodes, store, Nanos::ZERO), []);
    assert_eq!(store.seen.len(), requests, "not at once");
    let later = NodesConfig::DEFAULT.max_retry;
    assert_eq!(nodes.wake_at(), Some(later));
    let told = StoreEvent::Shutdown(ShutdownRequest::Suspend);
    assert_eq!(settle(nodes, store, later), [told]);
    assert_eq!(nodes.wake_at(), None, "at rest");
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
        let (mut nodes, mut store) = asked();
        nodes.acknowledge();
        store.behaviour = Behaviour::Silent;
        for &(kind, payload) in story {
            assert_eq!(turn(&mut nodes, &mut store), None);
            // Ids go up one by one.
            let id = nodes.client().counters().requests;
            store.inject_message(kind, id, payload);
            store.run();
        }
        assert_eq!(turn(&mut nodes, &mut store), Some(StoreEvent::Withdrawn));
        store.behaviour = Behaviour::Good;
        told_again(&mut nodes, &mut store);
    }
}

#[test]
fn an_acknowledgement_survives_a_late_store_and_a_new_connection() {
    let (mut nodes, mut store) = asked();
    nodes.acknowledge();
    store.behaviour = Behaviour::Gone;
    let late = Nanos::from_secs(63);
    assert_eq!(settle(&mut nodes, &mut store, Nanos::ZERO), []);
    assert_eq!(settle(&mut nodes, &mut store, late), []);
    store.behaviour = Behaviour::Good;
    let events = settle(&mut nodes, &mut store, late);
    assert_eq!(events, [StoreEvent::Acknowledged(ShutdownRequest::Suspend)]);
    assert_eq!(nodes.timeouts(), 0, "it was waited for");

    // Read and never answered.
    let (mut nodes, mut store) = asked();
    nodes.acknowledge();
    store.behaviour = Behaviour::Silent;
    assert_eq!(settle(&mut nodes, &mut store, late), []);
    store.behaviour = Behaviour::Good;
    assert_eq!(settle(&mut nodes, &mut store, late), []);
    let hour = nodes.wake_at().unwrap();
    let events = settle(&mut nodes, &mut store, hour);
    assert_eq!(events, [StoreEvent::Acknowledged(ShutdownRequest::Suspend)]);

    // Begun, and then never answered.
    let (mut nodes, mut store) = asked();
    nodes.acknowledge();
    turn(&mut nodes, &mut store);
    store.behaviour = Behaviour::Silent;
    assert_eq!(settle(&mut nodes, &mut store, Nanos::ZERO), []);
    store.behaviour = Behaviour::Good;
    let events = settle(&mut nodes, &mut store, hour);
    assert_eq!(events, [StoreEvent::Acknowledged(ShutdownRequest::Suspend)]);
    assert_eq!(store.open_transactions(), 0);

    let (mut nodes, mut store) = asked();
    nodes.acknowledge();
    turn(&mut nodes, &mut store);
    store.reset();
    nodes.restored();
    let events = settle(&mut nodes, &mut store, hour);
    let done = StoreEvent::Acknowledged(ShutdownRequest::Suspend);
    assert!(events.contains(&done), "{events:?}");
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
        let (mut nodes, mut store) = asked();
        nodes.acknowledge();
        store.behaviour = Behaviour::Silent;
        let mut outcome = None;
        for _ in 0..100 {
            outcome = outcome.or(turn(&mut nodes, &mut store));
            // Ids go up one by one.
            let id = nodes.client().counters().requests;
            store.inject_message(kind, id, payload);
            store.run();
        }
        assert_eq!(outcome, Some(StoreEvent::Withdrawn), "{kind} {payload:?}");
    }
}

#[test]
fn a_ring_that_breaks_for_good_is_an_error() {
    let page = FakePage::new();
    let mut nodes = BalloonNodes::new(Client::new(page.clone()), NodesConfig::DEFAULT);
    let mut other = page;
    other.store(2060, 5000);
    let gone = nodes.step(Nanos::ZERO);
    assert!(matches!(gone, Err(NodesError::Gone(_))));
    nodes.restored();
    other.fill(0);
    // Requests are out, and an acknowledgement.
    nodes.acknowledge();
    assert_eq!(nodes.step(Nanos::ZERO), Ok(None));
    other.store(2060, 5000);
    for _ in 0..2 {
        assert!(nodes.step(Nanos::from_secs(100)).is_err());
        assert_eq!(nodes.wake_at(), None, "nothing to wait for");
    }
    nodes.restored();
    other.fill(0);
    assert_eq!(nodes.step(Nanos::ZERO), Ok(None));
}
