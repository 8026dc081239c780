//! Any transport of the `virtio-drivers` crate, version 0.13, as registers.
//!
//! Short enough to copy for a kernel that carries a fork of another version: the
//! lines from [`Adapter`] on. The rings stay ours: those of that crate take
//! slices, and free memory must be neither mapped nor borrowed.

use virtio_drivers_0_13::transport::{DeviceStatus as Bits, Transport};

use crate::protocol::config::ConfigIo;
use crate::protocol::features::Features;
use crate::protocol::numbering::QueueIndex;
use crate::{Device, DeviceStatus, Handshake, QueueRefused, RingAddresses};

/// Registers behind a `virtio-drivers` transport.
#[derive(Debug)]
pub struct Adapter<T>(pub T);
impl<T: Transport> ConfigIo for Adapter<T> {
    fn read_config(&mut self, offset: u16) -> u32 {
        (self.0.read_config_space(offset.into())).map_or(u32::MAX, u32::from_le)
    }
    fn write_config(&mut self, offset: u16, value: u32) {
        let _no_such_field = self.0.write_config_space(offset.into(), value.to_le());
    }
    fn generation(&mut self) -> u32 {
        self.0.read_config_generation()
    }
    fn status(&mut self) -> DeviceStatus {
        DeviceStatus::from_bits_truncate(self.0.get_status().bits().to_le_bytes()[0])
    }
}
impl<T: Transport> Device for Adapter<T> {
    fn max_queue_size(&mut self, q: QueueIndex) -> u16 {
        u16::try_from(self.0.max_queue_size(q.get())).unwrap_or(1 << 15)
    }
    fn set_queue(&mut self, q: QueueIndex, n: u16, at: RingAddresses) -> Result<(), QueueRefused> {
        (self.0).queue_set(q.get(), n.into(), at.descriptors, at.driver, at.device);
        self.0.queue_used(q.get()).then_some(()).ok_or(QueueRefused)
    }
    fn notify(&mut self, q: QueueIndex) {
        self.0.notify(q.get());
    }
}
impl<T: Transport> Handshake for Adapter<T> {
    fn set_status(&mut self, status: DeviceStatus) {
        (self.0).set_status(Bits::from_bits_retain(status.bits().into()));
    }
    fn offered_features(&mut self) -> Features {
        Features::from_bits_retain(self.0.read_device_features())
    }
    fn accept_features(&mut self, accepted: Features) {
        self.0.write_driver_features(accepted.bits());
    }
}
