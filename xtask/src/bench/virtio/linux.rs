//! The peer: Debian's Linux for clouds, with its own balloon driver and a file system of two files.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use xshell::cmd;

use crate::archive::Archive;
use crate::exec::Runner;
use crate::setup;
use crate::workspace::Workspace;

/// Names the newest kernel of the suite.
const NEWEST: &str = "linux-image-cloud-amd64";
const SHELL: &str = "busybox-static";

/// A kernel, and its first file system.
#[derive(Debug)]
pub(super) struct Linux {
    pub(super) kernel: PathBuf,
    pub(super) initrd: PathBuf,
    /// Debian's name of the kernel package.
    pub(super) name: String,
}

/// Unpacks what is needed under `target/xtask/linux`; nothing is installed.
pub(super) fn unpack(workspace: &Workspace, runner: &mut Runner) -> Result<Linux> {
    let folder = workspace.output("linux")?;
    let name_file = folder.join("name");
    let linux = |name: String| Linux {
        kernel: folder.join("vmlinuz"),
        initrd: folder.join("initrd"),
        name,
    };
    if let Ok(name) = std::fs::read_to_string(&name_file) {
        return Ok(linux(name));
    }
    let suite = setup::backports(workspace, runner)?;
    let shell = workspace.shell()?;
    let newest = suite.map_or_else(|| NEWEST.to_owned(), |suite| format!("{NEWEST}/{suite}"));
    let depends = cmd!(shell, "apt-cache depends {newest}").quiet().read()?;
    let name = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .with_context(|| format!("apt knows no {newest}: `apt-get update`"))?
        .to_owned();
    runner.say(&format!(
        "apt-get: unpacking {name} under {}",
        folder.display()
    ))?;
    let root = folder.join("root");
    std::fs::create_dir_all(folder.join("debs"))?;
    shell.change_dir(folder.join("debs"));
    runner.run(cmd!(shell, "apt-get download {name} {SHELL}"))?;
    for file in shell.read_dir(".")? {
        runner.run(cmd!(shell, "dpkg-deb -x {file} {root}"))?;
    }
    let module = cmd!(shell, "find {root} -name virtio_balloon.ko*")
        .quiet()
        .read()?;
    let module = cmd!(shell, "xz -dcf {module}").quiet().output()?.stdout;
    let kernel = cmd!(shell, "find {root}/boot -name vmlinuz-*")
        .quiet()
        .read()?;

    let mut archive = Archive::default();
    for folder in ["proc", "mnt", "dev"] {
        archive.folder(folder);
    }
    archive.file("bin/busybox", true, &busybox(&root)?);
    archive.file("virtio_balloon.ko", false, &module);
    archive.file("init", true, include_bytes!("linux-init.sh"));
    let linux = linux(name);
    std::fs::write(&linux.initrd, archive.finish())?;
    std::fs::copy(kernel, &linux.kernel)?;
    // Last: whoever sees it finds all the rest.
    std::fs::write(name_file, &linux.name)?;
    Ok(linux)
}

fn busybox(root: &Path) -> Result<Vec<u8>> {
    let places = ["bin/busybox", "usr/bin/busybox"].map(|path| root.join(path));
    let found = places.iter().find(|path| path.is_file());
    Ok(std::fs::read(
        found.context("busybox-static holds no busybox")?,
    )?)
}
