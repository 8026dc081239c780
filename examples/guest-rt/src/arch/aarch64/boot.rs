//! From the entry point to the guest's main function, and out again.

use core::arch::global_asm;

use qemu_exit::{AArch64, QEMUExit};

use super::{gic, idle, paging, pci, serial, timer, tree};
use crate::memory::{MapFull, MemoryMap, PhysAddr, PhysRange};
use crate::{boot, console, log, platform};

global_asm!(include_str!("boot.s"), start = sym start);

/// Where QEMU puts the device tree of a kernel that is no Linux: at the start
/// of RAM.
const TREE: PhysAddr = PhysAddr::new(0x4000_0000);

/// As on a PC, where they are what its exit device makes of two values.
const EXIT_SUCCESS: u32 = 33;
const EXIT_FAILURE: u32 = 35;

unsafe extern "C" {
    static __image_start: u8;
    static __guard_start: u8;
    static __text_start: u8;
    static __text_end: u8;
    static __rodata_start: u8;
    static __rodata_end: u8;
    static __image_end: u8;
}

/// Where the linker put the parts of the image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Image {
    pub(super) whole: PhysRange,
    /// The page below the stack.
    pub(super) guard: PhysRange,
    pub(super) text: PhysRange,
    pub(super) rodata: PhysRange,
}

impl Image {
    fn this() -> Self {
        let at = |symbol: *const u8| PhysAddr::new(symbol.addr() as u64);
        Self {
            whole: PhysRange::new(at(&raw const __image_start), at(&raw const __image_end)),
            guard: PhysRange::sized(at(&raw const __guard_start), paging::PAGE),
            text: PhysRange::new(at(&raw const __text_start), at(&raw const __text_end)),
            rodata: PhysRange::new(at(&raw const __rodata_start), at(&raw const __rodata_end)),
        }
    }
}

/// First Rust code, on the boot stack, with the boot tables and interrupts off.
extern "C" fn start() -> ! {
    // SAFETY: mapped by the boot tables, and nothing but this image has run.
    let machine = match unsafe { tree::read(TREE) } {
        Ok(machine) => machine,
        Err(error) => panic!("device tree: {error}"),
    };
    let image = Image::this();
    let free = match usable(&machine.ram, image) {
        Ok(free) => free,
        Err(error) => panic!("device tree: {error}"),
    };
    let free = match paging::start(&machine.ram, free, image) {
        Ok(free) => free,
        Err(error) => panic!("paging: {error}"),
    };
    console::start(machine.uart.and_then(serial::console));
    if let Err(error) = gic::start(machine.controller) {
        panic!("interrupt controller: {error}");
    }
    timer::start();
    log::start(serial::log());
    if let Some(host) = &machine.pcie
        && let Err(error) = pci::start(host)
    {
        panic!("PCI: {error}");
    }
    console::listen();
    idle::turn_on();
    boot::enter_with(machine.ram, free, machine.command_line, machine.virtio_mmio)
}

/// What is left of the RAM beside the image's.
fn usable(ram: &MemoryMap, image: Image) -> Result<MemoryMap, MapFull> {
    let mut free = ram.clone();
    free.exclude(image.whole)?;
    Ok(free)
}

/// Ends the machine; QEMU's exit code is 33.
///
/// The host counts a run as good only if it also saw the run's token.
pub fn exit_success() -> ! {
    exit(true)
}

/// Ends the machine; QEMU's exit code is 35.
pub fn exit_failure() -> ! {
    exit(false)
}

fn exit(success: bool) -> ! {
    idle::turn_off();
    if let Some(platform) = platform::get() {
        (platform.exit)(success)
    }
    AArch64::new().exit(if success { EXIT_SUCCESS } else { EXIT_FAILURE })
}
