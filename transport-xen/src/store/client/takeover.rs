//! The connection of an earlier kernel, where the server cannot start it anew.
//!
//! That kernel may have gone away in the middle of a request, of which the server
//! waits for the rest, and in the middle of an answer. Zeros tell where both are: a
//! header of zeros asks for nothing, and wherever a request ends among zeros, they
//! are headers from there on, each of which the server answers. So
//!
//! 1. a header of zeros is sent. Its answer, looked for among whatever comes, says
//!    where messages of the server begin, and that it takes ours for messages;
//! 2. a request of nothing that has a number is sent then. Its answer has that
//!    number, and proves it: the connection is in step.
//!
//! Where an answer does not come although the server has taken all there is, it
//! counted that to something else. Zeros as many as the longest message has bytes
//! pass the end of that, and zeros one by one end the last header: its answer is
//! that of step 1.
//!
//! Not told apart is the rest of a request numbered zero that was cut short within
//! its header.

use crate::page::SharedPage;
use crate::store::client::{Client, ClientError, Incoming, State};
use crate::store::wire::{self, HEADER, Header, PAYLOAD};

/// A request of nothing: an operation that is none of a guest's.
const NOTHING: u32 = 0;
/// Bytes of the longest name of an error, with its end.
const NAME: u32 = 16;

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Takeover {
    step: Step,
    /// Zeros that are still to be sent.
    zeros: usize,
    /// Nothing has come since the last look at it.
    quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// A header of zeros is to be answered.
    Ask,
    /// The end of what the server is in the middle of is passed.
    Pass,
    /// The header that the server is in the middle of is to be answered, which got
    /// so many more zeros.
    Feel(usize),
    /// The request with this number is to be answered.
    Prove(u32),
}

/// A piece of what comes from the server.
enum Found {
    /// Nothing whole.
    Nothing,
    /// Something of an earlier kernel's.
    Noise,
    /// The answer that refuses the request with this number.
    Refused(u32),
}

impl Takeover {
    pub(super) const fn new() -> Self {
        Self {
            step: Step::Ask,
            zeros: HEADER,
            quiet: false,
        }
    }
}

impl<P: SharedPage> Client<P> {
    /// Whether an earlier kernel used this connection, and it is not in step yet.
    #[must_use]
    pub const fn is_taking_over(&self) -> bool {
        matches!(self.state, State::TakingOver(_))
    }

    /// Goes on with [taking over](Self::is_taking_over) if the server has been
    /// silent since the last call, a second or more ago: it took what it got for
    /// the rest of an earlier kernel's request. False if it may stay silent for
    /// long: it has not taken all it got, or answers nothing at all.
    pub fn insist(&mut self) -> bool {
        let State::TakingOver(takeover) = &mut self.state else {
            return false;
        };
        if !core::mem::replace(&mut takeover.quiet, true) {
            return true;
        }
        if takeover.zeros > 0 || !self.ring.is_taken() {
            return false;
        }
        (takeover.step, takeover.zeros) = match takeover.step {
            Step::Ask | Step::Prove(_) => (Step::Pass, PAYLOAD),
            Step::Pass => (Step::Feel(1), 1),
            Step::Feel(zeros) if zeros < HEADER => (Step::Feel(zeros + 1), 1),
            Step::Feel(_) => (Step::Ask, HEADER),
        };
        takeover.step != Step::Ask
    }

    /// Moves what can be moved; says so once the connection is in step.
    pub(super) fn take_over(&mut self) -> Result<Option<Incoming<'static>>, ClientError> {
        self.send_zeros()?;
        self.flush()?;
        for _ in 0..PAYLOAD {
            let State::TakingOver(takeover) = self.state else {
                return Ok(None);
            };
            match (self.find()?, takeover.step) {
                (Found::Nothing, _) => return Ok(None),
                (Found::Refused(0), Step::Ask | Step::Feel(_)) => self.prove()?,
                (Found::Refused(number), Step::Prove(proof)) if number == proof => {
                    self.state = State::Connected;
                    return Ok(Some(Incoming::TakenOver));
                }
                _ => {}
            }
        }
        Ok(Some(Incoming::Dropped))
    }

    fn send_zeros(&mut self) -> Result<(), ClientError> {
        const ZEROS: [u8; 256] = [0; 256];
        let State::TakingOver(takeover) = &mut self.state else {
            return Ok(());
        };
        while takeover.zeros > 0 {
            let (some, _) = ZEROS
                .split_at_checked(takeover.zeros)
                .unwrap_or((&ZEROS, &[]));
            let sent = self.ring.send(some)?;
            if sent == 0 {
                break;
            }
            takeover.zeros = takeover.zeros.saturating_sub(sent);
            self.notify = true;
        }
        Ok(())
    }

    /// Sends the request that is answered by its number.
    fn prove(&mut self) -> Result<(), ClientError> {
        self.next = self.next.wrapping_add(1).max(1);
        let header = Header {
            kind: NOTHING,
            request: self.next,
            transaction: 0,
            length: 0,
        };
        for (place, byte) in self.outgoing.iter_mut().zip(header.to_bytes()) {
            *place = byte;
        }
        self.outgoing_length = HEADER;
        self.outgoing_sent = 0;
        self.state = State::TakingOver(Takeover {
            step: Step::Prove(self.next),
            zeros: 0,
            quiet: false,
        });
        self.flush()
    }

    /// Takes a refusal in, or a byte that begins none.
    fn find(&mut self) -> Result<Found, ClientError> {
        let before = self.received;
        if self.received < HEADER {
            let free = self.header.get_mut(self.received..).unwrap_or_default();
            self.received += self.ring.receive(free)?;
        }
        let header = Header::from_bytes(self.header);
        let is_refusal = header.kind == wire::ERROR
            && header.transaction == 0
            && (1..=NAME).contains(&header.length);
        let whole = if self.received < HEADER {
            None
        } else if is_refusal {
            self.receive()?
        } else {
            self.header.rotate_left(1);
            self.received = HEADER - 1;
            self.heard();
            return Ok(Found::Noise);
        };
        if self.received != before {
            self.heard();
        }
        let Some(header) = whole else {
            return Ok(Found::Nothing);
        };
        self.received = 0;
        let name = self.payload.get(..header.length as usize);
        let is_name = name.is_some_and(|name| name.starts_with(b"E") && name.ends_with(b"\0"));
        Ok(if is_name {
            Found::Refused(header.request)
        } else {
            Found::Noise
        })
    }

    fn heard(&mut self) {
        self.notify = true;
        if let State::TakingOver(takeover) = &mut self.state {
            takeover.quiet = false;
        }
    }
}
