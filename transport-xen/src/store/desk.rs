//! What a balloon wants from the store, as chores that can be done again.
//!
//! Each chore is one request whose repetition does no harm, so an answer that
//! never comes is dealt with by asking again, and a restore by doing all of
//! them once more. The one exception takes a transaction (`acknowledge`). The
//! chores' results come out as [`Notice`]s.

mod acknowledge;
mod chore;

use balloon_core::{Bytes, Nanos, Order};

use crate::page::SharedPage;
use crate::suspend::ShutdownRequest;

use super::client::{Client, ClientError, Incoming, RequestId};
use super::wire::Transaction;
use acknowledge::Acknowledgement;
use chore::{
    CHORES, Chore, DIGITS, OPENING, SHUTDOWN_TOKEN_BYTES, TARGET_TOKEN_BYTES, format_decimal,
    is_final, operation, understand,
};

/// How the desk deals with the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeskPolicy {
    /// A request unanswered or refused is made again after so long, ever more
    /// slowly.
    pub patience: Nanos,
    /// The longest wait for an answer.
    ///
    /// Longer than the toolstack waits for a domain to stop (60 s): an
    /// acknowledgement begins anew only when nobody counts on the old one.
    pub cap: Nanos,
    /// Whether the toolstack is told that this domain can be saved.
    pub offer_suspend: bool,
}

impl DeskPolicy {
    /// 2 s, doubling to 64 s; can be saved.
    pub const DEFAULT: Self = Self {
        patience: Nanos::from_secs(2),
        cap: Nanos::from_secs(64),
        offer_suspend: true,
    };
}

impl Default for DeskPolicy {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// What the desk has learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// The size the toolstack wants the domain to have.
    Target(Bytes),
    /// The target node holds no number: the last target stands.
    BadTarget,
    /// The size the domain can have at most.
    StaticMax(Bytes),
    /// Video memory, which the target leaves out and the maximum does not.
    VideoRam(Bytes),
    /// The domain is to stop, for this reason.
    Shutdown(ShutdownRequest),
    /// This request to stop is acknowledged, and the domain may stop now: the
    /// one that stood in the store then, be it another than was told before.
    Acknowledged(ShutdownRequest),
    /// There is no request to acknowledge any more, or the store does not let
    /// it be done: the domain goes on. One that still stands is told again: in
    /// the latter case when [`DeskPolicy::cap`] is over, if not by an event.
    Withdrawn,
}

/// Why the desk stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum DeskError {
    /// The connection broke and the server cannot start it anew.
    #[error("the store is gone: {0}")]
    Gone(ClientError),
}

#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    due: bool,
    /// Unanswered, or refused and to be asked for again.
    asked: Option<(RequestId, Nanos)>,
    /// Times in a row without a good answer.
    silent: u8,
}

/// The balloon's affairs with the store.
#[derive(Debug)]
pub struct Desk<P> {
    client: Client<P>,
    policy: DeskPolicy,
    progress: [Progress; CHORES.len()],
    acknowledgement: Option<Acknowledgement>,
    /// When to look for the request that could not be acknowledged.
    reread_at: Option<Nanos>,
    unit: Option<Order>,
    downgrades: u64,
    timeouts: u32,
    /// There is work for a step: messages that the last one did not get to, or
    /// news for the toolstack.
    more: bool,
}

impl<P: SharedPage> Desk<P> {
    /// A desk that has everything still to do.
    #[must_use]
    pub fn new(client: Client<P>, policy: DeskPolicy) -> Self {
        let mut desk = Self {
            client,
            policy,
            progress: [Progress::default(); CHORES.len()],
            acknowledgement: None,
            reread_at: None,
            unit: None,
            downgrades: 0,
            timeouts: 0,
            more: false,
        };
        desk.open();
        desk
    }

