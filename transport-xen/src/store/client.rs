//! Requests and answers, matched by id.

mod takeover;

use crate::page::SharedPage;

use super::ring::{Ring, RingError};
use super::wire::{self, HEADER, Header, Operation, PAYLOAD, Refusal, Transaction};
use takeover::Takeover;

/// The longest request: header, paths, value.
const REQUEST: usize = 512;
/// Requests that may wait for their answers.
const IN_FLIGHT: usize = 16;

/// Names a request until it is answered; never used twice on one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct RequestId(u32);

/// Why the client could not do what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum ClientError {
    /// No room for another request now.
    #[error("no room for another request now")]
    Busy,
    /// The request does not fit a message, or a path holds a zero byte.
    #[error("the request is too long or holds a zero byte")]
    Unsendable,
    /// The other side broke the ring.
    #[error("the ring is broken: {0}")]
    Ring(#[from] RingError),
    /// The other side sent a message longer than the protocol allows.
    #[error("a message longer than the protocol allows")]
    Oversized,
    /// The connection broke earlier; only a reconnect helps.
    #[error("the connection is broken")]
    Broken,
}

/// What came in.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// The answer to a request.
    Answer {
        /// Which one.
        request: RequestId,
        /// What the store says.
        result: Result<&'a [u8], Refusal>,
    },
    /// Something changed at or below a watched node, or may have.
    Changed {
        /// The node.
        path: &'a [u8],
        /// As given to the watch.
        token: &'a [u8],
    },
    /// A message that makes no sense was dropped: an answer to no request or
    /// of another kind, or an event that is no pair of strings.
    Dropped,
    /// The server has started the connection anew: every request in flight and
    /// every watch is gone.
    Reconnected,
    /// The connection of an earlier kernel can be used, after all that was on its
    /// way there: that one's watches and transactions stand, until
    /// [`Operation::ResetWatches`].
    TakenOver,
}

/// What the connection has seen; wraps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub struct Counters {
    /// Requests sent.
    pub requests: u32,
    /// Messages dropped.
    pub dropped: u32,
    /// Times the connection started anew.
    pub reconnects: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Connected,
    /// The server was asked to start anew, by this side or before.
    Reconnecting,
    /// An earlier kernel used the connection, and nobody knows where it stopped.
    TakingOver(Takeover),
    Broken,
}

/// The guest's side of the store, over the page it shares with it.
///
/// About 5 KiB. It never waits: [`request`](Self::request) queues,
/// [`poll`](Self::poll) moves what can be moved and yields one message. After
/// either, the port is to be notified if [`take_notify`](Self::take_notify)
/// says so.
#[derive(Debug)]
pub struct Client<P> {
    ring: Ring<P>,
    state: State,
    next: u32,
    /// Id and operation of what waits for an answer.
    asked: [Option<(u32, u32)>; IN_FLIGHT],
    outgoing: [u8; REQUEST],
    outgoing_length: usize,
    outgoing_sent: usize,
    header: [u8; HEADER],
    payload: [u8; PAYLOAD],
    /// Bytes of the message under way, its header among them.
    received: usize,
    notify: bool,
    counters: Counters,
}

impl<P: SharedPage> Client<P> {
    /// A client on a page that the toolstack has connected, or is about to.
    ///
    /// An earlier kernel may have used it, and have stopped anywhere, as before
    /// kexec or in a crash: the server is asked to start the connection anew
    /// ([`Incoming::Reconnected`]), or, where it cannot, the end of what is on its
    /// way there is looked for ([`Incoming::TakenOver`]). Until then requests are
    /// [`ClientError::Busy`].
    #[must_use]
    pub fn new(page: P) -> Self {
        let mut ring = Ring::new(page);
        let used = ring.is_used();
        let state = if !ring.is_connected() || (used && ring.ask_reconnect()) {
            State::Reconnecting
        } else if used {
            State::TakingOver(Takeover::new())
        } else {
            State::Connected
        };
        Self {
            // Above those of an earlier kernel of this kind: each of its requests
            // took more bytes than one.
            next: ring.sent(),
            notify: state != State::Connected,
            ring,
            state,
            asked: [None; IN_FLIGHT],
            outgoing: [0; REQUEST],
            outgoing_length: 0,
            outgoing_sent: 0,
            header: [0; HEADER],
            payload: [0; PAYLOAD],
            received: 0,
            counters: Counters::default(),
        }
    }

    /// Queues a request.
    ///
    /// # Errors
    /// [`ClientError::Busy`] if it is to be tried again after an answer;
    /// the others say that it will never go.
    pub fn request(
        &mut self,
        operation: Operation<'_>,
        transaction: Transaction,
    ) -> Result<RequestId, ClientError> {
        match self.state {
            State::Connected => {}
            State::Reconnecting | State::TakingOver(_) => return Err(ClientError::Busy),
            State::Broken => return Err(ClientError::Broken),
        }
        let payload = operation.payload();
        let length: usize = payload.iter().map(|part| part.len()).sum();
        if length > REQUEST - HEADER || operation.has_nul() {
            return Err(ClientError::Unsendable);
        }
        self.flush()?;
        if self.outgoing_sent < self.outgoing_length {
            return Err(ClientError::Busy);
        }
        let place = self.asked.iter_mut().find(|asked| asked.is_none());
        let place = place.ok_or(ClientError::Busy)?;
        self.next = self.next.wrapping_add(1);
        *place = Some((self.next, operation.kind()));
        let header = Header {
            kind: operation.kind(),
            request: self.next,
            transaction: transaction.get(),
            length: u32::try_from(length).unwrap_or(0),
        };
        let header = header.to_bytes();
        let bytes = header.iter().chain(payload.into_iter().flatten());
        for (place, byte) in self.outgoing.iter_mut().zip(bytes) {
            *place = *byte;
        }
        self.outgoing_length = HEADER + length;
        self.outgoing_sent = 0;
        self.counters.requests = self.counters.requests.wrapping_add(1);
        let id = RequestId(self.next);
        self.flush()?;
        Ok(id)
    }

