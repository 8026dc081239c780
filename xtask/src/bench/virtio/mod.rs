//! `cargo xtask bench virtio`: our guest beside Linux, on the same QEMU 10.0 in the same run.
//!
//! A fresh boot for each guest and path. Both fill their memory and free it; then the host asks for all
//! but an eighth of it and gives it back, or looks how fast freed memory is reported. Every figure is the
//! host's own. QEMU writes a line for each kick, interrupt and configuration write of either guest.

mod bars;
mod linux;
mod plot;
mod run;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use indicatif::ProgressBar;
use serde::Serialize;

use crate::arguments::{parse_mib, parse_svg};
use crate::exec::Runner;
use crate::image::{self, Guest};
use crate::setup::{self, Qemu};
use crate::ui::{self, Table};
use crate::vm::{Board, Machine, Vm};
use crate::workspace::Workspace;
use linux::Linux;
use run::{Ask, EVENTS, Took};

/// Linux takes a while to settle before it has reported what was free at first.
const SETTLE: Duration = Duration::from_secs(5);

/// What Linux needs for itself fits in an eighth of this, in MiB.
const LEAST: u64 = 2048;

/// How long a guest is watched doing nothing.
const REST: Duration = Duration::from_secs(60);

/// Our QEMU guest beside Debian's Linux for clouds: inflate, deflate, a minute at rest, free page reporting.
///
/// On QEMU 10.0 and no other, so that figures can be compared. Takes some ten minutes and 9 GiB of memory; quote
/// figures of a quiet machine only. Every phase has a limit, and each row is printed as soon as there is one. A
/// figure that misses its bar is an error.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench virtio")]
struct Arguments {
    /// Memory of each guest, at least 2G; an eighth is what they shrink to.
    #[arg(long, default_value = "8G", value_parser = parse_mib, value_name = "SIZE")]
    mem: u64,
    /// Draw host memory over time.
    #[arg(long, value_parser = parse_svg, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Ours,
    Linux { zeroes: bool },
}

impl Who {
    const ALL: [Self; 3] = [
        Self::Ours,
        Self::Linux { zeroes: true },
        Self::Linux { zeroes: false },
    ];

    /// Once each: ours, and Linux as Debian ships it.
    fn rests(self, path: &str) -> bool {
        match self {
            Self::Ours => path == "reporting",
            Self::Linux { zeroes } => zeroes,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Linux { zeroes: true } => "linux",
            Self::Linux { zeroes: false } => "linux-init_on_alloc=0",
        }
    }
}

#[derive(Debug, Serialize)]
struct Row {
    guest: &'static str,
    path: &'static str,
    op: &'static str,
    wall_s: f64,
    cpu_s: f64,
    kicks: u64,
    interrupts: u64,
    config_writes: u64,
    rss_after_mib: u64,
    t50_s: Option<f64>,
    t90_s: Option<f64>,
    t99_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wakeups: Option<u64>,
    #[serde(skip)]
    took: Took,
}

impl Row {
    fn new(who: Who, path: &'static str, op: &'static str, took: Took) -> Self {
        let [t50_s, t90_s, t99_s] = took.reached.map(|time| time.map(|time| time.as_secs_f64()));
        Self {
            guest: who.name(),
            path,
            op,
            wall_s: took.wall.as_secs_f64(),
            cpu_s: took.cpu.as_secs_f64(),
            kicks: took.kicks,
            interrupts: took.interrupts,
            config_writes: took.config_writes,
            rss_after_mib: took.rss_after >> 20,
            t50_s,
            t90_s,
            t99_s,
            wakeups: took.wakeups,
            took,
        }
    }

    /// One line, for who waits.
    fn news(&self) -> String {
        let Self {
            guest,
            path,
            op,
            wall_s,
            cpu_s,
            ..
        } = self;
        format!("{guest}: {op}, {path} path: {wall_s:.3} s, {cpu_s:.2} s of CPU")
    }
}

