//! What the stand-ins share: the machine below the kernels, and a lock.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use balloon_core::{FrameCount, FrameRange, Pfn};
use transport_virtio::testing::{self, FakeDevice, FakeMemory, Profile};
use transport_virtio::{
    ConfigIo, Device, DeviceStatus, Features, Handshake, QueueId, QueueIndex, QueueRefused,
    RingAddresses, Rings,
};

/// A lock that never waits: in these kernels, on one CPU and with interrupts
/// off, waiting for a lock is a deadlock.
#[derive(Debug)]
pub struct Lock<T>(Mutex<T>);

impl<T> Lock<T> {
    /// Unlocked.
    pub const fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    /// Locks.
    ///
    /// # Panics
    /// If it is locked: the kernel hangs.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.try_lock().expect("a deadlock")
    }

    /// Locks unless it is locked.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.0.try_lock() {
            Ok(guard) => Some(guard),
            Err(std::sync::TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(std::sync::TryLockError::WouldBlock) => None,
        }
    }
}

/// The balloon device of the machine: registers on the kernel's side, the host
/// on the other.
#[derive(Clone, Debug)]
pub struct Registers(Arc<Mutex<FakeDevice>>);

impl Registers {
    /// A device like QEMU's, with or without free page reporting, and memory it
    /// can reach.
    #[must_use]
    pub fn plugged(reporting: bool) -> (Self, FakeMemory) {
        let mut features = Features::DEFLATE_ON_OOM;
        features.set(Features::PAGE_REPORTING, reporting);
        Self::with(features)
    }

    /// A device like QEMU's with these features, and memory it can reach.
    #[must_use]
    pub fn with(features: Features) -> (Self, FakeMemory) {
        let memory = FakeMemory::new(Rings::<Self, FakeMemory, 32>::DMA_BYTES);
        let profile = Profile::qemu(features);
        let device = FakeDevice::new(profile, memory.clone());
        (Self(Arc::new(Mutex::new(device))), memory)
    }

    fn device(&self) -> MutexGuard<'_, FakeDevice> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The host wants a balloon of this size.
    pub fn want(&self, frames: u32) {
        self.device().set_target(frames);
    }

    /// The size the guest published.
    #[must_use]
    pub fn actual(&self) -> u32 {
        self.device().actual()
    }

    /// What the guest says its free frames hold.
    #[must_use]
    pub fn poison(&self) -> u32 {
        self.device().poison()
    }

    /// The rules the guest has broken.
    #[must_use]
    pub fn broken(&self) -> Vec<&'static str> {
        let device = self.device();
        let violations = device.checker().violations().iter();
        violations.map(|violation| violation.rule).collect()
    }

    /// The host does what it was asked; how often it interrupted the guest so far.
    pub fn work(&self) -> u32 {
        let mut device = self.device();
        for queue in [QueueId::Inflate, QueueId::Deflate, QueueId::Reporting] {
            device.serve(queue);
        }
        device.interrupts()
    }

    /// Notifications the host got for a queue.
    #[must_use]
    pub fn notified(&self, queue: QueueId) -> u32 {
        self.device().notified(queue)
    }

    /// Status as the register reads.
    #[must_use]
    pub fn read_status(&self) -> DeviceStatus {
        self.device().status()
    }

    /// Features as the registers read.
    #[must_use]
    pub fn read_features(&self) -> Features {
        self.device().offered_features()
    }
}

impl ConfigIo for Registers {
    fn config_len(&self) -> usize {
        self.device().config_len()
    }

    fn read_config(&mut self, offset: u16) -> u32 {
        self.device().read_config(offset)
    }

    fn write_config(&mut self, offset: u16, value: u32) {
        self.device().write_config(offset, value);
    }

    fn generation(&mut self) -> u32 {
        self.device().generation()
    }

    fn status(&mut self) -> DeviceStatus {
        self.read_status()
    }
}

impl Device for Registers {
    fn max_queue_size(&mut self, queue: QueueIndex) -> u16 {
        self.device().max_queue_size(queue)
    }

    fn set_queue(
        &mut self,
        queue: QueueIndex,
        size: u16,
        at: RingAddresses,
    ) -> Result<(), QueueRefused> {
        self.device().set_queue(queue, size, at)
    }

    fn notify(&mut self, queue: QueueIndex) {
        self.device().notify(queue);
    }
}

impl Handshake for Registers {
    fn set_status(&mut self, status: DeviceStatus) {
        self.device().set_status(status);
    }

    fn offered_features(&mut self) -> Features {
        self.read_features()
    }

    fn accept_features(&mut self, accepted: Features) {
        self.device().accept_features(accepted);
    }
}

/// Which pages of a stretch of memory are in use.
#[derive(Debug)]
pub struct PageBits {
    first: u64,
    used: Vec<bool>,
    /// None before this one is free.
    from: usize,
}

impl PageBits {
    /// `pages` from `first`, none in use.
    #[must_use]
    pub fn new(first: u64, pages: usize) -> Self {
        Self {
            first,
            used: vec![false; pages],
            from: 0,
        }
    }

    /// The lowest `count` free pages in a row whose first is a multiple of
    /// `align`.
    pub fn take(&mut self, count: usize, align: u64) -> Option<u64> {
        let fits = |at: &usize| {
            let aligned = (self.first + *at as u64).is_multiple_of(align);
            let run = self.used.get(*at..*at + count);
            aligned && run.is_some_and(|run| run.iter().all(|used| !used))
        };
        let at = (self.from..self.used.len()).find(fits)?;
        self.used.get_mut(at..at + count)?.fill(true);
        if at == self.from {
            self.from += count;
        }
        Some(self.first + at as u64)
    }

    /// Frees pages; false if one of them is not in use.
    pub fn free(&mut self, first: u64, count: usize) -> bool {
        let at = first.checked_sub(self.first).map(usize::try_from);
        let Some(Ok(at)) = at else { return false };
        match self.used.get_mut(at..at + count) {
            Some(run) if run.iter().all(|used| *used) => {
                run.fill(false);
                self.from = self.from.min(at);
                true
            }
            _ => false,
        }
    }

    /// Pages that are free.
    #[must_use]
    pub fn left(&self) -> usize {
        self.used.iter().filter(|used| !**used).count()
    }

    /// All of it.
    #[must_use]
    pub fn memory(&self) -> FrameRange {
        let count = FrameCount::new(self.used.len() as u64);
        FrameRange::new(Pfn::new(self.first), count).expect("a machine has memory")
    }
}

/// No wait in a fake.
pub use testing::NoDelay;
