//! The downstream stage: somebody else's kernel, built against what would be published.
//!
//! Inside the workspace a crate sees its neighbours' sources and everybody's features. A user sees a
//! packaged crate and the features he names. `xtask/downstream` is such a user; it is copied out of the
//! workspace, next to the unpacked packages.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use xshell::cmd;

use super::host::selected;
use crate::exec::Runner;
use crate::setup;
use crate::workspace::{GUEST_TARGET, Workspace};

/// Packages the libraries, unpacks them, and links a kernel against them.
pub(super) fn build(workspace: &Workspace, runner: &mut Runner) -> Result<String> {
    setup::target(workspace, runner, GUEST_TARGET)?;
    let shell = workspace.shell()?;
    let folder = workspace.output("downstream")?;
    if folder.exists() {
        std::fs::remove_dir_all(&folder)
            .with_context(|| format!("removing {}", folder.display()))?;
    }
    let crates = folder.join("crates");
    std::fs::create_dir_all(&crates)?;

    let libraries = selected(workspace.libraries());
    let packed = folder.join("packed");
    // Verification would build each crate by itself, with nothing of ours on the registry to depend on.
    runner.run(cmd!(
        shell,
        "cargo package {libraries...} --no-verify --allow-dirty --exclude-lockfile --target-dir {packed}"
    ))?;
    for library in workspace.libraries() {
        let name = &library.name;
        let archive = packed
            .join("package")
            .join(format!("{name}-{}.crate", library.version));
        runner.run(cmd!(shell, "tar -xzf {archive} -C {crates}"))?;
        // The manifest of the kernel names folders without versions.
        std::fs::rename(
            crates.join(format!("{name}-{}", library.version)),
            crates.join(name),
        )?;
    }

    let kernel = folder.join("kernel");
    copy(&workspace.root().join("xtask/downstream"), &kernel)?;
    // The same versions of everybody else's crates; cargo drops what this kernel does not need.
    shell.copy_file(workspace.root().join("Cargo.lock"), &kernel)?;
    shell.change_dir(&kernel);
    let built = folder.join("target");
    runner.run(cmd!(
        shell,
        "cargo build --release --target {GUEST_TARGET} --target-dir {built}"
    ))?;
    let elf = built
        .join(GUEST_TARGET)
        .join("release")
        .join("downstream-kernel");
    let bytes = std::fs::read(&elf).with_context(|| format!("reading {}", elf.display()))?;
    ensure!(bytes.starts_with(b"\x7fELF"), "{} is no ELF", elf.display());
    Ok(format!(
        "{} packages, kernel of {} KiB",
        workspace.libraries().count(),
        bytes.len() / 1024
    ))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
