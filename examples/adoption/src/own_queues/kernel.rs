//! Stand-in of the kernel: a virtqueue component in safe code, a frame
//! allocator behind a static, threads that wait in a queue.

use core::alloc::Layout;

use balloon_core::{FrameRange, Nanos};
use transport_virtio::testing::FakeMemory;
use transport_virtio::{ConfigIo, Device, Dma, Handshake, QueueIndex, RingAddresses};
use transport_virtio::{DeviceStatus, Features};

use crate::machine::{Lock, PageBits, Registers};

const PAGES: usize = 1 << 15;
const FIRST: u64 = 0x10_0000;
/// Entries of each queue.
pub const QUEUE_SIZE: u16 = 16;
/// Bytes of a DMA buffer.
pub const BUFFER: usize = 1024;
const RING: usize = 1024;
const QUEUES: usize = 5;
/// Requests that fit a queue.
pub const SLOTS: usize = QUEUE_SIZE as usize;

/// The frame allocator.
pub static FRAME_ALLOCATOR: FrameAllocator = FrameAllocator(Lock::new(None));
/// The wait queue that the callbacks wake.
pub static WAIT_QUEUE: WaitQueue = WaitQueue(Lock::new(None));
static CLOCK: Lock<Nanos> = Lock::new(Nanos::ZERO);

/// Frames by physical address.
#[derive(Debug)]
pub struct FrameAllocator(Lock<Option<PageBits>>);

impl FrameAllocator {
    fn with<R>(&self, f: impl FnOnce(&mut PageBits) -> R) -> R {
        f(self
            .0
            .lock()
            .get_or_insert_with(|| PageBits::new(FIRST, PAGES)))
    }

    /// Allocates frames in a row.
    pub fn alloc(&self, layout: Layout) -> Option<u64> {
        let align = layout.align().div_ceil(4096) as u64;
        let first = self.with(|pages| pages.take(layout.size() / 4096, align))?;
        Some(first * 4096)
    }

    /// Frees frames; any part of an allocation.
    ///
    /// # Panics
    /// If one of them is not allocated.
    pub fn dealloc(&self, address: u64, bytes: u64) {
        let pages = usize::try_from(bytes / 4096).unwrap_or(usize::MAX);
        assert!(self.with(|all| all.free(address / 4096, pages)));
    }

    /// Free frames.
    pub fn left(&self) -> usize {
        self.with(|pages| pages.left())
    }

    /// All memory.
    pub fn memory(&self) -> FrameRange {
        self.with(|pages| pages.memory())
    }
}

/// Time since the start.
#[must_use]
pub fn now() -> Nanos {
    *CLOCK.lock()
}

/// The rest of the machine, which goes on while a thread waits; false when it
/// is switched off.
pub type Machine = Box<dyn FnMut() -> bool + Send>;

/// Where threads wait.
#[derive(Debug)]
pub struct WaitQueue(Lock<Option<MachineSlot>>);

/// Keeps a machine.
struct MachineSlot(Machine);

impl core::fmt::Debug for MachineSlot {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Machine")
    }
}

impl WaitQueue {
    /// What goes on while threads wait.
    pub fn plug(&self, machine: Machine) {
        *self.0.lock() = Some(MachineSlot(machine));
    }

    /// Waits until the condition holds or the time is over; nothing when the
    /// machine is switched off.
    pub fn wait_until_or_timeout(
        &self,
        mut done: impl FnMut() -> bool,
        until: Option<Nanos>,
    ) -> Option<()> {
        while !done() && until.is_none_or(|until| now() < until) {
            let later = now().saturating_add(Nanos::from_millis(1));
            *CLOCK.lock() = later;
            if !self.0.lock().as_mut().is_some_and(|machine| (machine.0)()) {
                return None;
            }
        }
        Some(())
    }
}

/// A virtio device: the part of the component that drivers see.
#[derive(Debug)]
pub struct VirtioDevice {
    registers: Registers,
    memory: FakeMemory,
}

