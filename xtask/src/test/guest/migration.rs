//! Cases in which a running guest goes to another QEMU, through a socket or through a file, is reset, or dies with
//! its QEMU.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::case::{
    BOOT, INFLATE_QUEUE, MIB, Site, check_whole, resize, wait_for, wait_for_fall, wait_until,
};
use super::services::{wait_for_reports, wait_for_resident};
use crate::vm::{Architecture, Board, Event, Machine, Vm, resident};

const LIMIT: Duration = Duration::from_secs(60);
/// Bytes a second: as fast as it goes.
const FAST: u64 = 1 << 40;
/// Behind the queues to inflate, to deflate and of statistics.
const HINT_QUEUE: u32 = 3;
/// Where QEMU puts it if it offers hints, too.
const REPORTING_QUEUE: u32 = 4;
/// The guest writes the size of its balloon.
const CONFIG_WRITE: &str = "virtio_balloon_set_config";

/// A live migration with hints, begun while the balloon is being filled page by page.
pub(super) fn live(site: &Site<'_>) -> Result<()> {
    const TARGET: u64 = 448 * MIB;
    let memory = 1024;
    let machine = hinting(site, memory)
        .append("path=pfn")
        .append("pace=slow")
        .append("services=hints");
    site.with(machine.clone(), |vm| {
        let free = vm.console.wait("freed", BOOT)?.number("frames")? * 4096;
        let (mut heir, socket) = heir(site, vm, machine)?;
        let before = resident(vm.pid())?;
        vm.qmp.balloon(TARGET)?;
        wait_for_fall(vm, before, 8 * MIB)?;
        let kicked = vm.kicked()?.len();
        migrate(vm, &socket.uri(), 256 * MIB)?;
        let skipped = skipped(vm)?;
        // By QEMU's account: hints began, and the inflation went on.
        let kicked = vm.kicked()?.split_off(kicked);
        let mut since = kicked.into_iter().skip_while(|queue| *queue != HINT_QUEUE);
        ensure!(
            since.any(|queue| queue == INFLATE_QUEUE),
            "nothing was inflated behind the first hint"
        );
        let mut act = || -> Result<()> {
            wait_for(&mut heir, TARGET)?;
            check_whole(&mut heir)?;
            check_hints(&mut heir, free - (memory * MIB - TARGET), skipped)?;
            let told = heir.console.ask("services")?;
            ensure!(
                told.number("hinted_while_inflating")? > 0,
                "no hint left while the balloon was inflating: {}",
                told.text()
            );
            let requests = (memory * MIB - TARGET) / 4096 / 256;
            let kicks = vm.kicks_of(INFLATE_QUEUE)? + heir.kicks_of(INFLATE_QUEUE)?;
            ensure!(
                kicks >= requests / 2,
                "{kicks} kicks for {requests} requests: too few for the two to overlap for long"
            );
            wait_until_home(&mut heir)?;
            go_on(&mut heir, memory)?;
            heir.finish()
        };
        act().map_err(|error| heir.explain(error))
    })
}

/// One with everything on: the balloon went by ranges, free memory is reported, and the queue for both is behind
/// that of hints, here and there.
pub(super) fn live_with_reports(site: &Site<'_>) -> Result<()> {
    const TARGET: u64 = 384 * MIB;
    let memory = 512;
    let machine = hinting(site, memory)
        .reporting(true)
        .append("services=hints,reports");
    site.with(machine.clone(), |vm| {
        let free = vm.console.wait("freed", BOOT)?.number("frames")? * 4096;
        let told = vm.console.ask("device")?;
        ensure!(
            (told.number("hint")?, told.number("reporting")?)
                == (HINT_QUEUE.into(), REPORTING_QUEUE.into()),
            "the queues are elsewhere: {}",
            told.text()
        );
        wait_for_reports(vm, free / 10 * 9)?;
        wait_for_resident(vm, memory * MIB - free / 10 * 9)?;
        let kicks = vm.kicks_of(INFLATE_QUEUE)?;
        resize(vm, TARGET)?;
        ensure!(
            vm.kicks_of(INFLATE_QUEUE)? == kicks,
            "the balloon went page by page"
        );
        let (mut heir, socket) = heir(site, vm, machine)?;
        // What was reported is zero, and passed over faster than hints come where nothing slows it down.
        migrate(vm, &socket.uri(), 64 * MIB)?;
        let skipped = skipped(vm)?;
        let mut act = || -> Result<()> {
            wait_for(&mut heir, TARGET)?;
            check_whole(&mut heir)?;
            check_hints(&mut heir, free - (memory * MIB - TARGET), skipped)?;
            wait_until_home(&mut heir)?;
            // What is freed over there is reported over there.
            let kicks = heir.kicks_of(REPORTING_QUEUE)?;
            go_on(&mut heir, memory)?;
            wait_for_resident(&heir, memory * MIB - free / 10 * 9)?;
            ensure!(
                heir.kicks_of(REPORTING_QUEUE)? > kicks,
                "memory came back without a kick"
            );
            check_whole(&mut heir)?;
            heir.finish()
        };
        act().map_err(|error| heir.explain(error))
    })
}

