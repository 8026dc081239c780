//! Rust's side: targets, components, toolchains and cargo's helper programs.
//!
//! Nothing relies on automatic installs: those may be switched off, and a person should see what is added.

use anyhow::{Context as _, Result};
use xshell::cmd;

use crate::exec::Runner;
use crate::workspace::{NIGHTLY, Workspace};

/// A helper program of cargo, at the version this workspace is tested with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tool {
    name: &'static str,
    version: &'static str,
}

/// The helper programs stages use.
pub(crate) mod tools {
    use super::Tool;

    /// Checks every combination of features.
    pub(crate) const HACK: Tool = Tool {
        name: "cargo-hack",
        version: "0.6.46",
    };
    /// Builds and runs fuzz targets.
    pub(crate) const FUZZ: Tool = Tool {
        name: "cargo-fuzz",
        version: "0.13.2",
    };
}

/// Makes sure that `rustup` has the standard library of `target` for the stable toolchain.
pub(crate) fn target(workspace: &Workspace, runner: &mut Runner, target: &str) -> Result<()> {
    target_of(workspace, runner, None, target)
}

fn target_of(
    workspace: &Workspace,
    runner: &mut Runner,
    toolchain: Option<&str>,
    target: &str,
) -> Result<()> {
    let shell = workspace.shell()?;
    let of = &toolchain.map_or_else(Vec::new, |name| vec!["--toolchain", name]);
    let present = cmd!(shell, "rustup target list --installed {of...}")
        .quiet()
        .read()
        .context(NO_RUSTUP)?;
    if !present.lines().any(|line| line == target) {
        runner.say(&format!("rustup: adding the target {target}"))?;
        runner.run(cmd!(shell, "rustup target add {of...} {target}"))?;
    }
    Ok(())
}

/// Makes sure that the stable toolchain has `component`.
pub(crate) fn component(workspace: &Workspace, runner: &mut Runner, component: &str) -> Result<()> {
    component_of(workspace, runner, None, component)
}

fn component_of(
    workspace: &Workspace,
    runner: &mut Runner,
    toolchain: Option<&str>,
    component: &str,
) -> Result<()> {
    let shell = workspace.shell()?;
    let of = &toolchain.map_or_else(Vec::new, |name| vec!["--toolchain", name]);
    let present = cmd!(shell, "rustup component list --installed {of...}")
        .quiet()
        .read()
        .context(NO_RUSTUP)?;
    // The list adds the host's triple to most names.
    if !present
        .lines()
        .any(|line| line == component || line.starts_with(&format!("{component}-")))
    {
        runner.say(&format!("rustup: adding the component {component}"))?;
        runner.run(cmd!(shell, "rustup component add {of...} {component}"))?;
    }
    Ok(())
}

/// Makes sure that a toolchain is installed, at least in rustup's minimal profile, with `target`.
pub(crate) fn toolchain(
    workspace: &Workspace,
    runner: &mut Runner,
    toolchain: &str,
    target: Option<&str>,
) -> Result<()> {
    let shell = workspace.shell()?;
    let present = cmd!(shell, "rustup toolchain list")
        .quiet()
        .read()
        .context(NO_RUSTUP)?;
    if !present
        .lines()
        .any(|line| line.starts_with(&format!("{toolchain}-")))
    {
        runner.say(&format!("rustup: installing the toolchain {toolchain}"))?;
        runner.run(cmd!(
            shell,
            "rustup toolchain install {toolchain} --profile minimal --no-self-update"
        ))?;
    }
    target.map_or(Ok(()), |target| {
        target_of(workspace, runner, Some(toolchain), target)
    })
}

/// Makes sure that the pinned nightly is there with these components.
pub(crate) fn nightly(
    workspace: &Workspace,
    runner: &mut Runner,
    components: &[&str],
) -> Result<()> {
    toolchain(workspace, runner, NIGHTLY, None)?;
    components
        .iter()
        .try_for_each(|name| component_of(workspace, runner, Some(NIGHTLY), name))
}

/// Makes sure that a helper program is there, in our own folder and at our own version.
pub(crate) fn tool(workspace: &Workspace, runner: &mut Runner, tool: Tool) -> Result<()> {
    let Tool { name, version } = tool;
    let root = workspace.output("tools")?;
    // Cargo notes what it installed where: a file of another version is replaced.
    let listed = std::fs::read_to_string(root.join(".crates.toml")).unwrap_or_default();
    if listed.contains(&format!("\"{name} {version} ")) && root.join("bin").join(name).exists() {
        return Ok(());
    }
    runner.say(&format!(
        "cargo: installing {name} {version} into {}",
        root.display()
    ))?;
    let shell = workspace.shell()?;
    let target = workspace.target().join("tools");
    runner.run(cmd!(
        shell,
        "cargo install --locked --version {version} --root {root} --target-dir {target} {name}"
    ))?;
    Ok(())
}

const NO_RUSTUP: &str =
    "xtask needs rustup: https://rustup.rs installs it, with the stable toolchain";
