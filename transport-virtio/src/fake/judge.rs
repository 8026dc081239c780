//! The rules of the specification and of real devices, judged from the device's
//! seat.
//!
//! [`FakeDevice`](super::FakeDevice) shows a [`Judge`] all that a driver does:
//! status and feature writes, configuration accesses, queues, requests, answers.
//! The judge keeps its own account of every frame and notes each
//! [`Violation`]. It knows nothing of this crate's driver and can judge any
//! that reaches the device through [`Device`](crate::Device) and shared memory.
//!
//! Rules are named as in this table: "5.5.x" are sections of virtio 1.2, "D"
//! must, "S" should; "R" is what known devices demand on top.
//!
//! | rule | what a driver owes |
//! |---|---|
//! | 2 | a queue is used only with its feature (5.5.2, D) |
//! | 3 | MUST_TELL_HOST is accepted when offered (5.5.3.1, S) |
//! | 6 | VERSION_1 is accepted, the generation guards reads (2.5, D) |
//! | 8 | nothing is read that no feature promises (5.5.4, D) |
//! | 9 | queues, then poison value, then DRIVER_OK, then notifications (5.5.5) |
//! | 10 | the poison value stands once the device runs (5.5.6.6, D) |
//! | 15, 17 | a frame told away is used only after it was told back (5.5.6.1, D) |
//! | 16 | with MUST_TELL_HOST: after that was answered (5.5.6.1, D) |
//! | 18 | a frame is told back only after its giving was answered (5.5.6.1, D) |
//! | 20 | page numbers are whole 32-bit words of guest memory (5.5.6, D) |
//! | 23, 25-27 | one statistics buffer of whole, equal entries (5.5.6.3, D) |
//! | 30, 31, 33 | hinting commands of four bytes, each round opened once (5.5.6.5, D) |
//! | 32 | hints are writable, and only during a round (5.5.6.5, S) |
//! | 39 | a reported frame is used only after the answer (5.5.6.7, D) |
//! | R1 | at most 256 page numbers in a descriptor |
//! | R2 | one descriptor for each request of page numbers, two on a host with unsplittable pages of 2 MiB |
//! | R3 | page numbers rise |
//! | R4b | a hint is not four bytes long |
//! | R5 | queues are where this device has them |
//! | V8 | under `CHUNK_TRANSFER`: whole responses, each on the queue of its kind |
//! | R10, R11 | ACCESS_PLATFORM and SUSPEND are declined |

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::Range;

use balloon_core::wire::chunks_v8;
use balloon_core::wire::pfn_array::{NUMBER_SIZE, PER_BUFFER};
use balloon_core::{FRAME_SHIFT, FrameCount, FrameRange, Pfn};

use super::{Chain, Profile};
use crate::device::DeviceStatus;
use crate::protocol::{ACTUAL, Command, Features, HINT_COMMAND, NUM_PAGES, POISON_VALUE, QueueId};

/// A rule a driver broke, by its name in the module's table, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The rule.
    pub rule: &'static str,
    /// What happened.
    pub what: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Told away, not answered.
    Giving,
    /// Told away and answered.
    Given,
    /// Told back, not answered.
    Returning,
}

/// What a driver did, and what it should not have done.
#[derive(Clone, Debug)]
pub struct Judge {
    violations: Vec<Violation>,
    profile: Profile,
    offered: Features,
    accepted: Features,
    status: DeviceStatus,
    memory: Range<u64>,
    superpages: bool,
    freed: FrameCount,
    told: BTreeMap<u64, Place>,
    /// Ranges with the device, by queue and head.
    ranges: BTreeMap<(usize, u16), Vec<Range<u64>>>,
    /// Page numbers with the device, by queue and head.
    numbers: BTreeMap<(usize, u16), Vec<u64>>,
    /// Tags of the first statistics buffer, and whether one is with the device.
    statistics: Option<Vec<u16>>,
    statistics_held: bool,
    /// The hinting command the device has given out, the round the driver
    /// opened, and whether it closed it.
    command: u32,
    round: Option<u32>,
    hinted: bool,
}

const PER_BUFFER_BYTES: usize = PER_BUFFER * NUMBER_SIZE;

const SUSPEND: Features = Features::from_bits_retain(1 << 43);

