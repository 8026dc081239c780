//! Back in time: a snapshot of a running guest, and what it goes back to.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::case::{BOOT, MIB, Site, check_whole, resize, wait_for, wait_until};
use super::migration::{go_on, running};
use crate::vm::Vm;

const LIMIT: Duration = Duration::from_secs(60);

/// Back to a snapshot that was taken with a full balloon, in the same QEMU: what happened since did not.
pub(super) fn run(site: &Site<'_>) -> Result<()> {
    let machine = site.machine(512).reporting(true).append("fill=all");
    let file = site.folder.join("snapshots.qcow2");
    let done = site.with(machine, |vm| {
        vm.console.wait("freed", BOOT)?;
        add_disk(vm, &file)?;
        resize(vm, 256 * MIB)?;
        check_whole(vm)?;
        let place = json!({ "tag": "full", "vmstate": "disk", "devices": ["disk"] });
        job(vm, "snapshot-save", place.clone())?;
        go_on(vm, 512)?;
        job(vm, "snapshot-load", place)?;
        running(vm)?;
        wait_for(vm, 256 * MIB)?;
        check_whole(vm)?;
        go_on(vm, 512)?;
        vm.finish()
    });
    // There is none if QEMU did not start.
    let _ = std::fs::remove_file(&file);
    done
}

/// Adds a disk that can hold snapshots, to no device in particular.
fn add_disk(vm: &mut Vm, file: &Path) -> Result<()> {
    let file = file.to_string_lossy();
    let place = json!({ "driver": "file", "filename": file, "size": 0 });
    job(vm, "blockdev-create", json!({ "options": place }))?;
    let add = |vm: &mut Vm, node| vm.qmp.execute("blockdev-add", node).map(drop);
    add(
        vm,
        json!({ "driver": "file", "node-name": "file", "filename": file }),
    )?;
    let disk = json!({ "driver": "qcow2", "file": "file", "size": 1 << 20 });
    job(vm, "blockdev-create", json!({ "options": disk }))?;
    add(
        vm,
        json!({ "driver": "qcow2", "node-name": "disk", "file": "file" }),
    )
}

/// Runs a command of QEMU that takes its time, to its end.
fn job(vm: &mut Vm, command: &str, mut arguments: Value) -> Result<()> {
    const ID: &str = "job";
    if let Some(arguments) = arguments.as_object_mut() {
        arguments.insert("job-id".to_owned(), json!(ID));
    }
    vm.qmp.execute(command, arguments)?;
    wait_until(LIMIT, || {
        let jobs = vm.qmp.execute("query-jobs", json!({}))?;
        if jobs.pointer("/0/status").and_then(Value::as_str) != Some("concluded") {
            return Ok(Err(format!("{command} has not ended: {jobs}")));
        }
        vm.qmp.execute("job-dismiss", json!({ "id": ID }))?;
        let error = jobs.pointer("/0/error");
        ensure!(error.is_none(), "{command} failed: {jobs}");
        Ok(Ok(()))
    })
}