/// What all boots share.
struct Bench {
    qemu: Qemu,
    elf: PathBuf,
    linux: Linux,
    folder: PathBuf,
    mem_mib: u64,
}

/// Builds, boots and measures.
pub(crate) fn run(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    let name = String::from("cargo xtask bench virtio");
    let Arguments { mem, plot } = Arguments::parse_from([name].iter().chain(arguments));
    ensure!(
        mem >= LEAST,
        "--mem {mem}M is too little: Linux would have no room of its own in an eighth of it; take {LEAST}M or more"
    );
    let bar = ui::spinner("setting up");
    let log = workspace.output("log/bench-virtio.log")?;
    let mut runner = Runner::new(log, bar.clone(), Duration::from_secs(1800))?;
    let bench = Bench {
        elf: image::build(workspace, &mut runner, Guest::Qemu)?,
        qemu: setup::measured(workspace, &mut runner, Board::Q35.architecture())?,
        linux: linux::unpack(workspace, &mut runner)?,
        folder: workspace.output("bench-virtio")?,
        mem_mib: mem,
    };
    ui::finish(
        &bar,
        &format!(
            "guests of {mem} MiB on QEMU {}; {}",
            bench.qemu.version(),
            bench.linux.name
        ),
    );
    let bar = ui::spinner("measuring");
    let mut rows = Vec::new();
    for who in Who::ALL {
        for path in ["reporting", "pfn"] {
            // Linux gives page by page, whatever the device offers.
            if who == Who::Ours || path == "pfn" {
                rows.extend(bench.resize(who, path, &bar)?);
            }
        }
        rows.push(bench.report(who, &bar)?);
    }
    ui::finish(&bar, &table(&rows));
    let json = super::keep(workspace, "bench-virtio.json", &rows)?;
    println!(
        "figures of QEMU {}: {}",
        bench.qemu.version(),
        json.display()
    );
    if let Some(file) = plot {
        std::fs::write(&file, plot::draw(mem, &rows))
            .with_context(|| format!("writing {}", file.display()))?;
        println!("plot: {}", file.display());
    }
    if mem < bars::MEMORY {
        println!(
            "guests of less than {} MiB are held to no bar",
            bars::MEMORY
        );
        return Ok(());
    }
    let missed = bars::missed(&rows);
    ensure!(missed.is_empty(), "missed: {}", missed.join("; "));
    Ok(())
}

impl Bench {
    /// A machine for `who`; Linux fills `fill_mib`, ours all but `keep` percent is freed again.
    fn start(
        &self,
        who: Who,
        reporting: bool,
        fill_mib: u64,
        keep: u64,
        words: &[&str],
    ) -> Result<Vm> {
        let kernel: &Path = if who == Who::Ours {
            &self.elf
        } else {
            &self.linux.kernel
        };
        let mut machine = Machine::new(Board::Q35, self.mem_mib, kernel).reporting(reporting);
        for event in EVENTS {
            machine = machine.trace(event);
        }
        machine = match who {
            Who::Ours => machine
                .append("fill=none")
                .append("floor=none")
                .append(&format!("keep={keep}")),
            // With every extension Linux copies by string instructions, which are emulated byte by byte.
            Who::Linux { zeroes } => machine
                .cpu("qemu64")
                .initrd(&self.linux.initrd)
                .append("console=ttyS0 quiet panic=-1")
                .append(&format!(
                    "init_on_alloc={} fill_mib={fill_mib}",
                    u8::from(zeroes)
                )),
        };
        for word in words {
            machine = machine.append(word);
        }
        let folder = format!(
            "{}-{}",
            who.name(),
            if reporting { "reporting" } else { "plain" }
        );
        Vm::start(&self.qemu, machine, &self.folder.join(folder))
    }

