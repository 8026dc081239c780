//! The smallest example kernel, on a host whose memory is all in use from the start.

use anyhow::{Context as _, Result};

use super::case::{BOOT, MIB, Site, resize, wait_for_fall};
use crate::vm::{Machine, resident};

/// Down to a quarter and back, with and without the bulk path; the host has the memory in between.
pub(super) fn run(site: &Site<'_>) -> Result<()> {
    let elf = site.minimal.context("the kernel is for x86-64")?;
    for reporting in [true, false] {
        let machine = Machine::new(site.board, 256, elf)
            .reporting(reporting)
            .populated();
        site.with(machine, |vm| {
            vm.console.wait("ready", BOOT)?;
            let full = resident(vm.pid())?;
            resize(vm, 128 * MIB)?;
            wait_for_fall(vm, full, 120 * MIB)?;
            resize(vm, 256 * MIB)?;
            // It gives again what it got back.
            resize(vm, 160 * MIB)
        })?;
    }
    Ok(())
}
