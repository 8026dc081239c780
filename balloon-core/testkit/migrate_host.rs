//! A host that migrates frames in each of the ways there are, and can fail at
//! every step of it.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::migrate::{Migrate, MigrateRequest, Migration};
use crate::slots::Request;
use crate::slots::{Completer, Kind, Outcome, SlotId};
use crate::source::Via;
use crate::transport::{Capabilities, Limits, Transport, TransportErrorKind};
use crate::units::{FrameCount, Pfn};

use super::second_stage::SecondStage;

/// What goes wrong with one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// `submit` fails with this.
    Refuse(TransportErrorKind),
    /// Only the first so many frames are carried out.
    Partly(FrameCount),
    /// Only the first so many; of a migration the next pair is torn, the host has both.
    Torn(FrameCount),
    /// It is never answered.
    Silence,
}

/// A host with second-stage tables behind a transport that can migrate.
#[derive(Debug)]
pub struct FakeMigrateHost {
    /// How it migrates.
    pub way: Migration,
    /// The balloon size it asks for.
    pub target: FrameCount,
    /// Frames are not returned if the balloon would be smaller than the target.
    pub enforces: bool,
    /// Answers come with `reap` instead of inside `submit`.
    pub delayed: bool,
    /// What it offers.
    pub capabilities: Capabilities,
    /// Faults of the next requests, first to last; none beyond.
    pub faults: VecDeque<Fault>,
    /// Its tables.
    pub second_stage: SecondStage,
    /// Rules the guest broke; empty for a correct one.
    pub breaches: Vec<String>,
    /// Requests that reached it.
    pub requests: usize,
    queue: VecDeque<Job>,
    owned: BTreeMap<Pfn, Via>,
}

#[derive(Debug)]
struct Job {
    kind: Kind,
    slot: SlotId,
    via: Via,
    /// Returned to the guest.
    from: Vec<Pfn>,
    /// Taken from it.
    to: Vec<Pfn>,
    most: usize,
    /// The pair after those is torn.
    torn: bool,
}

impl FakeMigrateHost {
    /// A host that answers at once and enforces nothing.
    #[must_use]
    pub fn new(way: Migration) -> Self {
        let limits = Limits {
            frames: FrameCount::new(256),
            runs: 256,
            run: FrameCount::new(256),
            in_flight: 16,
            below: Pfn::new(1 << 32),
        };
        Self {
            way,
            target: FrameCount::ZERO,
            enforces: false,
            delayed: false,
            capabilities: Capabilities::new(limits, limits),
            faults: VecDeque::new(),
            second_stage: SecondStage::default(),
            breaches: Vec::new(),
            requests: 0,
            queue: VecDeque::new(),
            owned: BTreeMap::new(),
        }
    }

    /// Whether the host has the frame until it says otherwise.
    ///
    /// One that was given in bulk is the guest's again whenever it likes.
    #[must_use]
    pub fn owns(&self, pfn: Pfn) -> bool {
        self.owned.get(&pfn) == Some(&Via::Inflate)
    }

    /// The frames that it [`owns`](Self::owns).
    pub fn given(&self) -> impl Iterator<Item = Pfn> {
        let told = self.owned.iter().filter(|&(_, &via)| via == Via::Inflate);
        told.map(|(&pfn, _)| pfn)
    }

    /// Frames the host has.
    #[must_use]
    pub fn owned(&self) -> FrameCount {
        FrameCount::new(self.owned.len() as u64)
    }

    /// Requests not answered.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// The device is reset: it forgets the balloon and what it was asked.
    pub fn reset(&mut self) {
        self.queue.clear();
        self.owned.clear();
    }

    /// Notes a frame it was given by name as given in bulk.
    pub fn inflate_in_bulk(&mut self, pfn: Pfn) {
        if let Some(via) = self.owned.get_mut(&pfn) {
            *via = Via::Bulk;
        }
    }

    fn accept(&mut self, mut job: Job, done: Completer<'_>) -> Result<(), TransportErrorKind> {
        if self.queue.iter().filter(|q| q.kind == job.kind).count() >= 16 {
            return Err(TransportErrorKind::Full);
        }
        match self.faults.pop_front().unwrap_or(Fault::None) {
            Fault::None => {}
            Fault::Refuse(error) => return Err(error),
            Fault::Partly(most) => {
                job.most = usize::try_from(most.get()).unwrap_or(usize::MAX);
            }
            Fault::Torn(most) => {
                job.most = usize::try_from(most.get()).unwrap_or(usize::MAX);
                job.torn = true;
            }
            Fault::Silence => {
                job.most = 0;
                self.requests += 1;
                return Ok(());
            }
        }
        self.requests += 1;
        if self.delayed {
            self.queue.push_back(job);
        } else {
            self.carry_out(&job, done);
        }
        Ok(())
    }

