//! The other end of a xenstore ring.

use alloc::borrow::ToOwned as _;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::page::FakePage;
use crate::page::SharedPage;

/// How the store behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Behaviour {
    /// Answers each request, in order.
    #[default]
    Good,
    /// Reads requests and answers none.
    Silent,
    /// Does not even read.
    Gone,
    /// Answers what it read when it is run the next time.
    Late,
    /// Answers the last request first.
    Backwards,
    /// Answers each request twice, and ones never made.
    Babbling,
    /// Answers every request with another operation's answer.
    Confused,
    /// Refuses every request.
    Refusing,
    /// Refuses watches: the domain's quota is used up.
    Unwatchable,
}

/// A store with its tree.
#[derive(Debug)]
pub struct FakeStore {
    page: FakePage,
    /// The tree, by path relative to the domain.
    pub nodes: Tree,
    /// How it behaves.
    pub behaviour: Behaviour,
    /// Watches set: path and token.
    pub watches: Vec<(String, String)>,
    /// Requests seen: operation and payload.
    pub seen: Vec<(u32, Vec<u8>)>,
    incoming: Vec<u8>,
    outgoing: VecDeque<u8>,
    /// Requests that are not answered yet.
    late: Vec<Request>,
    /// What each found, and what it made of that.
    transactions: BTreeMap<u32, [Tree; 2]>,
    next_transaction: u32,
    /// The next commit meets a conflict.
    pub conflict: bool,
    /// What the page says it can.
    features: u32,
    /// A message was too long: nothing is read any more.
    given_up: bool,
}

/// Operation, id, transaction, payload.
type Request = (u32, u32, u32, Vec<u8>);

type Tree = BTreeMap<String, Vec<u8>>;

const REQUEST_CONSUMER: usize = 2048;
const REQUEST_PRODUCER: usize = 2052;
const RESPONSE_CONSUMER: usize = 2056;
const RESPONSE_PRODUCER: usize = 2060;
const SERVER_FEATURES: usize = 2064;
const CONNECTION: usize = 2068;
const RECONNECTION: u32 = 1;
/// Bytes of the longest payload.
const LONGEST: usize = 4096;

impl FakeStore {
    /// The server of this page's ring.
    #[must_use]
    pub fn new(mut page: FakePage) -> Self {
        page.store(SERVER_FEATURES, RECONNECTION);
        Self {
            page,
            nodes: BTreeMap::new(),
            behaviour: Behaviour::Good,
            watches: Vec::new(),
            seen: Vec::new(),
            incoming: Vec::new(),
            outgoing: VecDeque::new(),
            late: Vec::new(),
            transactions: BTreeMap::new(),
            next_transaction: 0,
            conflict: false,
            features: RECONNECTION,
            given_up: false,
        }
    }

    /// A server that cannot start a connection anew, as the one written in C.
    #[must_use]
    pub fn without_reconnect(page: FakePage) -> Self {
        let mut store = Self::new(page);
        store.features = 0;
        store.page.store(SERVER_FEATURES, 0);
        store
    }

    /// Whether it has given the connection up, as a message was too long.
    #[must_use]
    pub const fn has_given_up(&self) -> bool {
        self.given_up
    }

