//! What driver and device see of each other beside memory: registers, kicks and
//! interrupts.
//!
//! The driver's thread does not wait for the device's: registers are atomics, a
//! kick is a write to an eventfd, and so is an interrupt. But a reset waits for the
//! turn under way: behind it the memory is the driver's alone.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use balloon_core::Signal;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use transport_virtio::protocol::{NUM_PAGES, POISON_VALUE};
use transport_virtio::{
    ConfigIo, Device, DeviceStatus, Features, Handshake, QueueId, QueueIndex, QueueRefused,
    RingAddresses,
};

/// An eventfd.
#[derive(Debug)]
pub struct Event(OwnedFd);

impl Event {
    /// One that is not set.
    ///
    /// # Errors
    /// If the host has none left.
    pub fn new() -> Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self(rustix::event::eventfd(0, flags)?))
    }

    /// Sets it.
    pub fn set(&self) {
        // Full means set.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Waits until it is set, clears it; without a limit for ever.
    pub fn wait(&self, limit: Option<Duration>) {
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        let _ = rustix::event::poll(&mut fds, limit.as_ref());
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsRawFd for Event {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// A queue as the driver has set it up.
#[derive(Clone, Copy, Debug)]
pub struct QueueSetup {
    /// Descriptors.
    pub size: u16,
    /// Where its parts are.
    pub at: RingAddresses,
}

/// The most descriptors a queue may have.
pub const QUEUE_SIZE: u16 = 128;

/// Registers of a device, and the two lines between it and its driver.
#[derive(Debug)]
pub struct Front {
    offered: Features,
    accepted: AtomicU64,
    status: AtomicU8,
    /// Counted, since a driver may be back before the device looks.
    resets: Mutex<u64>,
    config: [AtomicU32; 4],
    generation: AtomicU32,
    queues: Mutex<[Option<QueueSetup>; QueueId::COUNT]>,
    /// Set by the driver's kicks and by whoever wants the device's attention.
    pub kick: Event,
    /// Set by the device's interrupts.
    pub interrupt: Event,
    signal: &'static Signal,
    interrupts: AtomicU64,
    kicks: AtomicU64,
}

impl Front {
    /// A device that offers these features, to a driver with this signal.
    ///
    /// # Errors
    /// If the host has no eventfd left.
    pub fn new(offered: Features, signal: &'static Signal) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            offered,
            accepted: AtomicU64::new(0),
            status: AtomicU8::new(0),
            resets: Mutex::new(0),
            config: [const { AtomicU32::new(0) }; 4],
            generation: AtomicU32::new(0),
            queues: Mutex::new([None; QueueId::COUNT]),
            kick: Event::new()?,
            interrupt: Event::new()?,
            signal,
            interrupts: AtomicU64::new(0),
            kicks: AtomicU64::new(0),
        }))
    }

    /// Whether the driver has started the device.
    #[must_use]
    pub fn running(&self) -> bool {
        let status = self.status.load(Ordering::Acquire);
        status & DeviceStatus::DRIVER_OK.bits() != 0
    }

    /// Resets so far; further ones wait until this is dropped.
    pub(crate) fn resets(&self) -> MutexGuard<'_, u64> {
        self.resets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the driver accepted.
    #[must_use]
    pub fn accepted(&self) -> Features {
        Features::from_bits_retain(self.accepted.load(Ordering::Acquire))
    }

    /// The queues the driver has set up, by number.
    #[must_use]
    pub fn queues(&self) -> [Option<QueueSetup>; QueueId::COUNT] {
        *self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A word of the configuration space.
    #[must_use]
    pub fn config(&self, offset: u16) -> u32 {
        let word = self.config.get(usize::from(offset / 4));
        word.map_or(u32::MAX, |word| word.load(Ordering::Acquire))
    }

    /// Changes a word of the configuration space and says so.
    pub fn set_config(&self, offset: u16, value: u32) {
        if let Some(word) = self.config.get(usize::from(offset / 4)) {
            word.store(value, Ordering::Release);
            self.generation.fetch_add(1, Ordering::AcqRel);
            self.signal.config_changed();
            self.interrupt.set();
        }
    }

    /// Tells the driver of answers.
    pub fn used(&self) {
        self.interrupts.fetch_add(1, Ordering::Relaxed);
        self.signal.used();
        self.interrupt.set();
    }

    /// Interrupts for answers so far.
    #[must_use]
    pub fn interrupts(&self) -> u64 {
        self.interrupts.load(Ordering::Relaxed)
    }

    fn reset(&self) {
        let mut resets = self.resets();
        *resets += 1;
        self.status.store(0, Ordering::Release);
        *self.queues.lock().unwrap_or_else(PoisonError::into_inner) = [None; QueueId::COUNT];
        if let Some(word) = self.config.get(usize::from(POISON_VALUE / 4)) {
            word.store(0, Ordering::Release);
        }
        self.kick.set();
    }

    /// Kicks so far.
    #[must_use]
    pub fn kicks(&self) -> u64 {
        self.kicks.load(Ordering::Relaxed)
    }

    /// The target, in frames.
    #[must_use]
    pub fn target(&self) -> u32 {
        self.config(NUM_PAGES)
    }
}

/// The driver's end of a [`Front`].
#[derive(Clone, Debug)]
pub struct Registers(pub Arc<Front>);

impl ConfigIo for Registers {
    fn config_len(&self) -> usize {
        usize::from(POISON_VALUE) + 4
    }

    fn read_config(&mut self, offset: u16) -> u32 {
        self.0.config(offset)
    }

    fn write_config(&mut self, offset: u16, value: u32) {
        if let Some(word) = self.0.config.get(usize::from(offset / 4)) {
            word.store(value, Ordering::Release);
        }
    }

    fn generation(&mut self) -> u32 {
        self.0.generation.load(Ordering::Acquire)
    }

    fn status(&mut self) -> DeviceStatus {
        DeviceStatus::from_bits_retain(self.0.status.load(Ordering::Acquire))
    }
}

impl Device for Registers {
    fn max_queue_size(&mut self, queue: QueueIndex) -> u16 {
        let known = usize::from(queue.get()) < QueueId::COUNT;
        if known { QUEUE_SIZE } else { 0 }
    }

    fn set_queue(
        &mut self,
        queue: QueueIndex,
        size: u16,
        at: RingAddresses,
    ) -> Result<(), QueueRefused> {
        let mut queues = self.0.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let place = queues.get_mut(usize::from(queue.get()));
        *place.ok_or(QueueRefused)? = Some(QueueSetup { size, at });
        Ok(())
    }

    fn notify(&mut self, _: QueueIndex) {
        self.0.kicks.fetch_add(1, Ordering::Relaxed);
        self.0.kick.set();
    }
}

impl Handshake for Registers {
    fn set_status(&mut self, mut status: DeviceStatus) {
        if status.is_empty() {
            return self.0.reset();
        }
        // Bits it does not have, and a driver that would not tell: a device need not
        // take either.
        let (offered, accepted) = (self.0.offered, self.0.accepted());
        let declined = offered.difference(accepted);
        if !offered.contains(accepted) || declined.contains(Features::MUST_TELL_HOST) {
            status.remove(DeviceStatus::FEATURES_OK);
        }
        self.0.status.store(status.bits(), Ordering::Release);
        self.0.kick.set();
    }

    fn offered_features(&mut self) -> Features {
        self.0.offered
    }

    fn accept_features(&mut self, accepted: Features) {
        self.0.accepted.store(accepted.bits(), Ordering::Release);
    }
}
