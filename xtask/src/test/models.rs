//! Stages that explore more than one run: loom models and Miri.

use anyhow::{Result, ensure};
use xshell::cmd;

use super::host::passed;
use crate::exec::Runner;
use crate::setup;
use crate::workspace::{NIGHTLY, Workspace};

/// The loom models of every package that has a feature `loom`.
///
/// Models are the tests with `loom` in their path: under `cfg(loom)` other tests would use loom's types
/// outside of a model and fail.
pub(super) fn loom(workspace: &Workspace, runner: &mut Runner) -> Result<String> {
    let shell = workspace.shell()?;
    shell.set_var("RUSTFLAGS", "--cfg loom");
    let folder = workspace.target().join("loom");
    let mut models = 0;
    let mut packages = 0;
    for package in workspace.libraries().filter(|package| package.has_loom()) {
        let name = &package.name;
        let spec = package.spec();
        let output = runner.run(cmd!(
            shell,
            "cargo test --profile loom --package {spec} --features loom --lib --tests --target-dir {folder} -- loom"
        ))?;
        let found = passed(&output);
        ensure!(
            found > 0,
            "{name} depends on loom and has no model: no test has `loom` in its path"
        );
        models += found;
        packages += 1;
    }
    ensure!(packages > 0, "no package has loom models");
    Ok(format!("{models} models in {packages} packages"))
}

/// Property tests look for the files of their past failures, which Miri's isolation forbids.
const STACKED: &str = "-Zmiri-strict-provenance -Zmiri-disable-isolation";
const TREE: &str = "-Zmiri-strict-provenance -Zmiri-disable-isolation -Zmiri-tree-borrows";

/// Tests of the libraries with unsafe code under Miri, once with each model of borrows.
///
/// Miri is a few hundred times slower than the machine, so a package names what it is to see in
/// `[package.metadata.xtask] miri = ["filter", ...]`: unit tests with one of these in their path, all of
/// them if the list is empty. Packages that forbid unsafe code need no note.
pub(super) fn miri(workspace: &Workspace, runner: &mut Runner) -> Result<String> {
    setup::nightly(workspace, runner, &["miri", "rust-src"])?;
    let shell = workspace.shell()?;
    let toolchain = format!("+{NIGHTLY}");
    let folder = workspace.target().join("miri");
    shell.set_var("CARGO_TARGET_DIR", &folder);
    // A few cases of each property must do.
    shell.set_var("PROPTEST_CASES", "4");
    let mut notes = Vec::new();
    for (model, flags) in [("stacked", STACKED), ("tree", TREE)] {
        shell.set_var("MIRIFLAGS", flags);
        let mut tests = 0;
        for package in workspace.libraries() {
            let Some(filters) = package.note("miri") else {
                continue;
            };
            let spec = package.spec();
            let output = runner.run(cmd!(
                shell,
                "cargo {toolchain} miri test --package {spec} --lib -- -Zunstable-options --report-time {filters...}"
            ))?;
            let found = passed(&output);
            ensure!(found > 0, "no test of {spec} ran under Miri");
            tests += found;
        }
        ensure!(tests > 0, "no package is to be seen by Miri");
        notes.push(format!("{tests} tests under {model} borrows"));
    }
    Ok(notes.join(", "))
}
