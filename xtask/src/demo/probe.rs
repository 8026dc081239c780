//! Whether this host's KVM really runs guests.
//!
//! That `/dev/kvm` is there says little: nested and paravirtual ones abort at a register they cannot set,
//! or at the first instruction they cannot interpret. So a small guest has to do its work on it first.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use crate::setup::Qemu;
use crate::vm::{Accelerator, Board, Machine, Vm};

/// A processor boots this guest in a fraction of it.
const BOOT: Duration = Duration::from_secs(10);
const MEM_MIB: u64 = 64;

/// KVM if a guest boots, checks its memory and ends well on it; software emulation otherwise.
pub(super) fn accelerator(qemu: &Qemu, board: Board, elf: &Path, folder: &Path) -> Accelerator {
    if Path::new("/dev/kvm").exists() && works(qemu, board, elf, folder).is_ok() {
        Accelerator::Kvm
    } else {
        Accelerator::Tcg
    }
}

fn works(qemu: &Qemu, board: Board, elf: &Path, folder: &Path) -> Result<()> {
    let machine = Machine::new(board, MEM_MIB, elf)
        .on(Accelerator::Kvm)
        .append("fill=all");
    let mut vm = Vm::start(qemu, machine, folder)?;
    vm.console.wait("freed", BOOT)?;
    vm.console.send("verify")?;
    vm.console
        .wait_until("verify", BOOT, |event| event.text().starts_with("ok"))?;
    vm.finish()
}
