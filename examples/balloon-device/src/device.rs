//! The device: takes requests from its queues, discards, answers.

use std::num::Wrapping;
use std::sync::Arc;

use balloon_core::{BitmapLedger, FrameCount, FrameRange, Ledger as _, Pfn, Via};
use transport_virtio::protocol::{
    ACTUAL, CHUNK_TRANSFER, Command, HINT_COMMAND, HOST_REQUESTS, HostRequest, NUM_PAGES,
    POISON_VALUE,
};
use transport_virtio::{Features, QueueId};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT as _};
use vm_memory::{Bytes as _, GuestAddress};

use crate::front::{Front, QUEUE_SIZE};
use crate::pages::{self, Stages, content, merge, page_numbers, response, writable};
use crate::ram::Ram;

/// How the device behaves.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Frames may be told in chunks: bit 3 is `CHUNK_TRANSFER`, not hints.
    pub chunks: bool,
    /// Unused pages are asked for: bit 4 is that dialect's too, not poison.
    pub requests: bool,
    /// Neighbouring frames are discarded at once, over all requests found
    /// together; if not, each by itself, as stock devices do.
    pub merge: bool,
    /// The driver has to tell before it uses a frame again: none that does not
    /// promise that is served.
    pub must_tell_host: bool,
    /// The driver may say what free frames hold; where bit 4 is not the dialect's.
    pub poison: bool,
}

impl Options {
    /// Whether bit 4 means that the driver may say what free frames hold.
    const fn asks_for_poison(self) -> bool {
        self.poison && !self.requests
    }

    /// The features of a device with these options.
    #[must_use]
    pub fn features(self) -> Features {
        let bit = |on, bit| if on { bit } else { Features::empty() };
        let dialect = match (self.chunks, self.requests) {
            (false, false) => Features::FREE_PAGE_HINT,
            (chunks, requests) => bit(chunks, CHUNK_TRANSFER) | bit(requests, HOST_REQUESTS),
        };
        Features::VERSION_1
            | Features::EVENT_IDX
            | Features::INDIRECT_DESC
            | Features::STATS_VQ
            | Features::DEFLATE_ON_OOM
            | Features::PAGE_REPORTING
            | bit(self.must_tell_host, Features::MUST_TELL_HOST)
            | bit(self.asks_for_poison(), Features::PAGE_POISON)
            | dialect
    }
}

/// What a round of hints or an answer with unused pages has named.
#[derive(Clone, Debug, Default)]
pub struct Named {
    /// The round or the request.
    pub id: u32,
    /// The ranges, not merged; a million at most.
    pub ranges: Vec<FrameRange>,
    /// Ranges beyond that.
    pub dropped: u64,
    /// Responses or hints it came in.
    pub messages: u32,
    /// Nothing more will come.
    pub complete: bool,
}

impl Named {
    /// Frames named.
    #[must_use]
    pub fn frames(&self) -> FrameCount {
        let counts = self.ranges.iter().map(|range| range.count());
        counts.fold(FrameCount::ZERO, FrameCount::saturating_add)
    }

    fn add(&mut self, message: impl IntoIterator<Item = FrameRange>) {
        self.messages = self.messages.saturating_add(1);
        for range in message {
            // A guest can go on for ever.
            if self.ranges.len() < MOST_RANGES {
                self.ranges.push(range);
            } else {
                self.dropped += 1;
            }
        }
    }
}

const MOST_RANGES: usize = 1 << 20;

/// A statistic: tag and value.
pub type Statistic = (u16, u64);

/// The device's end, to be owned by one thread.
#[derive(Debug)]
pub struct Device {
    front: Arc<Front>,
    ram: Arc<Ram>,
    options: Options,
    queues: Option<[Queue; QueueId::COUNT]>,
    /// Resets when the queues were set up.
    resets: u64,
    stages: Stages,
    /// Each number draws a round apart from those before a reset.
    round: Wrapping<u32>,
    hints: Named,
    /// The driver has opened the round.
    open: bool,
    unused: Named,
    /// A request that waits for a buffer.
    asking: Option<u16>,
    /// The buffer for a host request that the driver has left.
    buffer: Option<(u16, GuestAddress)>,
    /// The statistics buffer that the driver has left.
    held: Option<u16>,
    statistics: Vec<Statistic>,
    /// Frames told away and not back, if the driver promised to tell.
    away: Option<BitmapLedger<Vec<u64>>>,
}