/// What interrupts call: for the configuration, for the queues.
static CALLBACKS: Lock<[Option<fn()>; 2]> = Lock::new([None; 2]);

/// An interrupt of the device: both causes may be behind it.
pub fn interrupt() {
    let callbacks = *CALLBACKS.lock();
    callbacks
        .into_iter()
        .flatten()
        .for_each(|callback| callback());
}

/// Registers what interrupts for the configuration call.
pub fn on_config_change(callback: fn()) {
    let [config, _] = &mut *CALLBACKS.lock();
    *config = Some(callback);
}

/// Registers what interrupts for the queues call.
pub fn on_used(callback: fn()) {
    let [_, used] = &mut *CALLBACKS.lock();
    *used = Some(callback);
}

impl VirtioDevice {
    /// Resets the device and negotiates what the driver asks for.
    #[must_use]
    pub fn negotiate(
        mut registers: Registers,
        memory: FakeMemory,
        wanted: impl FnOnce(Features) -> Features,
    ) -> (Self, Features) {
        let mut status = DeviceStatus::empty();
        for bit in [
            DeviceStatus::empty(),
            DeviceStatus::ACKNOWLEDGE,
            DeviceStatus::DRIVER,
        ] {
            status |= bit;
            registers.set_status(status);
        }
        let agreed = wanted(registers.offered_features());
        registers.accept_features(agreed);
        registers.set_status(status | DeviceStatus::FEATURES_OK);
        (Self { registers, memory }, agreed)
    }

    /// Features offered.
    #[must_use]
    pub fn features(&self) -> Features {
        self.registers.read_features()
    }

    /// Switches the device on.
    pub fn finish_init(&mut self) {
        let status = self.registers.status() | DeviceStatus::DRIVER_OK;
        self.registers.set_status(status);
    }

    /// Bytes of the configuration space.
    #[must_use]
    pub fn config_len(&self) -> usize {
        self.registers.config_len()
    }

    /// Reads a word of it.
    pub fn read_config(&mut self, offset: u16) -> u32 {
        self.registers.read_config(offset)
    }

    /// Writes a word of it.
    pub fn write_config(&mut self, offset: u16, value: u32) {
        self.registers.write_config(offset, value);
    }

    /// Changes with it.
    pub fn generation(&mut self) -> u32 {
        self.registers.generation()
    }

    /// Whether the device has the queue.
    pub fn has_queue(&mut self, index: u16) -> u16 {
        self.registers.max_queue_size(QueueIndex::new(index))
    }

    /// Sets a queue up.
    pub fn queue(&mut self, index: u16) -> VirtQueue {
        let base = usize::from(index) * RING;
        let at = |offset: usize| self.memory.address() + (base + offset) as u64;
        let areas = RingAddresses {
            descriptors: at(0),
            driver: at(512),
            device: at(768),
        };
        (0..RING)
            .step_by(2)
            .for_each(|offset| self.memory.store16(base + offset, 0));
        let set = self
            .registers
            .set_queue(QueueIndex::new(index), QUEUE_SIZE, areas);
        assert!(set.is_ok(), "the device refuses queue {index}");
        VirtQueue {
            index,
            base,
            registers: self.registers.clone(),
            memory: self.memory.clone(),
            free: (0..QUEUE_SIZE).collect(),
            chains: vec![Vec::new(); QUEUE_SIZE.into()],
            available: 0,
            used: 0,
        }
    }

    /// A buffer that the device can reach.
    #[must_use]
    pub fn dma_buffer(&self, number: usize) -> DmaBuffer {
        DmaBuffer {
            memory: self.memory.clone(),
            offset: QUEUES * RING + number * BUFFER,
        }
    }
}

/// A piece of DMA memory.
#[derive(Clone, Debug)]
pub struct DmaBuffer {
    memory: FakeMemory,
    offset: usize,
}

