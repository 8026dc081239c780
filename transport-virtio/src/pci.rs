//! Virtio over PCI (virtio 1.2 section 4.1): where a device's registers are.
//!
//! [`PciLayout::read`] walks the capability list through one closure that reads
//! configuration space, and yields BAR-relative addresses. The kernel maps
//! them; [`PciLayout::connect`] makes a [`MappedPci`] of the mappings. Firmware
//! may put BARs anywhere: with more than 4 GiB of memory firmware places them
//! far above it.

mod mapped;

pub use crate::interrupt::{InterruptStatus, Interrupts};
pub use mapped::{MappedPci, Vectors};

use core::fmt;

use crate::mmio::MmioWindow;

/// Vendor and device number of a PCI function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PciId {
    /// The vendor.
    pub vendor: u16,
    /// The device.
    pub device: u16,
}

impl PciId {
    /// A balloon without legacy interface.
    pub const MODERN: Self = Self {
        vendor: 0x1af4,
        device: 0x1045,
    };
    /// A balloon with both interfaces; only the modern one is used.
    pub const TRANSITIONAL: Self = Self {
        vendor: 0x1af4,
        device: 0x1002,
    };

    /// Whether this is the memory balloon (virtio device 5).
    ///
    /// The never finished successor with device type 13 is not.
    #[must_use]
    pub fn is_balloon(self) -> bool {
        self == Self::MODERN || self == Self::TRANSITIONAL
    }
}

/// A piece of a BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarRegion {
    /// The base address register, 0 to 5.
    pub bar: u8,
    /// First byte within the BAR.
    pub offset: u32,
    /// Number of bytes.
    pub len: u32,
}

/// Where a device's register structures are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciLayout {
    /// Features, status, queue set-up.
    pub common: BarRegion,
    /// The notification registers.
    pub notify: BarRegion,
    /// Bytes between the notification registers of two queues.
    pub notify_multiplier: u32,
    /// Interrupt status.
    pub isr: BarRegion,
    /// The balloon's configuration.
    pub device: BarRegion,
}

/// A function is no virtio device of version 1.0 or later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PciError {
    /// No such capability, or a malformed one.
    Missing(Structure),
    /// The kernel could not map it.
    Unmapped(Structure),
}

impl fmt::Display for PciError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(what) => write!(f, "the device has no {what} registers"),
            Self::Unmapped(what) => write!(f, "the {what} registers are not mapped"),
        }
    }
}

impl core::error::Error for PciError {}

/// One of a device's register structures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Structure {
    /// Features, status, queue set-up.
    Common,
    /// Notification.
    Notify,
    /// Interrupt status.
    Isr,
    /// The balloon's configuration.
    Device,
}

impl fmt::Display for Structure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Common => "common",
            Self::Notify => "notification",
            Self::Isr => "interrupt status",
            Self::Device => "balloon",
        })
    }
}

const STATUS: u8 = 0x04;
const STATUS_CAPABILITIES: u32 = 1 << 20;
const CAPABILITIES: u8 = 0x34;
const VENDOR_SPECIFIC: u8 = 9;
/// As many capabilities as fit behind the 64 bytes of the header.
const MAX_CAPABILITIES: usize = 48;

impl PciLayout {
    /// Finds the structures in the capability list.
    ///
    /// `read` yields the aligned word at an offset of the function's
    /// configuration space. A list that bites its tail ends; the first usable
    /// capability of each type counts.
    ///
    /// # Errors
    /// [`PciError::Missing`] for a legacy-only device.
    pub fn read(mut read: impl FnMut(u8) -> u32) -> Result<Self, PciError> {
        let mut found: [Option<(BarRegion, u32)>; 4] = [None; 4];
        let mut at = if read(STATUS) & STATUS_CAPABILITIES == 0 {
            0
        } else {
            first(&mut read)
        };
        for _ in 0..MAX_CAPABILITIES {
            if at < 0x40 {
                break;
            }
            let [id, next, len, kind] = read(at).to_le_bytes();
            let region = (id == VENDOR_SPECIFIC && len >= 16).then(|| region(&mut read, at));
            let entry = kind
                .checked_sub(1)
                .and_then(|kind| found.get_mut(usize::from(kind)));
            if let (Some(Some(region)), Some(entry @ None)) = (region, entry) {
                let multiplier = (len >= 20)
                    .then(|| at.checked_add(16).map(&mut read))
                    .flatten();
                *entry = Some((region, multiplier.unwrap_or(0)));
            }
            at = next & !3;
        }
        let [common, notify, isr, device] = found;
        let missing = |structure| PciError::Missing(structure);
        let (notify, notify_multiplier) = notify.ok_or(missing(Structure::Notify))?;
        Ok(Self {
            common: common.ok_or(missing(Structure::Common))?.0,
            notify,
            notify_multiplier,
            isr: isr.ok_or(missing(Structure::Isr))?.0,
            device: device.ok_or(missing(Structure::Device))?.0,
        })
    }

