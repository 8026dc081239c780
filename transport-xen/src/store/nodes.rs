//! What a balloon wants from the store, as tasks that can be done again.
//!
//! Each task is one request whose repetition does no harm, so an answer that
//! never comes is dealt with by asking again, and a restore by doing all of
//! them once more. The one exception takes a transaction (`acknowledge`). The
//! tasks' results come out as [`StoreEvent`]s.

mod acknowledge;
pub(crate) mod event;
mod task;

use balloon_core::{Nanos, Order};

use crate::page::SharedPage;

use super::client::{Client, ClientError, Incoming, RequestId};
use super::wire::Transaction;
use acknowledge::Acknowledgement;
use event::StoreEvent;
use task::{
    DIGITS, MAXIMA, Next, OPENING, SHUTDOWN_TOKEN_BYTES, TARGET_TOKEN_BYTES, TASKS, Task,
    format_decimal, is_final, next, operation, understand,
};

/// Steps in a row that may leave messages behind before a pause.
const FLOOD: u8 = 16;
/// How long it rests then.
const PAUSE: Nanos = Nanos::from_millis(100);

/// How requests to the store are repeated, and what it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodesConfig {
    /// A request unanswered or refused is made again after so long, ever more
    /// slowly.
    pub retry_after: Nanos,
    /// The longest wait for an answer.
    ///
    /// Longer than the toolstack waits for a domain to stop (60 s): an
    /// acknowledgement begins anew only when nobody counts on the old one.
    pub max_retry: Nanos,
    /// Whether the toolstack is told that this domain can be saved.
    pub offer_suspend: bool,
}

impl NodesConfig {
    /// 2 s, doubling to 64 s; can be saved.
    pub const DEFAULT: Self = Self {
        retry_after: Nanos::from_secs(2),
        max_retry: Nanos::from_secs(64),
        offer_suspend: true,
    };
}

impl Default for NodesConfig {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Why there is no store any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum NodesError {
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

/// What was told last of the domain's maxima.
#[derive(Clone, Copy, Debug, Default)]
struct Maxima {
    fixed: Option<StoreEvent>,
    hotplug: Option<StoreEvent>,
}

impl Maxima {
    /// Whether this is to be told: a maximum is only when it is another.
    fn is_news(&mut self, event: StoreEvent) -> bool {
        let told = match event {
            StoreEvent::StaticMax(_) => &mut self.fixed,
            StoreEvent::HotplugMax(_) => &mut self.hotplug,
            _ => return true,
        };
        told.replace(event) != Some(event)
    }
}

/// The balloon's nodes in the store: reads, watches, and writes them.
#[derive(Debug)]
pub struct BalloonNodes<P> {
    client: Client<P>,
    config: NodesConfig,
    progress: [Progress; TASKS.len()],
    maxima: Maxima,
    acknowledgement: Option<Acknowledgement>,
    /// When to look for the request that could not be acknowledged.
    reread_at: Option<Nanos>,
    unit: Option<Order>,
    downgrades: u64,
    timeouts: u32,
    /// There is work for a step: messages that the last one did not get to, or
    /// news for the toolstack.
    more: bool,
    /// Steps in a row that left messages behind.
    behind: u8,
    /// Until then a store that talks without end is asked nothing.
    rests_until: Option<Nanos>,
    /// When to insist on taking over an earlier kernel's connection.
    insist_at: Option<Nanos>,
}

impl<P: SharedPage> BalloonNodes<P> {
    /// Nothing is read, watched, or written yet.
    #[must_use]
    pub fn new(client: Client<P>, config: NodesConfig) -> Self {
        let mut nodes = Self {
            client,
            config,
            progress: [Progress::default(); TASKS.len()],
            maxima: Maxima::default(),
            acknowledgement: None,
            reread_at: None,
            unit: None,
            downgrades: 0,
            timeouts: 0,
            more: false,
            behind: 0,
            rests_until: None,
            insist_at: None,
        };
        nodes.open();
        nodes
    }

    /// Moves what can be moved and returns one event.
    ///
    /// Call it until it returns nothing, and again when
    /// [`wake_at`](Self::wake_at) says: each call does bounded work. Then
    /// notify the store's port if [`take_notify`](Self::take_notify) says so.
    ///
    /// # Errors
    /// When the store is gone for good; a restore may still bring it back.
    pub fn step(&mut self, now: Nanos) -> Result<Option<StoreEvent>, NodesError> {
        let mut event = None;
        self.more = false;
        // A server that sends nonsense for ever is looked at again next time.
        let mut drained = false;
        for _ in 0..TASKS.len() {
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
                    return Err(NodesError::Gone(error));
                }
            };
            match incoming {
                Incoming::Dropped => {}
                Incoming::Reconnected => self.open(),
                Incoming::TakenOver => {
                    self.close();
                    self.make_due(Task::ReadCanReset);
                }
                Incoming::Changed { token, .. } => {
                    let task = match token {
                        TARGET_TOKEN_BYTES => Task::ReadTarget,
                        SHUTDOWN_TOKEN_BYTES => Task::ReadShutdown,
                        _ => continue,
                    };
                    self.make_due(task);
                }
                Incoming::Answer { request, result } => {
                    let is_it = |p: &Progress| p.asked.is_some_and(|(id, _)| id == request);
                    let mut found = TASKS.into_iter().zip(&mut self.progress);
                    if let Some((task, progress)) = found.find(|(_, p)| is_it(p)) {
                        if result.err().is_none_or(|refusal| is_final(task, refusal)) {
                            progress.asked = None;
                            progress.silent = 0;
                        }
                        event = understand(task, result).filter(|&n| self.maxima.is_news(n));
                        match next(task, result) {
                            Some(Next::Make(task)) => self.make_due(task),
                            Some(Next::Open) => self.open(),
                            None => {}
                        }
                    } else if let Some(acknowledgement) = &mut self.acknowledgement {
                        event = acknowledgement.answered(request, result);
                        if event.is_some() {
                            let found_none = acknowledgement.found_none();
                            self.acknowledgement = None;
                            if found_none {
                                self.make_due(Task::ReadShutdown);
                            } else if event == Some(StoreEvent::Withdrawn) {
                                self.reread_at = Some(now.saturating_add(self.config.max_retry));
                            }
                        }
                    }
                }
            }
            if event.is_some() {
                break;
            }
        }
        self.more = !drained;
        self.insist(now);
        self.give_up_late(now);
        if self.is_read_out(now) {
            self.ask(now);
        }
        Ok(event)
    }

