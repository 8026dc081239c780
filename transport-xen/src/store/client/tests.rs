use alloc::vec::Vec;

use super::*;
use crate::testing::{Behaviour, FakePage, FakeStore};

fn pair() -> (Client<FakePage>, FakeStore) {
    let page = FakePage::new();
    let store = FakeStore::new(page.clone());
    (Client::new(page), store)
}

fn read(client: &mut Client<FakePage>, path: &str) -> RequestId {
    client
        .request(Operation::Read { path }, Transaction::NONE)
        .unwrap()
}

/// The id of an answer, none for an event; and what came with it.
type Seen = (Option<RequestId>, Result<Vec<u8>, Refusal>);

/// The next answer or event, whatever is dropped on the way.
fn next(client: &mut Client<FakePage>) -> Option<Seen> {
    for _ in 0..100 {
        match client.poll().unwrap()? {
            Incoming::Answer { request, result } => {
                return Some((Some(request), result.map(<[u8]>::to_vec)));
            }
            Incoming::Changed { path, .. } => return Some((None, Ok(path.to_vec()))),
            Incoming::Dropped | Incoming::Reconnected | Incoming::TakenOver => {}
        }
    }
    panic!("no end of dropped messages");
}

#[test]
fn answers_find_their_requests_in_any_order() {
    for behaviour in [Behaviour::Good, Behaviour::Backwards, Behaviour::Babbling] {
        let (mut client, mut store) = pair();
        store.behaviour = behaviour;
        store.set("a", b"1");
        store.set("b", b"2");
        let (a, b, c) = (
            read(&mut client, "a"),
            read(&mut client, "b"),
            read(&mut client, "c"),
        );
        store.run();
        let mut answers = Vec::new();
        while let Some((Some(id), result)) = next(&mut client) {
            answers.push((id, result));
        }
        answers.sort_by_key(|(id, _)| id.0);
        let expected = [
            (a, Ok(b"1".to_vec())),
            (b, Ok(b"2".to_vec())),
            (c, Err(Refusal::NoEntry)),
        ];
        assert_eq!(answers, expected, "{behaviour:?}");
        assert!(client.asked.iter().all(Option::is_none));
    }
}

#[test]
fn answers_of_another_kind_are_dropped() {
    let (mut client, mut store) = pair();
    store.behaviour = Behaviour::Confused;
    store.set("a", b"1");
    read(&mut client, "a");
    store.run();
    assert_eq!(client.poll(), Ok(Some(Incoming::Dropped)));
    assert_eq!(client.counters().dropped, 1);
}

#[test]
fn long_messages_pass_in_parts() {
    let (mut client, mut store) = pair();
    let long = [7u8; 4096];
    store.set("long", &long);
    let id = read(&mut client, "long");
    let mut rounds = 0;
    let answer = loop {
        store.run();
        if let Some(answer) = next(&mut client) {
            break answer;
        }
        rounds += 1;
        assert!(rounds < 10);
    };
    assert_eq!(answer, (Some(id), Ok(long.to_vec())));
    assert!(rounds >= 3, "a ring holds a quarter of it");
}

