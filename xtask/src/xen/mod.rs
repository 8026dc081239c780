//! `cargo xtask xen`: real Xen with real tools under QEMU's software CPU.
//!
//! Packages are downloaded and unpacked under `target/xtask/xen`; nothing is
//! installed. One machine boots in seconds and runs the guests of
//! `examples/xen-guest` as domains.

mod alone;
mod arm64;
mod bench;
mod cases;
mod demo;
mod fdt;
mod guest;
mod host;
mod initramfs;
mod leaves;
mod packages;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Subcommand;
use xshell::cmd;

use crate::exec::Runner;
use crate::image;
use crate::setup::{self, Qemu};
use crate::ui;
use crate::vm::Architecture;
use crate::workspace::Workspace;

use guest::Domain;
use host::{Host, Size};
use packages::Lab;

/// What to do with Xen.
#[derive(Debug, Subcommand)]
pub(crate) enum Task {
    /// Run the cases on real Xen: see `examples/xen-guest/README.md`.
    Test {
        /// Only cases whose name contains this.
        #[arg(default_value = "")]
        filter: String,
        /// On the newest QEMU instead of 7.2.
        #[arg(long)]
        newest: bool,
    },
    /// Ask a domain for most of its memory with `xl mem-set`, and give it back.
    Demo(demo::Args),
    /// Boot Xen for Arm with a domain that tries the hypercalls there.
    Arm64,
}

/// Runs a task. `false` says that it ran and found something wrong.
pub(crate) fn run(workspace: &Workspace, task: &Task) -> Result<bool> {
    let bar = ui::spinner("Xen");
    let log = workspace.output("log/xen.log")?;
    let mut runner = Runner::new(log, bar.clone(), Duration::from_secs(3600))?;
    match task {
        Task::Arm64 => {
            let said = arm64::run(workspace, &mut runner)?;
            runner.say(&said)?;
        }
        Task::Demo(args) => {
            let bench = Bench::prepare(workspace, &mut runner)?;
            demo::run(&bench, args, &workspace.output("xen-demo.json")?)?;
        }
        Task::Test { filter, newest } => {
            let mut bench = Bench::prepare(workspace, &mut runner)?;
            if *newest {
                bench.qemu = bench.newest.clone();
            }
            let passed = cases::run(&bench, &mut runner, |name| name.contains(filter))?;
            runner.say(&passed)?;
        }
    }
    ui::finish(&bar, "Xen: done");
    Ok(true)
}

/// The bench of `cargo xtask bench xen`.
pub(crate) fn bench(workspace: &Workspace, runner: &mut Runner, repeat: u32) -> Result<()> {
    let bench = Bench::prepare(workspace, runner)?;
    bench::run(&bench, runner, repeat, &workspace.output("bench-xen.json")?)
}

/// The stage of `cargo xtask test`: every case whose name contains `filter`.
pub(crate) fn stage(workspace: &Workspace, runner: &mut Runner, filter: &str) -> Result<String> {
    // Runs by command alone, but is to build.
    arm64::build(workspace, runner)?;
    let mut bench = Bench::prepare(workspace, runner)?;
    let passed = cases::run(&bench, runner, |name| name.contains(filter))?;
    let both = |name: &str| cases::BOTH.contains(&name) && name.contains(filter);
    if !cases::BOTH.into_iter().any(both) {
        return Ok(passed);
    }
    bench.qemu = bench.newest.clone();
    let too = cases::run(&bench, runner, both)?;
    Ok(format!("{passed}; {too}"))
}

/// Everything a run needs.
#[derive(Debug)]
struct Bench {
    lab: Lab,
    qemu: Qemu,
    newest: Qemu,
    toolstack: Vec<u8>,
    elf: PathBuf,
    folder: PathBuf,
}

impl Bench {
    fn prepare(workspace: &Workspace, runner: &mut Runner) -> Result<Self> {
        let lab = packages::lab(workspace, runner)?;
        let [newest, qemu] = setup::emulators(workspace, runner, Architecture::X86_64)?;
        let toolstack = initramfs::toolstack(workspace, runner, &lab)?;
        let elf = image::build(workspace, runner, image::Guest::Xen)?;
        Ok(Self {
            lab,
            qemu,
            newest,
            toolstack,
            elf,
            folder: workspace.output("xen/run")?,
        })
    }

    /// Boots Xen with these domains ready to be created.
    fn boot(&self, name: &str, size: Size, domains: &[Domain]) -> Result<Host> {
        std::fs::create_dir_all(&self.folder)?;
        let mut guests = crate::archive::Archive::default();
        guests.file(&guest::KERNEL[1..], false, &self.stripped()?);
        let shipped = format!("guests/{}.cfg", guest::SHIPPED_NAME);
        guests.file(&shipped, false, guest::SHIPPED);
        if domains.iter().any(|domain| domain.kernel == guest::LINUX) {
            let kernel = std::fs::read(&self.lab.vmlinux)?;
            guests.file(&guest::LINUX[1..], false, &kernel);
            let init = initramfs::linux(&self.lab)?;
            guests.file(&guest::LINUX_INIT[1..], false, &init);
        }
        for domain in domains {
            let path = format!("guests/{}.cfg", domain.name);
            guests.file(&path, false, domain.config().as_bytes());
        }
        let mut image = self.toolstack.clone();
        image.extend(guests.finish());
        let path = self.folder.join(format!("{name}.cpio"));
        std::fs::write(&path, image)?;
        let transcript = self.folder.join(format!("{name}.log"));
        Host::boot(&self.qemu, &self.lab, &path, size, &transcript)
    }

    /// The guest without its symbols: the first domain's memory is small.
    fn stripped(&self) -> Result<Vec<u8>> {
        let to = self.elf.with_extension("stripped");
        let shell = xshell::Shell::new()?;
        let from = &self.elf;
        cmd!(shell, "objcopy --strip-all {from} {to}")
            .quiet()
            .run()?;
        Ok(std::fs::read(to)?)
    }
}
