//! Any transport of the `virtio-drivers` crate, version 0.13, as registers.
//!
//! Short enough to copy for a kernel that carries a fork of another version. The
//! rings stay ours: those of that crate take slices, and free memory must be
//! neither mapped nor borrowed.

use virtio_drivers_0_13::transport::{DeviceStatus as Status, Transport};

use crate::protocol::{ConfigIo, Features, QueueIndex};
use crate::{Device, DeviceStatus, Handshake, QueueRefused, RingAddresses};

/// Registers behind a `virtio-drivers` transport.
#[derive(Debug)]
pub struct Adapter<T>(pub T);

impl<T: Transport> ConfigIo for Adapter<T> {
    fn config_len(&self) -> usize {
        let word = |at: &usize| self.0.read_config_space::<u32>(at * 4).is_ok();
        (0..4).take_while(word).count() * 4
    }

    fn read_config(&mut self, offset: u16) -> u32 {
        let word = self.0.read_config_space::<u32>(offset.into());
        u32::from_le(word.unwrap_or(u32::MAX))
    }

    fn write_config(&mut self, offset: u16, value: u32) {
        // Nothing but a field that does not exist fails.
        let _ = self.0.write_config_space(offset.into(), value.to_le());
    }

    fn generation(&mut self) -> u32 {
        self.0.read_config_generation()
    }
}

impl<T: Transport> Device for Adapter<T> {
    fn max_queue_size(&mut self, queue: QueueIndex) -> u16 {
        let max = self.0.max_queue_size(queue.get());
        u16::try_from(max).unwrap_or(1 << 15)
    }

    fn set_queue(
        &mut self,
        queue: QueueIndex,
        size: u16,
        at: RingAddresses,
    ) -> Result<(), QueueRefused> {
        let (queue, size) = (queue.get(), size.into());
        self.0
            .queue_set(queue, size, at.descriptors, at.driver, at.device);
        self.0.queue_used(queue).then_some(()).ok_or(QueueRefused)
    }

    fn notify(&mut self, queue: QueueIndex) {
        self.0.notify(queue.get());
    }
}

impl<T: Transport> Handshake for Adapter<T> {
    fn status(&mut self) -> DeviceStatus {
        let status = self.0.get_status().bits();
        DeviceStatus::from_bits_retain(u8::try_from(status).unwrap_or(u8::MAX))
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.0
            .set_status(Status::from_bits_retain(status.bits().into()));
    }

    fn offered_features(&mut self) -> Features {
        Features::from_bits_retain(self.0.read_device_features())
    }

    fn accept_features(&mut self, accepted: Features) {
        self.0.write_driver_features(accepted.bits());
    }
}
