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

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
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
pub(crate) use packages::Xen;

/// What to do with Xen.
#[derive(Debug, Subcommand)]
pub(crate) enum Task {
    /// Run the cases on real Xen: see `examples/xen-guest/README.md`.
    Test {
        /// Only cases whose name contains this.
        #[arg(default_value = "")]
        filter: String,
        /// On this Xen instead of on each.
        #[arg(long)]
        xen: Option<Xen>,
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
            let bench = Bench::prepare(workspace, &mut runner, args.xen)?;
            demo::run(&bench, args, &workspace.output("xen-demo.json")?)?;
        }
        Task::Test {
            filter,
            xen,
            newest,
        } => {
            let mut jobs = Vec::new();
            for version in xen.map_or_else(|| Xen::ALL.to_vec(), |xen| vec![xen]) {
                let bench = Bench::prepare(workspace, &mut runner, version)?;
                let bench = if *newest { bench.on_newest() } else { bench };
                jobs.push(Job::new(bench, |name| name.contains(filter)));
            }
            let passed = run_all(jobs, &mut runner)?;
            runner.say(&passed)?;
        }
    }
    ui::finish(&bar, "Xen: done");
    Ok(true)
}

/// The bench of `cargo xtask bench xen`.
pub(crate) fn bench(
    workspace: &Workspace,
    runner: &mut Runner,
    version: Xen,
    repeat: u32,
) -> Result<()> {
    let bench = Bench::prepare(workspace, runner, version)?;
    bench::run(&bench, runner, repeat, &workspace.output("bench-xen.json")?)
}

/// The stage of `cargo xtask test`: every case whose name contains `filter`.
pub(crate) fn stage(workspace: &Workspace, runner: &mut Runner, filter: &str) -> Result<String> {
    // Runs by command alone, but is to build.
    arm64::build(workspace, runner)?;
    let (mut jobs, mut short) = (Vec::new(), Vec::new());
    for version in Xen::ALL {
        let bench = Bench::prepare(workspace, runner, version)?;
        let both = |name: &str| cases::BOTH.contains(&name) && name.contains(filter);
        short.push(Job::new(bench.clone().on_newest(), both));
        jobs.push(Job::new(bench, |name| name.contains(filter)));
    }
    // What takes longest begins first.
    jobs.extend(short);
    run_all(jobs, runner)
}

/// Cases that one machine after the other runs.
struct Job {
    bench: Bench,
    cases: Vec<&'static cases::Case>,
}

impl Job {
    fn new(bench: Bench, wanted: impl Fn(&str) -> bool) -> Self {
        let cases = cases::CASES.iter().filter(|case| wanted(case.name));
        Self {
            bench,
            cases: cases.collect(),
        }
    }
}

/// A machine has one CPU, and so has each a lane of its own; more than these would
/// take the memory of everything else.
const LANES: usize = 2;

/// Runs jobs, as many at once as there are CPUs for; says how many cases passed.
fn run_all(mut jobs: Vec<Job>, runner: &mut Runner) -> Result<String> {
    jobs.retain(|job| !job.cases.is_empty());
    if jobs.is_empty() {
        let known: Vec<&str> = cases::CASES.iter().map(|case| case.name).collect();
        bail!(
            "no case is called like that; there are: {}",
            known.join(", ")
        );
    }
    let lanes = thread::available_parallelism().map_or(1, usize::from);
    let lanes = lanes.min(LANES).min(jobs.len());
    let queue = Mutex::new(VecDeque::from(jobs));
    let runner = Mutex::new(runner);
    let next = || {
        let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.pop_front()
    };
    let lane = || {
        let mut outcomes = Vec::new();
        while let Some(job) = next() {
            outcomes.push(cases::run(&job, &runner));
        }
        outcomes
    };
    let outcomes: Vec<Result<String>> = thread::scope(|scope| {
        let lanes: Vec<_> = (0..lanes).map(|_| scope.spawn(lane)).collect();
        let lanes = lanes.into_iter().map(|lane| {
            let panicked = |_| vec![Err(anyhow::anyhow!("a lane panicked"))];
            lane.join().unwrap_or_else(panicked)
        });
        lanes.flatten().collect()
    });
    let (mut passed, mut failed) = (Vec::new(), Vec::new());
    for outcome in outcomes {
        match outcome {
            Ok(note) => passed.push(note),
            Err(error) => failed.push(format!("{error:#}")),
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n\n"));
    Ok(passed.join("; "))
}

/// Everything a run needs.
#[derive(Debug, Clone)]
struct Bench {
    lab: Lab,
    qemu: Qemu,
    newest: Qemu,
    toolstack: Vec<u8>,
    elf: PathBuf,
    /// The guest without its symbols: the first domain's memory is small.
    stripped: Vec<u8>,
    folder: PathBuf,
}

impl Bench {
    fn prepare(workspace: &Workspace, runner: &mut Runner, version: Xen) -> Result<Self> {
        let lab = packages::lab(workspace, runner, version)?;
        let [newest, qemu] = setup::emulators(workspace, runner, Architecture::X86_64)?;
        let toolstack = initramfs::toolstack(workspace, runner, &lab)?;
        let elf = image::build(workspace, runner, image::Guest::Xen)?;
        let stripped = elf.with_extension("stripped");
        let shell = workspace.shell()?;
        runner.run(cmd!(shell, "objcopy --strip-all {elf} {stripped}"))?;
        Ok(Self {
            qemu,
            newest,
            toolstack,
            elf,
            stripped: std::fs::read(stripped)?,
            folder: workspace.output(&format!("xen/{version}/run"))?,
            lab,
        })
    }

    /// The same on the newest QEMU.
    fn on_newest(mut self) -> Self {
        self.qemu = self.newest.clone();
        self.folder = self.folder.join("newest");
        self
    }

    /// Boots Xen with these domains ready to be created.
    fn boot(&self, name: &str, size: Size, domains: &[Domain]) -> Result<Host> {
        std::fs::create_dir_all(&self.folder)?;
        let mut guests = crate::archive::Archive::default();
        guests.file(&guest::KERNEL[1..], false, &self.stripped);
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
}
