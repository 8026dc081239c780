//! Stand-in of the kernel: page allocator by virtual address, registers by the
//! layer every driver of it uses, a heap that grows by contiguous pages.

use balloon_core::{FrameRange, Nanos};
use transport_virtio::testing::FakeMemory;
use transport_virtio::{
    ConfigIo, Device, DeviceStatus, Features, Handshake, QueueIndex, RingAddresses,
};

use crate::machine::{Lock, PageBits, Registers};

/// Memory shared with devices.
pub type DmaMemory = FakeMemory;

const PAGES: usize = 2048;
const FIRST: u64 = 0x8_0000;
const LINEAR_MAP: usize = 0xffff_0000_0000_0000;

/// All pages, by number.
static PAGE_ALLOCATOR: Lock<Option<PageBits>> = Lock::new(None);
/// Pages of the byte heap; its lock is held while it grows.
static HEAP: Lock<Vec<usize>> = Lock::new(Vec::new());
static CLOCK: Lock<Nanos> = Lock::new(Nanos::ZERO);
static OUT_OF_PAGES: Lock<Option<fn(usize) -> Option<()>>> = Lock::new(None);

fn pages<R>(f: impl FnOnce(&mut PageBits) -> R) -> R {
    f(PAGE_ALLOCATOR
        .lock()
        .get_or_insert_with(|| PageBits::new(FIRST, PAGES)))
}

/// The memory the page allocator has.
#[must_use]
pub fn memory() -> FrameRange {
    pages(|pages| pages.memory())
}

/// Pages that are free.
#[must_use]
pub fn free_pages() -> usize {
    pages(|pages| pages.left())
}

/// Allocates pages in a row: their address in the linear map.
#[must_use]
pub fn alloc_pages(count: usize, align: u64) -> Option<usize> {
    let page = pages(|pages| pages.take(count, align))?;
    Some(phys_to_virt(page * 4096))
}

/// Frees pages; those that are not allocated are ignored.
pub fn dealloc_pages(address: usize, count: usize) {
    pages(|pages| pages.free(virt_to_phys(address) / 4096, count));
}

/// From the linear map to the device's view.
#[must_use]
pub const fn virt_to_phys(address: usize) -> u64 {
    (address - LINEAR_MAP) as u64
}

/// Into the linear map.
#[must_use]
pub fn phys_to_virt(address: u64) -> usize {
    usize::try_from(address).map_or(0, |address| address + LINEAR_MAP)
}

/// Calls this when pages run out: with the heap's lock held, not the page
/// allocator's. Something if it is worth another try.
pub fn on_out_of_pages(hook: fn(usize) -> Option<()>) {
    *OUT_OF_PAGES.lock() = Some(hook);
}

/// Grows the byte heap; pages it gets are never given back.
pub fn grow_heap(count: usize) -> bool {
    let mut heap = HEAP.lock();
    let hook = *OUT_OF_PAGES.lock();
    let more = alloc_pages(count, 1).or_else(|| {
        hook.and_then(|hook| hook(count))?;
        alloc_pages(count, 1)
    });
    heap.extend(more.map(|_| count));
    more.is_some()
}

/// Time since the start.
#[must_use]
pub fn now() -> Nanos {
    *CLOCK.lock()
}

/// Runs a worker until it asks to sleep, then sleeps.
///
/// # Panics
/// If it does not.
pub fn schedule(worker: fn() -> Option<Nanos>) {
    let until = worker().expect("a worker with a balloon");
    let mut clock = CLOCK.lock();
    assert!(until > *clock, "a worker that does not sleep");
    *clock = until;
}

/// A device's registers, as the kernel's drivers see them.
#[derive(Debug)]
pub struct VirtioTransport(pub Registers);

impl VirtioTransport {
    /// Resets the device and negotiates; what both sides agreed on.
    pub fn begin_init(&mut self, supported: u64) -> u64 {
        let begun = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
        self.0.set_status(DeviceStatus::empty());
        self.0.set_status(DeviceStatus::ACKNOWLEDGE);
        self.0.set_status(begun);
        let agreed = supported & self.read_device_features();
        self.0.accept_features(Features::from_bits_retain(agreed));
        self.0.set_status(begun | DeviceStatus::FEATURES_OK);
        agreed
    }

    /// Switches the device on.
    pub fn finish_init(&mut self) {
        let status = self.0.status() | DeviceStatus::DRIVER_OK;
        self.0.set_status(status);
    }

    /// What the device can do.
    pub fn read_device_features(&mut self) -> u64 {
        self.0.offered_features().bits()
    }

    /// Entries a queue can have.
    pub fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.0.max_queue_size(QueueIndex::new(queue)).into()
    }

    /// Gives the device a queue: table, available ring, used ring.
    pub fn queue_set(&mut self, queue: u16, size: u32, [table, available, used]: [u64; 3]) {
        let at = RingAddresses {
            descriptors: table,
            driver: available,
            device: used,
        };
        let size = u16::try_from(size).unwrap_or(0);
        let set = self.0.set_queue(QueueIndex::new(queue), size, at);
        assert!(set.is_ok(), "the device refuses queue {queue}");
    }

    /// Rings the doorbell.
    pub fn notify(&mut self, queue: u16) {
        self.0.notify(QueueIndex::new(queue));
    }

    /// Bytes of the device's configuration.
    #[must_use]
    pub fn config_space_size(&self) -> usize {
        self.0.config_len()
    }

    /// Reads the device's configuration.
    pub fn read_config_space(&mut self, offset: usize) -> u32 {
        u16::try_from(offset).map_or(0, |offset| self.0.read_config(offset))
    }

    /// Writes the device's configuration.
    pub fn write_config_space(&mut self, offset: usize, value: u32) {
        if let Ok(offset) = u16::try_from(offset) {
            self.0.write_config(offset, value);
        }
    }

    /// Changes with the configuration.
    pub fn read_config_generation(&mut self) -> u32 {
        self.0.generation()
    }
}
