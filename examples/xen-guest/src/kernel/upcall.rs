//! Events by way of the local APIC, as a kernel with several CPUs takes them: Xen
//! raises the vector on each CPU by itself, and each interrupt is to be ended.

use guest_rt::mmio::{MapError, Mmio};
use guest_rt::{BootInfo, PhysAddr, PhysRange};
use spin::Once;
use transport_xen::hypercall::Domain as _;
use transport_xen::{Errno, Vcpu, Vector};

use super::xen::Xen;

/// Where it is in every domain.
const REGISTERS: PhysRange = PhysRange::sized(PhysAddr::new(0xfee0_0000), 0x1000);
const END_OF_INTERRUPT: usize = 0xb0;
const SPURIOUS_VECTOR: usize = 0xf0;
/// Software-enabled, with the highest vector for interrupts that are none.
const ENABLED: u32 = 1 << 8 | 0xff;

static APIC: Once<Mmio> = Once::new();

/// Chooses this way if the command line says `upcall=vcpu`.
pub(super) fn choose(boot: &BootInfo) -> Result<(), MapError> {
    if boot.command_line().get("upcall") == Some("vcpu") {
        let registers = Mmio::map(REGISTERS)?;
        APIC.call_once(|| registers);
    }
    Ok(())
}

/// Directs events this way if it was chosen; again after a restore.
pub(super) fn direct(xen: &mut Xen, vector: Vector) -> Result<(), Errno> {
    match APIC.get() {
        Some(_) => xen.set_upcall(Vcpu::BOOT, vector),
        None => Ok(()),
    }
}

/// Whether it was.
pub(super) fn is_chosen() -> bool {
    APIC.is_completed()
}

/// Turns on the local APIC of the CPU this runs on.
pub(super) fn enable() {
    if let Some(apic) = APIC.get() {
        // The register lies within the page.
        let _ = apic.write(SPURIOUS_VECTOR, ENABLED);
    }
}

/// Ends an interrupt that came this way.
pub(super) fn end() {
    if let Some(apic) = APIC.get() {
        // The register lies within the page.
        let _ = apic.write(END_OF_INTERRUPT, 0_u32);
    }
}