    /// Inflates, deflates, and leaves alone who is compared at rest.
    fn resize(&self, who: Who, path: &'static str, bar: &ProgressBar) -> Result<Vec<Row>> {
        let target = self.mem_mib / 8;
        let (small, whole) = (target << 20, self.mem_mib << 20);
        let words: &[&str] = if path == "pfn" && who == Who::Ours {
            &["path=pfn"]
        } else {
            &[]
        };
        let say = |what: &str| bar.set_message(format!("{}, {path} path: {what}", who.name()));
        say("boots and fills its memory");
        let mut vm = self.start(who, path == "reporting", self.mem_mib - target, 5, words)?;
        let mut rows = Vec::new();
        let mut measure = || {
            run::fill(&mut vm)?;
            run::free(&mut vm)?;
            std::thread::sleep(Duration::from_secs(1));
            let steps = [("inflate", small, whole - small), ("deflate", whole, 0)];
            for (op, to, fall) in steps {
                say(op);
                let took = run::run(&mut vm, Ask::Resize { to, fall }).context(op)?;
                rows.push(told(bar, Row::new(who, path, op, took)));
                // The guest's own checks after it are not for the next one to pay.
                std::thread::sleep(SETTLE);
            }
            if who.rests(path) {
                say("at rest");
                let took = run::rest(&mut vm, REST, who == Who::Ours).context("resting")?;
                rows.push(told(bar, Row::new(who, path, "rest", took)));
            }
            Ok(())
        };
        let measured: Result<()> = measure();
        measured.map_err(|error| named(who, path, vm.explain(error)))?;
        Ok(rows)
    }

    fn report(&self, who: Who, bar: &ProgressBar) -> Result<Row> {
        // Three quarters of memory are freed at once.
        let freed = self.mem_mib / 4 * 3;
        let words: &[&str] = if who == Who::Ours {
            &["services=reports"]
        } else {
            &[]
        };
        bar.set_message(format!("{}: reports what it frees", who.name()));
        let mut vm = self.start(who, true, freed, 24, words)?;
        let mut measure = || {
            run::fill(&mut vm)?;
            std::thread::sleep(SETTLE);
            let ask = Ask::Free { fall: freed << 20 };
            let took = run::run(&mut vm, ask).context("reporting")?;
            Ok(told(bar, Row::new(who, "reporting", "report", took)))
        };
        measure().map_err(|error| named(who, "reporting", vm.explain(error)))
    }
}

fn named(who: Who, path: &str, error: anyhow::Error) -> anyhow::Error {
    error.context(format!("{}, {path} path", who.name()))
}

/// Says what was measured while the rest goes on.
fn told(bar: &ProgressBar, row: Row) -> Row {
    bar.suspend(|| println!("{}", row.news()));
    row
}

/// The rows, each beside Linux as Debian ships it.
fn table(rows: &[Row]) -> String {
    let mut table = Table::new([
        "guest",
        "op",
        "path",
        "wall",
        "linux / this",
        "CPU",
        "linux / this",
        "kicks",
        "interrupts",
        "config writes",
        "host memory",
        "50 %",
        "90 %",
        "99 %",
        "wake-ups",
    ]);
    for row in rows {
        let linux = Who::Linux { zeroes: true }.name();
        let peer = rows
            .iter()
            .find(|peer| peer.guest == linux && peer.op == row.op);
        let ratio = |of: fn(&Row) -> f64| {
            peer.map_or_else(String::new, |peer| {
                format!("{:.1} x", of(peer) / of(row).max(0.005))
            })
        };
        let seconds =
            |time: Option<f64>| time.map_or_else(String::new, |time| format!("{time:.3} s"));
        table.row(vec![
            row.guest.to_owned(),
            row.op.to_owned(),
            row.path.to_owned(),
            seconds(Some(row.wall_s)),
            ratio(|row| row.wall_s),
            format!("{:.2} s", row.cpu_s),
            ratio(|row| row.cpu_s),
            row.kicks.to_string(),
            row.interrupts.to_string(),
            row.config_writes.to_string(),
            format!("{} MiB", row.rss_after_mib),
            seconds(row.t50_s),
            seconds(row.t90_s),
            seconds(row.t99_s),
            row.wakeups
                .map_or_else(String::new, |count| count.to_string()),
        ]);
    }
    table.render()
}
