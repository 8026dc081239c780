//! Plug level 2: the kernel brings registers.
//!
//! [`Device`] is what queues need, [`Handshake`] what bringing a device up
//! needs on top. Both are safe to implement; [`MappedPci`](crate::MappedPci) is
//! ready-made.

use core::fmt;

use crate::protocol::config::ConfigIo;
use crate::protocol::features::Features;
use crate::protocol::numbering::QueueIndex;
use crate::protocol::status::DeviceStatus;

/// Device addresses of a queue's three areas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingAddresses {
    /// The descriptor table.
    pub descriptors: u64,
    /// The available ring.
    #[doc(alias = "avail")]
    pub driver: u64,
    /// The used ring.
    #[doc(alias = "used")]
    pub device: u64,
}

/// The device did not take a queue's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct QueueRefused;

impl fmt::Display for QueueRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the device refused a queue")
    }
}

impl core::error::Error for QueueRefused {}

/// The registers of a running device.
pub trait Device: ConfigIo {
    /// The greatest size of a queue, 0 if there is none or it is in use.
    fn max_queue_size(&mut self, queue: QueueIndex) -> u16;

    /// Enables a queue of `size` descriptors.
    ///
    /// # Errors
    /// If the device does not take it.
    fn set_queue(
        &mut self,
        queue: QueueIndex,
        size: u16,
        at: RingAddresses,
    ) -> Result<(), QueueRefused>;

    /// Tells the device that a queue has new requests.
    ///
    /// Writes to memory before the call are seen by the device after it.
    #[doc(alias = "doorbell")]
    fn notify(&mut self, queue: QueueIndex);
}

/// The registers of feature negotiation and status.
///
/// The status is read through [`ConfigIo::status`], which has to be implemented here:
/// the end of a reset shows there.
pub trait Handshake: Device {
    /// Writes the status; the empty one resets the device.
    fn set_status(&mut self, status: DeviceStatus);

    /// Reads all 64 feature bits the device offers.
    fn offered_features(&mut self) -> Features;

    /// Writes all 64 feature bits the driver accepts.
    fn accept_features(&mut self, accepted: Features);
}