/// A machine that takes hints, and keeps enough for a migration to take its time.
fn hinting(site: &Site<'_>, memory: u64) -> Machine {
    site.machine(memory)
        .hinting()
        // QEMU interrupts for each first answer of such a queue, even one of the hint thread, which aborts
        // software emulation: it may raise none.
        .balloon_option("event_idx=off")
        .append("fill=all")
        .append("keep=30")
}

/// Another QEMU, which waits for this guest at a socket.
fn heir(site: &Site<'_>, vm: &Vm, machine: Machine) -> Result<(Vm, Socket)> {
    let socket = Socket::new(vm.pid());
    let machine = machine.incoming(&socket.uri());
    let heir = vm.heir(site.qemu, machine, &site.folder.join("heir"))?;
    Ok((heir, socket))
}

/// Most of what stays free was hinted, and not sent.
fn check_hints(heir: &mut Vm, free: u64, skipped: u64) -> Result<()> {
    let hinted = heir.console.ask("services")?.number("hinted")? * 4096;
    ensure!(
        hinted >= free / 2 && skipped >= hinted / 2,
        "of {free} bytes that stay free {hinted} were hinted, and {skipped} not sent"
    );
    Ok(())
}

/// To a file and back, with a full balloon.
pub(super) fn saved(site: &Site<'_>) -> Result<()> {
    let machine = site.machine(512).reporting(true).append("fill=all");
    let come_back = |heir: &mut Vm, _| {
        wait_for(heir, 256 * MIB)?;
        wait_for_resident(heir, 256 * MIB)?;
        check_whole(heir)?;
        go_on(heir, 512)
    };
    through_file(site, machine, |_| Ok(()), come_back)
}

/// Back on a host whose counter is lower than what the guest has read: its clock goes on, and it obeys at once.
pub(super) fn restored_on_younger_host(site: &Site<'_>) -> Result<()> {
    let machine = site
        .machine(512)
        .append("fill=all")
        .append("pace=slow")
        .append("path=pfn");
    let come_back = |heir: &mut Vm, before: u64| {
        let clock = |heir: &mut Vm| heir.console.ask("stats")?.number("clock");
        let arrived = clock(heir)?;
        ensure!(
            arrived >= before,
            "the guest's clock was at {before} ms, and is at {arrived} ms"
        );
        resize(heir, 320 * MIB)?;
        let now = clock(heir)?;
        ensure!(
            now > arrived,
            "the guest's clock stands still at {arrived} ms"
        );
        check_whole(heir)?;
        go_on(heir, 512)
    };
    through_file(
        site,
        machine,
        |state| lower_counter(state, site.board),
        come_back,
    )
}

/// Saves a guest with a full balloon, lets `between` change the file, and goes on with another QEMU, which is told
/// the guest's clock in milliseconds.
fn through_file(
    site: &Site<'_>,
    machine: Machine,
    between: impl FnOnce(&Path) -> Result<()>,
    come_back: impl FnOnce(&mut Vm, u64) -> Result<()>,
) -> Result<()> {
    site.with(machine.clone(), |vm| {
        vm.console.wait("freed", BOOT)?;
        resize(vm, 256 * MIB)?;
        wait_for_resident(vm, 256 * MIB)?;
        let clock = vm.console.ask("stats")?.number("clock")?;
        let file = site.folder.join("state");
        migrate(vm, &format!("exec:cat > '{}'", file.display()), FAST)?;
        between(&file)?;
        let from = format!("exec:cat '{}'", file.display());
        let mut heir = vm.heir(
            site.qemu,
            machine.incoming(&from),
            &site.folder.join("heir"),
        )?;
        let act = |heir: &mut Vm| -> Result<()> {
            running(heir)?;
            come_back(heir, clock)?;
            heir.finish()
        };
        let done = act(&mut heir).map_err(|error| heir.explain(error));
        std::fs::remove_file(&file)?;
        done
    })
}

/// Lets the counter of a saved guest begin anew: QEMU's count of ticks, or its virtual clock, which the counter of
/// Arm is made of. Nothing waits for that clock in a guest at rest.
fn lower_counter(state: &Path, board: Board) -> Result<()> {
    /// A section's name with its length, instance 0, version 2; behind it the ticks, nothing, and the clock, 8 bytes
    /// each.
    const SECTION: &[u8] = b"\x05timer\0\0\0\0\0\0\0\x02";
    let mut bytes = std::fs::read(state)?;
    let at = bytes.windows(SECTION.len()).position(|it| it == SECTION);
    let at = at.context("the saved guest has no timers")? + SECTION.len();
    let at = match board.architecture() {
        Architecture::X86_64 => at,
        Architecture::Aarch64 => at + 16,
    };
    let counter = bytes.get_mut(at..at + 8).context("timers cut off")?;
    counter.copy_from_slice(&1_u64.to_be_bytes());
    std::fs::write(state, bytes).map_err(Into::into)
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
        go_on(vm, 512)?;
        vm.finish()
    })
}

