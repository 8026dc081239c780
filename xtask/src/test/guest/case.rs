//! What a case is, and what cases have in common.

use std::path::{Path as FilePath, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::setup::Qemu;
use crate::vm::{Board, Machine, Vm, resident};

pub(super) const MIB: u64 = 1 << 20;
pub(super) const BOOT: Duration = Duration::from_secs(60);
pub(super) const ANSWER: Duration = Duration::from_secs(60);
/// The first queue of every balloon device.
pub(super) const INFLATE_QUEUE: u32 = 0;
const REACH: Duration = Duration::from_secs(60);
/// Between two looks.
const PERIOD: Duration = Duration::from_millis(4);

/// A machine to try something on.
#[derive(Debug)]
pub(super) struct Site<'a> {
    pub(super) qemu: &'a Qemu,
    pub(super) board: Board,
    pub(super) elf: &'a FilePath,
    /// The smallest guest, where it runs.
    pub(super) minimal: Option<&'a FilePath>,
    pub(super) folder: PathBuf,
}

/// Something to try: it boots a machine of its own and ends it.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    /// Where it runs each time; on every board if all is asked for.
    pub(super) boards: &'static [Board],
    pub(super) run: fn(&Site<'_>) -> Result<()>,
}

impl Site<'_> {
    pub(super) fn machine(&self, mem_mib: u64) -> Machine {
        // The tests' targets go down to the last free frame.
        Machine::new(self.board, mem_mib, self.elf).append("floor=none")
    }

    /// Boots `machine`, lets `act` use it, and explains what went wrong with the guest's own log.
    pub(super) fn with(
        &self,
        machine: Machine,
        act: impl FnOnce(&mut Vm) -> Result<()>,
    ) -> Result<()> {
        let mut vm = Vm::start(self.qemu, machine, &self.folder)?;
        act(&mut vm).map_err(|error| vm.explain(error))
    }
}

/// Looks again and again until `look` finds what is waited for; what it says instead is told if it never does.
pub(super) fn wait_until<T>(
    limit: Duration,
    mut look: impl FnMut() -> Result<Result<T, String>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match look()? {
            Ok(found) => return Ok(found),
            Err(instead) => ensure!(
                Instant::now() < deadline,
                "after {} s {instead}",
                limit.as_secs()
            ),
        }
        std::thread::sleep(PERIOD);
    }
}

/// Waits until host memory has fallen by `bytes`, and returns by how much it has.
pub(super) fn wait_for_fall(vm: &Vm, before: u64, bytes: u64) -> Result<u64> {
    wait_until(REACH, || {
        let fallen = before.saturating_sub(resident(vm.pid())?);
        let enough = (fallen >= bytes).then_some(fallen);
        Ok(enough.ok_or_else(|| format!("host memory has fallen by {fallen} bytes only")))
    })
}

/// Asks for `bytes` and waits until `query-balloon` shows exactly that.
pub(super) fn resize(vm: &mut Vm, bytes: u64) -> Result<()> {
    vm.qmp.balloon(bytes)?;
    wait_for(vm, bytes)
}

pub(super) fn wait_for(vm: &mut Vm, bytes: u64) -> Result<()> {
    wait_until(REACH, || {
        let actual = vm.qmp.query_balloon()?;
        vm.console.check_all()?;
        let shown = (actual == bytes).then_some(());
        Ok(shown.ok_or_else(|| {
            let tail = vm.console.tail();
            format!("query-balloon shows {actual}, {bytes} were asked\n{tail}")
        }))
    })
}

/// The guest answers, its data is whole, and no frame is lost.
pub(super) fn check_whole(vm: &mut Vm) -> Result<()> {
    vm.console.drain()?;
    vm.console.send("verify")?;
    vm.console.wait("verify", ANSWER)?;
    ensure!(
        vm.console.data_ok(1),
        "the guest's data was damaged\n{}",
        vm.console.tail()
    );
    let answer = vm.console.ask("stats")?;
    ensure!(
        answer.number("lost")? == 0,
        "frames were lost: {}",
        answer.text()
    );
    Ok(())
}
