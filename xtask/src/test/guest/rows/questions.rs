//! What every row is asked: what was agreed on, and whether both sides keep to it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::super::case::{BOOT, INFLATE_QUEUE, MIB, Site, check_whole, resize, wait_for};
use super::super::services::{wait_for_reports, wait_for_resident};
use super::{EVENT_IDX, INTERRUPT, MEMORY_MIB, OOM, Polled, RELIES, Row};
use crate::vm::{Vm, resident};

const HALF: u64 = MEMORY_MIB / 2 * MIB;
const PATIENCE: Duration = Duration::from_secs(60);

/// Boots a row's machine and asks its questions.
pub(in crate::test::guest) fn run(site: &Site<'_>, row: Row) -> Result<()> {
    site.with(row.machine(site), |vm| {
        let freed = vm.console.wait("freed", BOOT)?.number("frames")? * 4096;
        agreed(vm, row)?;
        reported(vm, row, freed)?;
        // QEMU looks at every queue once when the device starts, and calls that a kick.
        let kicked = vm.kicked()?.len();
        resize(vm, HALF)?;
        let kicked = vm.kicked()?.split_off(kicked);
        let way = if row.bulk() {
            row.reporting_queue()
        } else {
            INFLATE_QUEUE
        };
        ensure!(
            kicked.contains(&way) && (kicked.contains(&INFLATE_QUEUE) != row.bulk()),
            "frames were to go through queue {way}, and the guest kicked {kicked:?}"
        );
        whole(vm, row)?;
        relieved(vm, row)?;
        vm.console.send("free")?;
        vm.console.wait("freed", PATIENCE)?;
        resize(vm, MEMORY_MIB * MIB)?;
        whole(vm, row)?;
        interrupted(vm, row)?;
        vm.finish()
    })
}

/// Answers interrupt a guest that wants it, and no other: by QEMU's account, since a guest that looks now and
/// then has no handler to count in.
fn interrupted(vm: &mut Vm, row: Row) -> Result<()> {
    let heard = vm.console.ask("device")?.number("interrupted")?;
    let sent = vm.events(INTERRUPT)?;
    if row.interrupts != Polled {
        ensure!(
            heard > 0 && !sent.is_empty(),
            "of {} interrupts for answers, and those for targets, the guest heard {heard}",
            sent.len()
        );
        return Ok(());
    }
    // With event indices the first answer on a queue always interrupts.
    let allowed = usize::from(row.options.has(EVENT_IDX));
    let of_queue = |queue| sent.iter().filter(|other| *other == queue).count();
    let most = sent.iter().map(of_queue).max().unwrap_or(0);
    ensure!(
        heard == 0 && most <= allowed,
        "a guest that wants no interrupt got {most} from one queue: {sent:?}"
    );
    Ok(())
}

/// The features, the way of interrupting, and where the queues are: both sides' word.
fn agreed(vm: &mut Vm, row: Row) -> Result<()> {
    let told = vm.console.ask("device")?;
    let features = told.number("features")?;
    ensure!(
        features == row.features(),
        "features {features:#x} were agreed on, {:#x} expected",
        row.features()
    );
    let place = |exists: bool, index: u32| match exists {
        true => index.to_string(),
        false => "none".to_owned(),
    };
    for (key, expected) in [
        (
            "bus",
            (if row.board.has_pci() { "pci" } else { "mmio" }).to_owned(),
        ),
        ("interrupts", row.interrupts.name().to_owned()),
        ("statistics", place(true, 2)),
        ("hint", place(row.takes_hints(), 3)),
        ("reporting", place(row.reports(), row.reporting_queue())),
    ] {
        let found = told.word(key)?;
        ensure!(found == expected, "{key} is {found}, {expected} expected");
    }
    if row.board.has_pci() {
        let expected = if row.is_modern() { 0x1045 } else { 0x1002 };
        let found = vm.qmp.execute("query-pci", json!({}))?.to_string();
        ensure!(
            found.contains(&format!("\"device\":{expected},")),
            "no device {expected:#x} on the bus: {found}"
        );
    }
    let known = device_features(vm)?;
    let missing: Vec<&str> = NAMES_IN_QEMU
        .into_iter()
        .filter(|(bit, name)| (features >> bit & 1 == 1) != known.contains(name))
        .map(|(_, name)| name)
        .collect();
    ensure!(
        missing.is_empty(),
        "QEMU sees {missing:?} otherwise: {known}"
    );
    Ok(())
}

/// Feature bits as QEMU names those that the guest accepted.
const NAMES_IN_QEMU: [(u32, &str); 7] = [
    (1, "VIRTIO_BALLOON_F_STATS_VQ"),
    (2, "VIRTIO_BALLOON_F_DEFLATE_ON_OOM"),
    (3, "VIRTIO_BALLOON_F_FREE_PAGE_HINT"),
    (4, "VIRTIO_BALLOON_F_PAGE_POISON"),
    (5, "VIRTIO_BALLOON_F_REPORTING"),
    (28, "VIRTIO_RING_F_INDIRECT_DESC"),
    (29, "VIRTIO_RING_F_EVENT_IDX"),
];

/// The features the guest accepted, by QEMU's account.
fn device_features(vm: &mut Vm) -> Result<String> {
    let devices = vm.qmp.execute("x-query-virtio", json!({}))?;
    let path = devices.pointer("/0/path").and_then(Value::as_str);
    let path = path.context("QEMU has no virtio device")?;
    let status = vm
        .qmp
        .execute("x-query-virtio-status", json!({ "path": path }))?;
    let features = status.get("guest-features");
    Ok(features.context("no features in its status")?.to_string())
}

/// What is free goes to the host by itself, unless the host must not touch it.
fn reported(vm: &mut Vm, row: Row, freed: u64) -> Result<()> {
    if !row.reports() {
        let reported = vm.console.ask("services")?.number("reported")?;
        ensure!(reported == 0, "{reported} frames were reported to nobody");
        return Ok(());
    }
    // What is left of large blocks at the edges of what is kept stays.
    wait_for_reports(vm, freed / 10 * 9)?;
    if row.tells_poison() {
        let resident = resident(vm.pid())?;
        ensure!(
            resident > freed,
            "the host discarded what it was told to preserve: {resident} bytes are resident"
        );
        whole(vm, row)
    } else {
        wait_for_resident(vm, MEMORY_MIB * MIB - freed / 10 * 9)
    }
}

/// Memory runs out with the balloon full: help comes where it was agreed on, and nowhere else.
fn relieved(vm: &mut Vm, row: Row) -> Result<()> {
    const WANTED: u64 = 512;
    vm.console.drain()?;
    vm.console.send(&format!("need {WANTED}"))?;
    let answer = vm.console.wait("need", PATIENCE)?;
    let usable = answer.number("usable")?;
    let expected = if row.options.has(OOM) { WANTED } else { 0 };
    ensure!(
        usable == expected && answer.number("used")? == usable,
        "out of memory, {expected} frames were to come from the balloon: {}",
        answer.text()
    );
    // The host hears of it, and the frames are the guest's: they hold what was written.
    wait_for(vm, HALF + usable * 4096)?;
    check_whole(vm)
}

/// The guest's data is whole, and free frames hold what they are to hold.
fn whole(vm: &mut Vm, row: Row) -> Result<()> {
    check_whole(vm)?;
    vm.console.send("verify")?;
    let poisoned = vm.console.wait("verify", PATIENCE)?.number("poisoned")?;
    ensure!(
        (poisoned > 0) == row.options.has(RELIES),
        "{poisoned} free frames were looked at"
    );
    Ok(())
}
