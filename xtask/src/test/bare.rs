//! Stages for machines without an operating system.

use anyhow::{Context as _, Result, ensure};
use xshell::cmd;

use super::host::selected;
use crate::exec::Runner;
use crate::setup;
use crate::setup::tools;
use crate::workspace::{GUEST_TARGET, Workspace};

/// One of each kind: x86, Arm, and 32 bits without 64-bit atomics.
const TARGETS: [&str; 3] = [GUEST_TARGET, "aarch64-unknown-none", "thumbv7em-none-eabi"];

/// Every library for every bare target: as a kernel gets it, and with all features, `defmt` among them.
pub(super) fn targets(workspace: &Workspace, runner: &mut Runner) -> Result<String> {
    let shell = workspace.shell()?;
    let libraries = &selected(workspace.libraries());
    for target in TARGETS {
        setup::target(workspace, runner, target)?;
        for features in [None, Some("--all-features")] {
            runner.run(cmd!(
                shell,
                "cargo build {libraries...} --lib {features...} --target {target}"
            ))?;
        }
    }
    Ok(format!(
        "{} libraries on {}",
        workspace.libraries().count(),
        TARGETS.join(", ")
    ))
}

/// Every combination of the libraries' features, checked for the bare target.
pub(super) fn powerset(workspace: &Workspace, runner: &mut Runner) -> Result<String> {
    setup::target(workspace, runner, GUEST_TARGET)?;
    setup::tool(workspace, runner, tools::HACK)?;
    let shell = workspace.shell()?;
    let libraries = selected(workspace.libraries());
    shell.set_var("RUSTFLAGS", "-D warnings");
    // A folder of its own: other flags than everybody else's would rebuild everything twice.
    let folder = workspace.target().join("powerset");
    let output = runner.run(cmd!(
        shell,
        "cargo hack check --feature-powerset --exclude-features loom {libraries...} --lib --target {GUEST_TARGET} --target-dir {folder}"
    ))?;
    let checks = output
        .lines()
        .filter(|line| line.starts_with("info: running"))
        .count();
    ensure!(
        checks >= workspace.libraries().count(),
        "cargo-hack ran {checks} checks only"
    );
    Ok(format!("{checks} combinations"))
}

/// The libraries with exactly the Rust that `rust-version` promises.
pub(super) fn msrv(workspace: &Workspace, runner: &mut Runner) -> Result<String> {
    let mut oldest: Vec<&str> = workspace
        .libraries()
        .filter_map(|package| package.rust_version.as_deref())
        .collect();
    oldest.dedup();
    ensure!(
        oldest.len() == 1,
        "the libraries promise different versions of Rust: {oldest:?}"
    );
    let version = oldest
        .first()
        .copied()
        .context("the libraries state no rust-version")?;
    setup::toolchain(workspace, runner, version, Some(GUEST_TARGET))?;
    let shell = workspace.shell()?;
    let libraries = selected(workspace.libraries());
    let toolchain = format!("+{version}");
    let folder = workspace.target().join("msrv");
    runner.run(cmd!(
        shell,
        "cargo {toolchain} check {libraries...} --lib --all-features --target {GUEST_TARGET} --target-dir {folder}"
    ))?;
    Ok(format!("Rust {version}"))
}
