//! The xenstore client and its desk against a store that does anything.
//!
//! The input is what the other side does: it scribbles over the page, sends any
//! bytes, answers late, twice, backwards or never, and the clock runs. In the
//! end an honest store takes over by way of a restore, and the desk must find
//! its way to the target whatever happened before.

use arbitrary::{Arbitrary, Unstructured};
use balloon_core::{Bytes, Nanos, Order};
use transport_xen::SharedPage as _;
use transport_xen::store::{BalloonNodes, Client, NodesConfig, Operation, StoreEvent, Transaction};
use transport_xen::testing::{Behaviour, FakePage, FakeStore};

#[derive(Arbitrary, Debug)]
enum Action {
    /// Writes a word anywhere, the indices among it.
    Scribble { offset: u16, value: u32 },
    /// Moves an index a little: most wild values are refused at once.
    Nudge { index: u8, by: i8 },
    /// Queues bytes as if they were an answer.
    Bytes(Vec<u8>),
    /// Queues a well-formed message.
    Message {
        kind: u8,
        request: u8,
        payload: Vec<u8>,
    },
    /// Sets the target to any bytes.
    Target(Vec<u8>),
    /// Asks for a shutdown.
    Shutdown(Vec<u8>),
    /// From now on behaves so.
    Behaviour(u8),
    /// The store works.
    Run,
    /// Time passes, in milliseconds.
    Wait(u16),
    /// The guest publishes.
    Publish(u8),
    /// The guest acknowledges.
    Acknowledge,
    /// Saved in vain.
    Cancelled,
    /// A client of its own on the same page asks for something.
    Ask { path: String, value: Vec<u8> },
    /// A kernel starts over the connection of this one.
    Kexec,
}

/// Runs the target on one input.
pub fn run(data: &[u8]) {
    let mut rest = Unstructured::new(data);
    let page = FakePage::new();
    let mut scribbler = page.clone();
    let mut store = FakeStore::new(page.clone());
    let mut nodes = BalloonNodes::new(Client::new(page.clone()), NodesConfig::DEFAULT);
    let mut now = Nanos::ZERO;
    while !rest.is_empty() {
        let Ok(action) = Action::arbitrary(&mut rest) else {
            break;
        };
        match action {
            Action::Scribble { offset, value } => {
                scribbler.store(usize::from(offset) % 4096, value)
            }
            Action::Nudge { index, by } => {
                let offset = 2048 + usize::from(index % 4) * 4;
                let value = scribbler.load(offset);
                scribbler.store(offset, value.wrapping_add_signed(by.into()));
            }
            Action::Bytes(bytes) => store.inject(&bytes),
            Action::Message {
                kind,
                request,
                payload,
            } => {
                store.inject_message(kind.into(), request.into(), &payload);
            }
            Action::Target(value) => store.set("memory/target", &value),
            Action::Shutdown(value) => store.set("control/shutdown", &value),
            Action::Behaviour(behaviour) => {
                store.behaviour = match behaviour % 9 {
                    0 => Behaviour::Good,
                    1 => Behaviour::Silent,
                    2 => Behaviour::Gone,
                    3 => Behaviour::Backwards,
                    4 => Behaviour::Babbling,
                    5 => Behaviour::Confused,
                    6 => Behaviour::Late,
                    7 => Behaviour::Refusing,
                    _ => Behaviour::Unwatchable,
                };
            }
            Action::Run => store.run(),
            Action::Wait(millis) => now = now.saturating_add(Nanos::from_millis(millis.into())),
            Action::Publish(count) => {
                nodes.publish_unit(if count % 2 == 0 {
                    Order::FRAME
                } else {
                    Order::SUPERPAGE
                });
                nodes.publish_downgrades(count.into());
            }
            Action::Acknowledge => nodes.acknowledge(),
            Action::Cancelled => nodes.reread(),
            Action::Ask { path, value } => {
                let mut client = Client::new(page.clone());
                let write = Operation::Write {
                    path: &path,
                    value: &value,
                };
                let _ = client.request(write, Transaction::NONE);
                let _ = client.poll();
            }
            Action::Kexec => {
                nodes = BalloonNodes::new(Client::new(page.clone()), NodesConfig::DEFAULT)
            }
        }
        // A store that is gone stays so until the restore.
        let _ = nodes.step(now);
    }
    recover(&mut nodes, &mut store, now);
}

fn recover(nodes: &mut BalloonNodes<FakePage>, store: &mut FakeStore, mut now: Nanos) {
    store.behaviour = Behaviour::Good;
    store.reset();
    store
        .nodes
        .insert("memory/target".to_owned(), b"4096".to_vec());
    nodes.restored();
    let mut target = None;
    for _ in 0..200 {
        match nodes.step(now) {
            Ok(Some(StoreEvent::Target(bytes))) => target = Some(bytes),
            Ok(_) => {}
            Err(error) => panic!("an honest store, and yet: {error}"),
        }
        store.run();
        now = now.saturating_add(Nanos::from_millis(1));
    }
    assert_eq!(target, Some(Bytes::new(4096 * 1024)));
    assert_eq!(nodes.wake_at(), None, "at rest");
}
