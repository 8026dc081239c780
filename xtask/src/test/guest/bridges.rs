//! Cases about where the balloon is: not on bus 0, but behind a port of PCI Express, where libvirt puts it by default,
//! or behind bridges; or behind an IOMMU.

use anyhow::{Result, ensure};

use super::case::{BOOT, MIB, Site, check_whole, resize};
use super::services::wait_for_resident;
use crate::vm::{Board, Machine, resident};

/// Behind a root port; another one in front of it has its own bus.
pub(super) fn root_port(site: &Site<'_>) -> Result<()> {
    let machine = site
        .machine(192)
        .device("pcie-root-port,id=other,chassis=1")
        .device("pcie-root-port,id=root,chassis=2")
        .balloon_option("bus=root");
    interrupts_and_works(site, &machine)
}

/// Behind a bridge for plain PCI, which is behind a root port where the board has some: a line takes two turns.
pub(super) fn bridge(site: &Site<'_>) -> Result<()> {
    let machine = site.machine(192);
    let machine = if site.board == Board::Pc {
        machine.device("pci-bridge,id=bridge,chassis_nr=1")
    } else {
        machine
            .device("pcie-root-port,id=root,chassis=1")
            .device("pcie-pci-bridge,id=bridge,bus=root")
    };
    interrupts_and_works(
        site,
        &machine
            .balloon_option("bus=bridge")
            .balloon_option("addr=0x3"),
    )
}

/// The device insists on the platform's way to memory: without an IOMMU, and with one that nobody has switched on.
pub(super) fn access_platform(site: &Site<'_>) -> Result<()> {
    let iommus: &[&[&'static str]] = match site.board {
        Board::Q35 => &[&[], &["intel-iommu"]],
        _ => &[&[]],
    };
    for devices in iommus {
        for path in ["path=auto", "path=pfn"] {
            let machine = devices
                .iter()
                .fold(site.machine(192), |machine, device| machine.device(device));
            let machine = machine
                .balloon_option("iommu_platform=on")
                .balloon_option("disable-legacy=on")
                .reporting(true)
                .append("fill=all")
                .append("services=reports")
                .append(path);
            site.with(machine, |vm| {
                vm.console.wait("freed", BOOT)?;
                let features = vm.console.ask("device")?.number("features")?;
                ensure!(
                    features >> ACCESS_PLATFORM & 1 == 1,
                    "features {features:#x} were agreed on"
                );
                let before = resident(vm.pid())?;
                resize(vm, 96 * MIB)?;
                wait_for_resident(vm, before.min(128 * MIB))?;
                resize(vm, 192 * MIB)?;
                check_whole(vm)?;
                vm.finish()
            })?;
        }
    }
    Ok(())
}

/// The feature bit.
const ACCESS_PLATFORM: u32 = 33;

fn interrupts_and_works(site: &Site<'_>, machine: &Machine) -> Result<()> {
    // The balloon of 7.2 has no messages.
    let ways: &[&str] = if site.qemu.is_oldest() {
        &["line"]
    } else {
        &["line", "messages"]
    };
    for way in ways {
        let machine = machine
            .clone()
            .reporting(true)
            .append("fill=all")
            .append(&format!("interrupts={way}"));
        site.with(machine, |vm| {
            vm.console.wait("freed", BOOT)?;
            resize(vm, 96 * MIB)?;
            resize(vm, 192 * MIB)?;
            let told = vm.console.ask("device")?;
            ensure!(
                told.word("interrupts")? == *way && told.number("interrupted")? > 0,
                "the device does not interrupt by {way}: {}",
                told.text()
            );
            check_whole(vm)?;
            vm.finish()
        })?;
    }
    Ok(())
}
