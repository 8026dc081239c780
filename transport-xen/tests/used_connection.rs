//! A kernel that boots over the connection of an earlier one, as after kexec or
//! in a crash dump: whatever that one left there, the target is found and heard,
//! and nothing of the old watches and transactions is left, if the store lets go.
//!
//! Each run has the same few hundred worlds; `XEN_WORLDS` sets how many others.

// Safe code all the way, and minutes long there.
#![cfg(not(miri))]
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use balloon_core::{Bytes, Nanos};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use transport_xen::SharedPage as _;
use transport_xen::store::{BalloonNodes, Client, NodesConfig, StoreEvent};
use transport_xen::suspend::ShutdownRequest;
use transport_xen::testing::{Behaviour, FakePage, FakeStore};

const REQUEST_PRODUCER: usize = 2052;
const RESPONSE_CONSUMER: usize = 2056;
const RESPONSE_PRODUCER: usize = 2060;
const READ: u32 = 2;
const WATCH: u32 = 4;
const BEGIN: u32 = 6;
const WRITE: u32 = 11;

/// What the earlier kernel did last.
#[derive(Clone, Debug)]
enum Left {
    /// A watch, of this kernel's or of another kind.
    Watch { ours: bool },
    /// A transaction that is open.
    Begun,
    /// An answer of so many bytes that is not read.
    Unread(u16),
    /// Read so many bytes of what is there.
    Read(u16),
    /// An event for each watch.
    Event,
    /// A request that the store has not seen yet.
    Unseen,
}

/// The store, as far as an earlier kernel matters to it.
#[derive(Clone, Copy, Debug)]
struct Server {
    reconnects: bool,
    resets: bool,
    late: bool,
}

/// The page as the earlier kernel sees it.
struct Earlier {
    page: FakePage,
    store: FakeStore,
    id: u32,
}

impl Earlier {
    fn new(server: Server, base: u32) -> Self {
        let mut page = FakePage::new();
        let mut store = match server.reconnects {
            true => FakeStore::new(page.clone()),
            false => FakeStore::without_reconnect(page.clone()),
        };
        for index in (2048..2064).step_by(4) {
            page.store(index, base);
        }
        if server.resets {
            store.set("control/platform-feature-xs_reset_watches", b"1");
        }
        store.set("memory/target", b"8192");
        // One numbered zero and cut short looks like this kernel's first words.
        Self { page, store, id: 1 }
    }

    fn message(&mut self, kind: u32, payload: &[u8]) -> Vec<u8> {
        let id = self.id;
        self.id += 1;
        let length = u32::try_from(payload.len()).unwrap();
        let words = [kind, id, 0, length].map(u32::to_le_bytes);
        [words.as_flattened(), payload].concat()
    }

    fn send(&mut self, bytes: &[u8]) {
        let mut producer = self.page.load(REQUEST_PRODUCER);
        for &byte in bytes {
            self.page.write(producer as usize % 1024, &[byte]);
            producer = producer.wrapping_add(1);
        }
        self.page.store(REQUEST_PRODUCER, producer);
    }

    fn read(&mut self, bytes: u32) {
        let (consumer, producer) = (
            self.page.load(RESPONSE_CONSUMER),
            self.page.load(RESPONSE_PRODUCER),
        );
        let bytes = bytes.min(producer.wrapping_sub(consumer));
        self.page
            .store(RESPONSE_CONSUMER, consumer.wrapping_add(bytes));
        self.store.run();
    }

    fn act(&mut self, left: &Left) {
        let message = match *left {
            Left::Watch { ours: true } => self.message(WATCH, b"memory/target\0target\0"),
            Left::Watch { ours: false } => {
                let payload = format!("memory\0{}\0", self.id);
                self.message(WATCH, payload.as_bytes())
            }
            Left::Begun => self.message(BEGIN, b"\0"),
            Left::Unread(bytes) => {
                self.store.set("data/long", &vec![b'x'; bytes.into()]);
                self.message(READ, b"data/long\0")
            }
            Left::Unseen => self.message(READ, b"memory/target\0"),
            Left::Read(bytes) => return self.read(bytes.into()),
            Left::Event => return self.store.set("memory/target", b"8192"),
        };
        self.send(&message);
        if !matches!(left, Left::Unseen) {
            self.store.run();
        }
    }

