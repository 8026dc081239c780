//! The rules of the specification and of real devices, checked from the device's
//! seat.
//!
//! [`FakeDevice`](super::FakeDevice) shows a [`Checker`] all that a driver does:
//! status and feature writes, configuration accesses, queues, requests, answers.
//! The checker keeps its own account of every frame and notes each
//! [`Violation`]. It knows nothing of this crate's driver and can checker any
//! that reaches the device through [`Device`](crate::Device) and shared memory.
//!
//! Rules are named as in this table: "5.5.x" are sections of virtio 1.2, "D"
//! must, "S" should, "M" may; "R" is what known devices demand on top.
//!
//! | rule | what a driver owes |
//! |---|---|
//! | 1 | it binds to device 5, not to 13 (5.5.1, D) |
//! | 2 | a queue is used only with its feature (5.5.2, D) |
//! | 3 | `MUST_TELL_HOST` is accepted when offered (5.5.3.1, S) |
//! | 4 | `PAGE_POISON` is declined by a kernel that does not poison (5.5.3.1, S) |
//! | 5 | who relies on what free frames hold reports only to a device that knows (5.5.3.1, D) |
//! | 6 | `VERSION_1` is accepted, the generation guards reads (2.5, D) |
//! | 7 | words are little endian (5.5.4, D) |
//! | 8, R7 | nothing is read that no feature promises (5.5.4, D) |
//! | 9 | queues, then poison value, then `DRIVER_OK`, then notifications (5.5.5) |
//! | 10 | the poison value stands once the device runs (5.5.6.6, D) |
//! | 11 | frames are given while the target is above the size (5.5.6.1, S) |
//! | 12 | while it is below, none are given, and they come back (5.5.6.1, M: words that allow, but who never takes any back shows nothing of 13 to 18) |
//! | 13 | none are taken back against the target (5.5.6.1, D) |
//! | 14 | with `DEFLATE_ON_OOM` they may be, but only if memory is short (5.5.6.1, M) |
//! | 15, 17 | a frame told away is used only after it was told back (5.5.6.1, D) |
//! | 16 | with `MUST_TELL_HOST`: after that was answered (5.5.6.1, D) |
//! | 18 | a frame is told back only after its giving was answered (5.5.6.1, D) |
//! | 19 | the size is published after each change, and counts frames given by either path: told away, or reported and kept (5.5.6.1, D) |
//! | 20 | page numbers are whole 32-bit words of guest memory (5.5.6, D) |
//! | 21 | used lengths are ignored (5.5.6.2.1, S) |
//! | 22 | a frame is filled when the device no longer writes to it (5.5.6.2) |
//! | 23 to 27 | one filled statistics buffer, again after each answer, of whole, equal entries (5.5.6.3, D) |
//! | 28, 37 | the legacy interface, of another byte order, is not driven as if it were the modern one |
//! | 29 | binds the device, which has to ignore statistics it does not know (5.5.6.3.2): no driver can break it, and the checker, which plays the device, finds no fault with them |
//! | 30, 31, 33 | hinting commands of four bytes, each round opened once and closed (5.5.6.5, D) |
//! | 32 | hints are writable, and only during a round (5.5.6.5, S): one that the driver has opened, and that the host, as the suite sees, has not ended some steps ago |
//! | 34 | no hinted frame is used before its answer (M, but several devices lose data) |
//! | 35 | a hinted frame is written to before it is used (5.5.6.5, D): by the kernel if it relies on what free frames hold; else by the program that gets it, which no device sees |
//! | 36 | hinted frames are kept at STOP, released at DONE (5.5.6.5, S) |
//! | 38 | frames taken back hold the poison value when they are used (5.5.6.6, D) |
//! | 39 | a reported frame is used only after the answer (5.5.6.7, D) |
//! | 40 | with `PAGE_POISON`: it holds the value when it is reported (5.5.6.7, D) |
//! | 41 | large ranges are reported where there are any (5.5.6.7, S); that reports are allowed at any time after `DRIVER_OK` (M) forbids only what 9 does, and which frames programs get first (S) is the allocator's choice |
//! | R1 | at most 256 page numbers in a descriptor |
//! | R2 | one descriptor for each request of page numbers, two on a host with unsplittable pages of 2 MiB |
//! | R3 | page numbers rise |
//! | R4 | on such a host a request names whole pages |
//! | R4b | a hint is not four bytes long |
//! | R5 | queues are where this device has them |
//! | R6 | queues of any size are used |
//! | R8 | a device that never answers is waited for in the open, not in a loop |
//! | R9 | at most 256 statistics |
//! | R10 | `ACCESS_PLATFORM` is accepted when offered: QEMU and confidential guests insist on it |
//! | R11 | `SUSPEND` is declined |
//! | R12 | a target beyond all reason leaves the kernel memory |
//! | R13 | with `ACCESS_PLATFORM`, no frames are named by ranges that an IOMMU translates |
//! | R14 | from a device that is pulled out all frames come home, and no more go to it: it is not believed, nor waited for |
//! | R15 | a device that asks for a reset is given one, once the kernel says so, and then followed as before (2.1.2, S) |
//! | V8 | under `CHUNK_TRANSFER`: whole responses, each on the queue of its kind |

