//! Hosts: memory behind a transport, and everything that goes wrong with them.

mod calls;

use balloon_core::{
    Completer, FrameCount, FrameRange, Kind, Migration, Order, Outcome, Pfn, Run, SlotId,
    TransportErrorKind, Via,
};

use crate::map::FrameMap;
use crate::memory::Memory;
use crate::rng::Rng;

/// Which host it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Model {
    /// Asynchronous, frame by frame.
    Virtio,
    /// Asynchronous, with the bulk path.
    Bulk,
    /// Synchronous; moves frames.
    Xen,
    /// Synchronous; exchanges frames.
    Pv,
}

impl Model {
    #[cfg(test)]
    pub(crate) const ALL: [Self; 4] = [Self::Virtio, Self::Bulk, Self::Xen, Self::Pv];

    pub(crate) const fn is_synchronous(self) -> bool {
        matches!(self, Self::Xen | Self::Pv)
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Virtio => "virtio",
            Self::Bulk => "bulk",
            Self::Xen => "xen",
            Self::Pv => "pv",
        }
    }
}

/// How often each fault happens, in thousandths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Faults {
    /// Any call fails, nothing having happened.
    pub(crate) refuse: u64,
    pub(crate) partial: u64,
    pub(crate) twice: u64,
    /// Answers to what was not asked, more frames done than were asked for, targets
    /// out of this world.
    pub(crate) lie: u64,
    /// It answers nothing while this is set.
    pub(crate) silent: bool,
    /// It dies in the call after so many.
    pub(crate) dies_in: Option<u64>,
}

impl Faults {
    pub(crate) const NONE: Self = Self {
        refuse: 0,
        partial: 0,
        twice: 0,
        lie: 0,
        silent: false,
        dies_in: None,
    };
}

/// A request the host has not carried out.
#[derive(Debug)]
struct Job {
    kind: Kind,
    via: Via,
    slot: SlotId,
    returned: Vec<Pfn>,
    given: Vec<Pfn>,
    /// Frames that stay the guest's: hinted or reported.
    unused: Vec<Pfn>,
    /// The guest kicked since.
    seen: bool,
}

/// Whether it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Alive,
    /// It does nothing any more, and every call fails.
    Dead,
    /// The balloon was told so.
    KnownDead,
}

/// The host's end.
#[derive(Debug)]
pub(crate) struct Host {
    model: Model,
    pub(crate) target: FrameCount,
    /// The size it was told last.
    pub(crate) actual: FrameCount,
    /// The unit it was told last.
    pub(crate) unit: Option<Order>,
    pub(crate) faults: Faults,
    life: Life,
    /// Whether frames may be used again only once it answered.
    pub(crate) must_tell: bool,
    migration: Migration,
    /// Requests of a kind it takes at once, whoever makes them.
    room: usize,
    /// Frames the guest gave by name.
    pub(crate) told: FrameMap,
    /// Frames the guest gave in bulk and has not touched since.
    pub(crate) bulk: FrameMap,
    /// Frames a live migration does not copy unless they are written to.
    hinted: FrameMap,
    pub(crate) memory: Memory,
    /// Rules the guest broke, and answers it believed that were none.
    pub(crate) breaches: Vec<String>,
    /// Whether an interrupt is due.
    pub(crate) interrupt: bool,
    queue: Vec<Job>,
    rng: Rng,
}

impl Host {
    pub(crate) fn new(model: Model, all: FrameRange, mut rng: Rng) -> Self {
        Self {
            model,
            must_tell: model.is_synchronous() || rng.chance(500),
            migration: match model {
                Model::Virtio | Model::Bulk => Migration::InflateFirst,
                Model::Xen => Migration::Move,
                Model::Pv => Migration::Exchange,
            },
            room: 2 + rng.index(6),
            target: FrameCount::ZERO,
            actual: FrameCount::ZERO,
            unit: None,
            faults: Faults::NONE,
            life: Life::Alive,
            told: FrameMap::new(all),
            bulk: FrameMap::new(all),
            hinted: FrameMap::new(all),
            memory: Memory::new(all),
            breaches: Vec::new(),
            interrupt: false,
            queue: Vec::new(),
            rng,
        }
    }

    /// Requests not answered.
    pub(crate) const fn waiting(&self) -> usize {
        self.queue.len()
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.life != Life::Alive
    }

    /// The device forgets everything, requests included, and lives.
    pub(crate) fn reset(&mut self) {
        self.life = Life::Alive;
        self.faults = Faults::NONE;
        self.queue.clear();
        self.told.clear();
        self.bulk.clear();
        self.hinted.clear();
        self.actual = FrameCount::ZERO;
        self.unit = None;
    }

    /// It dies: of what it was asked it did some, and says so to nobody.
    pub(crate) fn die(&mut self) {
        self.life = Life::Dead;
        let mut jobs = core::mem::take(&mut self.queue);
        // A frame that is hinted may be on its way back in another job: that first.
        jobs.sort_by_key(|job| !job.unused.is_empty());
        for job in jobs {
            if self.rng.chance(500) {
                self.apply(&job, usize::MAX);
            } else if !self.must_tell {
                // Announced, and so the guest's whether it was heard or not.
                for &old in &job.returned {
                    self.told.set(old, false);
                }
            }
        }
    }

