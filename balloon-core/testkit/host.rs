//! A transport with a host behind it that keeps books and can misbehave.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::migrate::{Migrate, MigrateRequest, Migration};
use crate::slots::Request;
use crate::slots::{Completer, Kind, Outcome, SlotId};
use crate::source::Via;
use crate::transport::{Capabilities, Limits, Transport, TransportErrorKind};
use crate::units::{FrameCount, FrameRange, Order, Pfn};

/// When and how the fake host answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answers {
    /// Inside `submit`, as a hypercall does.
    AtOnce,
    /// At the next `reap`.
    Promptly,
    /// Only when told by [`FakeHost::answer`].
    WhenTold,
    /// When told by [`FakeHost::answer`], as a device does by a ring: the guest finds
    /// the answers by its next `reap`, and an interrupt tells of them as it has
    /// wished.
    ByRing,
    /// Every answer comes twice.
    Twice,
    /// With slots that were never submitted, before each true answer.
    Babbling,
    /// Only the first so many frames of each request are carried out.
    Partly(FrameCount),
}

/// The host's end of the balloon.
#[derive(Debug)]
pub struct FakeHost {
    /// The balloon size it asks for.
    pub target: FrameCount,
    /// How it answers.
    pub answers: Answers,
    /// What it offers.
    pub capabilities: Capabilities,
    /// The next calls fail with this.
    pub fails: Option<TransportErrorKind>,
    /// How often the target was read.
    pub reads: usize,
    /// Sizes the guest published, in order.
    pub published: Vec<FrameCount>,
    /// How often the guest kicked.
    pub kicks: usize,
    /// How often it rang: only a kick with something new does.
    pub doorbells: usize,
    /// So many of the next rings are lost.
    pub deaf: usize,
    /// Under [`Answers::ByRing`], whether one interrupt comes for each wish, or one for
    /// each answer.
    pub event_idx: bool,
    /// Under [`Answers::ByRing`], interrupts raised so far.
    pub interrupts: usize,
    /// Units the guest announced, in order.
    pub units: Vec<Order>,
    /// Rules the guest broke; empty for a correct one.
    pub breaches: Vec<String>,
    /// Requests beyond the limits, which it refused; none from a correct guest.
    pub oversized: usize,
    queue: VecDeque<Submitted>,
    /// The first so many of them the guest has made visible.
    kicked: usize,
    /// The first so many of them it was heard to ring for.
    seen: usize,
    /// Answered by ring, and not taken up.
    used: VecDeque<Submitted>,
    /// By queue, how many of the answers not taken up raise the interrupt.
    wishes: BTreeMap<Queue, usize>,
    owned: BTreeMap<Pfn, Via>,
    requests: usize,
}

/// Requests of the same kind and path share a queue.
type Queue = (Kind, Via);

#[derive(Clone, Debug)]
struct Submitted {
    kind: Kind,
    via: Via,
    slot: SlotId,
    ranges: Vec<FrameRange>,
}

impl Submitted {
    const fn queue(&self) -> Queue {
        (self.kind, self.via)
    }
}

impl FakeHost {
    /// A prompt host with the plain path of a stock virtio device.
    #[must_use]
    pub fn plain() -> Self {
        let plain = Limits {
            frames: FrameCount::new(256),
            runs: 256,
            run: FrameCount::new(256),
            in_flight: 128,
            below: Pfn::new(1 << 32),
        };
        Self {
            target: FrameCount::ZERO,
            answers: Answers::Promptly,
            capabilities: Capabilities::new(plain, plain),
            fails: None,
            reads: 0,
            published: Vec::new(),
            kicks: 0,
            doorbells: 0,
            deaf: 0,
            event_idx: true,
            interrupts: 0,
            units: Vec::new(),
            breaches: Vec::new(),
            oversized: 0,
            queue: VecDeque::new(),
            kicked: 0,
            seen: 0,
            used: VecDeque::new(),
            wishes: BTreeMap::new(),
            owned: BTreeMap::new(),
            requests: 0,
        }
    }

    /// A prompt host with the bulk path too.
    #[must_use]
    pub fn bulk() -> Self {
        let mut host = Self::plain();
        host.capabilities.bulk = Some(Limits {
            frames: FrameCount::new(1 << 24),
            runs: 32,
            run: FrameCount::new((1 << 20) - 1),
            in_flight: 1,
            below: Pfn::LIMIT,
        });
        host
    }

    /// Answers up to `count` requests in the order they came, those it was kicked
    /// for.
    pub fn answer(&mut self, count: usize, done: Completer<'_>) {
        for _ in 0..count.min(self.seen) {
            let Some(request) = self.queue.pop_front() else {
                return;
            };
            self.seen -= 1;
            self.kicked -= 1;
            if self.answers == Answers::ByRing {
                self.move_frames(&request);
                self.put_used(request);
            } else {
                self.carry_out(&request, done);
            }
        }
    }