mod registers;
mod requests;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::ops::Range;

use balloon_core::{FrameCount, Pfn};

use super::Profile;
use crate::protocol::features::Features;
use crate::protocol::numbering::QueueId;
use crate::protocol::status::DeviceStatus;

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
pub struct Checker {
    violations: Vec<Violation>,
    profile: Profile,
    offered: Features,
    accepted: Features,
    status: DeviceStatus,
    memory: Range<u64>,
    superpages: bool,
    translated: bool,
    freed: FrameCount,
    told: BTreeMap<u64, Place>,
    /// Ranges with the device, by queue and head.
    ranges: BTreeMap<(usize, u16), Vec<Range<u64>>>,
    /// Page numbers with the device, by queue and head.
    numbers: BTreeMap<(usize, u16), Vec<u64>>,
    /// Tags of the first statistics buffer, and whether one is with the device.
    statistics: Option<Vec<u16>>,
    statistics_held: bool,
    /// The round of hints that the driver has opened and not closed.
    round: Option<u32>,
    /// Frames named in this round, and whether the device wants them kept.
    hinted: BTreeSet<u64>,
    stopped: bool,
    /// Hints in all rounds.
    hints: u64,
    /// Frames named in any round that nobody has filled since.
    undefined: BTreeSet<u64>,
    /// Frames whose report was answered and that nobody has used since.
    discarded: BTreeSet<u64>,
    /// Frames and ranges reported.
    reported: (u64, u64),
    /// The kernel relies on what free frames hold.
    poison: bool,
    /// Frames the device may have written to since the kernel filled them.
    junk: BTreeSet<u64>,
    /// The generation was looked at before, a field was read since.
    guarded: bool,
    unguarded: bool,
}

const SUSPEND: Features = Features::from_bits_retain(1 << 43);