impl Judge {
    pub(super) fn new(profile: &Profile) -> Self {
        Self {
            violations: Vec::new(),
            profile: *profile,
            offered: profile.offered(),
            accepted: Features::empty(),
            status: DeviceStatus::empty(),
            memory: 0..u64::MAX,
            superpages: false,
            freed: FrameCount::ZERO,
            told: BTreeMap::new(),
            ranges: BTreeMap::new(),
            numbers: BTreeMap::new(),
            statistics: None,
            statistics_held: false,
            command: 0,
            round: None,
            hinted: false,
        }
    }

    /// All violations so far.
    #[must_use]
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// Frames the guest has; page numbers of others break rule 20.
    pub fn set_memory(&mut self, frames: Range<Pfn>) {
        self.memory = frames.start.get()..frames.end.get();
    }

    /// The host's pages are of 2 MiB, freed only if a request names all of one.
    pub const fn set_superpages(&mut self) {
        self.superpages = true;
    }

    /// Frames whose memory the host got back by page numbers, since the start.
    #[must_use]
    pub const fn freed(&self) -> FrameCount {
        self.freed
    }

    /// Frames told away and not answered as told back.
    #[must_use]
    pub fn told(&self) -> usize {
        self.told.len()
    }

    /// The guest uses this frame from now on.
    pub fn uses(&mut self, pfn: Pfn) {
        let pfn = pfn.get();
        match self.told.get(&pfn) {
            Some(Place::Giving) => self.note("17", "used between giving and its answer"),
            Some(Place::Given) => self.note("15", "used without having been told back"),
            Some(Place::Returning) if self.accepted.contains(Features::MUST_TELL_HOST) => {
                self.note("16", "used before the deflation was answered");
            }
            Some(Place::Returning) | None => {}
        }
        let reporting = QueueId::Reporting.index();
        let mut ranges = self
            .ranges
            .iter()
            .filter(|((queue, _), _)| *queue == reporting);
        if ranges.any(|(_, ranges)| ranges.iter().any(|range| range.contains(&pfn))) {
            self.note("39", "used before the report was answered");
        }
    }

    fn note(&mut self, rule: &'static str, what: &'static str) {
        self.violations.push(Violation { rule, what });
    }

    const fn running(&self) -> bool {
        self.status.contains(DeviceStatus::DRIVER_OK)
    }

    pub(super) fn status(&mut self, status: DeviceStatus) {
        if status.is_empty() {
            // A reset takes every frame back.
            let (violations, memory) = (core::mem::take(&mut self.violations), self.memory.clone());
            *self = Self {
                violations,
                memory,
                superpages: self.superpages,
                freed: self.freed,
                ..Self::new(&self.profile)
            };
        }
        let starting = status.contains(DeviceStatus::FEATURES_OK) && !self.features_settled();
        if starting && !self.accepted.contains(Features::VERSION_1) {
            self.note("6", "VERSION_1 declined");
        }
        let declined = self.offered.difference(self.accepted);
        if starting && declined.contains(Features::MUST_TELL_HOST) {
            self.note("3", "MUST_TELL_HOST declined");
        }
        self.status = status;
    }

    const fn features_settled(&self) -> bool {
        self.status.contains(DeviceStatus::FEATURES_OK)
    }

    pub(super) fn accepts(&mut self, accepted: Features) {
        self.accepted = accepted;
        if accepted.contains(Features::ACCESS_PLATFORM) {
            self.note("R10", "ACCESS_PLATFORM accepted");
        }
        if accepted.contains(SUSPEND) {
            self.note("R11", "SUSPEND accepted");
        }
    }

    pub(super) fn reads(&mut self, offset: u16, len: usize) {
        if usize::from(offset) + 4 > len {
            self.note("8", "read beyond the configuration space");
        }
        let needs = match offset {
            NUM_PAGES | ACTUAL => Features::empty(),
            HINT_COMMAND => Features::FREE_PAGE_HINT,
            POISON_VALUE => Features::PAGE_POISON,
            _ => return self.note("8", "read of an unknown field"),
        };
        if !self.accepted.contains(needs) {
            self.note("8", "read of a field whose feature was not negotiated");
        }
    }

    pub(super) fn writes(&mut self, offset: u16) {
        match offset {
            ACTUAL => {}
            POISON_VALUE if self.running() => {
                self.note("10", "poison value written to a running device");
            }
            POISON_VALUE if self.accepted.contains(Features::PAGE_POISON) => {}
            _ => self.note("8", "write of a field that is not the driver's"),
        }
    }

