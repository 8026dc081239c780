//! The acknowledgement of a request to stop: in one transaction, so that a
//! request made meanwhile is neither wiped nor missed.
//!
//! Each of its requests is made once and waited for, as an answer that is late
//! still counts. Only when the toolstack has given up, too, it begins anew, and
//! sees what became of the request.

use balloon_core::Nanos;

use super::event::StoreEvent;
use super::task::SHUTDOWN;
use crate::page::SharedPage;
use crate::store::client::{Client, RequestId};
use crate::store::wire::{Operation, Refusal, Transaction};
use crate::suspend::ShutdownRequest;

/// Transactions that may meet others before the request counts as withdrawn.
const TRIES: u8 = 8;

#[derive(Clone, Copy, Debug)]
enum Step {
    Begin,
    Read(Transaction),
    Write(Transaction, ShutdownRequest),
    End(Transaction, End),
}

/// What becomes of the transaction.
#[derive(Clone, Copy, Debug)]
enum End {
    Commit(ShutdownRequest),
    /// There is no request any more.
    NoRequest,
    /// It may not be read, or written.
    Refused,
}

/// How far it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Acknowledgement {
    step: Step,
    asked: Option<(RequestId, Nanos)>,
    tries: u8,
}

impl Acknowledgement {
    pub(super) const fn new() -> Self {
        Self {
            step: Step::Begin,
            asked: None,
            tries: 0,
        }
    }

    /// Makes the next request, if it can be made.
    pub(super) fn ask(&mut self, client: &mut Client<impl SharedPage>, now: Nanos) {
        if self.asked.is_some() {
            return;
        }
        let (operation, transaction) = match self.step {
            Step::Begin => (Operation::Begin, Transaction::NONE),
            Step::Read(transaction) => (Operation::Read { path: SHUTDOWN }, transaction),
            Step::Write(transaction, _) => {
                let (path, value) = (SHUTDOWN, b"");
                (Operation::Write { path, value }, transaction)
            }
            Step::End(transaction, end) => {
                let commit = matches!(end, End::Commit(_));
                (Operation::End { commit }, transaction)
            }
        };
        // Later, or never: the next poll says which.
        let asked = client.request(operation, transaction).ok();
        self.asked = asked.map(|request| (request, now));
    }

    /// The request that waits for its answer, and when it was made.
    pub(super) const fn asked(&self) -> Option<(RequestId, Nanos)> {
        self.asked
    }

    /// Ends the transaction that waits for an answer in vain, if the store reads
    /// on: nobody waits for that answer.
    pub(super) fn abandon(&self, client: &mut Client<impl SharedPage>) {
        let transaction = match self.step {
            Step::Begin => return,
            Step::Read(transaction) | Step::Write(transaction, _) | Step::End(transaction, _) => {
                transaction
            }
        };
        if let Ok(request) = client.request(Operation::End { commit: false }, transaction) {
            client.forget(request);
        }
    }

    /// Takes an answer in, if it is to its request; the outcome if it was the
    /// last one.
    pub(super) fn answered(
        &mut self,
        request: RequestId,
        result: Result<&[u8], Refusal>,
    ) -> Option<StoreEvent> {
        if self.asked.is_none_or(|(asked, _)| asked != request) {
            return None;
        }
        self.asked = None;
        self.step = match (self.step, result) {
            (Step::Begin, Ok(answer)) => match Transaction::from_answer(answer) {
                Some(transaction) => Step::Read(transaction),
                None => return Some(StoreEvent::Withdrawn),
            },
            (Step::Read(transaction), Ok(value)) => match ShutdownRequest::from_value(value) {
                Some(found) => Step::Write(transaction, found),
                None => Step::End(transaction, End::NoRequest),
            },
            (Step::Read(transaction), Err(Refusal::NoEntry)) => {
                Step::End(transaction, End::NoRequest)
            }
            (Step::Write(transaction, found), Ok(_)) => Step::End(transaction, End::Commit(found)),
            (Step::Read(transaction) | Step::Write(transaction, _), Err(_)) => {
                Step::End(transaction, End::Refused)
            }
            (Step::End(_, End::Commit(found)), Ok(_)) => {
                return Some(StoreEvent::Acknowledged(found));
            }
            (Step::End(_, End::Commit(_)) | Step::Begin, Err(Refusal::Again))
                if self.tries < TRIES =>
            {
                self.tries += 1;
                Step::Begin
            }
            (Step::End(..) | Step::Begin, _) => return Some(StoreEvent::Withdrawn),
        };
        None
    }

    /// Whether it found nothing to acknowledge: a request may have come since,
    /// and its event may have been taken for this one's.
    pub(super) const fn found_none(&self) -> bool {
        matches!(self.step, Step::End(_, End::NoRequest))
    }
}