    /// Moves what can be moved and returns one piece of news.
    ///
    /// Call it until it returns nothing, and again when
    /// [`wake_at`](Self::wake_at) says: each call does bounded work. Then
    /// notify the store's port if [`take_notify`](Self::take_notify) says so.
    ///
    /// # Errors
    /// When the store is gone for good; a restore may still bring it back.
    pub fn step(&mut self, now: Nanos) -> Result<Option<Notice>, DeskError> {
        let mut notice = None;
        self.more = false;
        // A server that sends nonsense for ever is looked at again next time.
        let mut drained = false;
        for _ in 0..CHORES.len() {
            let incoming = match self.client.poll() {
                Ok(None) => {
                    drained = true;
                    break;
                }
                Ok(Some(incoming)) => incoming,
                Err(error) => {
                    if self.client.ask_reconnect() {
                        return Ok(None);
                    }
                    // All of it begins anew in a restored domain.
                    self.open();
                    self.more = false;
                    return Err(DeskError::Gone(error));
                }
            };
            match incoming {
                Incoming::Dropped => {}
                Incoming::Reconnected => self.open(),
                Incoming::Changed { token, .. } => {
                    let chore = match token {
                        TARGET_TOKEN_BYTES => Chore::ReadTarget,
                        SHUTDOWN_TOKEN_BYTES => Chore::ReadShutdown,
                        _ => continue,
                    };
                    self.make_due(chore);
                }
                Incoming::Answer { request, result } => {
                    let is_it = |p: &Progress| p.asked.is_some_and(|(id, _)| id == request);
                    let mut found = CHORES.into_iter().zip(&mut self.progress);
                    if let Some((chore, progress)) = found.find(|(_, p)| is_it(p)) {
                        if result.err().is_none_or(|refusal| is_final(chore, refusal)) {
                            progress.asked = None;
                            progress.silent = 0;
                        }
                        notice = understand(chore, result);
                    } else if let Some(acknowledgement) = &mut self.acknowledgement {
                        notice = acknowledgement.answered(request, result);
                        if notice.is_some() {
                            let found_none = acknowledgement.found_none();
                            self.acknowledgement = None;
                            if found_none {
                                self.make_due(Chore::ReadShutdown);
                            } else if notice == Some(Notice::Withdrawn) {
                                self.reread_at = Some(now.saturating_add(self.policy.cap));
                            }
                        }
                    }
                }
            }
            if notice.is_some() {
                break;
            }
        }
        self.more = !drained;
        self.give_up_late(now);
        self.ask(now);
        Ok(notice)
    }

    /// When to call [`step`](Self::step) even if no event comes: a time long past
    /// if the last one left messages behind or there is something to tell since,
    /// `None` at rest.
    #[must_use]
    pub fn wake_at(&self) -> Option<Nanos> {
        if self.more {
            return Some(Nanos::ZERO);
        }
        let deadlines = self.progress.iter().filter_map(|p| self.deadline(p));
        let waits = self.last_wait().map(|(_, at)| at);
        deadlines.chain(waits).chain(self.reread_at).min()
    }

    /// Whether the store's port is to be notified; clears it.
    pub const fn take_notify(&mut self) -> bool {
        self.client.take_notify()
    }

    /// Tells the toolstack in which blocks the balloon moves memory, as
    /// `data/balloon/unit` in KiB: 2048, or 4 after a downgrade.
    pub fn publish_unit(&mut self, unit: Order) {
        if self.unit != Some(unit) {
            self.unit = Some(unit);
            self.tell(Chore::PublishUnit);
        }
    }

    /// Tells the toolstack how many superpages were broken or could not be
    /// restored ([`Counters::downgrades`](crate::Counters::downgrades)), as
    /// `data/balloon/downgrades`: best when the engine rests.
    pub fn publish_downgrades(&mut self, downgrades: u64) {
        if downgrades != self.downgrades {
            self.downgrades = downgrades;
            self.tell(Chore::PublishDowngrades);
        }
    }

    /// Acknowledges a request to stop; [`Notice::Acknowledged`] or
    /// [`Notice::Withdrawn`] follows, once the store answers.
    pub fn acknowledge(&mut self) {
        if self.acknowledgement.is_none() {
            self.acknowledgement = Some(Acknowledgement::new());
        }
        self.more = true;
    }

    /// Starts anew after a restore: watches are gone, the ring in the same page
    /// was reset.
    pub fn restored(&mut self) {
        self.client.restart();
        self.open();
    }

