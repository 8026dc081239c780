//! Virtio over MMIO, version 2 (virtio 1.2 section 4.2).
//!
//! The device trees of small machine models name these devices: a window of
//! registers and an interrupt each. QEMU offers version 1 unless told
//! `-global virtio-mmio.force-legacy=false`; that version is not driven.

use core::fmt;

use crate::device::{Device, Handshake, QueueRefused, RingAddresses};
use crate::mmio::MmioWindow;
use crate::protocol::config::ConfigIo;
use crate::protocol::features::Features;
use crate::protocol::numbering::QueueIndex;
use crate::protocol::status::DeviceStatus;

const MAGIC: usize = 0x000;
const VERSION: usize = 0x004;
const DEVICE_ID: usize = 0x008;
const DEVICE_FEATURES: usize = 0x010;
const DEVICE_FEATURES_SELECT: usize = 0x014;
const DRIVER_FEATURES: usize = 0x020;
const DRIVER_FEATURES_SELECT: usize = 0x024;
const QUEUE_SELECT: usize = 0x030;
const QUEUE_SIZE_MAX: usize = 0x034;
const QUEUE_SIZE: usize = 0x038;
const QUEUE_READY: usize = 0x044;
const QUEUE_NOTIFY: usize = 0x050;
pub(crate) const INTERRUPT_STATUS: usize = 0x060;
pub(crate) const INTERRUPT_ACK: usize = 0x064;
const STATUS: usize = 0x070;
const QUEUE_DESCRIPTORS: usize = 0x080;
const QUEUE_DRIVER: usize = 0x090;
const QUEUE_DEVICE: usize = 0x0a0;
const CONFIG_GENERATION: usize = 0x0fc;
const CONFIG: usize = 0x100;

const MAGIC_VALUE: u32 = u32::from_le_bytes(*b"virt");
const BALLOON: u32 = 5;

/// A register window is not that of a balloon we can drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MmioError {
    /// No virtio device at all.
    NotVirtio,
    /// A version of the interface other than 2.
    Version(u32),
    /// Another type of device; 0 for an empty place.
    NotABalloon(u32),
}

impl fmt::Display for MmioError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotVirtio => f.write_str("no virtio device"),
            Self::Version(version) => write!(f, "virtio-mmio version {version}"),
            Self::NotABalloon(device) => write!(f, "virtio device type {device}"),
        }
    }
}

impl core::error::Error for MmioError {}

/// A virtio-mmio device whose registers are mapped.
///
/// Its interrupt is served through
/// [`InterruptStatus::mmio`](crate::pci::InterruptStatus::mmio).
#[derive(Debug)]
pub struct MappedMmio {
    registers: MmioWindow,
}

impl MappedMmio {
    /// The balloon behind these registers.
    ///
    /// # Errors
    /// If there is none; the window is left alone.
    pub fn new(registers: MmioWindow) -> Result<Self, MmioError> {
        if registers.read32(MAGIC) != MAGIC_VALUE {
            return Err(MmioError::NotVirtio);
        }
        match (registers.read32(VERSION), registers.read32(DEVICE_ID)) {
            (2, BALLOON) => Ok(Self { registers }),
            (2, device) => Err(MmioError::NotABalloon(device)),
            (version, _) => Err(MmioError::Version(version)),
        }
    }

    fn select(&self, queue: QueueIndex) {
        self.registers.write32(QUEUE_SELECT, queue.get().into());
    }
}

impl ConfigIo for MappedMmio {
    fn config_len(&self) -> usize {
        self.registers.len().saturating_sub(CONFIG)
    }

    fn read_config(&mut self, offset: u16) -> u32 {
        self.registers.read32(CONFIG + usize::from(offset))
    }

    fn write_config(&mut self, offset: u16, value: u32) {
        self.registers.write32(CONFIG + usize::from(offset), value);
    }

    fn generation(&mut self) -> u32 {
        self.registers.read32(CONFIG_GENERATION)
    }

    fn status(&mut self) -> DeviceStatus {
        // A place without a device reads as all ones, which is no status.
        let status = self.registers.read32(STATUS);
        DeviceStatus::from_bits_retain(u8::try_from(status).unwrap_or(u8::MAX))
    }
}

impl Device for MappedMmio {
    fn max_queue_size(&mut self, queue: QueueIndex) -> u16 {
        self.select(queue);
        if self.registers.read32(QUEUE_READY) != 0 {
            return 0;
        }
        let max = self.registers.read32(QUEUE_SIZE_MAX);
        u16::try_from(max).unwrap_or(1 << 15)
    }