    /// Gives up on a request: its answer will be dropped. False if it was
    /// answered.
    pub fn forget(&mut self, request: RequestId) -> bool {
        let is_it = |asked: &&mut Option<(u32, u32)>| asked.is_some_and(|(id, _)| id == request.0);
        let asked = self.asked.iter_mut().find(is_it);
        asked.is_some_and(|asked| asked.take().is_some())
    }

    /// Moves bytes both ways and yields one message, if one is complete.
    ///
    /// Call it until it yields nothing, but bounded: the other side may send
    /// for ever.
    ///
    /// # Errors
    /// When the other side broke the protocol; nothing more goes either way
    /// until a reconnect.
    pub fn poll(&mut self) -> Result<Option<Incoming<'_>>, ClientError> {
        match self.state {
            State::Connected => {}
            State::Broken => return Err(ClientError::Broken),
            State::Reconnecting if !self.ring.is_connected() => return Ok(None),
            State::Reconnecting => {
                self.restart();
                return Ok(Some(Incoming::Reconnected));
            }
            State::TakingOver(_) => {
                let came = self.take_over();
                return self.check(came);
            }
        }
        self.flush()?;
        let received = self.receive();
        let Some(header) = self.check(received)? else {
            return Ok(None);
        };
        let length = self.received - HEADER;
        self.received = 0;
        if header.kind == wire::WATCH_EVENT {
            let event = self.payload.get(..length).and_then(changed);
            if event.is_none() {
                self.counters.dropped = self.counters.dropped.wrapping_add(1);
            }
            return Ok(Some(event.unwrap_or(Incoming::Dropped)));
        }
        let answered = |asked: &&mut Option<(u32, u32)>| {
            asked.is_some_and(|(id, kind)| {
                id == header.request && (kind == header.kind || header.kind == wire::ERROR)
            })
        };
        let Some(asked) = self.asked.iter_mut().find(answered) else {
            self.counters.dropped = self.counters.dropped.wrapping_add(1);
            return Ok(Some(Incoming::Dropped));
        };
        *asked = None;
        let payload = self.payload.get(..length).unwrap_or_default();
        Ok(Some(Incoming::Answer {
            request: RequestId(header.request),
            result: if header.kind == wire::ERROR {
                Err(Refusal::from_name(payload))
            } else {
                Ok(payload)
            },
        }))
    }

    /// Whether the port is to be notified; clears it.
    pub const fn take_notify(&mut self) -> bool {
        core::mem::replace(&mut self.notify, false)
    }

    /// Asks the server to start a broken connection anew; false if it cannot.
    pub fn ask_reconnect(&mut self) -> bool {
        let able = self.ring.ask_reconnect();
        if able {
            self.state = State::Reconnecting;
            self.notify = true;
        }
        able
    }

    /// Starts anew on a page that was reset, as after a restore.
    ///
    /// Requests in flight and watches are gone. Ids go on, so that a late
    /// answer of the old connection fits no new request.
    pub fn restart(&mut self) {
        self.ring.restart();
        self.state = State::Connected;
        self.asked = [None; IN_FLIGHT];
        self.outgoing_length = 0;
        self.outgoing_sent = 0;
        self.received = 0;
        self.counters.reconnects = self.counters.reconnects.wrapping_add(1);
    }

    /// What the connection has seen.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    fn flush(&mut self) -> Result<(), ClientError> {
        let left = self
            .outgoing
            .get(self.outgoing_sent..self.outgoing_length)
            .unwrap_or_default();
        if left.is_empty() {
            return Ok(());
        }
        let sent = self.ring.send(left).map_err(ClientError::from);
        let sent = self.check(sent)?;
        self.outgoing_sent += sent;
        self.notify |= sent > 0;
        Ok(())
    }

    /// The header of a message, once all of it is here.
    fn receive(&mut self) -> Result<Option<Header>, ClientError> {
        if self.received < HEADER {
            let free = self.header.get_mut(self.received..).unwrap_or_default();
            let got = self.ring.receive(free)?;
            self.received += got;
            self.notify |= got > 0;
            if self.received < HEADER {
                return Ok(None);
            }
        }
        let header = Header::from_bytes(self.header);
        let length = header.length as usize;
        let have = self.received - HEADER;
        let free = self
            .payload
            .get_mut(have..length)
            .ok_or(ClientError::Oversized)?;
        let got = self.ring.receive(free)?;
        self.received += got;
        self.notify |= got > 0;
        Ok((self.received == HEADER + length).then_some(header))
    }

    fn check<T>(&mut self, result: Result<T, ClientError>) -> Result<T, ClientError> {
        if result.is_err() {
            self.state = State::Broken;
        }
        result
    }
}

/// The two strings of a watch event.
fn changed(payload: &[u8]) -> Option<Incoming<'_>> {
    let mut parts = payload.strip_suffix(b"\0")?.split(|&byte| byte == 0);
    let (path, token) = (parts.next()?, parts.next()?);
    Some(Incoming::Changed { path, token })
}

#[cfg(test)]
mod tests;