    fn ring(&mut self) {
        self.doorbells += 1;
        if self.deaf > 0 {
            self.deaf -= 1;
        } else {
            self.seen = self.kicked;
        }
    }

    /// An answer is there to be taken up; interrupts if that is wished for.
    fn put_used(&mut self, request: Submitted) {
        let queue = request.queue();
        self.used.push_back(request);
        let wished = self.wishes.get(&queue) == Some(&self.used_in(queue));
        self.interrupts += usize::from(wished || !self.event_idx);
    }

    /// Answers of a queue that are not taken up.
    fn used_in(&self, queue: Queue) -> usize {
        self.used.iter().filter(|q| q.queue() == queue).count()
    }

    /// Wishes for an interrupt once `wake_after` requests are answered in each queue,
    /// or all; whether so many are in one of them.
    fn wish(&mut self, wake_after: Option<usize>) -> bool {
        let mut early = false;
        for queue in self
            .queue
            .iter()
            .map(Submitted::queue)
            .collect::<BTreeSet<_>>()
        {
            let left = self.queue.iter().filter(|q| q.queue() == queue).count();
            let used = self.used_in(queue);
            let wanted = wake_after.unwrap_or((left + used).div_ceil(2));
            let wanted = wanted.clamp(1, left + used);
            self.wishes.insert(queue, wanted);
            early |= used >= wanted;
        }
        early
    }

    /// Requests not answered.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Requests whose answer waits to be taken up.
    #[must_use]
    pub fn unheard(&self) -> usize {
        self.used.len()
    }

    /// Requests ever submitted.
    #[must_use]
    pub const fn requests(&self) -> usize {
        self.requests
    }

    /// Frames the host has.
    #[must_use]
    pub fn owned(&self) -> FrameCount {
        FrameCount::new(self.owned.len() as u64)
    }

    /// The size the guest published last.
    #[must_use]
    pub fn actual(&self) -> FrameCount {
        self.published.last().copied().unwrap_or_default()
    }

    /// Lets the guest use frames it was told to be its own again.
    ///
    /// Bulk-given frames return without a request: the guest lowers the size
    /// and touches them.
    pub fn touched(&mut self, pfn: Pfn) {
        if self.owned.get(&pfn) == Some(&Via::Bulk) {
            self.owned.remove(&pfn);
        }
    }

    fn move_frames(&mut self, request: &Submitted) {
        let limit = match self.answers {
            Answers::Partly(limit) => limit,
            _ => FrameCount::MAX,
        };
        let frames = request.ranges.iter().flat_map(|range| range.frames());
        let limit = usize::try_from(limit.get()).unwrap_or(usize::MAX);
        for pfn in frames.take(limit).collect::<Vec<_>>() {
            let before = match request.kind {
                Kind::Inflate => self.owned.insert(pfn, request.via),
                _ => self.owned.remove(&pfn),
            };
            match (request.kind, before) {
                // A bulk-given frame may have come back without a word.
                (Kind::Inflate, None | Some(Via::Bulk)) => {}
                (Kind::Inflate, Some(Via::Inflate)) => {
                    self.breaches.push(format!("{pfn:?} given twice"));
                }
                (_, Some(Via::Inflate)) => {}
                (_, other) => self
                    .breaches
                    .push(format!("{pfn:?} deflated, was {other:?}")),
            }
        }
    }

    fn carry_out(&mut self, request: &Submitted, done: Completer<'_>) {
        self.move_frames(request);
        self.complete(request, done);
    }

    fn complete(&mut self, request: &Submitted, done: Completer<'_>) {
        let outcome = match self.answers {
            Answers::Partly(limit) => Outcome::Partial(limit),
            _ => Outcome::Whole,
        };
        if self.answers == Answers::Babbling {
            for slot in [SlotId::new(u16::MAX), SlotId::new(request.slot.get() ^ 1)] {
                let free = !self
                    .queue
                    .iter()
                    .any(|q| q.kind == request.kind && q.slot == slot);
                if free && done.complete(request.kind, slot, outcome).is_ok() {
                    self.breaches.push(format!("{slot:?} was in flight unseen"));
                }
            }
        }
        if done.complete(request.kind, request.slot, outcome).is_err() {
            self.breaches
                .push(format!("{:?} was not in flight", request.slot));
        }
        if self.answers == Answers::Twice
            && done.complete(request.kind, request.slot, outcome).is_ok()
        {
            self.breaches
                .push(format!("{:?} took two answers", request.slot));
        }
    }

