//! Cases in which a running guest goes to another QEMU, through a socket or through a file, or is reset.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};

use super::case::{BOOT, MIB, Site, check_whole, resize, wait_for, wait_for_fall};
use crate::demo::ask;
use crate::vm::{Vm, resident};

const LIMIT: Duration = Duration::from_secs(60);
/// Bytes a second: as fast as it goes.
const FAST: u64 = 1 << 40;

/// A live migration with hints, begun while the balloon is being filled page by page.
pub(super) fn live(site: &Site<'_>) -> Result<()> {
    let memory = 1024;
    let machine = site
        .machine(memory)
        .hinting()
        // QEMU interrupts for each first answer of such a queue, even one of the hint thread, which aborts
        // software emulation: it may raise none.
        .balloon_option("event_idx=off")
        .append("path=pfn")
        .append("pace=slow")
        .append("fill=all")
        .append("keep=30")
        .append("beside=hints");
    site.with(machine.clone(), |vm| {
        vm.console.wait("freed", BOOT)?;
        let socket = Socket::new(vm.pid());
        let to = format!("unix:{}", socket.0.display());
        let mut heir = vm.heir(site.qemu, machine.incoming(&to), &site.folder.join("heir"))?;
        let before = resident(vm.pid())?;
        vm.qmp.balloon(640 * MIB)?;
        wait_for_fall(vm, before, 8 * MIB)?;
        migrate(vm, &to, 256 * MIB)?;
        let skipped = skipped(vm, memory * MIB)?;
        let mut act = || -> Result<()> {
            wait_for(&mut heir, 640 * MIB)?;
            check_whole(&mut heir)?;
            let told = ask(&mut heir, "beside")?;
            ensure!(
                told.number("hinted_while_inflating")? > 0,
                "no hint left while the balloon was inflating: {}",
                told.text()
            );
            let hinted = told.number("hinted")? * 4096;
            ensure!(
                skipped >= hinted / 2,
                "{hinted} bytes were hinted, and {skipped} not sent"
            );
            wait_until_home(&mut heir)?;
            use_all(&mut heir, memory)?;
            heir.finish()
        };
        act().map_err(|error| heir.explain(error))
    })
}

/// To a file and back, with a full balloon.
pub(super) fn saved(site: &Site<'_>) -> Result<()> {
    let machine = site.machine(512).reporting(true).append("fill=all");
    site.with(machine.clone(), |vm| {
        vm.console.wait("freed", BOOT)?;
        resize(vm, 256 * MIB)?;
        let file = site.folder.join("state");
        migrate(vm, &format!("exec:cat > '{}'", file.display()), FAST)?;
        let from = format!("exec:cat '{}'", file.display());
        let mut heir = vm.heir(
            site.qemu,
            machine.incoming(&from),
            &site.folder.join("heir"),
        )?;
        let mut act = || -> Result<()> {
            running(&mut heir)?;
            wait_for(&mut heir, 256 * MIB)?;
            check_whole(&mut heir)?;
            use_all(&mut heir, 512)?;
            heir.finish()
        };
        let done = act().map_err(|error| heir.explain(error));
        std::fs::remove_file(&file)?;
        done
    })
}

/// Back to a snapshot that was taken with a full balloon, in the same QEMU: what happened since did not.
pub(super) fn snapshot(site: &Site<'_>) -> Result<()> {
    let machine = site.machine(512).reporting(true).append("fill=all");
    let file = site.folder.join("snapshots.qcow2");
    let done = site.with(machine, |vm| {
        vm.console.wait("freed", BOOT)?;
        add_disk(vm, &file)?;
        resize(vm, 256 * MIB)?;
        check_whole(vm)?;
        let place = json!({ "tag": "full", "vmstate": "disk", "devices": ["disk"] });
        job(vm, "snapshot-save", place.clone())?;
        use_all(vm, 512)?;
        job(vm, "snapshot-load", place)?;
        running(vm)?;
        wait_for(vm, 256 * MIB)?;
        check_whole(vm)?;
        use_all(vm, 512)?;
        vm.finish()
    });
    // There is none if QEMU did not start.
    let _ = std::fs::remove_file(&file);
    done
}

