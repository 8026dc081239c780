//! The fuzz stage: every target for a few seconds, and the corpora as ordinary tests.

use anyhow::{Result, ensure};
use xshell::cmd;

use super::host::passed;
use crate::exec::Runner;
use crate::fuzz;
use crate::workspace::Workspace;

/// Enough to see that a target builds, starts and survives its corpus and what grows from it; a host that
/// does what the bytes say has a minute.
fn seconds(target: &str) -> u64 {
    match target {
        "virtio_device" => 60,
        _ => 10,
    }
}

/// Replays the corpora under `cargo test`, then fuzzes each target of the README's table.
pub(super) fn smoke(workspace: &Workspace, runner: &mut Runner) -> Result<String> {
    fuzz::set_up(workspace, runner)?;
    let targets = fuzz::targets(workspace)?;
    let shell = workspace.shell()?;
    let output = runner.run(cmd!(
        shell,
        "cargo test --manifest-path fuzz/Cargo.toml --lib --tests"
    ))?;
    let replayed = passed(&output);
    ensure!(replayed > 0, "no test replays a corpus in fuzz/");
    for target in &targets {
        fuzz::fuzz(workspace, runner, target, seconds(target), false)?;
    }
    let spent: u64 = targets.iter().map(|target| seconds(target)).sum();
    Ok(format!(
        "{} targets for {spent} s in all, {replayed} tests",
        targets.len()
    ))
}
