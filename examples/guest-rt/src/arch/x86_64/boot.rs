//! From the entry point to the guest's main function, and out again.

use core::arch::global_asm;

use qemu_exit::{QEMUExit, X86};

use super::{apic, clock, idle, idt, paging, pic, pit, serial, start_info};
use crate::memory::{MemoryMap, PhysAddr, PhysRange};
use crate::{boot, console, log, platform};

global_asm!(include_str!("boot.s"), start = sym start);

/// Memory below this is the firmware's: its tables, ROMs and video memory.
const LOW_MEMORY: u64 = 1 << 20;

/// QEMU leaves with `2 * value + 1`: 33 for success, 35 for failure.
const EXIT_SUCCESS: u32 = 0x10;
const EXIT_FAILURE: u32 = 0x11;
const EXIT_PORT: u16 = 0xf4;

unsafe extern "C" {
    static __image_start: u8;
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
    pub(super) text: PhysRange,
    pub(super) rodata: PhysRange,
}

impl Image {
    fn this() -> Self {
        let at = |symbol: *const u8| PhysAddr::new(symbol.addr() as u64);
        Self {
            whole: PhysRange::new(at(&raw const __image_start), at(&raw const __image_end)),
            text: PhysRange::new(at(&raw const __text_start), at(&raw const __text_end)),
            rodata: PhysRange::new(at(&raw const __rodata_start), at(&raw const __rodata_end)),
        }
    }
}

/// First Rust code, on the boot stack, with the boot tables and interrupts off.
extern "C" fn start(info: u64) -> ! {
    console::start(serial::console());
    // SAFETY: the boot loader passed this address, and nothing but this image
    // has run since.
    let handed = match unsafe { start_info::read(PhysAddr::new(info)) } {
        Ok(handed) => handed,
        Err(error) => panic!("boot information: {error}"),
    };
    let image = Image::this();
    let ram = handed.ram;
    let free = match usable(&ram, image) {
        Ok(free) => free,
        Err(error) => panic!("boot information: {error}"),
    };
    let free = match paging::start(&ram, free, image) {
        Ok(free) => free,
        Err(error) => panic!("paging: {error}"),
    };
    idt::start();
    pic::start();
    pit::silence();
    if let Err(error) = clock::start() {
        panic!("clock: {error}");
    }
    if let Err(error) = apic::start() {
        panic!("local APIC: {error}");
    }
    log::start(serial::log());
    console::listen();
    x86_64::instructions::interrupts::enable();
    boot::enter(ram, free, handed.command_line)
}

/// What is left of the RAM beside the firmware's and the image's.
fn usable(ram: &MemoryMap, image: Image) -> Result<MemoryMap, crate::MapFull> {
    let mut free = ram.clone();
    free.exclude(PhysRange::sized(PhysAddr::new(0), LOW_MEMORY))?;
    free.exclude(image.whole)?;
    Ok(free)
}

fn exit_device() -> X86 {
    // SAFETY: the port is the exit device's, or nobody's.
    unsafe { X86::new(EXIT_PORT, EXIT_SUCCESS << 1 | 1) }
}

/// Ends the machine; QEMU's exit code is 33.
///
/// The host counts a run as good only if it also saw the run's token.
pub fn exit_success() -> ! {
    idle::turn_off();
    if let Some(platform) = platform::get() {
        (platform.exit)(true)
    }
    exit_device().exit_success()
}

/// Ends the machine; QEMU's exit code is 35.
pub fn exit_failure() -> ! {
    idle::turn_off();
    if let Some(platform) = platform::get() {
        (platform.exit)(false)
    }
    exit_device().exit(EXIT_FAILURE)
}
