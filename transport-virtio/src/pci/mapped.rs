//! The registers of a modern PCI device, mapped by the kernel.

use crate::device::{Device, Handshake, QueueRefused, RingAddresses};
use crate::mmio::MmioWindow;
use crate::protocol::config::ConfigIo;
use crate::protocol::features::Features;
use crate::protocol::numbering::QueueIndex;
use crate::protocol::status::DeviceStatus;

// Offsets in the common structure.
const DEVICE_FEATURE_SELECT: usize = 0;
const DEVICE_FEATURE: usize = 4;
const DRIVER_FEATURE_SELECT: usize = 8;
const DRIVER_FEATURE: usize = 12;
const CONFIG_VECTOR: usize = 16;
const NUM_QUEUES: usize = 18;
const DEVICE_STATUS: usize = 20;
const CONFIG_GENERATION: usize = 21;
const QUEUE_SELECT: usize = 22;
const QUEUE_SIZE: usize = 24;
const QUEUE_VECTOR: usize = 26;
const QUEUE_ENABLE: usize = 28;
const QUEUE_NOTIFY_OFF: usize = 30;
const QUEUE_DESCRIPTORS: usize = 32;
const QUEUE_DRIVER: usize = 40;
const QUEUE_DEVICE: usize = 48;

const NO_VECTOR: u16 = 0xffff;
/// Queues a balloon can have, known and private ones.
const MAX_QUEUES: usize = 8;

/// Entries of the MSI-X table the device is to use.
///
/// The kernel programs and enables the table; vectors may be equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vectors {
    /// For configuration changes.
    pub config: u16,
    /// For all queues.
    pub queues: u16,
}

/// A modern virtio PCI device whose register structures are mapped.
#[derive(Debug)]
pub struct MappedPci {
    common: MmioWindow,
    notify: MmioWindow,
    notify_multiplier: u32,
    device: MmioWindow,
    vectors: Option<Vectors>,
    /// Where each queue is notified, in bytes of the notify window.
    notify_at: [Option<usize>; MAX_QUEUES],
}

impl MappedPci {
    /// A device with these structures, found by
    /// [`PciLayout`](crate::pci::PciLayout) or by the kernel's own PCI code.
    #[must_use]
    pub const fn new(
        common: MmioWindow,
        notify: MmioWindow,
        notify_multiplier: u32,
        device: MmioWindow,
    ) -> Self {
        let notify_at = [None; MAX_QUEUES];
        Self {
            common,
            notify,
            notify_multiplier,
            device,
            vectors: None,
            notify_at,
        }
    }

    /// Uses MSI-X instead of the INTx line.
    #[must_use]
    pub const fn with_vectors(mut self, vectors: Vectors) -> Self {
        self.vectors = Some(vectors);
        self
    }

    fn select(&self, queue: QueueIndex) {
        self.common.write16(QUEUE_SELECT, queue.get());
    }

    /// Where the selected queue is notified, if a half-word of the window is there.
    fn notify_offset(&self) -> Option<usize> {
        let off = u32::from(self.common.read16(QUEUE_NOTIFY_OFF));
        let at = usize::try_from(off.checked_mul(self.notify_multiplier)?).ok()?;
        (at.is_multiple_of(2) && at.checked_add(2)? <= self.notify.len()).then_some(at)
    }
}

impl ConfigIo for MappedPci {
    fn config_len(&self) -> usize {
        self.device.len()
    }

    fn read_config(&mut self, offset: u16) -> u32 {
        self.device.read32(offset.into())
    }

    fn write_config(&mut self, offset: u16, value: u32) {
        self.device.write32(offset.into(), value);
    }

    fn generation(&mut self) -> u32 {
        self.common.read8(CONFIG_GENERATION).into()
    }

    fn status(&mut self) -> DeviceStatus {
        DeviceStatus::from_bits_retain(self.common.read8(DEVICE_STATUS))
    }
}

impl Device for MappedPci {
    fn max_queue_size(&mut self, queue: QueueIndex) -> u16 {
        if queue.get() >= self.common.read16(NUM_QUEUES) || usize::from(queue.get()) >= MAX_QUEUES {
            return 0;
        }
        self.select(queue);
        self.common.read16(QUEUE_SIZE)
    }

    fn set_queue(
        &mut self,
        queue: QueueIndex,
        size: u16,
        at: RingAddresses,
    ) -> Result<(), QueueRefused> {
        self.select(queue);
        self.common.write16(QUEUE_SIZE, size);
        if let Some(vectors) = self.vectors {
            self.common.write16(CONFIG_VECTOR, vectors.config);
            self.common.write16(QUEUE_VECTOR, vectors.queues);
            // A device without room for a vector answers with none.
            if self.common.read16(CONFIG_VECTOR) == NO_VECTOR
                || self.common.read16(QUEUE_VECTOR) == NO_VECTOR
            {
                return Err(QueueRefused);
            }
        }
        self.common.write64(QUEUE_DESCRIPTORS, at.descriptors);
        self.common.write64(QUEUE_DRIVER, at.driver);
        self.common.write64(QUEUE_DEVICE, at.device);
        let notify_at = self.notify_offset().ok_or(QueueRefused)?;
        *self
            .notify_at
            .get_mut(usize::from(queue.get()))
            .ok_or(QueueRefused)? = Some(notify_at);
        self.common.write16(QUEUE_ENABLE, 1);
        if self.common.read16(QUEUE_ENABLE) == 1 {
            Ok(())
        } else {
            Err(QueueRefused)
        }
    }

    fn notify(&mut self, queue: QueueIndex) {
        if let Some(&Some(at)) = self.notify_at.get(usize::from(queue.get())) {
            self.notify.write16(at, queue.get());
        }
    }
}

impl Handshake for MappedPci {
    fn set_status(&mut self, status: DeviceStatus) {
        self.common.write8(DEVICE_STATUS, status.bits());
    }

    fn offered_features(&mut self) -> Features {
        let common = &self.common;
        Features::from_bits_retain(common.read_selected(DEVICE_FEATURE_SELECT, DEVICE_FEATURE))
    }

    fn accept_features(&mut self, accepted: Features) {
        let bits = accepted.bits();
        self.common
            .write_selected(DRIVER_FEATURE_SELECT, DRIVER_FEATURE, bits);
    }
}

#[cfg(test)]
mod tests;
