//! Cases about what runs beside the balloon.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::case::{ANSWER, BOOT, MIB, Site, check_whole, resize, wait_for_fall, wait_until};
use crate::vm::{Machine, Vm, resident};

/// The device, in QEMU's object tree.
const DEVICE: &str = Machine::BALLOON_PATH;
/// Nothing wakes a balloon at rest for so long.
const REST: Duration = Duration::from_secs(5);

/// The host asks every second, and is told what the guest knows.
pub(super) fn statistics(site: &Site<'_>) -> Result<()> {
    site.with(site.machine(256).append("services=statistics"), |vm| {
        let ready = vm.console.wait("ready", BOOT)?;
        let managed = ready.number("managed")? * 4096;
        let free =
            |vm: &mut Vm| Ok::<u64, anyhow::Error>(vm.console.ask("stats")?.number("free")? * 4096);
        set_polling(vm, 1)?;
        let before = free(vm)?;
        wait_for_statistics(vm, managed, before)?;
        // Newer values after a change: the buffer goes round more than once.
        resize(vm, 128 * MIB)?;
        let after = free(vm)?;
        ensure!(after < before, "the balloon took nothing");
        wait_for_statistics(vm, managed, after)?;
        check_idle_tags(vm)?;
        vm.finish()
    })
}

fn set_polling(vm: &mut Vm, seconds: u64) -> Result<()> {
    let interval =
        json!({ "path": DEVICE, "property": "guest-stats-polling-interval", "value": seconds });
    vm.qmp.execute("qom-set", interval).map(drop)
}

fn guest_stats(vm: &mut Vm) -> Result<Value> {
    let property = json!({ "path": DEVICE, "property": "guest-stats" });
    let mut answer = vm.qmp.execute("qom-get", property)?;
    answer
        .get_mut("stats")
        .map(Value::take)
        .context("guest-stats has no stats")
}

fn wait_for_statistics(vm: &mut Vm, total: u64, free: u64) -> Result<()> {
    wait_until(ANSWER, || {
        let told = guest_stats(vm)?;
        let is = |key: &str, value| told.get(key).and_then(Value::as_u64) == Some(value);
        let right = is("stat-total-memory", total) && is("stat-free-memory", free);
        Ok(right
            .then_some(())
            .ok_or_else(|| format!("QEMU knows {told}; the guest has {total} bytes, {free} free")))
    })
}

/// What the guest does not know it does not say: QEMU shows such a value as -1.
fn check_idle_tags(vm: &mut Vm) -> Result<()> {
    let told = guest_stats(vm)?;
    let swapped = told.get("stat-swap-in").context("no stat-swap-in")?;
    ensure!(
        swapped.as_u64() == Some(u64::MAX) || swapped.as_i64() == Some(-1),
        "a guest without swap says {swapped}"
    );
    Ok(())
}

/// Free memory goes to the host without a target, each time it was used.
pub(super) fn reports(site: &Site<'_>) -> Result<()> {
    let machine = site
        .machine(512)
        .reporting(true)
        .append("path=pfn")
        .append("fill=all")
        .append("keep=20")
        .append("services=reports");
    site.with(machine, |vm| {
        let freed = vm.console.wait("freed", BOOT)?.number("frames")? * 4096;
        let mut reported = 0;
        for _ in 0..2 {
            // Kept blocks hold a fifth; what is left of a block's edges stays.
            wait_for_resident(vm, 512 * MIB - freed / 10 * 9)?;
            check_whole(vm)?;
            reported = wait_for_reports(vm, reported + freed / 10 * 9)?;
            vm.console.send("fill")?;
            vm.console.wait("filled", BOOT)?;
            let before = resident(vm.pid())?;
            vm.console.send("free")?;
            vm.console.wait("freed", BOOT)?;
            wait_for_fall(vm, before, freed / 10 * 9)?;
        }
        // And a balloon of what was reported already.
        resize(vm, 256 * MIB)?;
        check_whole(vm)?;
        resize(vm, 512 * MIB)?;
        check_whole(vm)?;
        rests(vm)?;
        vm.finish()
    })
}

/// The balloon comes to rest when all is reported: what came back last is looked at once more, and then nothing wakes it.
fn rests(vm: &mut Vm) -> Result<()> {
    let woken = |vm: &mut Vm| vm.console.ask("stats")?.number("balloon_wakeups");
    wait_until(ANSWER, || {
        let before = woken(vm)?;
        std::thread::sleep(REST);
        let woken = woken(vm)? - before;
        let still = (woken == 0).then_some(());
        Ok(still.ok_or_else(|| format!("the balloon woke {woken} times in {} s", REST.as_secs())))
    })
}

/// Waits until the guest has so many bytes reported and answered, and returns how many it has.
pub(super) fn wait_for_reports(vm: &mut Vm, bytes: u64) -> Result<u64> {
    wait_until(ANSWER, || {
        let reported = vm.console.ask("services")?.number("reported")? * 4096;
        let enough = (reported >= bytes).then_some(reported);
        Ok(enough.ok_or_else(|| format!("{reported} bytes are reported, {bytes} expected")))
    })
}

/// What QEMU itself needs, with room to spare.
const OVERHEAD: u64 = 80 * MIB;

pub(super) fn wait_for_resident(vm: &Vm, bytes: u64) -> Result<()> {
    wait_until(ANSWER, || {
        let now = resident(vm.pid())?;
        let small = (now <= bytes + OVERHEAD).then_some(());
        Ok(small.ok_or_else(|| format!("host memory is {now} bytes, {bytes} expected")))
    })
}
