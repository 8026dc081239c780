//! A guest whose memory is huge pages of the host, which cannot be split: only by name, for the host has to
//! set them aside.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::case::{BOOT, MIB, Site, check_whole, resize};
use crate::vm::Vm;

const MEMORY_MIB: u64 = 256;
const TARGET: u64 = 128 * MIB;
const PAGE: u64 = 2 * MIB;
const PATIENCE: Duration = Duration::from_secs(60);

/// Page by page nothing comes back; by chains of two descriptors that name a whole page everything does.
pub(super) fn run(site: &Site<'_>) -> Result<()> {
    has_enough()?;
    let machine = site
        .machine(MEMORY_MIB)
        .huge_pages()
        .append("path=pfn")
        .append("fill=all")
        .append("keep=5");
    site.with(machine.clone(), |vm| {
        let fallen = give(vm)?;
        ensure!(
            fallen == 0,
            "requests of 256 frames freed {fallen} bytes of huge pages: the chains are not needed any more"
        );
        vm.finish()
    })?;
    site.with(machine.append("host-pages=2M"), |vm| {
        let asked = MEMORY_MIB * MIB - TARGET;
        let deadline = Instant::now() + PATIENCE;
        let before = huge(vm)?;
        let mut fallen = give(vm)?;
        // What the host sees a moment later counts, too.
        while fallen < asked - PAGE && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
            fallen = before.saturating_sub(huge(vm)?);
        }
        ensure!(
            fallen >= asked - PAGE,
            "of {asked} bytes that were given the host got {fallen}"
        );
        resize(vm, MEMORY_MIB * MIB)?;
        vm.console.send("fill")?;
        vm.console.wait("filled", BOOT)?;
        check_whole(vm)?;
        vm.finish()
    })
}

/// Fills all memory, gives half of it, and returns by how much the host's huge pages in use fell.
fn give(vm: &mut Vm) -> Result<u64> {
    vm.console.wait("freed", BOOT)?;
    let before = huge(vm)?;
    ensure!(
        before >= MEMORY_MIB * MIB / 10 * 9,
        "the guest's memory is not in huge pages: {before} bytes are"
    );
    resize(vm, TARGET)?;
    check_whole(vm)?;
    Ok(before.saturating_sub(huge(vm)?))
}

/// Bytes of huge pages that QEMU uses.
fn huge(vm: &Vm) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", vm.pid()))?;
    field(&status, "HugetlbPages:").context("no HugetlbPages in the status of QEMU")
}

/// The machine has set aside what the guest takes.
fn has_enough() -> Result<()> {
    let wanted = MEMORY_MIB * MIB / PAGE;
    let info = std::fs::read_to_string("/proc/meminfo")?;
    let free = info
        .lines()
        .find_map(|line| line.strip_prefix("HugePages_Free:"))
        .and_then(|text| text.trim().parse::<u64>().ok())
        .unwrap_or(0);
    ensure!(
        free >= wanted,
        "this case needs {wanted} free huge pages of 2 MiB, and the machine has {free}.\n\
         As root: sysctl vm.nr_hugepages={wanted}   (and =0 when done)\n\
         A machine that refuses cannot run it."
    );
    Ok(())
}

/// A number of kilobytes, in bytes.
fn field(text: &str, key: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kilobytes_are_bytes() {
        assert_eq!(
            field("VmRSS:\t 4 kB\nHugetlbPages:\t  2048 kB\n", "HugetlbPages:"),
            Some(PAGE)
        );
        assert_eq!(field("VmRSS: 4 kB", "HugetlbPages:"), None);
    }
}