/// How often a queue is emptied before others have their turn.
const TURNS: usize = 64;

impl Device {
    /// A device behind `front` with the guest's memory in reach.
    #[must_use]
    pub fn new(front: Arc<Front>, ram: Arc<Ram>, options: Options) -> Self {
        Self {
            front,
            ram,
            options,
            queues: None,
            resets: 0,
            stages: Stages::default(),
            round: Wrapping(1),
            hints: Named::default(),
            open: false,
            unused: Named::default(),
            asking: None,
            buffer: None,
            held: None,
            statistics: Vec::new(),
            away: None,
        }
    }

    /// Where its time went.
    #[must_use]
    pub const fn stages(&self) -> Stages {
        self.stages
    }

    /// The size the driver has published, in frames.
    #[must_use]
    pub fn actual(&self) -> u32 {
        self.front.config(ACTUAL)
    }

    /// Frames the guest has not told back; `None` if it need not tell.
    #[must_use]
    pub fn away(&self) -> Option<FrameCount> {
        self.away.as_ref().map(|away| away.held(Via::Inflate))
    }

    /// Wants a balloon of so many frames.
    pub fn set_target(&self, frames: u32) {
        self.front.set_config(NUM_PAGES, frames);
    }

    /// Opens a round of hints.
    pub fn start_hints(&mut self) {
        self.round = Wrapping((self.round + Wrapping(1)).0.max(2));
        self.hints = Named {
            id: self.round.0,
            ..Named::default()
        };
        self.open = false;
        self.front.set_config(HINT_COMMAND, self.round.0);
    }

    /// The migration is done: hinted frames are the guest's again.
    pub fn end_hints(&mut self) {
        self.open = false;
        self.front.set_config(HINT_COMMAND, 1);
    }

    /// What the last round has named.
    #[must_use]
    pub const fn hints(&self) -> &Named {
        &self.hints
    }

    /// Asks for unused pages, as soon as the driver has left a buffer for that.
    pub fn request_unused(&mut self, id: u16) {
        self.unused = Named {
            id: id.into(),
            ..Named::default()
        };
        self.attended(|device| {
            device.asking = Some(id);
            device.ask();
        });
    }

    /// What the last request for unused pages has brought.
    #[must_use]
    pub const fn unused(&self) -> &Named {
        &self.unused
    }

    /// Asks for newer statistics.
    pub fn request_statistics(&mut self) {
        self.attended(|device| {
            if let Some(head) = device.held.take() {
                device.answer(QueueId::Statistics, &[(head, 0)]);
            }
        });
    }

    /// The newest statistics.
    #[must_use]
    pub fn statistics(&self) -> &[Statistic] {
        &self.statistics
    }

    /// Serves queues that somebody else keeps, in the memory they are in.
    pub(crate) fn serve_lent(&mut self, queues: &mut [Queue; QueueId::COUNT]) {
        let own = self.queues.take();
        let empty = || Queue::new(QUEUE_SIZE).expect("a size queues can have");
        let lent = core::mem::replace(queues, [(); QueueId::COUNT].map(|()| empty()));
        self.queues = Some(lent);
        self.serve();
        if let Some(lent) = core::mem::replace(&mut self.queues, own) {
            *queues = lent;
        }
    }

    /// The guest's memory is elsewhere from now on.
    pub(crate) fn set_ram(&mut self, ram: Arc<Ram>) {
        self.ram = ram;
        self.away = None;
    }

    /// The driver starts anew: what it had left with us is void.
    pub(crate) fn forget(&mut self) {
        (self.held, self.buffer, self.asking) = (None, None, None);
        self.away = None;
        self.open = false;
    }

    /// Does something with the queues, if there are any; a reset waits until it is
    /// done.
    fn attended<T>(&mut self, what: impl FnOnce(&mut Self) -> T) -> Option<T> {
        let front = Arc::clone(&self.front);
        let resets = front.resets();
        let running = front.running();
        if core::mem::replace(&mut self.resets, *resets) != *resets || !running {
            self.queues = None;
        }
        if running && self.queues.is_none() {
            self.queues = self.start();
        }
        self.queues.is_some().then(|| what(self))
    }

    /// Serves every queue until it is empty, or kicks itself to go on later with
    /// one that fills up all the time; whether there was anything.
    pub fn serve(&mut self) -> bool {
        self.attended(Self::serve_queues).unwrap_or(false)
    }

