//! Debian's packages for the lab: downloaded and unpacked, never installed.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use xshell::{Shell, cmd};

use crate::exec::Runner;
use crate::workspace::Workspace;

/// Xen, its tools, and the libraries they need beyond the machine's own.
const PACKAGES: [&str; 15] = [
    "xen-hypervisor-4.17-amd64",
    "xen-utils-4.17",
    "xenstore-utils",
    "libxencall1",
    "libxendevicemodel1",
    "libxenevtchn1",
    "libxenforeignmemory1",
    "libxengnttab1",
    "libxenhypfs1",
    "libxenmisc4.17",
    "libxenstore4",
    "libxentoolcore1",
    "libxentoollog1",
    "libyajl2",
    "busybox-static",
];
/// Only where the machine lacks it.
const UUID: &str = "libuuid1";
/// Names the kernel of the release.
const KERNEL: &str = "linux-image-amd64";

/// What was unpacked.
#[derive(Debug)]
pub(super) struct Lab {
    /// The packages' files.
    pub(super) root: PathBuf,
    /// The kernel package's files.
    pub(super) kernel: PathBuf,
    /// Xen as an ELF that QEMU's multiboot loader takes.
    pub(super) xen: PathBuf,
    /// Linux, uncompressed: it saves seconds of emulated decompression.
    pub(super) vmlinux: PathBuf,
}

/// Makes the lab ready under `target/xtask/xen`.
pub(super) fn lab(workspace: &Workspace, runner: &mut Runner) -> Result<Lab> {
    let folder = workspace.output("xen")?;
    let lab = Lab {
        root: folder.join("root"),
        kernel: folder.join("kernel"),
        xen: folder.join("xen.elf"),
        vmlinux: folder.join("vmlinux"),
    };
    let ready = folder.join("ready");
    if !ready.exists() {
        download(workspace, runner, &folder, &lab)?;
        unpack_images(workspace, &lab)?;
        std::fs::write(&ready, "")?;
    }
    Ok(lab)
}

fn download(workspace: &Workspace, runner: &mut Runner, folder: &Path, lab: &Lab) -> Result<()> {
    let shell = workspace.shell()?;
    if rustix::process::geteuid().is_root() {
        runner.run(cmd!(shell, "apt-get update"))?;
    }
    runner.say(&format!(
        "apt-get: unpacking Xen 4.17 and Linux under {}",
        folder.display()
    ))?;
    let depends = cmd!(shell, "apt-cache depends {KERNEL}").quiet().read()?;
    let image = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .filter(|name| name.starts_with("linux-image-"))
        .with_context(|| format!("apt knows no {KERNEL}: `apt-get update`, on Debian 12"))?;
    for (sub, names, to) in [
        ("debs", [&PACKAGES[..], &[UUID]].concat(), &lab.root),
        ("debs-kernel", vec![image], &lab.kernel),
    ] {
        let debs = folder.join(sub);
        std::fs::create_dir_all(&debs)?;
        shell.change_dir(&debs);
        runner.run(cmd!(shell, "apt-get download {names...}"))?;
        for file in shell.read_dir(".")? {
            runner.run(cmd!(shell, "dpkg-deb -x {file} {to}"))?;
        }
    }
    Ok(())
}

fn unpack_images(workspace: &Workspace, lab: &Lab) -> Result<()> {
    let shell = workspace.shell()?;
    let packed = lab.root.join("boot/xen-4.17-amd64.gz");
    let plain = cmd!(shell, "gzip -dc {packed}").quiet().output()?.stdout;
    std::fs::write(&lab.xen, plain)?;
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