impl DmaBuffer {
    /// Fills it from the start.
    pub fn write(&self, bytes: &[u8]) -> &Self {
        for (at, pair) in bytes.chunks(2).enumerate() {
            let pair = [pair.first(), pair.get(1)].map(|byte| byte.copied().unwrap_or(0));
            let offset = self.offset + 2 * at;
            self.memory.store16(offset, u16::from_le_bytes(pair));
        }
        self
    }
}

/// Anything with a device address and a length.
pub trait DmaBuf {
    /// The device's address of it.
    fn device_address(&self) -> u64;
}

impl DmaBuf for DmaBuffer {
    fn device_address(&self) -> u64 {
        self.memory.address() + self.offset as u64
    }
}

/// The queue has no room.
#[derive(Clone, Copy, Debug)]
pub struct NoRoom;

/// A split virtqueue.
#[derive(Debug)]
pub struct VirtQueue {
    index: u16,
    base: usize,
    registers: Registers,
    memory: FakeMemory,
    free: Vec<u16>,
    /// Descriptors of the request with this head.
    chains: Vec<Vec<u16>>,
    available: u16,
    used: u16,
}

impl VirtQueue {
    /// Requests that can be in flight.
    #[must_use]
    pub const fn size(&self) -> usize {
        QUEUE_SIZE as usize
    }

    /// Adds a request the device reads; a token that names it.
    ///
    /// # Errors
    /// [`NoRoom`].
    pub fn add_input(&mut self, buffer: &impl DmaBuf, len: usize) -> Result<u16, NoRoom> {
        self.add(&[(buffer.device_address(), len as u64)], 0)
    }

    /// Adds a request of pieces the device may write.
    ///
    /// # Errors
    /// [`NoRoom`].
    pub fn add_outputs(&mut self, pieces: impl Iterator<Item = (u64, u64)>) -> Result<u16, NoRoom> {
        self.add(&pieces.collect::<Vec<_>>(), 2)
    }

    fn add(&mut self, pieces: &[(u64, u64)], flags: u16) -> Result<u16, NoRoom> {
        if pieces.is_empty() || pieces.len() > self.free.len() {
            return Err(NoRoom);
        }
        let chain = self.free.split_off(self.free.len() - pieces.len());
        for (at, (&index, &(address, len))) in chain.iter().zip(pieces).enumerate() {
            let place = self.base + 16 * usize::from(index);
            let word = |value: u64| u32::try_from(value & u64::from(u32::MAX)).unwrap_or(0);
            self.memory.store32(place, word(address));
            self.memory.store32(place + 4, word(address >> 32));
            self.memory.store32(place + 8, word(len));
            let next = chain.get(at + 1);
            let more = u16::from(next.is_some());
            self.memory.store16(place + 12, flags | more);
            self.memory
                .store16(place + 14, next.copied().unwrap_or_default());
        }
        let head = chain.first().copied().ok_or(NoRoom)?;
        *self.chains.get_mut(usize::from(head)).ok_or(NoRoom)? = chain;
        let entry = usize::from(self.available % QUEUE_SIZE);
        let ring = self.base + 512;
        self.memory.store16(ring + 4 + 2 * entry, head);
        self.available = self.available.wrapping_add(1);
        self.memory.store16(ring + 2, self.available);
        Ok(head)
    }

    /// The token of an answered request.
    pub fn pop_used(&mut self) -> Option<u16> {
        let ring = self.base + 768;
        if self.memory.load16(ring + 2) == self.used {
            return None;
        }
        let entry = usize::from(self.used % QUEUE_SIZE);
        let head = self.memory.load32(ring + 4 + 8 * entry);
        self.used = self.used.wrapping_add(1);
        let head = u16::try_from(head).ok()?;
        let chain = core::mem::take(self.chains.get_mut(usize::from(head))?);
        self.free.extend(chain);
        Some(head)
    }

    /// Tells the device; whether it has answered something already.
    pub fn kick(&mut self) -> bool {
        if self.free.len() < self.size() {
            self.registers.notify(QueueIndex::new(self.index));
        }
        self.memory.load16(self.base + 768 + 2) != self.used
    }
}