/// The machine is reset with a full balloon: the next start knows nothing of it, and follows the target.
pub(super) fn reset(site: &Site<'_>) -> Result<()> {
    let machine = site
        .machine(512)
        .reporting(true)
        .reboots()
        .trace(CONFIG_WRITE)
        .append("fill=all");
    site.with(machine, |vm| {
        vm.console.wait("freed", BOOT)?;
        vm.qmp.balloon(256 * MIB)?;
        balloon_is(vm, 256 * MIB)?;
        for _ in 0..2 {
            wait_for_resident(vm, 256 * MIB)?;
            check_whole(vm)?;
            let writes = vm.events(CONFIG_WRITE)?.len();
            vm.qmp.execute("system_reset", json!({}))?;
            // It fills all its memory again before it looks at the target.
            vm.console.wait("freed", BOOT)?;
            balloon_is(vm, 256 * MIB)?;
            // QEMU remembers the size of the life before: it is for the guest to say that it has all.
            let writes = vm.events(CONFIG_WRITE)?.split_off(writes);
            let first = writes.first().context("the guest wrote no size")?;
            ensure!(
                first.contains("actual: 0 oldactual: 65536"),
                "before anything else the balloon is empty, and the guest said:{first}"
            );
        }
        wait_for(vm, 256 * MIB)?;
        wait_for_resident(vm, 256 * MIB)?;
        go_on(vm, 512)?;
        vm.finish()
    })
}

/// Waits until the guest itself says that it has this size.
fn balloon_is(vm: &mut Vm, bytes: u64) -> Result<()> {
    let frames = (512 * MIB - bytes) / 4096;
    let fits = |event: &Event| event.number("actual").is_ok_and(|actual| actual == frames);
    vm.console.wait_until("balloon", LIMIT, fits).map(drop)
}

/// All memory comes back and is written to, and half of it goes to the host again.
pub(super) fn go_on(vm: &mut Vm, memory: u64) -> Result<()> {
    resize(vm, memory * MIB)?;
    vm.console.send("fill")?;
    vm.console.wait("filled", BOOT)?;
    check_whole(vm)?;
    vm.console.send("free")?;
    vm.console.wait("freed", BOOT)?;
    resize(vm, memory / 2 * MIB)?;
    wait_for_resident(vm, memory / 2 * MIB)?;
    check_whole(vm)
}

/// Sends the guest's state, so many bytes a second, and waits until all of it has left. QEMU's own pace would
/// take a minute.
fn migrate(vm: &mut Vm, to: &str, bandwidth: u64) -> Result<()> {
    vm.qmp.execute(
        "migrate-set-parameters",
        json!({ "max-bandwidth": bandwidth }),
    )?;
    vm.qmp.execute("migrate", json!({ "uri": to }))?;
    wait_until(LIMIT, || {
        let state = vm.qmp.execute("query-migrate", json!({}))?;
        match state.get("status").and_then(Value::as_str) {
            Some("completed") => Ok(Ok(())),
            Some("failed" | "cancelled") => bail!("the migration failed: {state}"),
            _ => Ok(Err(format!("the migration has not ended: {state}"))),
        }
    })
}

/// Bytes that were not sent, of memory and of what the board has beside it.
fn skipped(vm: &mut Vm) -> Result<u64> {
    let state = vm.qmp.execute("query-migrate", json!({}))?;
    let figure = |key: &str| {
        let value = state.pointer(&format!("/ram/{key}"));
        value.and_then(Value::as_u64)
    };
    let (Some(total), Some(normal), Some(zero)) =
        (figure("total"), figure("normal"), figure("duplicate"))
    else {
        bail!("query-migrate counts no pages: {state}");
    };
    Ok(total.saturating_sub((normal + zero) * 4096))
}

/// Waits until the guest runs here.
pub(super) fn running(vm: &mut Vm) -> Result<()> {
    wait_until(LIMIT, || {
        let state = vm.qmp.execute("query-status", json!({}))?;
        let runs = state.get("running").and_then(Value::as_bool) == Some(true);
        Ok(runs
            .then_some(())
            .ok_or_else(|| format!("the guest has not arrived: {state}")))
    })
}

/// Waits until no frame is kept because of hints.
fn wait_until_home(vm: &mut Vm) -> Result<()> {
    wait_until(LIMIT, || {
        let told = vm.console.ask("services")?;
        let home = (told.number("out")? == 0).then_some(());
        Ok(home.ok_or_else(|| format!("hinted frames are not home: {}", told.text())))
    })
}

/// A socket's name, short enough for one, that goes with us.
struct Socket(std::path::PathBuf);

impl Socket {
    fn new(pid: u32) -> Self {
        Self(std::env::temp_dir().join(format!("balloon-migration-{pid}")))
    }

    /// As QEMU names it.
    fn uri(&self) -> String {
        format!("unix:{}", self.0.display())
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // QEMU may have removed it.
        let _ = std::fs::remove_file(&self.0);
    }
}