    fn carry_out(&mut self, job: &Job, done: Completer<'_>) {
        let frames = job.from.len().max(job.to.len());
        let mut carried = 0;
        while carried < frames.min(job.most) {
            let (old, new) = (job.from.get(carried), job.to.get(carried));
            let surplus = self.owned().saturating_sub(self.target);
            if new.is_none() && self.enforces && surplus.is_zero() {
                break;
            }
            match (old, new) {
                (Some(&old), Some(&new)) if self.way == Migration::Move => {
                    self.second_stage.relocate(new, old);
                }
                (Some(&old), Some(&new)) => {
                    self.second_stage.populate(old);
                    self.second_stage.release(new);
                }
                (Some(&old), None) => self.second_stage.populate(old),
                (None, Some(&new)) => self.second_stage.release(new),
                (None, None) => {}
            }
            if let Some(&old) = old
                && self.owned.remove(&old) != Some(Via::Inflate)
            {
                self.breaches
                    .push(format!("{old:?} taken back, was not given by name"));
            }
            if let Some(&new) = new
                && self.owned.insert(new, job.via) == Some(Via::Inflate)
            {
                self.breaches.push(format!("{new:?} given twice"));
            }
            carried += 1;
        }
        let done_so_far = FrameCount::new(carried as u64);
        let outcome = match (job.from.get(carried), job.to.get(carried)) {
            (None, None) => Outcome::Whole,
            (Some(_), Some(&new)) if job.torn => {
                self.second_stage.release(new);
                self.owned.insert(new, job.via);
                Outcome::Torn(done_so_far)
            }
            _ => Outcome::Partial(done_so_far),
        };
        if done.complete(job.kind, job.slot, outcome).is_err() {
            self.breaches
                .push(format!("{:?} was not in flight", job.slot));
        }
    }
}

fn frames(runs: &[crate::Run]) -> Vec<Pfn> {
    runs.iter().flat_map(|run| run.range().frames()).collect()
}

impl Transport for FakeMigrateHost {
    type Error = TransportErrorKind;

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn read_target(&mut self) -> Result<FrameCount, Self::Error> {
        Ok(self.target)
    }

    fn write_actual(&mut self, _: FrameCount) -> Result<(), Self::Error> {
        Ok(())
    }

    fn submit(&mut self, request: Request<'_>, done: Completer<'_>) -> Result<(), Self::Error> {
        let limits = match (request.kind, request.via) {
            (Kind::Inflate, Via::Bulk) => self
                .capabilities
                .bulk
                .ok_or(TransportErrorKind::Unsupported)?,
            (Kind::Inflate, Via::Inflate) => self.capabilities.inflate,
            _ => self.capabilities.deflate,
        };
        let listed = frames(request.runs);
        if request.runs.len() > limits.runs || listed.len() as u64 > limits.frames.get() {
            return Err(TransportErrorKind::TooLarge);
        }
        let (from, to) = match request.kind {
            Kind::Inflate => (Vec::new(), listed),
            _ => (listed, Vec::new()),
        };
        let (kind, slot, via) = (request.kind, request.slot, request.via);
        self.accept(
            Job {
                kind,
                slot,
                via,
                from,
                to,
                most: usize::MAX,
                torn: false,
            },
            done,
        )
    }

    fn kick(&mut self, _: usize) -> Result<bool, Self::Error> {
        Ok(false)
    }

    fn reap(&mut self, done: Completer<'_>) -> Result<usize, Self::Error> {
        let answers = self.queue.len();
        while let Some(job) = self.queue.pop_front() {
            self.carry_out(&job, done);
        }
        Ok(answers)
    }
}

impl Migrate for FakeMigrateHost {
    fn migration(&self) -> Migration {
        self.way
    }

    fn submit_migrate(
        &mut self,
        request: MigrateRequest<'_>,
        done: Completer<'_>,
    ) -> Result<(), Self::Error> {
        if !matches!(self.way, Migration::Exchange | Migration::Move) {
            return Err(TransportErrorKind::Unsupported);
        }
        let (from, to) = (frames(request.from), frames(request.to));
        if from.len() != to.len() || from.len() as u64 > self.capabilities.inflate.frames.get() {
            return Err(TransportErrorKind::TooLarge);
        }
        let (kind, slot, via) = (Kind::Migrate, request.slot, Via::Inflate);
        self.accept(
            Job {
                kind,
                slot,
                via,
                from,
                to,
                most: usize::MAX,
                torn: false,
            },
            done,
        )
    }
}
