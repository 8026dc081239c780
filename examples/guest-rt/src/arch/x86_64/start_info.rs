//! Reads `hvm_start_info`, the structure of the PVH boot protocol.
//!
//! Layout: `xen/include/public/arch-x86/hvm/start_info.h`. Everything is copied:
//! the structure lies in memory the guest may use for something else later.

use thiserror::Error;

use crate::CommandLine;
use crate::memory::{MapFull, MemoryMap, PhysAddr, PhysRange};

const MAGIC: u32 = 0x336e_c578;
const TYPE_RAM: u32 = 1;
const ENTRY_BYTES: u64 = 24;

/// What the boot loader told.
#[derive(Debug)]
pub(super) struct Handed {
    pub(super) ram: MemoryMap,
    pub(super) command_line: CommandLine,
}

/// Why that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum StartInfoError {
    #[error("no start information: wrong magic {0:#x}")]
    Magic(u32),
    #[error("start information of version {0} has no memory map")]
    Version(u32),
    #[error("{0}")]
    Map(#[from] MapFull),
}

/// Reads the structure at `info`.
///
/// # Safety
/// `info` is what the PVH boot protocol passed in EBX, and the memory it leads
/// to is mapped and has not been written since.
pub(super) unsafe fn read(info: PhysAddr) -> Result<Handed, StartInfoError> {
    // SAFETY: offsets within the structure, whose presence the magic proves.
    let word = |offset| unsafe { read_u32(info, offset) };
    // SAFETY: as above.
    let long = |offset| unsafe { read_u64(info, offset) };

    let (magic, version) = (word(0), word(4));
    if magic != MAGIC {
        return Err(StartInfoError::Magic(magic));
    }
    let mut ram = MemoryMap::new();
    if version < 1 {
        #[cfg(feature = "xen")]
        super::xen::memory_map(&mut ram)?;
        if ram.bytes() == 0 {
            return Err(StartInfoError::Version(version));
        }
    }
    let table = PhysAddr::new(long(40));
    let entries = if version < 1 { 0 } else { word(48) };
    for index in 0..u64::from(entries) {
        let entry = PhysAddr::new(table.get() + index * ENTRY_BYTES);
        // SAFETY: entry `index` of the table the structure describes.
        let start = unsafe { read_u64(entry, 0) };
        // SAFETY: as above.
        let bytes = unsafe { read_u64(entry, 8) };
        // SAFETY: as above.
        let kind = unsafe { read_u32(entry, 16) };
        if kind == TYPE_RAM {
            ram.add(PhysRange::sized(PhysAddr::new(start), bytes))?;
        }
    }

    let text = PhysAddr::new(long(24));
    let bytes = (0..).map(|offset| {
        // SAFETY: not beyond the terminating zero, at which the walk ends.
        unsafe { read_u8(text, offset) }
    });
    let command_line = if text.get() == 0 {
        CommandLine::default()
    } else {
        CommandLine::from_bytes(bytes.take_while(|byte| *byte != 0))
    };
    Ok(Handed { ram, command_line })
}

fn pointer<T>(base: PhysAddr, offset: u64) -> *const T {
    PhysAddr::new(base.get() + offset).as_ptr()
}

/// # Safety
/// As for reading that memory through a raw pointer; so for the two below.
unsafe fn read_u8(base: PhysAddr, offset: u64) -> u8 {
    // SAFETY: as the caller vouches.
    unsafe { pointer::<u8>(base, offset).read() }
}

unsafe fn read_u32(base: PhysAddr, offset: u64) -> u32 {
    // SAFETY: as the caller vouches.
    unsafe { pointer::<u32>(base, offset).read_unaligned() }
}

unsafe fn read_u64(base: PhysAddr, offset: u64) -> u64 {
    // SAFETY: as the caller vouches.
    unsafe { pointer::<u64>(base, offset).read_unaligned() }
}
