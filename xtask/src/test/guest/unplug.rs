//! The device is pulled out of its slot with a balloon, and another one is plugged in.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use super::case::{BOOT, MIB, Site, check_whole, resize, wait_for_fall, wait_until};
use crate::vm::{Board, Machine, Vm, resident};

/// A device that is silent is looked for after ten seconds.
const LIMIT: Duration = Duration::from_secs(90);
const MEMORY_MIB: u64 = 512;

/// Frames go by their numbers, and requests are in flight: nobody answers them, and so the guest finds out.
pub(super) fn by_numbers(site: &Site<'_>) -> Result<()> {
    pulled_and_plugged(site, site.machine(MEMORY_MIB).append("path=pfn"), false)
}

/// Frames go by ranges, all of them in a few requests: a guest that looks now and then finds out.
pub(super) fn by_ranges(site: &Site<'_>) -> Result<()> {
    let machine = site.machine(MEMORY_MIB).reporting(true);
    pulled_and_plugged(site, machine.append("interrupts=none"), true)
}

fn pulled_and_plugged(site: &Site<'_>, machine: Machine, reporting: bool) -> Result<()> {
    let machine = if site.board == Board::Q35 {
        // By the port's own registers, not by ACPI, which this guest does not read.
        machine.global("ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off")
    } else {
        machine
    };
    let machine = machine
        .device("pcie-root-port,id=root,chassis=1")
        .balloon_option("bus=root")
        .append("fill=all")
        .append("pace=slow");
    site.with(machine, |vm| {
        let managed = vm.console.wait("ready", BOOT)?.number("managed")?;
        let kept = vm.console.wait("freed", BOOT)?.number("kept")?;
        let before = resident(vm.pid())?;
        vm.qmp.balloon(64 * MIB)?;
        wait_for_fall(vm, before, 4 * MIB)?;
        let ballooned = vm.console.ask("stats")?.number("ballooned")?;
        pull(vm)?;
        ensure!(
            reporting || ballooned < (MEMORY_MIB - 64) * MIB / 4096,
            "it is over: {ballooned} frames were given"
        );
        home(vm, managed - kept)?;
        // All of it is the guest's, and can be used.
        vm.console.send("fill")?;
        vm.console.wait("filled", BOOT)?;
        check_whole(vm)?;
        vm.console.send("free")?;
        vm.console.wait("freed", BOOT)?;
        plug(vm, reporting)?;
        resize(vm, MEMORY_MIB / 2 * MIB)?;
        check_whole(vm)?;
        resize(vm, MEMORY_MIB * MIB)?;
        check_whole(vm)?;
        vm.finish()
    })
}

/// The host asks for the device, and whoever sits at the guest's machine lets it go: its driver is asked by nobody.
fn pull(vm: &mut Vm) -> Result<()> {
    vm.console.drain()?;
    vm.qmp.execute("device_del", json!({ "id": "balloon" }))?;
    vm.console.send("eject")?;
    vm.console.wait_until("status", LIMIT, |event| {
        event.text().contains("the device is gone")
    })?;
    wait_until(LIMIT, || {
        let gone = vm.qmp.query_balloon().is_err();
        Ok(gone
            .then_some(())
            .ok_or_else(|| "QEMU still has the device".to_owned()))
    })
}

/// Waits until every frame is back.
fn home(vm: &mut Vm, all: u64) -> Result<()> {
    wait_until(LIMIT, || {
        let told = vm.console.ask("stats")?;
        let home = told.number("free")? == all && told.number("lost")? == 0;
        Ok(home
            .then_some(())
            .ok_or_else(|| format!("{all} frames are to be free: {}", told.text())))
    })
}

/// Another device in the same slot.
fn plug(vm: &mut Vm, reporting: bool) -> Result<()> {
    vm.console.drain()?;
    let device = json!({
        "driver": "virtio-balloon-pci",
        "id": "balloon",
        "bus": "root",
        "free-page-reporting": reporting,
    });
    vm.qmp.execute("device_add", device)?;
    vm.console
        .wait_until("status", LIMIT, |event| event.text().contains("plugged in"))?;
    Ok(())
}
