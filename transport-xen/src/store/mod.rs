//! xenstore: the toolstack's small tree of strings, over one shared page.
//!
//! ```text
//!  nodes   what a balloon wants from the store: target, static-max, shutdown
//!  client  requests and answers by id, watches, transactions, reconnect
//!  wire    message header, operations, error names
//!  ring    two byte streams in the page, with indices nobody can be trusted on
//! ```
//!
//! Nothing here waits. The page is written by another domain: an index out of
//! bounds, a message that is too long, an answer nobody asked for are errors or
//! are dropped and counted, never believed.

mod client;
mod nodes;
mod ring;
mod wire;

pub use client::{Client, ClientError, Counters as ClientCounters, Incoming, RequestId};
pub use nodes::event::StoreEvent;
pub use nodes::{BalloonNodes, NodesConfig, NodesError};
pub use ring::RingError;
pub use wire::{Operation, Refusal, Transaction};
