//! The device-specific configuration space: four little-endian words.
//!
//! How many of them a device maps differs (8 bytes on cloud-hypervisor, 12 on
//! Firecracker), so nothing is read that a negotiated feature does not promise.

use core::fmt;

use super::features::Features;
use crate::protocol::status::DeviceStatus;

/// Offset of the wanted size in 4 KiB pages, written by the device.
pub const NUM_PAGES: u16 = 0;
/// Offset of the current size in 4 KiB pages, written by the driver.
pub const ACTUAL: u16 = 4;
/// Offset of the free page hinting command, only with `FREE_PAGE_HINT`.
pub const HINT_COMMAND: u16 = 8;
/// Offset of the fill value of free pages, only with `PAGE_POISON`.
pub const POISON_VALUE: u16 = 12;

/// Bytes without which there is no balloon: the two sizes.
pub const MIN_CONFIG: usize = 8;

/// Bytes of all four fields.
const MAX_CONFIG: usize = 16;

/// Bytes of configuration that the fields of these features reach to.
#[must_use]
pub const fn needed_config(negotiated: Features) -> usize {
    if negotiated.contains(Features::PAGE_POISON) {
        MAX_CONFIG
    } else if negotiated.contains(Features::FREE_PAGE_HINT) {
        12
    } else {
        MIN_CONFIG
    }
}

/// Access to the device's configuration space, in aligned words.
///
/// Safe to implement, and free of references into device memory. Values are in
/// the CPU's byte order; the words behind them are little endian, on a legacy
/// interface too.
pub trait ConfigIo {
    /// Bytes of device-specific configuration there are.
    ///
    /// Without the word of whoever can tell, all four fields; one that is not
    /// there after all reads as ones.
    fn config_len(&self) -> usize {
        MAX_CONFIG
    }

    /// Reads the word at `offset`.
    fn read_config(&mut self, offset: u16) -> u32;

    /// Writes the word at `offset`, in one access.
    fn write_config(&mut self, offset: u16, value: u32);

    /// A number that changes whenever the device changed its configuration; where the
    /// transport shows none, zero.
    fn generation(&mut self) -> u32 {
        0
    }

    /// Reads the device status; all ones, or none, if there is no device any more.
    ///
    /// Looked at whenever the target is. Whoever cannot tell says that it runs: then a
    /// device that is gone is still known by its configuration, and one that asks
    /// for a reset by its silence.
    fn status(&mut self) -> DeviceStatus {
        DeviceStatus::DRIVER_OK
    }
}

impl<C: ConfigIo + ?Sized> ConfigIo for &mut C {
    fn config_len(&self) -> usize {
        (**self).config_len()
    }

    fn read_config(&mut self, offset: u16) -> u32 {
        (**self).read_config(offset)
    }

    fn write_config(&mut self, offset: u16, value: u32) {
        (**self).write_config(offset, value);
    }

    fn generation(&mut self) -> u32 {
        (**self).generation()
    }

    fn status(&mut self) -> DeviceStatus {
        (**self).status()
    }
}

/// The configuration changed during each of several attempts to read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Unstable;

impl fmt::Display for Unstable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration kept changing while it was read")
    }
}

impl core::error::Error for Unstable {}

const ATTEMPTS: usize = 4;

/// Reads one word that did not change meanwhile, within a few attempts.
///
/// # Errors
/// [`Unstable`] if the generation moved during each attempt.
pub fn read_stable(io: &mut impl ConfigIo, offset: u16) -> Result<u32, Unstable> {
    let mut before = io.generation();
    for _ in 0..ATTEMPTS {
        let value = io.read_config(offset);
        let after = io.generation();
        if before == after {
            return Ok(value);
        }
        before = after;
    }
    Err(Unstable)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Moves its generation during the first `restless` reads.
    struct Restless {
        restless: u32,
        reads: u32,
    }

    impl ConfigIo for Restless {
        fn read_config(&mut self, _: u16) -> u32 {
            self.reads += 1;
            self.reads
        }

        fn write_config(&mut self, _: u16, _: u32) {}

        fn generation(&mut self) -> u32 {
            self.reads.min(self.restless)
        }
    }

    #[test]
    fn a_torn_read_is_read_again() {
        let mut io = Restless {
            restless: 2,
            reads: 0,
        };
        assert_eq!(read_stable(&mut io, NUM_PAGES), Ok(3));
    }

    #[test]
    fn a_device_that_never_rests_is_given_up() {
        let mut io = Restless {
            restless: u32::MAX,
            reads: 0,
        };
        assert_eq!(read_stable(&mut io, NUM_PAGES), Err(Unstable));
        assert_eq!(io.reads, 4);
    }
}