    /// The guest goes on at another host, which gets only what is worth copying.
    ///
    /// The balloon and what was hinted stay behind, requests come along.
    pub(crate) fn migrate(&mut self, all: FrameRange) {
        for pfn in all.frames() {
            // One on its way back may be in use already.
            let told = self.told.contains(pfn) && !self.is_returning(pfn);
            if self.hinted.set(pfn, false) || told || self.bulk.contains(pfn) {
                self.memory.wipe(pfn);
            }
        }
    }

    /// The guest uses a frame: fine unless the host still has it by name.
    pub(crate) fn touch(&mut self, pfn: Pfn) {
        self.bulk.set(pfn, false);
        self.hinted.set(pfn, false);
        // Told on the way back, but not acknowledged: the guest's already.
        if self.told.contains(pfn) && !self.is_returning(pfn) {
            self.breaches
                .push(format!("frame {:#x} is used while given", pfn.get()));
        }
    }

    /// Whether the frame is on its way back.
    pub(crate) fn is_returning(&self, pfn: Pfn) -> bool {
        self.queue.iter().any(|job| job.returned.contains(&pfn))
    }

    /// Carries out up to `count` requests in an order of its own choice.
    pub(crate) fn work(&mut self, count: usize, done: Completer<'_>) {
        for _ in 0..count {
            if self.faults.silent || self.is_dead() {
                return;
            }
            let places = self.queue.iter().enumerate();
            let seen: Vec<usize> = places
                .filter(|(_, job)| job.seen)
                .map(|(at, _)| at)
                .collect();
            let Some(&at) = seen.get(self.rng.index(seen.len())) else {
                return;
            };
            let job = self.queue.swap_remove(at);
            self.carry_out(&job, done);
            self.interrupt = true;
        }
    }

    fn carry_out(&mut self, job: &Job, done: Completer<'_>) {
        let frames = job.returned.len().max(job.given.len());
        // Only a hypercall can stop half-way: a used buffer has no count.
        let partial = self.model.is_synchronous() && self.rng.chance(self.faults.partial);
        let carried = if partial {
            self.rng.index(frames)
        } else {
            frames
        };
        self.apply(job, carried);
        let lies = self.rng.chance(self.faults.lie);
        let outcome = match carried == frames {
            true if lies => Outcome::Partial(FrameCount::new(frames as u64 + self.rng.next() % 99)),
            true => Outcome::Whole,
            false => Outcome::Partial(FrameCount::new(carried as u64)),
        };
        if self.rng.chance(self.faults.lie) {
            self.invent(job, done);
        }
        if done.complete(job.kind, job.slot, outcome).is_err() {
            self.breaches.push(format!(
                "{:?} slot {} was not in flight",
                job.kind,
                job.slot.get()
            ));
        }
        if self.rng.chance(self.faults.twice)
            && done.complete(job.kind, job.slot, Outcome::Whole).is_ok()
        {
            self.breaches
                .push(format!("{:?} took two answers", job.kind));
        }
    }

    /// Does the first so many frames of a request.
    fn apply(&mut self, job: &Job, carried: usize) {
        let frames = job.returned.len().max(job.given.len());
        for index in 0..carried.min(frames) {
            let (old, new) = (job.returned.get(index), job.given.get(index));
            if let (Some(&old), Some(&new), Model::Xen) = (old, new, self.model) {
                self.memory.relocate(new, old);
            } else if let Some(&new) = new {
                self.memory.wipe(new);
            }
            if let Some(&old) = old
                && !self.told.set(old, false)
            {
                self.breaches
                    .push(format!("frame {:#x} returned, was not given", old.get()));
            }
            if let Some(&new) = new {
                self.bulk.set(new, job.via == Via::Bulk);
                if self.told.set(new, job.via == Via::Inflate) {
                    self.breaches
                        .push(format!("frame {:#x} given twice", new.get()));
                }
            }
        }
        for &pfn in &job.unused {
            if self.told.contains(pfn) && !self.is_returning(pfn) {
                self.breaches
                    .push(format!("frame {:#x} unused and given", pfn.get()));
            }
            if job.kind == Kind::Hint {
                self.hinted.set(pfn, true);
            } else {
                self.memory.wipe(pfn);
            }
        }
    }

    /// Answers a request that was never made.
    fn invent(&mut self, job: &Job, done: Completer<'_>) {
        let slot = SlotId::new(u16::try_from(self.rng.below(64)).unwrap_or(0));
        let asked = self
            .queue
            .iter()
            .any(|q| q.kind == job.kind && q.slot == slot);
        let asked = asked || slot == job.slot;
        if !asked && done.complete(job.kind, slot, Outcome::Whole).is_ok() {
            self.breaches.push(format!(
                "{:?} slot {} answered unasked",
                job.kind,
                slot.get()
            ));
        }
    }

    fn accept(&mut self, job: Job, done: Completer<'_>) -> Result<(), TransportErrorKind> {
        if self.queue.iter().filter(|q| q.kind == job.kind).count() >= self.room {
            return Err(TransportErrorKind::Full);
        }
        if self.model.is_synchronous() {
            self.carry_out(&job, done);
        } else {
            self.queue.push(job);
        }
        Ok(())
    }
}

fn frames(runs: &[Run]) -> Vec<Pfn> {
    runs.iter().flat_map(|run| run.range().frames()).collect()
}
