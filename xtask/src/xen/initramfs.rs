//! File systems for the first domain, in the format its kernel unpacks.
//!
//! The kernel takes several archives in a row, so the toolstack's is built once
//! and the guests are appended for each run.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, Result};
use xshell::cmd;

use super::packages::Lab;
use crate::archive::Archive;
use crate::exec::Runner;
use crate::setup::LOADER;
use crate::workspace::Workspace;

/// What of the tools goes in.
const TOOLS: [&str; 6] = [
    "xl",
    "xenstored",
    "xenconsoled",
    "xenconsole",
    "xen-init-dom0",
    "libxl-save-helper",
];
const CLIENTS: [&str; 4] = ["xenstore-read", "xenstore-write", "xenstore-ls", "xenstore"];
const MODULES: [&str; 5] = [
    "xen-privcmd",
    "xenfs/xenfs",
    "xen-evtchn",
    "xen-gntdev",
    "xen-gntalloc",
];
const LIBRARIES: &str = "lib/x86_64-linux-gnu";

/// The first domain's file system without any guest, built once.
pub(super) fn toolstack(workspace: &Workspace, runner: &mut Runner, lab: &Lab) -> Result<Vec<u8>> {
    let shell = workspace.shell()?;
    let mut archive = Archive::default();
    for folder in [
        "proc",
        "sys",
        "dev",
        "tmp",
        "sbin",
        "run/xen",
        "run/xenstored",
        "var/log/xen/console",
        "var/lib/xen/dump",
        "var/lib/xenstored",
        "etc/xen/scripts",
        "guests",
    ] {
        archive.folder(folder);
    }
    archive.link("var/run", "../run");
    archive.file("bin/busybox", true, &busybox(lab)?);

    let root = &lab.tools.root;
    let tools = lab.tools_path();
    let programs = TOOLS
        .map(|name| (root.join(&tools).join(name), format!("{tools}/{name}")))
        .into_iter()
        .chain(CLIENTS.map(|name| (root.join("usr/bin").join(name), format!("bin/{name}"))));
    // Loaded by name when a thread is cancelled: no list of needs has it.
    let cancel = lab.tools.library("libgcc_s.so.1")?;
    let mut needed = BTreeSet::from([cancel]);
    for (from, to) in programs {
        archive.file(&to, true, &read(&from)?);
        needed.extend(lab.tools.linked_to(&shell, &from)?);
    }
    for library in needed {
        let name = library.file_name().context("a library has a name")?;
        let name = name.to_string_lossy();
        archive.file(&format!("{LIBRARIES}/{name}"), true, &read(&library)?);
    }
    let loader = lab.tools.library(LOADER)?;
    archive.file(&format!("lib64/{LOADER}"), true, &read(&loader)?);
    let modules = lab.kernel.join("lib/modules");
    let version = shell.read_dir(&modules)?.into_iter().next();
    let drivers = version
        .context("the kernel has no modules")?
        .join("kernel/drivers/xen");
    for module in MODULES {
        let from = drivers.join(format!("{module}.ko"));
        let stripped = workspace.output("xen/module.ko")?;
        runner.run(cmd!(shell, "strip --strip-debug -o {stripped} {from}"))?;
        let name = module.rsplit('/').next().unwrap_or(module);
        archive.file(&format!("mods/{name}.ko"), false, &read(&stripped)?);
    }
    archive.file("etc/passwd", false, b"root:x:0:0:root:/:/bin/sh\n");
    archive.file("etc/xen/xl.conf", false, b"autoballoon=\"off\"\n");
    archive.file("init", true, include_bytes!("dom0-init.sh"));
    Ok(archive.finish())
}

/// The file system of a Linux domain.
pub(super) fn linux(lab: &Lab) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    archive.folder("dev");
    archive.file("bin/busybox", true, &busybox(lab)?);
    archive.file("init", true, include_bytes!("linux-init.sh"));
    Ok(archive.finish())
}

fn busybox(lab: &Lab) -> Result<Vec<u8>> {
    let places = ["bin/busybox", "usr/bin/busybox"].map(|path| lab.tools.root.join(path));
    let place = places.into_iter().find(|path| path.is_file());
    read(&place.context("busybox-static holds no busybox")?)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("reading {}", path.display()))
}
