//! The device's side of the rings, and what a test makes it do.

mod registers;

use alloc::vec::Vec;
use core::sync::atomic::{Ordering, fence};

use super::{Checker, Profile};
use crate::device::RingAddresses;
use crate::dma::Dma;
use crate::protocol::chunks::HostRequest;
use crate::protocol::features::Features;
use crate::protocol::numbering::QueueId;
use crate::protocol::status::DeviceStatus;

use super::FakeMemory;

/// One descriptor as the device reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// First byte.
    pub address: u64,
    /// Number of bytes.
    pub len: u32,
    /// Whether the device may write there.
    pub writable: bool,
}

/// One request as the device reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// What an answer names it by.
    pub head: u16,
    /// Its descriptors in order.
    pub descriptors: Vec<Descriptor>,
}

/// The device's half of one queue.
#[derive(Clone, Copy, Debug, Default)]
struct Queue {
    size: u16,
    at: Option<RingAddresses>,
    /// The next available entry to read.
    seen: u16,
    used: u16,
    /// The used index when it was last asked whether to interrupt.
    signalled: u16,
    notified: u32,
}

/// Where in the shared memory an address is; if it is elsewhere, where nothing
/// is found.
fn offset(memory: &impl Dma, address: u64) -> usize {
    let offset = address.checked_sub(memory.address());
    let offset = offset.and_then(|offset| usize::try_from(offset).ok());
    offset.unwrap_or(usize::MAX / 2)
}

/// A balloon device under the control of a test.
#[derive(Debug)]
pub struct FakeDevice<M = FakeMemory> {
    memory: M,
    profile: Profile,
    status: DeviceStatus,
    accepted: Features,
    config: [u32; 4],
    generation: u32,
    queues: [Queue; 8],
    interrupts: u32,
    config_reads: u32,
    history: Vec<DeviceStatus>,
    checker: Checker,
    /// The device does not come out of reset.
    pub stuck: bool,
    /// The status is read so often before a reset is done.
    pub reset_takes: u32,
    /// Of those, for the reset that is under way.
    resetting: u32,
    /// The device refuses any choice of features.
    pub picky: bool,
    /// The device does not take this queue.
    pub refuses: Option<QueueId>,
    /// The device asks for a reset as soon as it runs.
    pub fails: bool,
    /// The device shows the size of each queue once, then zero.
    pub forgets_sizes: bool,
    /// The queues whose size was shown, as bits.
    shown: u8,
    /// The configuration changes at every look.
    pub restless: bool,
    /// The device loses each size at once that the driver publishes.
    pub keeps_no_size: bool,
    /// The device was pulled out: each byte of its registers reads as this, and nothing
    /// is done any more.
    pub gone: Option<u8>,
}

impl<M: Dma> FakeDevice<M> {
    /// A device that has just been switched on.
    #[must_use]
    pub fn new(profile: Profile, memory: M) -> Self {
        Self {
            memory,
            profile,
            // As a previous kernel may have left it.
            status: DeviceStatus::DRIVER_OK | DeviceStatus::ACKNOWLEDGE,
            accepted: Features::empty(),
            config: [0; 4],
            generation: 0,
            queues: [Queue::default(); 8],
            interrupts: 0,
            config_reads: 0,
            history: Vec::new(),
            checker: Checker::new(&profile),
            stuck: false,
            reset_takes: 0,
            resetting: 0,
            picky: false,
            refuses: None,
            fails: false,
            forgets_sizes: false,
            shown: 0,
            restless: false,
            keeps_no_size: false,
            gone: None,
        }
    }

    /// What the device is like.
    #[must_use]
    pub const fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Who watches the driver.
    #[must_use]
    pub const fn checker(&self) -> &Checker {
        &self.checker
    }

    /// Who watches the driver, to be told what the guest does.
    pub const fn checker_mut(&mut self) -> &mut Checker {
        &mut self.checker
    }

    /// Every status the driver has written.
    #[must_use]
    pub fn history(&self) -> &[DeviceStatus] {
        &self.history
    }

    /// The features the driver has accepted.
    #[must_use]
    pub const fn accepted(&self) -> Features {
        self.accepted
    }

    /// Changes the target, in 4 KiB pages.
    pub fn set_target(&mut self, pages: u32) {
        self.config[0] = pages;
        self.tell_change();
    }

    /// The device fails, asks for a reset, and does nothing any more before that.
    pub fn fail(&mut self) {
        self.status |= DeviceStatus::NEEDS_RESET;
        self.tell_change();
    }