#[test]
fn a_full_ring_says_busy_and_recovers() {
    let (mut client, mut store) = pair();
    let value = [1u8; 400];
    let write = Operation::Write {
        path: "data/x",
        value: &value,
    };
    let mut sent = 0;
    let refused = loop {
        match client.request(write, Transaction::NONE) {
            Ok(_) => sent += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused, ClientError::Busy);
    store.run();
    assert_eq!(client.poll().map(|i| i.is_some()), Ok(true));
    store.run();
    let mut answers = 1;
    while next(&mut client).is_some() {
        answers += 1;
        store.run();
    }
    assert_eq!(answers, sent);
    assert!(client.request(write, Transaction::NONE).is_ok());
}

#[test]
fn unsendable_requests_stay_here() {
    let (mut client, _) = pair();
    let long = [0u8; 600];
    for operation in [
        Operation::Write {
            path: "a",
            value: &long,
        },
        Operation::Read { path: "a\0b" },
        Operation::Watch {
            path: "a",
            token: "\0",
        },
    ] {
        let refused = client.request(operation, Transaction::NONE);
        assert_eq!(refused, Err(ClientError::Unsendable));
    }
    assert!(!client.take_notify());
}

#[test]
fn wild_indices_break_the_connection_and_a_reconnect_mends_it() {
    for (index, wild) in [(2048, 5000), (2060, 1025), (2060, u32::MAX)] {
        let (mut client, mut store) = pair();
        client.ring.page_mut().store(index, wild);
        let refused = client.request(Operation::Begin, Transaction::NONE);
        let seen = refused.map(drop).and_then(|()| client.poll().map(drop));
        assert_eq!(
            seen,
            Err(ClientError::Ring(RingError::Index)),
            "{index} {wild}"
        );
        assert_eq!(client.poll(), Err(ClientError::Broken));
        assert!(client.ask_reconnect());
        assert_eq!(client.poll(), Ok(None), "the server has not looked yet");
        let early = client.request(Operation::Begin, Transaction::NONE);
        assert_eq!(early, Err(ClientError::Busy));
        store.run();
        assert_eq!(client.poll(), Ok(Some(Incoming::Reconnected)));
        store.set("a", b"1");
        let id = read(&mut client, "a");
        store.run();
        assert_eq!(next(&mut client), Some((Some(id), Ok(b"1".to_vec()))));
    }
}

#[test]
fn own_indices_are_never_read_back() {
    let (mut client, mut store) = pair();
    store.set("a", b"1");
    for _ in 0..3 {
        let id = read(&mut client, "a");
        store.run();
        let consumed = client.ring.page_mut().load(2056);
        // Somebody scribbles over the guest's own indices.
        client.ring.page_mut().store(2052, 500);
        client.ring.page_mut().store(2056, 77);
        assert!(next(&mut client).is_some_and(|(got, _)| got == Some(id)));
        let read = client.ring.page_mut().load(2056).wrapping_sub(consumed);
        assert_eq!(read, 17, "the header and one byte");
        let sent = client.ring.sent();
        client.ring.page_mut().store(2052, sent);
    }
}

#[test]
fn an_oversized_message_ends_the_connection() {
    let (mut client, mut store) = pair();
    for word in [2u32, 1, 0, 4097] {
        store.inject(&word.to_le_bytes());
    }
    store.run();
    assert_eq!(client.poll(), Err(ClientError::Oversized));
    assert_eq!(client.poll(), Err(ClientError::Broken));
}

#[test]
fn events_that_are_no_pair_of_strings_are_dropped() {
    let (mut client, mut store) = pair();
    for payload in [&b""[..], b"path", b"path\0", b"path\0token"] {
        store.inject_message(15, 0, payload);
    }
    store.inject_message(15, 9, b"p\0t\0");
    store.run();
    for _ in 0..4 {
        assert_eq!(client.poll(), Ok(Some(Incoming::Dropped)));
    }
    let event = Incoming::Changed {
        path: b"p",
        token: b"t",
    };
    assert_eq!(client.poll(), Ok(Some(event)));
}

#[test]
fn watches_fire_and_transactions_conflict() {
    let (mut client, mut store) = pair();
    let watch = Operation::Watch {
        path: "memory/target",
        token: "t",
    };
    client.request(watch, Transaction::NONE).unwrap();
    store.run();
    assert!(next(&mut client).is_some_and(|(id, _)| id.is_some()));
    assert!(
        next(&mut client).is_some_and(|(id, _)| id.is_none()),
        "fires when set"
    );
    store.set("memory/target", b"1");
    store.run();
    assert!(next(&mut client).is_some_and(|(id, _)| id.is_none()));

    for conflict in [true, false] {
        store.conflict = conflict;
        client.request(Operation::Begin, Transaction::NONE).unwrap();
        store.run();
        let (_, answer) = next(&mut client).unwrap();
        let transaction = Transaction::from_answer(&answer.unwrap()).unwrap();
        let write = Operation::Write {
            path: "data/x",
            value: b"5",
        };
        client.request(write, transaction).unwrap();
        client
            .request(Operation::End { commit: true }, transaction)
            .unwrap();
        store.run();
        assert!(next(&mut client).is_some_and(|(_, result)| result.is_ok()));
        let (_, end) = next(&mut client).unwrap();
        assert_eq!(end.err(), conflict.then_some(Refusal::Again));
        assert_eq!(store.nodes.contains_key("data/x"), !conflict);
    }
}

#[test]
fn forgotten_answers_are_dropped() {
    let (mut client, mut store) = pair();
    store.set("a", b"1");
    let id = read(&mut client, "a");
    client.forget(id);
    store.run();
    assert_eq!(client.poll(), Ok(Some(Incoming::Dropped)));
}
