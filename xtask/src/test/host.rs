//! Stages on the host: formatting, lints, tests, documentation.

use anyhow::{Result, bail};
use xshell::cmd;

use super::counts;
use crate::exec::Runner;
use crate::setup;
use crate::vm::Architecture;
use crate::workspace::{GUEST_TARGET, Package, Workspace};

/// The guests that are built for Arm, too.
const ARM_GUESTS: [&str; 4] = ["--package", "guest-rt", "--package", "qemu-guest"];

/// Formatting of every package, and what a reader counts.
pub(super) fn fmt(workspace: &Workspace, runner: &mut Runner) -> Result<String> {
    setup::component(workspace, runner, "rustfmt")?;
    let shell = workspace.shell()?;
    runner.run(cmd!(shell, "cargo fmt --all --check -- --color never"))?;
    runner.run(cmd!(
        shell,
        "cargo fmt --manifest-path fuzz/Cargo.toml --check -- --color never"
    ))?;
    counts::check(workspace, runner)
}

/// `-p NAME` for each package.
pub(super) fn selected<'a>(packages: impl Iterator<Item = &'a Package>) -> Vec<String> {
    packages
        .flat_map(|package| ["--package".to_owned(), package.spec()])
        .collect()
}

/// `--features` with all that work on the host.
fn host_features<'a>(packages: impl Iterator<Item = &'a Package>) -> Vec<String> {
    let features: Vec<String> = packages.flat_map(Package::host_features).collect();
    if features.is_empty() {
        Vec::new()
    } else {
        vec!["--features".to_owned(), features.join(",")]
    }
}

/// Lints: all targets of host packages and benches, the guests for their bare target, and the fuzz targets' logic.
pub(super) fn clippy(workspace: &Workspace, runner: &mut Runner) -> Result<String> {
    setup::component(workspace, runner, "clippy")?;
    setup::target(workspace, runner, GUEST_TARGET)?;
    setup::cxx(workspace, runner)?;
    let shell = workspace.shell()?;
    let host = selected(workspace.host_packages().chain(workspace.benches()));
    let guests = selected(workspace.guests());
    // Nothing links here, so `defmt` may be on: this is the one place where `--all-features` meets the host.
    runner.run(cmd!(
        shell,
        "cargo clippy {host...} --all-targets --all-features -- -D warnings"
    ))?;
    runner.run(cmd!(
        shell,
        "cargo clippy {guests...} --target {GUEST_TARGET} -- -D warnings"
    ))?;
    let arm = Architecture::Aarch64.target();
    setup::target(workspace, runner, arm)?;
    runner.run(cmd!(
        shell,
        "cargo clippy {ARM_GUESTS...} --target {arm} -- -D warnings"
    ))?;
    runner.run(cmd!(
        shell,
        "cargo clippy --manifest-path fuzz/Cargo.toml --all-targets -- -D warnings"
    ))?;
    Ok("host targets, guests, fuzz targets".to_owned())
}

/// Unit, contract, property and doc tests, with every feature but `defmt`.
///
/// What guests have in libraries is tested too, as far as it does not touch the machine.
pub(super) fn test(workspace: &Workspace, runner: &mut Runner) -> Result<String> {
    let shell = workspace.shell()?;
    let host = selected(workspace.host_packages());
    let features = host_features(workspace.host_packages());
    let output = runner.run(cmd!(
        shell,
        "cargo test {host...} {features...} --lib --bins --tests --examples"
    ))?;
    let mut tests = passed(&output);
    let guests = selected(workspace.guests().filter(|guest| guest.has_library()));
    if !guests.is_empty() {
        tests += passed(&runner.run(cmd!(shell, "cargo test {guests...} --lib"))?);
    }
    let libraries = selected(workspace.libraries());
    let features = host_features(workspace.libraries());
    let output = runner.run(cmd!(shell, "cargo test {libraries...} {features...} --doc"))?;
    let doc_tests = passed(&output);
    if tests == 0 || doc_tests == 0 {
        bail!(
            "{tests} tests and {doc_tests} doc tests ran: a stage that tests nothing proves nothing"
        );
    }
    Ok(format!("{tests} tests, {doc_tests} doc tests"))
}

/// Documentation of everything, for the target it is meant for.
pub(super) fn docs(workspace: &Workspace, runner: &mut Runner) -> Result<String> {
    setup::target(workspace, runner, GUEST_TARGET)?;
    let shell = workspace.shell()?;
    shell.set_var("RUSTDOCFLAGS", "-D warnings");
    let libraries = selected(workspace.libraries());
    let guests = selected(workspace.guests());
    runner.run(cmd!(
        shell,
        "cargo doc --no-deps {libraries...} --all-features"
    ))?;
    runner.run(cmd!(
        shell,
        "cargo doc --no-deps --package xtask --document-private-items"
    ))?;
    runner.run(cmd!(
        shell,
        "cargo doc --no-deps {guests...} --target {GUEST_TARGET} --document-private-items"
    ))?;
    let arm = Architecture::Aarch64.target();
    setup::target(workspace, runner, arm)?;
    runner.run(cmd!(
        shell,
        "cargo doc --no-deps {ARM_GUESTS...} --target {arm} --document-private-items"
    ))?;
    Ok("libraries, guests, xtask".to_owned())
}

/// How many tests passed, by the summaries of the test harness.
pub(super) fn passed(output: &str) -> u64 {
    let summaries = output
        .lines()
        .filter_map(|line| line.trim().strip_prefix("test result: ok. "));
    summaries
        .filter_map(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_are_added_up() {
        let output = "running 2 tests\ntest result: ok. 2 passed; 0 failed; 1 ignored\n\
                      test result: ok. 40 passed; 0 failed\ntest result: FAILED. 7 passed; 1 failed";
        assert_eq!(passed(output), 42);
    }
}