    /// Reads the target and the request to stop again: after a suspend that was
    /// cancelled or refused, as what came meanwhile was not heeded.
    pub fn reread(&mut self) {
        self.tell(Chore::ReadTarget);
        self.tell(Chore::ReadShutdown);
    }

    /// Requests that were not answered in time.
    #[must_use]
    pub const fn timeouts(&self) -> u32 {
        self.timeouts
    }

    /// The connection.
    #[must_use]
    pub const fn client(&self) -> &Client<P> {
        &self.client
    }

    fn open(&mut self) {
        self.progress = [Progress::default(); CHORES.len()];
        self.reread_at = None;
        self.more = true;
        for chore in OPENING {
            if chore != Chore::OfferSuspend || self.policy.offer_suspend {
                self.make_due(chore);
            }
        }
        if let Some(acknowledgement) = &mut self.acknowledgement {
            *acknowledgement = Acknowledgement::new();
        }
        if self.unit.is_some() {
            self.make_due(Chore::PublishUnit);
        }
        if self.downgrades > 0 {
            self.make_due(Chore::PublishDowngrades);
        }
    }

    /// What the kernel wants done from outside a step, by the next one.
    fn tell(&mut self, chore: Chore) {
        self.make_due(chore);
        self.more = true;
    }

    fn make_due(&mut self, chore: Chore) {
        let mut found = CHORES.into_iter().zip(&mut self.progress);
        if let Some((_, progress)) = found.find(|&(c, _)| c == chore) {
            progress.due = true;
        }
    }

    fn deadline(&self, progress: &Progress) -> Option<Nanos> {
        let (_, since) = progress.asked?;
        let factor = 1u64 << progress.silent.min(16);
        let wait = self.policy.patience.get().saturating_mul(factor);
        Some(since.saturating_add(Nanos::new(wait.min(self.policy.cap.get()))))
    }

    /// The acknowledgement's request, and when its answer is too late.
    fn last_wait(&self) -> Option<(RequestId, Nanos)> {
        let (request, since) = self.acknowledgement.as_ref()?.asked()?;
        Some((request, since.saturating_add(self.policy.cap)))
    }

    fn give_up_late(&mut self, now: Nanos) {
        if let Some((request, _)) = self.last_wait().filter(|&(_, at)| at <= now) {
            self.give_up(request);
            if let Some(acknowledgement) = &mut self.acknowledgement {
                acknowledgement.abandon(&mut self.client);
                *acknowledgement = Acknowledgement::new();
            }
        }
        if self.reread_at.is_some_and(|at| at <= now) {
            self.reread_at = None;
            self.make_due(Chore::ReadShutdown);
        }
        for index in 0..CHORES.len() {
            let Some(&progress) = self.progress.get(index) else {
                break;
            };
            let late = self.deadline(&progress).is_some_and(|at| at <= now);
            let Some((request, _)) = progress.asked.filter(|_| late) else {
                continue;
            };
            self.give_up(request);
            if let Some(progress) = self.progress.get_mut(index) {
                progress.asked = None;
                progress.due = true;
                progress.silent = progress.silent.saturating_add(1);
            }
        }
    }

    fn give_up(&mut self, request: RequestId) {
        if self.client.forget(request) {
            self.timeouts = self.timeouts.wrapping_add(1);
        }
    }

    fn ask(&mut self, now: Nanos) {
        if let Some(acknowledgement) = &mut self.acknowledgement {
            acknowledgement.ask(&mut self.client, now);
        }
        for (chore, progress) in CHORES.into_iter().zip(&mut self.progress) {
            // One at a time of each: the answer to an older one may be stale.
            if !progress.due || progress.asked.is_some() {
                continue;
            }
            let number = match chore {
                Chore::PublishUnit => self
                    .unit
                    .map_or(0, |unit| unit.frames().bytes().get() / 1024),
                _ => self.downgrades,
            };
            let mut digits = [0; DIGITS];
            let operation = operation(chore, format_decimal(number, &mut digits));
            match self.client.request(operation, Transaction::NONE) {
                Ok(request) => {
                    progress.due = false;
                    progress.asked = Some((request, now));
                }
                // Later, or never: the next poll says which.
                Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests;