    /// Goes on with an earlier kernel's connection, if it is time to.
    fn insist(&mut self, now: Nanos) {
        if !self.client.is_taking_over() {
            self.insist_at = None;
        } else if self.insist_at.is_none_or(|at| at <= now) {
            let goes_on = self.client.insist();
            let wait = if goes_on {
                self.config.retry_after
            } else {
                self.config.max_retry
            };
            self.insist_at = Some(now.saturating_add(wait));
            self.more |= goes_on;
        }
    }

    /// Whether to ask on: a store that always has more to say could answer for
    /// ever.
    fn is_read_out(&mut self, now: Nanos) -> bool {
        if !self.more {
            self.behind = 0;
            self.rests_until = None;
        } else if self.behind < FLOOD {
            self.behind += 1;
        } else if self.rests_until.is_some_and(|at| at > now) {
            return false;
        } else {
            self.rests_until = Some(now.saturating_add(PAUSE));
        }
        true
    }

    /// When to call [`step`](Self::step) even if no event comes: a time long past
    /// if the last one left messages behind or there is something to tell since, a
    /// moment ahead if the store talks without end, `None` at rest.
    #[must_use]
    pub fn wake_at(&self) -> Option<Nanos> {
        if self.more {
            return Some(self.rests_until.unwrap_or(Nanos::ZERO));
        }
        let deadlines = self.progress.iter().filter_map(|p| self.deadline(p));
        let waits = self.last_wait().map(|(_, at)| at);
        let moments = [self.reread_at, self.insist_at].into_iter().flatten();
        deadlines.chain(waits).chain(moments).min()
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
            self.tell(Task::PublishUnit);
        }
    }

    /// Tells the toolstack how many superpages were broken or could not be
    /// restored ([`Counters::downgrades`](crate::Counters::downgrades)), as
    /// `data/balloon/downgrades`: best when the engine rests.
    pub fn publish_downgrades(&mut self, downgrades: u64) {
        if downgrades != self.downgrades {
            self.downgrades = downgrades;
            self.tell(Task::PublishDowngrades);
        }
    }

    /// Acknowledges a request to stop; [`StoreEvent::Acknowledged`] or
    /// [`StoreEvent::Withdrawn`] follows, once the store answers.
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
        self.tell(Task::ReadTarget);
        self.tell(Task::ReadShutdown);
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

    /// Nothing is to be done.
    fn close(&mut self) {
        self.progress = [Progress::default(); TASKS.len()];
        self.maxima = Maxima::default();
        self.reread_at = None;
        self.rests_until = None;
        self.insist_at = None;
    }

    fn open(&mut self) {
        self.close();
        self.more = true;
        for task in OPENING {
            if task != Task::OfferSuspend || self.config.offer_suspend {
                self.make_due(task);
            }
        }
        if let Some(acknowledgement) = &mut self.acknowledgement {
            *acknowledgement = Acknowledgement::new();
        }
        if self.unit.is_some() {
            self.make_due(Task::PublishUnit);
        }
        if self.downgrades > 0 {
            self.make_due(Task::PublishDowngrades);
        }
    }

    /// What the kernel wants done from outside a step, by the next one.
    fn tell(&mut self, task: Task) {
        self.make_due(task);
        self.more = true;
    }

    fn make_due(&mut self, task: Task) {
        if task == Task::ReadTarget {
            MAXIMA.into_iter().for_each(|task| self.make_due(task));
        }
        let mut found = TASKS.into_iter().zip(&mut self.progress);
        if let Some((_, progress)) = found.find(|&(c, _)| c == task) {
            progress.due = true;
        }
    }

    fn deadline(&self, progress: &Progress) -> Option<Nanos> {
        let (_, since) = progress.asked?;
        let factor = 1u64 << progress.silent.min(16);
        let wait = self.config.retry_after.get().saturating_mul(factor);
        Some(since.saturating_add(Nanos::new(wait.min(self.config.max_retry.get()))))
    }

    /// The acknowledgement's request, and when its answer is too late.
    fn last_wait(&self) -> Option<(RequestId, Nanos)> {
        let (request, since) = self.acknowledgement.as_ref()?.asked()?;
        Some((request, since.saturating_add(self.config.max_retry)))
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
            self.make_due(Task::ReadShutdown);
        }
        for index in 0..TASKS.len() {
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
        for (task, progress) in TASKS.into_iter().zip(&mut self.progress) {
            // One at a time of each: the answer to an older one may be stale.
            if !progress.due || progress.asked.is_some() {
                continue;
            }
            let number = match task {
                Task::PublishUnit => self
                    .unit
                    .map_or(0, |unit| unit.frames().bytes().get() / 1024),
                _ => self.downgrades,
            };
            let mut digits = [0; DIGITS];
            let operation = operation(task, format_decimal(number, &mut digits));
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
