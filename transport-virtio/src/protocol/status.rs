//! The device status field.

use bitflags::bitflags;

bitflags! {
    /// The device status field (virtio 1.2 section 2.1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct DeviceStatus: u8 {
        /// The guest has noticed the device.
        const ACKNOWLEDGE = 1;
        /// The guest has a driver for it.
        const DRIVER = 2;
        /// The driver is set up.
        const DRIVER_OK = 4;
        /// Feature negotiation is complete.
        const FEATURES_OK = 8;
        /// The device has failed and wants a reset.
        const NEEDS_RESET = 64;
        /// The driver has given up.
        const FAILED = 128;

        const _ = !0;
    }
}

impl DeviceStatus {
    /// What an empty place reads as: ones on a bus, zeros on QEMU's.
    ///
    /// A device that runs shows more than nothing and less than everything.
    pub(crate) const fn is_of_nobody(self) -> bool {
        const NAMED: u8 = 0xcf;
        self.is_empty() || self.bits() & NAMED == NAMED
    }
}
