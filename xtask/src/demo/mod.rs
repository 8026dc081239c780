//! `cargo xtask demo`: the main job on a stock QEMU, measured from the host's side.
//!
//! Two boots, because 4 KiB discards break the host's huge pages and would be billed to the other path:
//! one whose device offers free page reporting, and so the bulk path; one without, the plain PFN path.
//! Between them and nothing else on the machine's mind stands the host's floor: what discarding the same
//! amount of this program's own memory costs in the same minutes.

mod cycle;
mod floor;
mod plot;
mod probe;
mod report;
mod sampler;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

pub(crate) use cycle::{Cycle, Path, Plan, measure};
pub(crate) use sampler::{Sample, Sampler};

use crate::arguments::{parse_mib, parse_svg};
use crate::exec::Runner;
use crate::image::{self, Guest};
use crate::setup::{self, Qemu};
use crate::ui;
use crate::vm::{Board, Machine, Vm};
use crate::workspace::Workspace;

/// What QEMU and this program need beside the guest's memory.
const OVERHEAD_MIB: u64 = 768;
/// Guests shrink in steps of this size when the host has too little memory.
const STEP_MIB: u64 = 256;

/// Run the main job on a stock QEMU and measure it: inflate, idle, deflate, verify.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The guest touches all its memory, is asked over QMP for `--target`, idles, and gets everything back;
it checks the data it kept after every step. The time of an inflation runs from sending the QMP
command until the host's resident memory has fallen by 99 % of what was asked *and* `query-balloon`
shows the target. The figures also go to target/xtask/demo.json.

  cargo xtask demo --plot demo.svg
  cargo xtask demo --mem 2G --target 256M")]
pub(crate) struct Args {
    /// Memory of the guest.
    #[arg(long, default_value = "8G", value_parser = parse_mib, value_name = "SIZE")]
    mem: u64,
    /// What the guest is asked to shrink to.
    #[arg(long, default_value = "1G", value_parser = parse_mib, value_name = "SIZE")]
    target: u64,
    /// Draw host memory and target over time.
    #[arg(long, value_parser = parse_svg, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// How long each guest rests with its balloon full, at least 30: the table shows memory after 30 s.
    ///
    /// 60 s are what it takes to tell 1 % of a processor from the 10 ms steps of /proc/PID/stat.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(30..=3600), value_name = "N")]
    idle_secs: u64,
    /// Emulated board.
    #[arg(long, default_value = "q35", value_parser = ["pc", "q35"])]
    machine: String,
}

/// Runs the demo. `false` if the guest's data was damaged.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<bool> {
    let (mem_mib, target_mib) = fit(args.mem, args.target, available_mib()?)?;
    let board = if args.machine == "pc" {
        Board::Pc
    } else {
        Board::Q35
    };

    let bar = ui::spinner("building the guest");
    let log = workspace.output("log/demo.log")?;
    let mut runner = Runner::new(log, bar.clone(), Duration::from_secs(1800))?;
    let elf = image::build(workspace, &mut runner, Guest::Qemu)?;
    let qemu = setup::any(workspace, &mut runner, board.architecture())?;

    bar.set_message("trying KVM");
    let folder = workspace.output("demo")?;
    let accelerator = probe::accelerator(&qemu, board, &elf, &folder.join("probe"));

    ui::finish(
        &bar,
        &format!(
            "guest  {mem_mib} MiB, asked for {target_mib} MiB, on QEMU {} ({}, {})",
            qemu.version(),
            board.name(),
            accelerator.name()
        ),
    );
    println!("host   {}", host_line());

    let bar = ui::spinner("the host's floor");
    let floor = floor::measure((mem_mib - target_mib) << 20)?;
    ui::finish(
        &bar,
        &format!(
            "floor  {:.3} s in 2 MiB steps, {:.3} s in 4 KiB steps",
            floor.two_mib.as_secs_f64(),
            floor.four_kib.as_secs_f64()
        ),
    );

    let plan = |path| Plan {
        mem_mib,
        target_mib,
        path,
        idle: Duration::from_secs(args.idle_secs),
    };
    let mut cycles = Vec::new();
    for path in [Path::Reporting, Path::Pfn] {
        let plan = plan(path);
        let machine = plan.machine(board, &elf).on(accelerator);
        let folder = folder.join(path.name());
        cycles.push(boot_and_measure(&qemu, machine, &plan, &folder)?);
    }

    let json = workspace.output("demo.json")?;
    std::fs::write(&json, report::json(mem_mib, target_mib, &floor, &cycles)?)
        .with_context(|| format!("writing {}", json.display()))?;
    println!("\n{}", report::table(&floor, &cycles));
    println!("figures: {}", json.display());
    if let Some(file) = &args.plot {
        std::fs::write(file, plot::draw(mem_mib, target_mib, &cycles))
            .with_context(|| format!("writing {}", file.display()))?;
        println!("plot: {}", file.display());
    }
    Ok(cycles.iter().all(|cycle| cycle.data_ok))
}

fn boot_and_measure(
    qemu: &Qemu,
    machine: Machine,
    plan: &Plan,
    folder: &std::path::Path,
) -> Result<Cycle> {
    let mut vm = Vm::start(qemu, machine, folder)?;
    measure(&mut vm, plan)
        .map_err(|error| vm.explain(error))
        .with_context(|| format!("the run with the {} path", plan.path.name()))
}

/// What fits the host: the sizes asked for, or smaller ones in the same proportion, with a notice.
fn fit(mem: u64, target: u64, available: u64) -> Result<(u64, u64)> {
    if target == 0 || target >= mem {
        bail!("--target must be above zero and below --mem");
    }
    if mem + OVERHEAD_MIB <= available {
        return Ok((mem, target));
    }
    let fitting = available.saturating_sub(OVERHEAD_MIB) / STEP_MIB * STEP_MIB;
    let shrunk = fitting * target / mem;
    if fitting < 2 * STEP_MIB || shrunk == 0 {
        bail!("the host has {available} MiB available, too little for any guest: free some memory");
    }
    println!(
        "notice: the host has {available} MiB available; scaled down from {mem} to {fitting} MiB"
    );
    Ok((fitting, shrunk))
}

fn available_mib() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .context("no MemAvailable")?;
    let kib: u64 = line
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .context("MemAvailable is odd")?;
    Ok(kib / 1024)
}

/// What makes figures comparable: processors, load, huge pages.
fn host_line() -> String {
    let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let load = read("/proc/loadavg");
    let load = load.split_whitespace().next().unwrap_or("?");
    let huge = read("/sys/kernel/mm/transparent_hugepage/enabled");
    let huge = huge.split(['[', ']']).nth(1).unwrap_or("none");
    format!("{processors} processors, load {load}, transparent huge pages: {huge}")
}

impl Plan {
    /// The machine this plan is carried out on.
    pub(crate) fn machine(&self, board: Board, elf: &std::path::Path) -> Machine {
        let machine = Machine::new(board, self.mem_mib, elf)
            .append("fill=all")
            .append("floor=none")
            .append("keep=5");
        match self.path {
            Path::Reporting => machine.reporting(true).append("path=auto"),
            Path::Pfn => machine.reporting(false).append("path=pfn"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_hosts_get_small_guests() {
        assert_eq!(fit(8192, 1024, 20_000).unwrap(), (8192, 1024));
        assert_eq!(fit(8192, 1024, 4096).unwrap(), (3328, 416));
        assert!(fit(8192, 1024, 1000).is_err());
        assert!(fit(1024, 1024, 20_000).is_err());
        assert!(fit(1024, 0, 20_000).is_err());
    }
}
