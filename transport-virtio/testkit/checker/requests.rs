//! What the driver puts on the queues.

use alloc::vec::Vec;

use balloon_core::wire::chunks_v8;
use balloon_core::wire::pfn_array::{NUMBER_SIZE, PER_BUFFER};
use balloon_core::{FRAME_SHIFT, FrameCount, FrameRange, Pfn};

use super::{Checker, Place};
use crate::protocol::chunks::Command;
use crate::protocol::features::Features;
use crate::protocol::numbering::QueueId;
use crate::testing::{Chain, Descriptor};

const PER_BUFFER_BYTES: usize = PER_BUFFER * NUMBER_SIZE;

impl Checker {
    pub(in crate::testing) fn commands(&mut self, command: u32) {
        self.stopped = command == 0;
        if command == 1 {
            self.hinted.clear();
        }
    }

    /// The device takes a request whose readable bytes are `content`.
    pub(in crate::testing) fn takes(&mut self, queue: QueueId, chain: &Chain, content: &[u8]) {
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
        let too_long = |d: &Descriptor| d.len as usize > PER_BUFFER_BYTES;
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
                let swapped = u32::try_from(pfn).map_or(0, u32::swap_bytes);
                if self.memory.contains(&swapped.into()) {
                    self.note("7", "a page number in the other byte order");
                }
                self.note("20", "page number outside guest memory");
            }
            match (queue, self.told.get(&pfn)) {
                (QueueId::Inflate, None) => {
                    self.discarded.remove(&pfn);
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
        if entries.len() > 256 {
            self.note("R9", "more than 256 statistics");
        }
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
                self.hinted.clear();
            }
            return;
        }
        self.hints += 1;
        if self.round.is_none() {
            self.note("32", "hint outside a round");
        }
        if chain.descriptors.iter().any(|d| d.len == 4) {
            self.note("R4b", "hint as long as a command");
        }
        self.hold_ranges(QueueId::Hint, chain);
    }

    fn hold_ranges(&mut self, queue: QueueId, chain: &Chain) {
        let frames = |d: &Descriptor| {
            let end = d.address + u64::from(d.len);
            d.address >> FRAME_SHIFT..end >> FRAME_SHIFT
        };
        let ranges: Vec<_> = chain.descriptors.iter().map(frames).collect();
        if self.translated && self.accepted.contains(Features::ACCESS_PLATFORM) {
            self.note("R13", "a range that the IOMMU translates");
        }
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
        let frames = || ranges.iter().cloned().flatten();
        if queue == QueueId::Hint {
            self.hinted.extend(frames());
            self.undefined.extend(frames());
        } else {
            self.reported.0 += frames().count() as u64;
            self.reported.1 += ranges.len() as u64;
            let told = self.accepted.contains(Features::PAGE_POISON);
            if told && frames().any(|pfn| self.junk.contains(&pfn)) {
                self.note("40", "reported without having been filled");
            }
        }
        self.ranges.insert((queue.index(), chain.head), ranges);
    }

    /// The device answers the request that `id` names, if one does.
    pub(in crate::testing) fn answers(&mut self, queue: QueueId, id: u32) {
        let Ok(head) = u16::try_from(id) else { return };
        let ranges = self.ranges.remove(&(queue.index(), head));
        if queue == QueueId::Reporting {
            self.discarded
                .extend(ranges.into_iter().flatten().flatten());
        }
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
                    self.junk.insert(pfn);
                }
                Some(Place::Returning) => {
                    self.told.remove(&pfn);
                }
                Some(Place::Given) | None => {}
            }
        }
    }
}