    /// Goes away in the middle of a request, after so many of its bytes.
    fn stop(mut self, payload: usize, cut: usize, seen: bool) -> (FakePage, FakeStore) {
        let value = [&b"data/report\0"[..], &vec![b'7'; payload]].concat();
        let message = self.message(WRITE, &value);
        let cut = cut % message.len();
        let sent: Vec<u8> = message.into_iter().take(cut).collect();
        for part in sent.chunks(512) {
            self.send(part);
            if seen || cut > 512 {
                self.store.run();
            }
        }
        (self.page, self.store)
    }
}

/// Works until the client rests, or for an hour.
fn settle(
    nodes: &mut BalloonNodes<FakePage>,
    store: &mut FakeStore,
    now: &mut Nanos,
) -> Vec<StoreEvent> {
    let mut events = Vec::new();
    let end = now.saturating_add(Nanos::from_secs(3600));
    loop {
        for _ in 0..40 {
            while let Some(event) = nodes.step(*now).unwrap() {
                events.push(event);
            }
            store.run();
        }
        match nodes.wake_at() {
            Some(at) if at < end => *now = at.max(*now),
            _ => return events,
        }
    }
}

fn worlds() -> ProptestConfig {
    let asked = std::env::var("XEN_WORLDS").ok();
    match asked.and_then(|count| count.parse().ok()) {
        Some(cases) => ProptestConfig {
            failure_persistence: None,
            ..ProptestConfig::with_cases(cases)
        },
        None => ProptestConfig {
            failure_persistence: None,
            rng_seed: RngSeed::Fixed(12),
            ..ProptestConfig::with_cases(400)
        },
    }
}

fn server() -> impl Strategy<Value = Server> {
    (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(reconnects, resets, late)| Server {
        reconnects,
        resets,
        late,
    })
}

fn left() -> impl Strategy<Value = Left> {
    prop_oneof![
        any::<bool>().prop_map(|ours| Left::Watch { ours }),
        Just(Left::Begun),
        (0..3000u16).prop_map(Left::Unread),
        (0..1024u16).prop_map(Left::Read),
        Just(Left::Event),
        Just(Left::Unseen),
    ]
}

proptest! {
    #![proptest_config(worlds())]

    #[test]
    fn what_an_earlier_kernel_left_is_dealt_with(
        server in server(),
        base in prop_oneof![Just(0), any::<u32>(), (0..2000u32).prop_map(u32::wrapping_neg)],
        left in proptest::collection::vec(left(), 0..10),
        payload in 0..4000usize,
        cut in prop_oneof![2 => Just(0), 1 => 0..64usize, 1 => 0..4096usize],
        seen in any::<bool>(),
    ) {
        let mut earlier = Earlier::new(server, base);
        for left in &left {
            earlier.act(left);
        }
        let (page, mut store) = earlier.stop(payload, cut, seen);
        let used = page.load(REQUEST_PRODUCER) != 0;
        if server.late {
            store.behaviour = Behaviour::Late;
        }
        let mut now = Nanos::from_secs(3);
        let mut nodes = BalloonNodes::new(Client::new(page), NodesConfig::DEFAULT);
        let target = |kib: u64| StoreEvent::Target(Bytes::new(kib * 1024));
        let events = settle(&mut nodes, &mut store, &mut now);
        prop_assert!(!store.has_given_up(), "it was sent nonsense");
        prop_assert_eq!(events.last(), Some(&target(8192)), "{:?}", events);
        store.set("memory/target", b"4096");
        let events = settle(&mut nodes, &mut store, &mut now);
        prop_assert_eq!(events.last(), Some(&target(4096)), "{:?}", events);
        if used && (server.reconnects || server.resets) {
            prop_assert_eq!(store.watches.len(), 2);
            prop_assert_eq!(store.open_transactions(), 0);
        }
        store.set("control/shutdown", b"suspend");
        let events = settle(&mut nodes, &mut store, &mut now);
        prop_assert_eq!(events.last(), Some(&StoreEvent::Shutdown(ShutdownRequest::Suspend)));
        nodes.acknowledge();
        let events = settle(&mut nodes, &mut store, &mut now);
        prop_assert_eq!(events.last(), Some(&StoreEvent::Acknowledged(ShutdownRequest::Suspend)));
        prop_assert_eq!(nodes.wake_at(), None, "at rest");
    }
}
