//! Hosts: transports with memory behind them and faults on the way.

use balloon_core::{
    Capabilities, Completer, FrameCount, FrameRange, GivePath, Kind, Limits, Migrate, Migration,
    Order, Outcome, Pfn, Request, Run, SlotId, Trade, Transport, TransportErrorKind,
};

use crate::map::FrameMap;
use crate::memory::Memory;
use crate::rng::Rng;

/// Which host it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
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
    pub(crate) const ALL: [Self; 4] = [Self::Virtio, Self::Bulk, Self::Xen, Self::Pv];

    const fn is_synchronous(self) -> bool {
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
#[derive(Clone, Copy, Debug)]
pub(crate) struct Faults {
    pub(crate) refuse: u64,
    pub(crate) partial: u64,
    pub(crate) twice: u64,
    pub(crate) invent: u64,
    /// It answers nothing while this is set.
    pub(crate) silent: bool,
}

impl Faults {
    pub(crate) const NONE: Self = Self {
        refuse: 0,
        partial: 0,
        twice: 0,
        invent: 0,
        silent: false,
    };
}

/// A request the host has not carried out.
#[derive(Debug)]
struct Job {
    kind: Kind,
    path: GivePath,
    slot: SlotId,
    returned: Vec<Pfn>,
    given: Vec<Pfn>,
}

/// The host's end.
#[derive(Debug)]
pub(crate) struct Host {
    model: Model,
    pub(crate) target: FrameCount,
    pub(crate) actual: FrameCount,
    pub(crate) faults: Faults,
    /// Whether frames may be used again only once it answered.
    pub(crate) must_tell: bool,
    migration: Migration,
    /// Frames the guest gave by name.
    pub(crate) told: FrameMap,
    /// Frames the guest gave in bulk and has not touched since.
    bulk: FrameMap,
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
                Model::Virtio | Model::Bulk if rng.chance(500) => Migration::TakeFirst,
                Model::Virtio | Model::Bulk => Migration::GiveFirst,
                Model::Xen => Migration::Move,
                Model::Pv => Migration::Exchange,
            },
            target: FrameCount::ZERO,
            actual: FrameCount::ZERO,
            faults: Faults::NONE,
            told: FrameMap::new(all),
            bulk: FrameMap::new(all),
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

    /// The device forgets everything, requests included.
    pub(crate) fn reset(&mut self) {
        self.queue.clear();
        self.told.clear();
        self.bulk.clear();
        self.actual = FrameCount::ZERO;
    }

    /// The guest uses a frame: fine unless the host still has it by name.
    pub(crate) fn touch(&mut self, pfn: Pfn) {
        self.bulk.set(pfn, false);
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
            if self.queue.is_empty() || self.faults.silent {
                return;
            }
            let index = self.rng.index(self.queue.len());
            let job = self.queue.swap_remove(index);
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
        for index in 0..carried {
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
                self.bulk.set(new, job.path == GivePath::Bulk);
                if self.told.set(new, job.path == GivePath::Told) {
                    self.breaches
                        .push(format!("frame {:#x} given twice", new.get()));
                }
            }
        }
        let outcome = if carried == frames {
            Outcome::Whole
        } else {
            Outcome::Partial(FrameCount::new(carried as u64))
        };
        if self.rng.chance(self.faults.invent) {
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
        if self.rng.chance(self.faults.refuse) {
            return Err(TransportErrorKind::Refused);
        }
        if self.queue.iter().filter(|q| q.kind == job.kind).count() >= IN_FLIGHT {
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

/// Requests of a kind the host takes at once.
const IN_FLIGHT: usize = 6;

fn frames(runs: &[Run]) -> Vec<Pfn> {
    runs.iter().flat_map(|run| run.range().frames()).collect()
}

impl Transport for Host {
    type Error = TransportErrorKind;

    fn capabilities(&self) -> Capabilities {
        let plain = Limits {
            frames: FrameCount::new(256),
            runs: 256,
            run: FrameCount::new(256),
            in_flight: IN_FLIGHT,
            below: Pfn::new(1 << 32),
        };
        let extents = Limits {
            frames: FrameCount::new(64 * 512),
            run: Run::MAX,
            ..plain
        };
        let each = if self.model.is_synchronous() {
            extents
        } else {
            plain
        };
        let mut caps = Capabilities::new(each, each);
        if self.model == Model::Bulk {
            caps.bulk = Some(Limits {
                runs: 16,
                in_flight: 2,
                ..extents
            });
        }
        if self.model.is_synchronous() {
            caps.unit = Order::SUPERPAGE;
        }
        caps.must_tell_host = self.must_tell;
        caps.deflate_on_oom = true;
        caps
    }

    fn read_target(&mut self) -> Result<FrameCount, TransportErrorKind> {
        if self.rng.chance(self.faults.refuse) {
            return Err(TransportErrorKind::Unstable);
        }
        Ok(self.target)
    }

    fn write_actual(&mut self, size: FrameCount) -> Result<(), TransportErrorKind> {
        self.actual = size;
        Ok(())
    }

    fn submit(
        &mut self,
        request: Request<'_>,
        done: Completer<'_>,
    ) -> Result<(), TransportErrorKind> {
        let listed = frames(request.runs);
        let (returned, given) = match request.kind {
            Kind::Inflate => (Vec::new(), listed),
            _ => (listed, Vec::new()),
        };
        let (kind, path, slot) = (request.kind, request.path, request.slot);
        self.accept(
            Job {
                kind,
                path,
                slot,
                returned,
                given,
            },
            done,
        )
    }

    fn kick(&mut self, _: usize) -> Result<bool, TransportErrorKind> {
        Ok(false)
    }

    fn reap(&mut self, _: Completer<'_>) -> Result<(), TransportErrorKind> {
        // Answers come from `work`, as from another processor.
        Ok(())
    }
}

impl Migrate for Host {
    fn migration(&self) -> Migration {
        self.migration
    }

    fn submit_trade(
        &mut self,
        trade: Trade<'_>,
        done: Completer<'_>,
    ) -> Result<(), TransportErrorKind> {
        let (returned, given) = (frames(trade.olds), frames(trade.news));
        let job = Job {
            kind: Kind::Migrate,
            path: GivePath::Told,
            slot: trade.slot,
            returned,
            given,
        };
        self.accept(job, done)
    }
}