impl Checker {
    pub(super) fn new(profile: &Profile) -> Self {
        Self {
            violations: Vec::new(),
            profile: *profile,
            offered: profile.offered(),
            accepted: Features::empty(),
            status: DeviceStatus::empty(),
            memory: 0..u64::MAX,
            superpages: false,
            translated: false,
            freed: FrameCount::ZERO,
            told: BTreeMap::new(),
            ranges: BTreeMap::new(),
            numbers: BTreeMap::new(),
            statistics: None,
            statistics_held: false,
            round: None,
            hinted: BTreeSet::new(),
            stopped: false,
            hints: 0,
            undefined: BTreeSet::new(),
            discarded: BTreeSet::new(),
            reported: (0, 0),
            poison: false,
            junk: BTreeSet::new(),
            guarded: false,
            unguarded: false,
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

    /// The device sees memory through an IOMMU that knows nothing of free frames.
    pub const fn set_translated(&mut self) {
        self.translated = true;
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

    /// Frames the host may have discarded and nobody has used since, whether they
    /// were told away or reported.
    #[must_use]
    pub fn given(&self) -> FrameCount {
        let count = self.told.len() + self.discarded.len();
        FrameCount::new(count as u64)
    }

    /// The kernel relies on what free frames hold, and fills them.
    pub const fn set_poison(&mut self) {
        self.poison = true;
    }

    /// The kernel has filled this frame.
    pub fn fills(&mut self, pfn: Pfn) {
        let tell = self.accepted.contains(Features::MUST_TELL_HOST);
        match self.told.get(&pfn.get()) {
            Some(Place::Giving | Place::Given) => self.note("22", "filled while it was given"),
            Some(Place::Returning) if tell => self.note("22", "filled before it was back"),
            Some(Place::Returning) | None => {}
        }
        let pfn = pfn.get();
        self.junk.remove(&pfn);
        if !self.holds(QueueId::Hint, pfn) {
            self.undefined.remove(&pfn);
        }
    }

    /// Whether the device has a request that names this frame in a range.
    fn holds(&self, queue: QueueId, pfn: u64) -> bool {
        let held = self
            .ranges
            .iter()
            .filter(|((of, _), _)| *of == queue.index());
        let mut held = held.flat_map(|(_, ranges)| ranges);
        held.any(|range| range.contains(&pfn))
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
        for (queue, rule, what) in [
            (
                QueueId::Reporting,
                "39",
                "used before its report was answered",
            ),
            (QueueId::Hint, "34", "used before its hint was answered"),
        ] {
            if self.holds(queue, pfn) {
                self.note(rule, what);
            }
        }
        if self.stopped && self.hinted.contains(&pfn) {
            self.note("36", "used though the round was only stopped");
        }
        if self.poison && self.undefined.contains(&pfn) {
            self.note("35", "used after a hint without having been filled");
        }
        if self.accepted.contains(Features::PAGE_POISON) && self.junk.contains(&pfn) {
            self.note("38", "used without having been filled");
        }
        self.discarded.remove(&pfn);
    }

    /// The driver has done what it wanted to for now.
    pub fn steps(&mut self) {
        if core::mem::take(&mut self.unguarded) {
            self.note("6", "a field read without the generation behind it");
        }
        self.guarded = false;
    }

    /// Whether the device has a statistics buffer.
    pub(super) const fn has_statistics(&self) -> bool {
        self.statistics_held
    }

    /// Whether the driver has opened a round and not closed it.
    pub(super) const fn in_round(&self) -> bool {
        self.round.is_some()
    }

    /// Hints taken in all rounds.
    pub(super) const fn hints_taken(&self) -> u64 {
        self.hints
    }

    /// Frames and ranges of all reports.
    pub(super) const fn reported(&self) -> (u64, u64) {
        self.reported
    }

    /// The device was pulled out: nothing is with it any more.
    pub(super) fn leaves(&mut self) {
        self.told.clear();
        self.ranges.clear();
        self.numbers.clear();
        self.hinted.clear();
        self.stopped = false;
    }

    /// What was noted is forgotten.
    pub(super) fn forgive(&mut self) {
        self.violations.clear();
    }

    pub(super) fn note(&mut self, rule: &'static str, what: &'static str) {
        self.violations.push(Violation { rule, what });
    }

    const fn running(&self) -> bool {
        self.status.contains(DeviceStatus::DRIVER_OK)
    }
}

// Safe code on safe memory: too slow for Miri, and nothing for it to find.
#[cfg(test)]
#[cfg(not(any(miri, loom)))]
mod tests {
    use super::*;
    use crate::testing::{Chain, Descriptor};

    /// What a driver broke by one request on this queue.
    fn broken(queue: QueueId, len: u32, writable: bool, content: &[u8]) -> Vec<&'static str> {
        let all = Features::STATS_VQ | Features::FREE_PAGE_HINT;
        let mut checker = Checker::new(&Profile::specification(all));
        let address = 0x1000;
        let descriptors = Vec::from([Descriptor {
            address,
            len,
            writable,
        }]);
        checker.takes(
            queue,
            &Chain {
                head: 0,
                descriptors,
            },
            content,
        );
        checker
            .violations()
            .iter()
            .map(|broken| broken.rule)
            .collect()
    }

    #[test]
    fn rule_29_unknown_statistics_are_no_fault() {
        let unknown: Vec<u8> = [9_999_u16, u16::MAX]
            .into_iter()
            .flat_map(|tag| tag.to_le_bytes().into_iter().chain([0; 8]))
            .collect();
        assert_eq!(broken(QueueId::Statistics, 20, false, &unknown), [""; 0]);
    }

    /// Rules that our rings cannot be made to break.
    #[test]
    fn descriptors_too_long_or_of_four_bytes_are_seen() {
        let numbers: Vec<u8> = (0..257_u32).flat_map(u32::to_le_bytes).collect();
        assert_eq!(broken(QueueId::Inflate, 1028, false, &numbers), ["R1"]);
        assert_eq!(
            broken(QueueId::Inflate, 1024, false, &numbers[..1024]),
            [""; 0]
        );
        let tags = (0..257_u16).flat_map(|tag| tag.to_le_bytes().into_iter().chain([0; 8]));
        let tags: Vec<u8> = tags.collect();
        assert_eq!(broken(QueueId::Statistics, 2570, false, &tags), ["R9"]);
        assert_eq!(
            broken(QueueId::Statistics, 2560, false, &tags[..2560]),
            [""; 0]
        );
        assert!(broken(QueueId::Hint, 4, true, &[]).contains(&"R4b"));
        assert!(!broken(QueueId::Hint, 4096, true, &[]).contains(&"R4b"));
    }
}
