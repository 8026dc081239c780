//! What Xen's first domain has to ask for: its start information is too old to
//! hold a memory map.

use transport_xen::hypercall::gate::Cpuid;
use transport_xen::hypercall::{Guest, MapEntry, Memory as _};

use crate::memory::{MapFull, MemoryMap, PhysAddr, PhysRange};

/// More entries than any machine's firmware reports.
const ENTRIES: usize = 32;

/// Adds the RAM that Xen knows of; none where there is no Xen.
pub(super) fn memory_map(ram: &mut MemoryMap) -> Result<(), MapFull> {
    let Some(cpuid) = Cpuid::find() else {
        return Ok(());
    };
    // SAFETY: on Xen, with memory mapped one to one; no frame is passed on.
    let mut xen = unsafe { Guest::new(cpuid.instruction()) };
    let mut entries = [MapEntry::default(); ENTRIES];
    let found = xen.memory_map(&mut entries).unwrap_or(0);
    for entry in entries.iter().take(found).filter(|entry| entry.ram) {
        ram.add(PhysRange::sized(PhysAddr::new(entry.address), entry.bytes))?;
    }
    Ok(())
}
