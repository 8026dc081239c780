//! Virtio devices without a bus: a window of registers and a line each, named
//! by whoever starts the guest.

use heapless::Vec;

use crate::command_line::CommandLine;
use crate::memory::{PhysAddr, PhysRange};
use crate::pci::InterruptLine;

/// Where a virtio-mmio device is, or could be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioMmio {
    /// Its registers.
    pub registers: PhysRange,
    /// Where it interrupts.
    pub line: InterruptLine,
}

/// The places of a machine: 8 on QEMU's `microvm`, 32 on `virt`.
pub type Places = Vec<VirtioMmio, 32>;

impl CommandLine {
    /// Places that `virtio_mmio.device=<size>@<address>:<line>` names, as
    /// Linux's module parameter does; words that say something else are passed
    /// over.
    #[must_use]
    pub fn virtio_mmio(&self) -> Places {
        self.values("virtio_mmio.device")
            .filter_map(place)
            .take(Places::new().capacity())
            .collect()
    }
}

fn place(text: &str) -> Option<VirtioMmio> {
    let (size, rest) = text.split_once('@')?;
    let (address, rest) = rest.split_once(':')?;
    // An identifier may follow.
    let line = rest.split(':').next()?;
    let (size, scale) = match size.strip_suffix(['K', 'k']) {
        Some(size) => (size, 1024),
        None => (size, 1),
    };
    let bytes = number(size)?.checked_mul(scale)?;
    Some(VirtioMmio {
        registers: PhysRange::sized(PhysAddr::new(number(address)?), bytes),
        line: InterruptLine::new(line.parse().ok()?)?,
    })
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::String;
    use alloc::vec::Vec;

    fn places(text: &str) -> Vec<(u64, u64, u8)> {
        let places = CommandLine::from_bytes(text.bytes()).virtio_mmio();
        let numbers = |place: &VirtioMmio| {
            let registers = place.registers;
            (registers.start().get(), registers.bytes(), place.line.get())
        };
        places.iter().map(numbers).collect()
    }

    #[test]
    fn every_place_is_named() {
        assert_eq!(
            places(
                "a=1 virtio_mmio.device=512@0xfeb00e00:12 \
                 virtio_mmio.device=4K@4276092928:5:7"
            ),
            [(0xfeb0_0e00, 512, 12), (0xfee0_0000, 4096, 5)]
        );
        assert_eq!(places(""), []);
    }

    #[test]
    fn nonsense_is_passed_over() {
        for text in [
            "",
            "512",
            "512@",
            "512@0xfeb",
            "@1:1",
            "1@2:",
            "1@2:255",
            "K@1:1",
            "1@x:1",
        ] {
            let mut line = String::from("virtio_mmio.device=");
            line.push_str(text);
            assert_eq!(places(&line), [], "{text}");
        }
        let many = "virtio_mmio.device=1@2:3 ".repeat(40);
        assert_eq!(places(&many).len(), 32);
    }
}