    /// Sets a node as the toolstack does: watches fire.
    pub fn set(&mut self, path: &str, value: &[u8]) {
        self.nodes.insert(path.to_owned(), value.to_vec());
        let below = |watched: &str| {
            path.strip_prefix(watched)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let fired: Vec<_> = self
            .watches
            .iter()
            .filter(|(p, _)| below(p))
            .cloned()
            .collect();
        for (_, token) in fired {
            self.event(path, &token);
        }
    }

    /// Forgets the connection as a restore does: the ring is zeroed, watches
    /// are gone.
    pub fn reset(&mut self) {
        self.page.fill(0);
        self.page.store(SERVER_FEATURES, self.features);
        self.given_up = false;
        self.watches.clear();
        self.incoming.clear();
        self.outgoing.clear();
        self.late.clear();
        self.transactions.clear();
    }

    /// Transactions begun and not ended.
    #[must_use]
    pub fn open_transactions(&self) -> usize {
        self.transactions.len()
    }

    /// Queues raw bytes as if they were an answer.
    pub fn inject(&mut self, bytes: &[u8]) {
        self.outgoing.extend(bytes);
    }

    /// Queues a message.
    pub fn inject_message(&mut self, kind: u32, request: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        for word in [kind, request, 0, length] {
            self.outgoing.extend(word.to_le_bytes());
        }
        self.outgoing.extend(payload);
    }

    /// Works until there is nothing left to read or no room to write.
    pub fn run(&mut self) {
        if self.behaviour == Behaviour::Gone {
            return;
        }
        if self.page.load(CONNECTION) == 1 {
            let features = self.page.load(SERVER_FEATURES);
            self.reset();
            self.page.store(SERVER_FEATURES, features);
        }
        if self.given_up {
            return;
        }
        self.read_ring();
        let mut batch = core::mem::take(&mut self.late);
        while let Some(message) = self.take_message() {
            if self.behaviour == Behaviour::Late {
                self.late.push(message);
            } else {
                batch.push(message);
            }
        }
        if self.behaviour == Behaviour::Backwards {
            batch.reverse();
        }
        for (kind, request, transaction, payload) in batch {
            self.seen.push((kind, payload.clone()));
            if self.behaviour == Behaviour::Silent {
                continue;
            }
            let answer = match self.behaviour {
                Behaviour::Refusing => Err("E2BIG"),
                Behaviour::Unwatchable if kind == 4 => Err("E2BIG"),
                _ => self.answer(kind, transaction, &payload),
            };
            let (kind, answer) = match answer {
                Ok(answer) => (kind, answer),
                Err(name) => (16, format!("{name}\0").into_bytes()),
            };
            match self.behaviour {
                Behaviour::Confused => self.inject_message(kind ^ 1, request, &answer),
                Behaviour::Babbling => {
                    self.inject_message(kind, request.wrapping_add(77), &answer);
                    self.inject_message(kind, request, &answer);
                    self.inject_message(kind, request, b"1");
                }
                _ => self.inject_message(kind, request, &answer),
            }
            // A watch fires once when it is set, after its answer.
            if let (4, [path, token]) = (kind, strings(&payload).as_slice()) {
                self.watches.push((path.clone(), token.clone()));
                self.event(path, token);
            }
        }
        self.write_ring();
    }

    fn answer(
        &mut self,
        kind: u32,
        transaction: u32,
        payload: &[u8],
    ) -> Result<Vec<u8>, &'static str> {
        let words = strings(payload);
        let first = words.first().cloned().unwrap_or_default();
        let nodes = match transaction {
            0 => &mut self.nodes,
            id => {
                let [_, nodes] = self.transactions.get_mut(&id).ok_or("ENOENT")?;
                nodes
            }
        };
        match kind {
            2 => nodes.get(&first).cloned().ok_or("ENOENT"),
            4 => {
                let pair = (first, words.get(1).cloned().unwrap_or_default());
                if self.watches.contains(&pair) {
                    return Err("EEXIST");
                }
                Ok(b"OK\0".to_vec())
            }
            6 => {
                self.next_transaction += 1;
                let id = self.next_transaction;
                let nodes = self.nodes.clone();
                self.transactions.insert(id, [nodes.clone(), nodes]);
                Ok(format!("{id}\0").into_bytes())
            }
            7 => {
                let transaction = self.transactions.remove(&transaction);
                let [found, nodes] = transaction.ok_or("ENOENT")?;
                if first == "T" {
                    if core::mem::take(&mut self.conflict) || found != self.nodes {
                        return Err("EAGAIN");
                    }
                    self.nodes = nodes;
                }
                Ok(b"OK\0".to_vec())
            }
            11 => {
                let at = payload.iter().position(|&byte| byte == 0).ok_or("EINVAL")?;
                let value = payload.get(at + 1..).unwrap_or_default().to_vec();
                nodes.insert(first, value);
                Ok(b"OK\0".to_vec())
            }
            21 => {
                self.watches.clear();
                self.transactions.clear();
                Ok(b"OK\0".to_vec())
            }
            _ => Err("ENOSYS"),
        }
    }

    fn event(&mut self, path: &str, token: &str) {
        let payload = format!("{path}\0{token}\0");
        self.inject_message(15, 0, payload.as_bytes());
    }

    fn take_message(&mut self) -> Option<Request> {
        let mut words = self.incoming.chunks_exact(4).map(|word| match word {
            &[a, b, c, d] => u32::from_le_bytes([a, b, c, d]),
            _ => 0,
        });
        let (kind, request, transaction) = (words.next()?, words.next()?, words.next()?);
        let length = words.next()? as usize;
        self.given_up |= length > LONGEST;
        if self.given_up || self.incoming.len() < 16 + length {
            return None;
        }
        let rest = self.incoming.split_off(16 + length);
        let message = core::mem::replace(&mut self.incoming, rest);
        Some((kind, request, transaction, message.get(16..)?.to_vec()))
    }

    fn read_ring(&mut self) {
        let mut consumer = self.page.load(REQUEST_CONSUMER);
        let producer = self.page.load(REQUEST_PRODUCER);
        if producer.wrapping_sub(consumer) > 1024 {
            // A real one gives such a ring up; a reset mends it.
            return;
        }
        while consumer != producer {
            let mut byte = [0];
            self.page.read(consumer as usize % 1024, &mut byte);
            self.incoming.extend(byte);
            consumer = consumer.wrapping_add(1);
        }
        self.page.store(REQUEST_CONSUMER, consumer);
    }

    fn write_ring(&mut self) {
        let mut producer = self.page.load(RESPONSE_PRODUCER);
        while producer.wrapping_sub(self.page.load(RESPONSE_CONSUMER)) < 1024 {
            let Some(byte) = self.outgoing.pop_front() else {
                break;
            };
            self.page.write(1024 + producer as usize % 1024, &[byte]);
            producer = producer.wrapping_add(1);
        }
        self.page.store(RESPONSE_PRODUCER, producer);
    }
}

fn strings(payload: &[u8]) -> Vec<String> {
    let payload = payload.strip_suffix(b"\0").unwrap_or(payload);
    let parts = payload.split(|&byte| byte == 0);
    parts
        .map(|part| String::from_utf8_lossy(part).into_owned())
        .collect()
}
