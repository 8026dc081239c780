//! The downstream stage: somebody else's kernel, built against what would be published.
//!
//! Inside the workspace a crate sees its neighbours' sources and everybody's features. A user sees a
//! packaged crate and the features he names. `xtask/downstream` is such a user; it is copied out of the
//! workspace, next to the unpacked packages.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use object::{Object as _, ObjectSection as _};
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

    let foreign = adopt(workspace, runner, &folder)?;
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
    let image =
        object::File::parse(&*bytes).with_context(|| format!("{} is no ELF", elf.display()))?;
    let size = |name| {
        let section = image.section_by_name(name);
        section.map_or(0, |section| section.size())
    };
    let (data, zeros) = (size(".data"), size(".bss"));
    // The balloon is a static of this kernel, and zeros until it is started.
    ensure!(
        data <= MOST_DATA && zeros > 64 * 4096,
        "{data} bytes of initialised data, {zeros} bytes of zeros: the balloon is part of the image"
    );
    Ok(format!(
        "{} packages, kernel of {} KiB, {data} bytes of data; {foreign}",
        workspace.libraries().count(),
        bytes.len() / 1024
    ))
}

/// The most bytes of initialised data in a kernel with a balloon.
const MOST_DATA: u64 = 512;

/// The engine, whose users' lock files name nobody outside this workspace.
const ENGINE: &str = "balloon-core";

/// Counts the packages that each library brings into the lock file of who depends on it.
fn adopt(workspace: &Workspace, runner: &mut Runner, folder: &Path) -> Result<String> {
    let ours: Vec<&str> = workspace
        .libraries()
        .map(|library| library.name.as_str())
        .collect();
    let mut counts = Vec::new();
    for name in &ours {
        let adopter = folder.join(format!("adopts-{name}"));
        std::fs::create_dir_all(adopter.join("src"))?;
        std::fs::write(adopter.join("src/lib.rs"), "#![no_std]\n")?;
        let mut manifest = format!(
            "[package]\nname = \"adopter\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n\n\
             [dependencies]\n{name} = \"*\"\n\n[patch.crates-io]\n"
        );
        for library in &ours {
            writeln!(manifest, "{library} = {{ path = \"../crates/{library}\" }}")?;
        }
        std::fs::write(adopter.join("Cargo.toml"), manifest)?;
        let shell = workspace.shell()?;
        shell.copy_file(workspace.root().join("Cargo.lock"), &adopter)?;
        shell.change_dir(&adopter);
        runner.run(cmd!(shell, "cargo metadata --format-version 1 --quiet"))?;
        let lock = std::fs::read_to_string(adopter.join("Cargo.lock"))?;
        // The lock file also names patches that nothing uses.
        let used = lock.split("[[patch.unused]]").next().unwrap_or_default();
        let packages: Vec<&str> = used
            .lines()
            .filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'))
            .filter(|package| *package != "adopter" && package != name)
            .collect();
        if *name == ENGINE {
            let strangers: Vec<_> = packages.iter().filter(|p| !ours.contains(p)).collect();
            ensure!(
                strangers.is_empty(),
                "{name} brings {strangers:?} to who depends on it"
            );
        }
        counts.push(format!("{name} brings {}", packages.len()));
    }
    Ok(counts.join(", "))
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