/// Adds a disk that can hold snapshots, to no device in particular.
fn add_disk(vm: &mut Vm, file: &std::path::Path) -> Result<()> {
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
    let deadline = Instant::now() + LIMIT;
    loop {
        let jobs = vm.qmp.execute("query-jobs", json!({}))?;
        if jobs.pointer("/0/status").and_then(Value::as_str) == Some("concluded") {
            vm.qmp.execute("job-dismiss", json!({ "id": ID }))?;
            let error = jobs.pointer("/0/error");
            ensure!(error.is_none(), "{command} failed: {jobs}");
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{command} does not end: {jobs}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// QEMU dies in the middle of an inflation: the next one knows nothing of it.
pub(super) fn killed(site: &Site<'_>) -> Result<()> {
    let machine = site
        .machine(512)
        .append("path=pfn")
        .append("pace=slow")
        .append("fill=all");
    site.with(machine.clone(), |vm| {
        vm.console.wait("freed", BOOT)?;
        let before = resident(vm.pid())?;
        vm.qmp.balloon(128 * MIB)?;
        let fallen = wait_for_fall(vm, before, 8 * MIB)?;
        ensure!(fallen < 300 * MIB, "it is over: {fallen} bytes were given");
        vm.kill()
    })?;
    site.with(machine.append("pace=fast"), |vm| {
        vm.console.wait("freed", BOOT)?;
        resize(vm, 256 * MIB)?;
        check_whole(vm)?;
        use_all(vm, 512)?;
        vm.finish()
    })
}

/// The machine is reset with a full balloon: the next start knows nothing of it, and follows the target.
pub(super) fn reset(site: &Site<'_>) -> Result<()> {
    let machine = site
        .machine(512)
        .reporting(true)
        .reboots()
        .append("fill=all");
    site.with(machine, |vm| {
        for _ in 0..2 {
            vm.console.wait("freed", BOOT)?;
            resize(vm, 256 * MIB)?;
            check_whole(vm)?;
            vm.qmp.execute("system_reset", json!({}))?;
        }
        vm.console.wait("ready", BOOT)?;
        wait_for(vm, 256 * MIB)?;
        use_all(vm, 512)?;
        vm.finish()
    })
}

/// Gives all memory back, writes to every frame of it, and checks.
fn use_all(vm: &mut Vm, memory: u64) -> Result<()> {
    resize(vm, memory * MIB)?;
    vm.console.send("fill")?;
    vm.console.wait("filled", BOOT)?;
    check_whole(vm)
}

/// Sends the guest's state, so many bytes a second, and waits until all of it has left.
fn migrate(vm: &mut Vm, to: &str, bandwidth: u64) -> Result<()> {
    // As fast as it goes: the default would take a minute.
    vm.qmp.execute(
        "migrate-set-parameters",
        json!({ "max-bandwidth": 1_u64 << 40 }),
    )?;
    vm.qmp.execute(
        "migrate-set-parameters",
        json!({ "max-bandwidth": bandwidth }),
    )?;
    vm.qmp.execute("migrate", json!({ "uri": to }))?;
    let deadline = Instant::now() + LIMIT;
    loop {
        let state = vm.qmp.execute("query-migrate", json!({}))?;
        match state.get("status").and_then(Value::as_str) {
            Some("completed") => return Ok(()),
            Some("failed" | "cancelled") => bail!("the migration failed: {state}"),
            _ => {}
        }
        ensure!(
            Instant::now() < deadline,
            "the migration does not end: {state}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Bytes of memory that were not sent.
fn skipped(vm: &mut Vm, memory: u64) -> Result<u64> {
    let state = vm.qmp.execute("query-migrate", json!({}))?;
    let pages = |key: &str| {
        state
            .pointer(&format!("/ram/{key}"))
            .and_then(Value::as_u64)
    };
    let (Some(normal), Some(zero)) = (pages("normal"), pages("duplicate")) else {
        bail!("query-migrate counts no pages: {state}");
    };
    Ok(memory.saturating_sub((normal + zero) * 4096))
}

/// Waits until the guest runs here.
fn running(vm: &mut Vm) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let state = vm.qmp.execute("query-status", json!({}))?;
        if state.get("running").and_then(Value::as_bool) == Some(true) {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "the guest does not arrive: {state}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until no frame is kept because of hints.
fn wait_until_home(vm: &mut Vm) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let told = ask(vm, "beside")?;
        if told.number("out")? == 0 {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "hinted frames do not come home: {}",
            told.text()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A socket's name, short enough for one, that goes with us.
struct Socket(std::path::PathBuf);

impl Socket {
    fn new(pid: u32) -> Self {
        Self(std::env::temp_dir().join(format!("balloon-migration-{pid}")))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // QEMU may have removed it.
        let _ = std::fs::remove_file(&self.0);
    }
}