    pub(super) fn enables(&mut self, queue: Option<QueueId>) {
        if self.running() {
            self.note("9", "queue enabled on a running device");
        }
        match queue {
            None => self.note("R5", "a queue of a private feature enabled"),
            Some(queue) if !self.accepted.contains(queue.feature()) => {
                self.note("2", "queue enabled without its feature");
            }
            Some(_) => {}
        }
    }

    pub(super) fn notifies(&mut self) {
        if !self.running() {
            self.note("9", "notification before DRIVER_OK");
        }
    }

    pub(super) const fn commands(&mut self, command: u32) {
        self.command = command;
    }

    /// The device takes a request whose readable bytes are `content`.
    pub(super) fn takes(&mut self, queue: QueueId, chain: &Chain, content: &[u8]) {
        match queue {
            QueueId::Inflate | QueueId::Deflate if self.profile.chunks() => {
                self.chunks(queue, chain, content);
            }
            QueueId::Inflate | QueueId::Deflate => self.page_numbers(queue, chain, content),
            QueueId::Statistics => self.statistics(chain, content),
            QueueId::Hint if self.profile.chunks() => {
                if chain.descriptors.iter().any(|d| !d.writable) {
                    self.chunks(queue, chain, content);
                }
            }
            QueueId::Hint => self.hints(chain, content),
            QueueId::Reporting => {
                if chain.descriptors.iter().any(|d| !d.writable) {
                    self.note("39", "report in a device-readable buffer");
                }
                self.hold_ranges(queue, chain);
            }
        }
    }

    fn page_numbers(&mut self, queue: QueueId, chain: &Chain, content: &[u8]) {
        if chain.descriptors.len() > if self.superpages { 2 } else { 1 } {
            self.note("R2", "page numbers in too many descriptors");
        }
        if chain.descriptors.iter().any(|d| d.writable) {
            self.note("20", "page numbers in a device-writable buffer");
        }
        let (words, rest) = content.as_chunks::<4>();
        if words.is_empty() || !rest.is_empty() {
            self.note("20", "no whole number of 32-bit words");
        }
        let too_long = |d: &super::Descriptor| d.len as usize > PER_BUFFER_BYTES;
        if chain.descriptors.iter().any(too_long) {
            self.note("R1", "more than 256 page numbers in a descriptor");
        }
        let pfns: Vec<u32> = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
        if queue == QueueId::Inflate {
            self.discard(&pfns);
        }
        let pfns: Vec<u64> = pfns.into_iter().map(u64::from).collect();
        if !pfns.is_sorted_by(|a, b| a < b) {
            self.note("R3", "page numbers do not rise");
        }
        self.move_frames(queue, chain.head, pfns);
    }

    /// Responses of the dialect: its own rule V8.
    fn chunks(&mut self, queue: QueueId, chain: &Chain, content: &[u8]) {
        if chain.descriptors.len() != 1 {
            self.note("V8", "a response in more than one buffer");
        }
        let Ok(response) = chunks_v8::decode_strict(content) else {
            return self.note("V8", "no response");
        };
        let expected = match queue {
            QueueId::Inflate => Command::Inflate,
            QueueId::Deflate => Command::Deflate,
            _ => Command::Unused,
        };
        if response.label().command != expected as u8 {
            self.note("V8", "a response on the queue of another kind");
        }
        let frames = response.chunks().flat_map(FrameRange::frames);
        let frames: Vec<u64> = frames.map(Pfn::get).collect();
        if expected == Command::Unused {
            if frames.iter().any(|pfn| self.told.contains_key(pfn)) {
                self.note("V8", "a frame told away is called unused");
            }
            return;
        }
        self.move_frames(queue, chain.head, frames);
    }

    /// Notes where frames told away or back are now.
    fn move_frames(&mut self, queue: QueueId, head: u16, pfns: Vec<u64>) {
        for &pfn in &pfns {
            if !self.memory.contains(&pfn) {
                self.note("20", "page number outside guest memory");
            }
            match (queue, self.told.get(&pfn)) {
                (QueueId::Inflate, None) => {
                    self.told.insert(pfn, Place::Giving);
                }
                (QueueId::Inflate, Some(_)) => self.note("18", "given before it was back"),
                (_, Some(Place::Given)) => {
                    self.told.insert(pfn, Place::Returning);
                }
                (_, Some(Place::Giving)) => self.note("18", "told back before it was given"),
                (_, Some(Place::Returning) | None) => self.note("18", "told back twice"),
            }
        }
        self.numbers.insert((queue.index(), head), pfns);
    }