    fn serve_queues(&mut self) -> bool {
        // Small and urgent ones first: an unused page found early is one that a
        // migration does not copy.
        [
            QueueId::Hint,
            QueueId::Statistics,
            QueueId::Inflate,
            QueueId::Deflate,
            QueueId::Reporting,
        ]
        .into_iter()
        .fold(false, |some, queue| some | self.serve_queue(queue))
    }

    fn start(&mut self) -> Option<[Queue; QueueId::COUNT]> {
        self.forget();
        let event_idx = self.front.accepted().contains(Features::EVENT_IDX);
        let mut queues = Vec::new();
        for setup in self.front.queues() {
            let mut queue = Queue::new(QUEUE_SIZE).ok()?;
            if let Some(setup) = setup {
                queue.set_size(setup.size);
                queue
                    .try_set_desc_table_address(GuestAddress(setup.at.descriptors))
                    .ok()?;
                queue
                    .try_set_avail_ring_address(GuestAddress(setup.at.driver))
                    .ok()?;
                queue
                    .try_set_used_ring_address(GuestAddress(setup.at.device))
                    .ok()?;
                queue.set_event_idx(event_idx);
                queue.set_ready(true);
            }
            queues.push(queue);
        }
        queues.try_into().ok()
    }

    fn queue(&mut self, queue: QueueId) -> Option<&mut Queue> {
        let queue = self.queues.as_mut()?.get_mut(queue.index())?;
        queue.ready().then_some(queue)
    }

    /// The requests that are there, and a wish for a kick if there are none.
    fn take(&mut self, id: QueueId) -> Vec<(u16, Vec<Descriptor>)> {
        let ram = Arc::clone(&self.ram);
        let Some(queue) = self.queue(id) else {
            return Vec::new();
        };
        let memory = ram.memory();
        let mut found = Vec::new();
        // A request may have come between the look and the wish. If there is none
        // to be found even then, the index promises more than a queue can hold.
        for _ in 0..2 {
            let _ = queue.disable_notification(memory);
            while found.len() < QUEUE_SIZE.into()
                && let Some(chain) = queue.pop_descriptor_chain(memory)
            {
                found.push((chain.head_index(), pages::descriptors(chain)));
            }
            if !found.is_empty() || !matches!(queue.enable_notification(memory), Ok(true)) {
                break;
            }
        }
        found
    }

    fn answer(&mut self, id: QueueId, heads: &[(u16, u32)]) {
        let ram = Arc::clone(&self.ram);
        let Some(queue) = self.queue(id) else { return };
        for &(head, written) in heads {
            let _ = queue.add_used(ram.memory(), head, written);
        }
        if !heads.is_empty() && queue.needs_notification(ram.memory()).unwrap_or(true) {
            self.front.used();
        }
    }

    fn serve_queue(&mut self, id: QueueId) -> bool {
        for turn in 0..TURNS {
            let requests = self.take(id);
            if requests.is_empty() {
                return turn > 0;
            }
            let mut answers = Vec::new();
            let mut given = Vec::new();
            for (head, descriptors) in requests {
                let content = content(self.ram.memory(), &descriptors);
                match id {
                    QueueId::Inflate => {
                        let frames = self.frames(&content, Command::Inflate);
                        self.note_away(&frames);
                        given.extend(frames);
                    }
                    // Telling is enough: the next access brings memory back.
                    QueueId::Deflate => {
                        let frames = self.frames(&content, Command::Deflate);
                        self.note_back(&frames);
                    }
                    QueueId::Reporting if self.must_keep_reported() => {
                        self.stages.keep(&writable(&descriptors));
                    }
                    QueueId::Reporting => given.extend(writable(&descriptors)),
                    QueueId::Statistics => {
                        self.hold_statistics(head, &content);
                        continue;
                    }
                    QueueId::Hint if self.options.requests => {
                        if let Some(buffer) = descriptors.first().filter(|d| d.is_write_only()) {
                            self.buffer = Some((head, buffer.addr()));
                            continue;
                        }
                        self.note_unused(&content);
                    }
                    QueueId::Hint => self.note_hint(&content, &descriptors),
                }
                answers.push((head, 0));
            }
            if self.options.merge {
                merge(&mut given);
            }
            self.stages.give_back(&self.ram, &given);
            self.answer(id, &answers);
            self.ask();
            if id != QueueId::Hint && self.options.requests {
                // A long inflation does not hold up a request or its answer.
                self.serve_queue(QueueId::Hint);
            }
        }
        self.front.kick.set();
        true
    }

