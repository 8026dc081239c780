//! Debian's packages for the lab: downloaded and unpacked, never installed.

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use xshell::{Shell, cmd};

use crate::exec::Runner;
use crate::setup::{Apt, Release, Unpacked};
use crate::workspace::Workspace;

/// A Xen that the cases run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Xen {
    /// Of Debian 12.
    #[value(name = "4.17")]
    V4_17,
    /// Of Debian 13.
    #[value(name = "4.20")]
    V4_20,
}

impl Xen {
    pub(super) const ALL: [Self; 2] = [Self::V4_17, Self::V4_20];

    const fn release(self) -> &'static str {
        match self {
            Self::V4_17 => "4.17",
            Self::V4_20 => "4.20",
        }
    }

    /// The Debian release that has it.
    const fn debian(self) -> &'static str {
        match self {
            Self::V4_17 => BOOKWORM,
            Self::V4_20 => "trixie",
        }
    }
}

impl fmt::Display for Xen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.release())
    }
}

const BOOKWORM: &str = "bookworm";
/// Names the kernel of the release. That of the first domain and of Linux domains is
/// the same on every Xen.
const KERNEL: &str = "linux-image-amd64";

/// What was unpacked.
#[derive(Debug, Clone)]
pub(super) struct Lab {
    pub(super) version: Xen,
    /// Xen's tools and their libraries.
    pub(super) tools: Unpacked,
    /// The kernel package's files.
    pub(super) kernel: PathBuf,
    /// Xen as an ELF that QEMU's multiboot loader takes.
    pub(super) xen: PathBuf,
    /// Linux, uncompressed: it saves seconds of emulated decompression.
    pub(super) vmlinux: PathBuf,
}

impl Lab {
    /// Where the tools expect each other.
    pub(super) fn tools_path(&self) -> String {
        format!("usr/lib/xen-{}/bin", self.version)
    }
}

/// Makes the lab ready under `target/xtask/xen`.
pub(super) fn lab(workspace: &Workspace, runner: &mut Runner, version: Xen) -> Result<Lab> {
    let folder = workspace.output(&format!("xen/{version}"))?;
    let linux = workspace.output("xen/linux")?;
    let lab = Lab {
        version,
        tools: Unpacked {
            root: folder.join("root"),
        },
        kernel: linux.join("root"),
        xen: folder.join("xen.elf"),
        vmlinux: linux.join("vmlinux"),
    };
    once(&folder, || {
        let apt = apt(workspace, runner, version.debian())?;
        runner.say(&format!(
            "apt-get: unpacking Xen {version} under {}",
            folder.display()
        ))?;
        let xen = format!("xen-hypervisor-{version}-amd64");
        let tools = format!("xen-utils-{version}");
        let names = [&*xen, &tools, "xenstore-utils", "busybox-static"];
        apt.unpack_whole(runner, &names, &lab.tools.root)?;
        unpack_xen(workspace, &lab)
    })?;
    once(&linux, || {
        let apt = apt(workspace, runner, BOOKWORM)?;
        runner.say(&format!(
            "apt-get: unpacking Linux under {}",
            linux.display()
        ))?;
        let image = apt.first_need(KERNEL)?;
        apt.unpack(runner, &[&image], &lab.kernel)?;
        unpack_linux(workspace, &lab)
    })?;
    Ok(lab)
}

/// Fills a folder unless that was done before.
fn once(folder: &Path, fill: impl FnOnce() -> Result<()>) -> Result<()> {
    let ready = folder.join("ready");
    if !ready.exists() {
        fill()?;
        std::fs::write(&ready, "")?;
    }
    Ok(())
}

fn apt(workspace: &Workspace, runner: &mut Runner, codename: &'static str) -> Result<Apt> {
    let release = Release {
        codename,
        architecture: "amd64",
    };
    Apt::of(workspace, runner, release)
}

fn unpack_xen(workspace: &Workspace, lab: &Lab) -> Result<()> {
    let shell = workspace.shell()?;
    let packed = format!("boot/xen-{}-amd64.gz", lab.version);
    let packed = lab.tools.root.join(packed);
    let plain = cmd!(shell, "gzip -dc {packed}").quiet().output()?.stdout;
    std::fs::write(&lab.xen, plain)?;
    Ok(())
}

fn unpack_linux(workspace: &Workspace, lab: &Lab) -> Result<()> {
    let shell = workspace.shell()?;
    let image = only_file(&shell, &lab.kernel.join("boot"), "vmlinuz-")?;
    let image = std::fs::read(&image).with_context(|| format!("reading {}", image.display()))?;
    // The payload of a bzImage is one XZ stream somewhere behind the loader.
    const MAGIC: &[u8] = b"\xfd7zXZ\0";
    let at = image
        .windows(MAGIC.len())
        .position(|window| window == MAGIC)
        .context("the kernel image holds no XZ stream")?;
    let payload = image.get(at..).unwrap_or_default();
    let mut child = std::process::Command::new("xz")
        .args(["-dc", "--single-stream"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .context("starting xz (Debian package xz-utils)")?;
    let mut input = child.stdin.take().context("xz has an input")?;
    let payload = payload.to_vec();
    let feeding = std::thread::spawn(move || {
        use std::io::Write as _;
        // It stops reading at the end of the stream.
        let _ = input.write_all(&payload);
    });
    let mut kernel = Vec::new();
    if let Some(mut output) = child.stdout.take() {
        output.read_to_end(&mut kernel)?;
    }
    let _ = feeding.join();
    child.wait()?;
    if !kernel.starts_with(b"\x7fELF") {
        bail!("the kernel image does not unpack to an ELF");
    }
    std::fs::write(&lab.vmlinux, kernel)?;
    Ok(())
}

/// The one file in `folder` whose name starts with `prefix`.
fn only_file(shell: &Shell, folder: &Path, prefix: &str) -> Result<PathBuf> {
    let files = shell.read_dir(folder)?;
    files
        .into_iter()
        .find(|file| {
            file.file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|name| name.starts_with(prefix))
        })
        .with_context(|| format!("{} holds no {prefix}*", folder.display()))
}