    /// The limits a request is under.
    const fn limits(&self, request: &Request<'_>) -> Option<Limits> {
        match (request.kind, request.via) {
            (Kind::Inflate, Via::Inflate) => Some(self.capabilities.inflate),
            (Kind::Inflate, Via::Bulk) => self.capabilities.bulk,
            (Kind::Deflate, Via::Inflate) => Some(self.capabilities.deflate),
            _ => None,
        }
    }

    fn check_order(&mut self, request: &Request<'_>) {
        let ranges: Vec<FrameRange> = request.runs.iter().map(|run| run.range()).collect();
        if ranges
            .windows(2)
            .any(|w| matches!(w, [a, b] if a.end() > b.start()))
        {
            self.breaches.push(format!("runs not in order: {ranges:?}"));
        }
        let slots: BTreeSet<SlotId> = self
            .queue
            .iter()
            .filter(|q| q.kind == request.kind)
            .map(|q| q.slot)
            .collect();
        if slots.contains(&request.slot) {
            self.breaches
                .push(format!("{:?} is in flight already", request.slot));
        }
    }
}

fn exceeds(request: &Request<'_>, limits: Limits) -> bool {
    let ranges = || request.runs.iter().map(|run| run.range());
    let frames: u64 = ranges().map(|range| range.count().get()).sum();
    let beyond = |range: FrameRange| range.count() > limits.run || range.end() > limits.below;
    request.runs.is_empty()
        || frames > limits.frames.get()
        || request.runs.len() > limits.runs
        || ranges().any(beyond)
}

impl Transport for FakeHost {
    type Error = TransportErrorKind;

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn read_target(&mut self) -> Result<FrameCount, Self::Error> {
        self.reads += 1;
        self.fails.map_or(Ok(self.target), Err)
    }

    fn write_actual(&mut self, size: FrameCount) -> Result<(), Self::Error> {
        if let Some(error) = self.fails {
            return Err(error);
        }
        self.published.push(size);
        Ok(())
    }

    fn submit(&mut self, request: Request<'_>, done: Completer<'_>) -> Result<(), Self::Error> {
        if let Some(error) = self.fails {
            return Err(error);
        }
        let limits = self
            .limits(&request)
            .ok_or(TransportErrorKind::Unsupported)?;
        if exceeds(&request, limits) {
            self.oversized += 1;
            return Err(TransportErrorKind::TooLarge);
        }
        self.check_order(&request);
        let same = |q: &&Submitted| q.kind == request.kind && q.via == request.via;
        if self.queue.iter().filter(same).count() >= limits.in_flight {
            return Err(TransportErrorKind::Full);
        }
        self.requests += 1;
        let ranges = request.runs.iter().map(|run| run.range()).collect();
        let submitted = Submitted {
            kind: request.kind,
            via: request.via,
            slot: request.slot,
            ranges,
        };
        if self.answers == Answers::AtOnce {
            self.carry_out(&submitted, done);
        } else {
            self.queue.push_back(submitted);
        }
        Ok(())
    }

    fn kick(&mut self, wake_after: usize) -> Result<bool, Self::Error> {
        if let Some(error) = self.fails {
            return Err(error);
        }
        self.kicks += 1;
        if core::mem::replace(&mut self.kicked, self.queue.len()) < self.queue.len() {
            self.ring();
        }
        Ok(match self.answers {
            Answers::WhenTold => false,
            Answers::ByRing => self.wish(Some(wake_after)),
            // No signal comes for what the next `reap` finds.
            _ => self.seen > 0,
        })
    }

    fn notify(&mut self) -> Result<(), Self::Error> {
        if let Some(error) = self.fails {
            return Err(error);
        }
        if !self.queue.is_empty() {
            self.ring();
        }
        Ok(())
    }

    fn announce_unit(&mut self, unit: Order) -> Result<(), Self::Error> {
        if let Some(error) = self.fails {
            return Err(error);
        }
        self.units.push(unit);
        Ok(())
    }

    fn reap(&mut self, done: Completer<'_>) -> Result<usize, Self::Error> {
        if self.fails == Some(TransportErrorKind::Broken) {
            return Err(TransportErrorKind::Broken);
        }
        let used = core::mem::take(&mut self.used);
        for request in &used {
            self.complete(request, done);
        }
        if !used.is_empty() {
            self.wish(None);
        }
        let waiting = self.queue.len();
        if !matches!(self.answers, Answers::WhenTold | Answers::ByRing) {
            self.answer(usize::MAX, done);
        }
        Ok(used.len() + waiting - self.queue.len())
    }
}

/// By plain requests: the new frame is given, then the old one taken back.
impl Migrate for FakeHost {
    fn migration(&self) -> Migration {
        Migration::InflateFirst
    }

    fn submit_migrate(
        &mut self,
        _: MigrateRequest<'_>,
        _: Completer<'_>,
    ) -> Result<(), Self::Error> {
        Err(TransportErrorKind::Unsupported)
    }
}