    fn set_queue(
        &mut self,
        queue: QueueIndex,
        size: u16,
        at: RingAddresses,
    ) -> Result<(), QueueRefused> {
        self.select(queue);
        self.registers.write32(QUEUE_SIZE, size.into());
        self.registers.write64(QUEUE_DESCRIPTORS, at.descriptors);
        self.registers.write64(QUEUE_DRIVER, at.driver);
        self.registers.write64(QUEUE_DEVICE, at.device);
        self.registers.write32(QUEUE_READY, 1);
        if self.registers.read32(QUEUE_READY) == 1 {
            Ok(())
        } else {
            Err(QueueRefused)
        }
    }

    fn notify(&mut self, queue: QueueIndex) {
        self.registers.write32(QUEUE_NOTIFY, queue.get().into());
    }
}

impl Handshake for MappedMmio {
    fn set_status(&mut self, status: DeviceStatus) {
        self.registers.write32(STATUS, status.bits().into());
    }

    fn offered_features(&mut self) -> Features {
        let registers = &self.registers;
        Features::from_bits_retain(registers.read_selected(DEVICE_FEATURES_SELECT, DEVICE_FEATURES))
    }

    fn accept_features(&mut self, accepted: Features) {
        let bits = accepted.bits();
        self.registers
            .write_selected(DRIVER_FEATURES_SELECT, DRIVER_FEATURES, bits);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use core::ptr::NonNull;

    /// Registers that remember: memory without a device behind it.
    fn registers(bytes: usize) -> Vec<u32> {
        let mut registers = alloc::vec![0; bytes / 4];
        registers[MAGIC / 4] = 0x7472_6976;
        registers[VERSION / 4] = 2;
        registers[DEVICE_ID / 4] = 5;
        registers[QUEUE_SIZE_MAX / 4] = 1024;
        registers
    }

    fn window(registers: &mut [u32]) -> MmioWindow {
        let base = NonNull::new(registers.as_mut_ptr()).unwrap().cast();
        // SAFETY: the memory outlives the window in every test and is read only
        // after the driver's last access.
        unsafe { MmioWindow::new(base, registers.len() * 4) }
    }

    #[test]
    fn only_a_version_2_balloon_is_one() {
        let refused = |offset: usize, value| {
            let mut registers = registers(0x110);
            registers[offset / 4] = value;
            MappedMmio::new(window(&mut registers))
                .map(drop)
                .unwrap_err()
        };
        assert_eq!(refused(MAGIC, 0), MmioError::NotVirtio);
        assert_eq!(refused(VERSION, 1), MmioError::Version(1));
        assert_eq!(refused(DEVICE_ID, 0), MmioError::NotABalloon(0));
        assert_eq!(refused(DEVICE_ID, 13), MmioError::NotABalloon(13));
        assert!(MappedMmio::new(window(&mut registers(0x110))).is_ok());
    }

    #[test]
    fn queues_are_set_up_where_the_interface_has_them() {
        let mut memory = registers(0x110);
        let mut device = MappedMmio::new(window(&mut memory)).unwrap();
        assert_eq!(device.max_queue_size(QueueIndex::new(3)), 1024);
        let at = RingAddresses {
            descriptors: 0x1_0000_1000,
            driver: 0x2_0000_2000,
            device: 0x3_0000_3000,
        };
        device.set_queue(QueueIndex::new(3), 64, at).unwrap();
        // In use: not to be taken again.
        assert_eq!(device.max_queue_size(QueueIndex::new(3)), 0);
        device.notify(QueueIndex::new(3));
        device.write_config(4, 77);
        device.set_status(DeviceStatus::FAILED);
        assert_eq!((device.config_len(), device.read_config(4)), (16, 77));
        let word = |offset: usize| memory[offset / 4];
        assert_eq!(
            (word(0x030), word(0x038), word(0x044), word(0x050)),
            (3, 64, 1, 3)
        );
        assert_eq!((word(0x080), word(0x084)), (0x1000, 1));
        assert_eq!((word(0x090), word(0x094)), (0x2000, 2));
        assert_eq!((word(0x0a0), word(0x0a4)), (0x3000, 3));
        assert_eq!((word(0x104), word(0x070)), (77, 128));
    }

    #[test]
    fn the_interrupt_is_acknowledged_with_what_was_read() {
        let mut memory = registers(0x110);
        memory[INTERRUPT_STATUS / 4] = 3;
        let shared = balloon_core::Shared::<1>::new();
        let status = crate::pci::InterruptStatus::mmio(window(&mut memory));
        assert!(status.handle(shared.signal()));
        assert!(shared.signal().is_set());
        assert_eq!(memory[INTERRUPT_ACK / 4], 3);
        // Pulled out: the line is somebody else's.
        let shared = balloon_core::Shared::<1>::new();
        for ones in [u32::MAX, 0xff] {
            memory[INTERRUPT_STATUS / 4] = ones;
            let status = crate::pci::InterruptStatus::mmio(window(&mut memory));
            assert!(!status.handle(shared.signal()) && !shared.signal().is_set());
        }
    }
}
