//! `cargo xtask xen arm64`: the hypercalls by `hvc`, on real Xen for Arm.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use xshell::cmd;

use super::fdt;
use super::host::{FIRST, Host};
use crate::exec::Runner;
use crate::setup::{self, Apt, Release};
use crate::workspace::Workspace;

const TARGET: &str = "aarch64-unknown-none";
const GUEST: &str = "xen-arm64";
const PACKAGE: &str = "xen-hypervisor-4.17-arm64";
const EMULATOR: &str = "qemu-system-aarch64";
const MACHINE: [&str; 8] = [
    "-machine",
    "virt,virtualization=on,gic-version=3",
    "-cpu",
    "cortex-a57",
    "-m",
    "512M",
    "-smp",
    "1",
];
/// Where the guest's image waits for Xen.
const IMAGE: u32 = 0x4900_0000;
const LIMIT: Duration = Duration::from_secs(120);

/// Fetches Xen, builds the guest, boots both; what the guest said.
pub(super) fn run(workspace: &Workspace, runner: &mut Runner) -> Result<String> {
    let xen = hypervisor(workspace, runner)?;
    let guest = build(workspace, runner)?;
    let folder = workspace.output("xen/run")?;
    std::fs::create_dir_all(&folder)?;
    let tree = tree(&folder, &guest)?;

    let mut command = Command::new(EMULATOR);
    command.args(MACHINE).args(["-accel", "tcg"]);
    command.args(["-display", "none", "-no-reboot", "-nic", "none"]);
    command.args(["-serial", "stdio", "-append", "console=dtuart bootscrub=0"]);
    command.arg("-kernel").arg(xen).arg("-dtb").arg(tree);
    command.arg("-device").arg(format!(
        "loader,file={},addr={IMAGE:#x},force-raw=on",
        guest.display()
    ));
    let mut host = Host::start(command, &folder.join("arm64.log"))?;
    let mut said = Vec::new();
    for event in ["xen", "owned", "superpages", "hole", "limit", "move"] {
        let (_, text) = host.event(FIRST, event, LIMIT, |_| true)?;
        said.push(format!("{event} {text}"));
    }
    host.event(FIRST, "done", LIMIT, |token| token == "arm64")?;
    Ok(said.join("; "))
}

/// Debian's Xen for arm64.
fn hypervisor(workspace: &Workspace, runner: &mut Runner) -> Result<PathBuf> {
    let folder = workspace.output("xen-arm64")?;
    let image = folder.join("root/boot/xen-4.17-arm64");
    if image.is_file() {
        return Ok(image);
    }
    let release = Release {
        codename: "bookworm",
        architecture: "arm64",
    };
    let apt = Apt::of(workspace, runner, release)?;
    runner.say(&format!(
        "apt-get: unpacking {PACKAGE} under {}",
        folder.display()
    ))?;
    apt.unpack(runner, &[PACKAGE], &folder.join("root"))?;
    ensure!(image.is_file(), "{PACKAGE} holds no {}", image.display());
    Ok(image)
}

pub(super) fn build(workspace: &Workspace, runner: &mut Runner) -> Result<PathBuf> {
    setup::target(workspace, runner, TARGET)?;
    let shell = workspace.shell()?;
    runner.run(cmd!(
        shell,
        "cargo build --release --package {GUEST} --target {TARGET}"
    ))?;
    Ok(workspace.target().join(TARGET).join("release").join(GUEST))
}

/// QEMU's own tree of this machine, and the domain in it.
fn tree(folder: &Path, guest: &Path) -> Result<PathBuf> {
    let (plain, tree) = (folder.join("arm64-plain.dtb"), folder.join("arm64.dtb"));
    let mut command = Command::new(EMULATOR);
    command.args(MACHINE).arg("-machine");
    command.arg(format!("dumpdtb={}", plain.display()));
    let output = command
        .output()
        .with_context(|| format!("starting {EMULATOR} (Debian package qemu-system-arm)"))?;
    ensure!(
        output.status.success(),
        "{EMULATOR}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let bytes = u32::try_from(std::fs::metadata(guest)?.len())?;
    let domain = fdt::Domain {
        memory_mib: 64,
        image: (IMAGE, bytes),
    };
    std::fs::write(&tree, fdt::with_domain(&std::fs::read(plain)?, domain)?)?;
    Ok(tree)
}