    /// Frees host pages as QEMU does: only those that one request names whole.
    fn discard(&mut self, pfns: &[u32]) {
        let page = if self.superpages { 512 } else { 1 };
        let starts = |pfn: u32| pfn.is_multiple_of(page);
        let runs = pfns.chunk_by(|a, b| a.checked_add(1) == Some(*b) && !starts(*b));
        let whole = |run: &&[u32]| run.len() == page as usize && run.iter().any(|&pfn| starts(pfn));
        let frames = runs.filter(whole).count() as u64 * u64::from(page);
        self.freed = self.freed.saturating_add(FrameCount::new(frames));
    }

    fn statistics(&mut self, chain: &Chain, content: &[u8]) {
        if core::mem::replace(&mut self.statistics_held, true) {
            self.note("23", "two statistics buffers with the device");
        }
        let (entries, rest) = content.as_chunks::<10>();
        if entries.is_empty() || !rest.is_empty() || chain.descriptors.len() > 1 {
            self.note("27", "no whole number of entries");
        }
        let mut tags: Vec<u16> = entries
            .iter()
            .map(|e| u16::from_le_bytes([e[0], e[1]]))
            .collect();
        tags.sort_unstable();
        if tags.windows(2).any(|pair| pair.first() == pair.last()) {
            self.note("25", "the same statistic twice in a buffer");
        }
        if self.statistics.get_or_insert_with(|| tags.clone()) != &tags {
            self.note("26", "other statistics than in the first buffer");
        }
    }

    fn hints(&mut self, chain: &Chain, content: &[u8]) {
        let writable = chain.descriptors.iter().filter(|d| d.writable).count();
        if writable != 0 && writable != chain.descriptors.len() {
            return self.note("32", "command and range in one request");
        }
        if writable == 0 {
            let Ok(command) = <[u8; 4]>::try_from(content).map(u32::from_le_bytes) else {
                return self.note("30", "a command that is not four bytes long");
            };
            if command == 0 {
                self.round = None;
            } else if self.round == Some(command) {
                self.note("31", "round opened twice");
            } else if command < 2 {
                self.note("31", "round opened with a reserved command");
            } else {
                self.round = Some(command);
                self.hinted = false;
            }
            return;
        }
        if self.round.is_none() {
            self.note("32", "hint outside a round");
        }
        if chain.descriptors.iter().any(|d| d.len == 4) {
            self.note("R4b", "hint as long as a command");
        }
        self.hinted = true;
        self.hold_ranges(QueueId::Hint, chain);
    }

    fn hold_ranges(&mut self, queue: QueueId, chain: &Chain) {
        let frames = |d: &super::Descriptor| {
            let end = d.address + u64::from(d.len);
            d.address >> FRAME_SHIFT..end >> FRAME_SHIFT
        };
        let ranges: Vec<_> = chain.descriptors.iter().map(frames).collect();
        if ranges
            .iter()
            .any(|r| r.is_empty() || r.start < self.memory.start || r.end > self.memory.end)
        {
            self.note("20", "range outside guest memory");
        }
        if ranges
            .iter()
            .any(|r| self.told.range(r.clone()).next().is_some())
        {
            self.note("39", "a frame told away is reported as free");
        }
        self.ranges.insert((queue.index(), chain.head), ranges);
    }

    /// The device answers the request that `id` names, if one does.
    pub(super) fn answers(&mut self, queue: QueueId, id: u32) {
        let Ok(head) = u16::try_from(id) else { return };
        self.ranges.remove(&(queue.index(), head));
        if queue == QueueId::Statistics {
            self.statistics_held = false;
        }
        for pfn in self
            .numbers
            .remove(&(queue.index(), head))
            .into_iter()
            .flatten()
        {
            match self.told.get(&pfn) {
                Some(Place::Giving) => {
                    self.told.insert(pfn, Place::Given);
                }
                Some(Place::Returning) => {
                    self.told.remove(&pfn);
                }
                Some(Place::Given) | None => {}
            }
        }
    }
}