    /// Whether a discard would break what the driver was promised: discarded frames
    /// read as zeros, and it relies on another value.
    fn must_keep_reported(&self) -> bool {
        let told =
            self.options.asks_for_poison() && self.front.accepted().contains(Features::PAGE_POISON);
        told && self.front.config(POISON_VALUE) != 0
    }

    /// The account of frames told away, if the driver promised to tell them back.
    fn account(&mut self) -> Option<&mut BitmapLedger<Vec<u64>>> {
        let promised = self.front.accepted().contains(Features::MUST_TELL_HOST);
        if promised && self.away.is_none() {
            let frames = FrameCount::new(self.ram.len() as u64 >> 12);
            let words = usize::try_from(BitmapLedger::words(frames)).ok()?;
            let all = FrameRange::new(Pfn::new(0), frames)?;
            self.away = BitmapLedger::new(vec![0; words], &[all]).ok();
        }
        self.away.as_mut().filter(|_| promised)
    }

    fn note_away(&mut self, frames: &[FrameRange]) {
        if let Some(away) = self.account() {
            let refused = |range: &&FrameRange| away.store(**range, Via::Inflate).is_err();
            self.stages.refused += frames.iter().filter(refused).count() as u64;
        }
    }

    /// Before it is answered: from then on the driver may use them.
    fn note_back(&mut self, frames: &[FrameRange]) {
        if let Some(away) = self.account() {
            let refused = |range: &&FrameRange| away.recall_at(**range, Via::Inflate).is_err();
            self.stages.refused += frames.iter().filter(refused).count() as u64;
        }
    }

    /// Frames of a request on the inflate or the deflate queue.
    fn frames(&self, bytes: &[u8], command: Command) -> Vec<FrameRange> {
        if !self.front.accepted().contains(CHUNK_TRANSFER) || !self.options.chunks {
            return page_numbers(bytes);
        }
        let right =
            |r: &balloon_core::wire::chunks_v8::Response<'_>| r.label().command == command as u8;
        let chunks = response(bytes).filter(right).map(|r| r.chunks());
        chunks.into_iter().flatten().collect()
    }

    fn hold_statistics(&mut self, head: u16, content: &[u8]) {
        self.held = Some(head);
        let entry =
            |&[t0, t1, v @ ..]: &[u8; 10]| (u16::from_le_bytes([t0, t1]), u64::from_le_bytes(v));
        let (entries, _) = content.as_chunks();
        self.statistics = entries.iter().map(entry).collect();
    }

    fn note_hint(&mut self, content: &[u8], descriptors: &[Descriptor]) {
        if let Ok(command) = <[u8; 4]>::try_from(content).map(u32::from_le_bytes) {
            // Of an older round: not for this one.
            self.hints.complete |= command == 0 && self.open;
            self.open = command != 0 && command == self.hints.id;
        } else if self.open {
            self.hints.add(writable(descriptors));
        }
    }

    fn note_unused(&mut self, bytes: &[u8]) {
        if let Some(response) = response(bytes)
            && response.label().command == Command::Unused as u8
            && u32::from(response.label().id) == self.unused.id
        {
            self.unused.add(response.chunks());
            self.unused.complete |= response.is_last();
        }
    }

    /// Sends a request for unused pages, if there is one and a buffer for it.
    fn ask(&mut self) {
        let (Some(id), Some((head, at))) = (self.asking, self.buffer) else {
            return;
        };
        (self.asking, self.buffer) = (None, None);
        let request = HostRequest::UnusedPages(id).encode();
        let written = self.ram.memory().write_slice(&request, at).is_ok();
        let len = if written { 16 } else { 0 };
        self.answer(QueueId::Hint, &[(head, len)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_names_ranges_for_ever_does_not_fill_the_host() {
        let mut named = Named::default();
        let range = FrameRange::single(Pfn::new(1));
        named.add(core::iter::repeat_n(range, MOST_RANGES + 3).flatten());
        named.add(range);
        assert_eq!((named.ranges.len(), named.dropped), (MOST_RANGES, 4));
        assert_eq!(named.messages, 2);
    }
}