    fn tell_change(&mut self) {
        let step = u32::from(self.profile.has_generation());
        self.generation = self.generation.wrapping_add(step);
        self.interrupts += 1;
    }

    /// The size the driver published, in 4 KiB pages.
    #[must_use]
    pub const fn actual(&self) -> u32 {
        self.config[1]
    }

    /// The device loses what the driver published.
    pub const fn forget_size(&mut self) {
        self.config[1] = 7;
    }

    /// What the driver says free frames hold.
    #[must_use]
    pub const fn poison(&self) -> u32 {
        self.config[3]
    }

    /// Notifications received for a queue.
    #[must_use]
    pub fn notified(&self, queue: QueueId) -> u32 {
        self.queue(queue).map_or(0, |queue| queue.notified)
    }

    /// Interrupts sent.
    #[must_use]
    pub const fn interrupts(&self) -> u32 {
        self.interrupts
    }

    /// Readings of the configuration so far, without those of its generation.
    #[must_use]
    pub const fn config_reads(&self) -> u32 {
        self.config_reads
    }

    /// The size the driver gave a queue, zero if none.
    #[must_use]
    pub fn queue_size(&self, queue: QueueId) -> u16 {
        self.queue(queue).map_or(0, |queue| queue.size)
    }

    /// Gives out a hinting command: 0 stop, 1 done, others open a round.
    pub fn set_hint_command(&mut self, command: u32) {
        self.config[2] = command;
        self.tell_change();
        self.checker.commands(command);
    }

    fn queue(&self, queue: QueueId) -> Option<&Queue> {
        self.queues.get(usize::from(self.profile.index(queue)?))
    }

    fn live(&mut self, queue: QueueId) -> Option<(&M, &mut Queue, RingAddresses, bool)> {
        if self.gone.is_some() || self.status.contains(DeviceStatus::NEEDS_RESET) {
            return None;
        }
        let index = usize::from(self.profile.index(queue)?);
        let queue = self.queues.get_mut(index)?;
        let at = queue.at?;
        Some((
            &self.memory,
            queue,
            at,
            self.accepted.contains(Features::EVENT_IDX),
        ))
    }

    /// The next request the driver made available.
    ///
    /// # Panics
    /// If the driver's chain loops, which is what this kit is there to find.
    pub fn take(&mut self, queue: QueueId) -> Option<Chain> {
        let chain = self.take_unseen(queue)?;
        let readable = chain.descriptors.iter().filter(|d| !d.writable);
        let content: Vec<u8> = readable.flat_map(|&d| self.content(d)).collect();
        self.checker.takes(queue, &chain, &content);
        let opens = queue == QueueId::Hint && content == self.config[2].to_le_bytes();
        if opens && self.profile.forgets_rounds() {
            self.config[2] = 0;
        }
        Some(chain)
    }

    fn take_unseen(&mut self, queue: QueueId) -> Option<Chain> {
        let (memory, queue, at, event_idx) = self.live(queue)?;
        let offset = |address| offset(memory, address);
        let (available, used) = (offset(at.driver), offset(at.device));
        if memory.load16(available + 2) == queue.seen {
            return None;
        }
        fence(Ordering::Acquire);
        let entry = usize::from(queue.seen % queue.size);
        let head = memory.load16(available + 4 + 2 * entry);
        let read = |place: usize| {
            let address =
                u64::from(memory.load32(place)) | u64::from(memory.load32(place + 4)) << 32;
            let flags = memory.load16(place + 12);
            let len = memory.load32(place + 8);
            let writable = flags & 2 != 0;
            (
                Descriptor {
                    address,
                    len,
                    writable,
                },
                flags,
                memory.load16(place + 14),
            )
        };
        let mut table = (offset(at.descriptors), u32::from(queue.size));
        let mut descriptors = Vec::new();
        let mut next = Some(head);
        while let Some(index) = next {
            let within = u32::from(index) < table.1 && descriptors.len() < queue.size.into();
            assert!(within, "chain loops");
            let (descriptor, flags, link) = read(table.0 + 16 * usize::from(index));
            if flags & 4 != 0 {
                assert!(descriptors.is_empty() && flags == 4, "a table stands alone");
                table = (offset(descriptor.address), descriptor.len / 16);
                next = Some(0);
                continue;
            }
            descriptors.push(descriptor);
            next = (flags & 1 != 0).then_some(link);
        }
        queue.seen = queue.seen.wrapping_add(1);
        if event_idx {
            // Notify us of the next one.
            memory.store16(used + 4 + 8 * usize::from(queue.size), queue.seen);
            fence(Ordering::SeqCst);
        }
        Some(Chain { head, descriptors })
    }