    /// The device's registers, once `map` has mapped each structure.
    ///
    /// Where raw addresses enter, `map` calls the unsafe [`MmioWindow::new`].
    ///
    /// # Errors
    /// [`PciError::Unmapped`] if `map` yields nothing for a structure.
    pub fn connect(
        &self,
        mut map: impl FnMut(BarRegion) -> Option<MmioWindow>,
    ) -> Result<MappedPci, PciError> {
        let mut window = |region, structure| map(region).ok_or(PciError::Unmapped(structure));
        Ok(MappedPci::new(
            window(self.common, Structure::Common)?,
            window(self.notify, Structure::Notify)?,
            self.notify_multiplier,
            window(self.device, Structure::Device)?,
        ))
    }
}

fn first(read: &mut impl FnMut(u8) -> u32) -> u8 {
    let [first, ..] = read(CAPABILITIES).to_le_bytes();
    first & !3
}

/// The region of the capability at `at`; `None` for reserved BARs, and for a
/// place whose registers a [`MmioWindow`] could not hold.
fn region(read: &mut impl FnMut(u8) -> u32, at: u8) -> Option<BarRegion> {
    let [bar, ..] = read(at.checked_add(4)?).to_le_bytes();
    let offset = read(at.checked_add(8)?);
    let len = read(at.checked_add(12)?);
    let usable = bar < 6 && offset.is_multiple_of(4) && offset.checked_add(len).is_some();
    usable.then_some(BarRegion { bar, offset, len })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Configuration space of QEMU's balloon: MSI-X first, then five virtio
    /// capabilities.
    fn qemu() -> [u32; 64] {
        let mut words = [0; 64];
        words[1] = STATUS_CAPABILITIES;
        words[0x34 / 4] = 0x98;
        let mut capability = |at: usize, words_of: &[u32]| {
            words[at / 4..][..words_of.len()].copy_from_slice(words_of);
        };
        capability(0x98, &[0x0001_8411, 1, 0x801]);
        // PCI configuration access, then notify, device, ISR, common.
        capability(0x84, &[0x0514_7009, 0, 0, 0, 0]);
        capability(0x70, &[0x0214_6009, 4, 0x3000, 0x1000, 4]);
        capability(0x60, &[0x0410_5009, 4, 0x2000, 0x1000]);
        capability(0x50, &[0x0310_4009, 4, 0x1000, 0x1000]);
        capability(0x40, &[0x0110_0009, 4, 0, 0x1000]);
        words
    }

    fn read(words: &[u32; 64]) -> Result<PciLayout, PciError> {
        PciLayout::read(|offset| words[usize::from(offset) / 4])
    }

    #[test]
    fn qemus_structures_are_found() {
        let bar4 = |offset| BarRegion {
            bar: 4,
            offset,
            len: 0x1000,
        };
        let layout = PciLayout {
            common: bar4(0),
            notify: bar4(0x3000),
            notify_multiplier: 4,
            isr: bar4(0x1000),
            device: bar4(0x2000),
        };
        assert_eq!(read(&qemu()), Ok(layout));
    }

    #[test]
    fn reserved_bars_are_skipped_and_the_first_usable_wins() {
        let mut words = qemu();
        // A second common structure behind the first, and the first unusable.
        words[0x40 / 4] = 0x0110_a009;
        words[0xa0 / 4..][..4].copy_from_slice(&[0x0110_0009, 2, 0x500, 0x38]);
        assert_eq!(read(&words).unwrap().common.bar, 4);
        words[0x44 / 4] = 6;
        assert_eq!(
            read(&words).unwrap().common,
            BarRegion {
                bar: 2,
                offset: 0x500,
                len: 0x38
            }
        );
    }

    #[test]
    fn a_structure_at_an_odd_place_is_skipped() {
        let mut words = qemu();
        words[0x48 / 4] = 2;
        assert_eq!(read(&words), Err(PciError::Missing(Structure::Common)));
    }

    #[test]
    fn a_legacy_device_lacks_structures() {
        let mut words = qemu();
        words[0x50 / 4] = 0x0310_0009;
        assert_eq!(read(&words), Err(PciError::Missing(Structure::Common)));
        words[1] = 0;
        assert_eq!(read(&words), Err(PciError::Missing(Structure::Notify)));
    }

    #[test]
    fn garbage_ends() {
        assert!(PciLayout::read(|_| u32::MAX).is_err());
        assert!(PciLayout::read(|_| 0).is_err());
        // A list that bites its tail.
        let mut words = qemu();
        words[0x40 / 4] = 0x0110_4009;
        words[0x84 / 4] = 0x0514_8409;
        assert!(read(&words).is_err());
        // A capability that ends beyond the space.
        assert!(PciLayout::read(|at| if at == STATUS { u32::MAX } else { 0x0214_fc09 }).is_err());
    }

    #[test]
    fn only_the_real_balloon_is_a_balloon() {
        assert!(
            PciId {
                vendor: 0x1af4,
                device: 0x1045
            }
            .is_balloon()
        );
        assert!(
            PciId {
                vendor: 0x1af4,
                device: 0x1002
            }
            .is_balloon()
        );
        // 13, the reserved successor, and a network card.
        assert!(
            !PciId {
                vendor: 0x1af4,
                device: 0x104d
            }
            .is_balloon()
        );
        assert!(
            !PciId {
                vendor: 0x1af4,
                device: 0x1000
            }
            .is_balloon()
        );
        assert!(
            !PciId {
                vendor: 0x8086,
                device: 0x1045
            }
            .is_balloon()
        );
    }
}