    /// Answers with any id and length, and interrupts if the driver wants it.
    pub fn answer(&mut self, queue: QueueId, id: u32, len: u32) {
        self.checker.answers(queue, id);
        let Some((memory, queue, at, event_idx)) = self.live(queue) else {
            return;
        };
        let offset = |address| offset(memory, address);
        let (available, used) = (offset(at.driver), offset(at.device));
        let place = used + 4 + 8 * usize::from(queue.used % queue.size);
        memory.store32(place, id);
        memory.store32(place + 4, len);
        queue.used = queue.used.wrapping_add(1);
        fence(Ordering::Release);
        memory.store16(used + 2, queue.used);
        fence(Ordering::SeqCst);
        let wanted = if event_idx {
            let event = memory.load16(available + 4 + 2 * usize::from(queue.size));
            let moved = queue.used.wrapping_sub(queue.signalled);
            queue.used.wrapping_sub(event).wrapping_sub(1) < moved
        } else {
            memory.load16(available) & 1 == 0
        };
        queue.signalled = queue.used;
        self.interrupts += u32::from(wanted);
    }

    /// Moves the used index without an entry, as no device may.
    pub fn jump(&mut self, queue: QueueId, by: u16) {
        let Some((memory, queue, at, _)) = self.live(queue) else {
            return;
        };
        queue.used = queue.used.wrapping_add(by);
        let used = offset(memory, at.device);
        memory.store16(used + 2, queue.used);
    }

    /// Says on a device without event indices that notifications are not needed.
    pub fn silence(&mut self, queue: QueueId, silent: bool) {
        let Some((memory, _, at, _)) = self.live(queue) else {
            return;
        };
        let used = offset(memory, at.device);
        memory.store16(used, silent.into());
    }

    /// Takes and answers all that is available, in order.
    pub fn serve(&mut self, queue: QueueId) -> Vec<Chain> {
        let mut served = Vec::new();
        while let Some(chain) = self.take(queue) {
            self.answer(queue, chain.head.into(), 0);
            served.push(chain);
        }
        served
    }

    /// The content of a descriptor within the shared memory.
    #[must_use]
    pub fn content(&self, descriptor: Descriptor) -> Vec<u8> {
        let Some(offset) = descriptor.address.checked_sub(self.memory.address()) else {
            return Vec::new();
        };
        let first = usize::try_from(offset).unwrap_or(usize::MAX);
        let len = usize::try_from(descriptor.len).unwrap_or(0);
        let byte = |at: usize| {
            let [low, high] = self.memory.load16(at & !1).to_le_bytes();
            if at & 1 == 0 { low } else { high }
        };
        (first..first.saturating_add(len).min(self.memory.len()))
            .map(byte)
            .collect()
    }

    /// Asks for unused pages, if the driver has left a buffer for that; whether
    /// it had.
    ///
    /// # Panics
    /// If what the driver left is not such a buffer.
    pub fn request_unused_pages(&mut self, id: u16) -> bool {
        let Some(chain) = self.take(QueueId::Hint) else {
            return false;
        };
        self.fill_request(&chain, id);
        true
    }

    /// Asks for unused pages with a buffer that was taken before.
    ///
    /// # Panics
    /// If it is not a buffer for that.
    pub fn fill_request(&mut self, chain: &Chain, id: u16) {
        let [buffer] = chain.descriptors[..] else {
            panic!("a buffer of several descriptors")
        };
        assert!(
            buffer.writable && buffer.len == 16,
            "a buffer for a request"
        );
        let request = HostRequest::UnusedPages(id).encode();
        let offset = buffer.address - self.memory.address();
        for (place, half) in (offset..).step_by(2).zip(request.as_chunks::<2>().0) {
            let place = usize::try_from(place).unwrap_or(usize::MAX);
            self.memory.store16(place, u16::from_le_bytes(*half));
        }
        self.answer(QueueId::Hint, chain.head.into(), buffer.len);
    }

    /// The page numbers of a request on the inflate or deflate queue.
    #[must_use]
    pub fn pfns(&self, chain: &Chain) -> Vec<u32> {
        let content: Vec<u8> = chain
            .descriptors
            .iter()
            .flat_map(|&d| self.content(d))
            .collect();
        content
            .as_chunks::<4>()
            .0
            .iter()
            .map(|word| u32::from_le_bytes(*word))
            .collect()
    }
}
