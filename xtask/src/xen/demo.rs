//! `cargo xtask xen demo`: a domain gives memory to its host and gets it back,
//! seen from outside: what the nested page tables map is what the host has lent.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use serde::Serialize;

use super::bench::Machine;
use super::host::{Size, number};
use super::leaves::{self, Leaves, NestedTables};
use super::{Bench, Domain, Xen};
use crate::arguments::{parse_mib, parse_svg};
use crate::svg::{self, PANEL_HEIGHT, PANEL_WIDTH, Panel};
use crate::ui::{self, Table};

const NAME: &str = "demo";
const LIMIT: Duration = Duration::from_secs(120);
const TICK: Duration = Duration::from_millis(25);
/// What the first domain and Xen need.
const OVERHEAD_MIB: u64 = 700;

/// Ask a domain for most of its memory with `xl mem-set`, and give it back.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Memory of the domain.
    #[arg(long, default_value = "1536M", value_parser = parse_mib, value_name = "SIZE")]
    mem: u64,
    /// What it is asked to shrink to.
    #[arg(long, default_value = "512M", value_parser = parse_mib, value_name = "SIZE")]
    target: u64,
    /// The Xen it runs on.
    #[arg(long, default_value = "4.17")]
    pub(super) xen: Xen,
    /// Draw the domain's memory over time.
    #[arg(long, value_parser = parse_svg, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Row {
    op: &'static str,
    target_mib: u64,
    wall_s: f64,
    guest_s: f64,
    hypercalls: u64,
    extents_2m: u64,
    extents_64k: u64,
    extents_4k: u64,
    leaves_2m_before: u64,
    leaves_2m_after: u64,
    verified_frames: u64,
}

/// Runs it and writes `json`.
pub(super) fn run(bench: &Bench, args: &Args, json: &Path) -> Result<()> {
    ensure!(
        args.target < args.mem && args.mem.is_multiple_of(2),
        "--target must be below --mem, and --mem even"
    );
    let domain = Domain::pvh(NAME, args.mem).with("fill=all").with("keep=20");
    let size = Size {
        machine_mib: u32::try_from(args.mem + OVERHEAD_MIB + 512)?,
        dom0_mib: u32::try_from(OVERHEAD_MIB)?,
    };
    let bar = ui::spinner("booting Xen, dom0, domU");
    let begun = Instant::now();
    let mut machine = Machine::boot(bench, NAME, size, &[domain])?;
    machine.create(NAME)?;
    machine.host.event(NAME, "freed", LIMIT, |_| true)?;
    ui::finish(
        &bar,
        &format!(
            "domU   {} MiB full of data, ready {:.1} s after power-on (Xen {}, QEMU {})",
            args.mem,
            begun.elapsed().as_secs_f64(),
            args.xen,
            bench.qemu.version()
        ),
    );
    let mut counted = counters(&mut machine)?;
    let mut rows = Vec::new();
    let mut samples = Vec::new();
    let mut aims = Vec::new();
    for (op, way, target) in [
        ("give", "inflated", args.target),
        ("take", "deflated", args.mem),
    ] {
        let before = machine.leaves(0, args.mem / 2)?;
        let watcher = Watcher::start(machine.tables()?.clone(), op, args.mem, target);
        let wanted = (args.mem - target) * 256;
        let begun = Instant::now();
        aims.push((begun, target));
        machine
            .host
            .must(&format!("xl mem-set {NAME} {target}m"), LIMIT)?;
        let (reached, text) = machine.host.event(NAME, "balloon", LIMIT, |text| {
            number(text, "actual").is_ok_and(|actual| actual == wanted)
        })?;
        let verified = machine
            .host
            .event(NAME, "verify", LIMIT, |text| text.starts_with("ok"))?;
        samples.extend(watcher.finish()?);
        let now = counters(&mut machine)?;
        let since =
            |key: &str| Ok::<u64, anyhow::Error>(number(&now, key)? - number(&counted, key)?);
        rows.push(Row {
            op,
            target_mib: target,
            wall_s: (reached - begun).as_secs_f64(),
            guest_s: Duration::from_nanos(number(&text, "nanos")?).as_secs_f64(),
            hypercalls: since("hypercalls")?,
            extents_2m: since(&format!("{way}_2m"))?,
            extents_64k: since(&format!("{way}_64k"))?,
            extents_4k: since(&format!("{way}_4k"))?,
            leaves_2m_before: before.superpages,
            leaves_2m_after: machine.leaves(0, args.mem / 2)?.superpages,
            verified_frames: number(&verified.1, "frames")?,
        });
        counted = now;
    }
    machine.host.must(&format!("say {NAME} quit"), LIMIT)?;
    machine.host.event(NAME, "done", LIMIT, |_| true)?;
    std::fs::write(json, serde_json::to_string_pretty(&rows)?)?;
    println!("\n{}", table(&rows));
    if let ([first, ..], [.., last]) = (&*rows, &*rows) {
        leaves::ensure_kept(first.leaves_2m_before, last.leaves_2m_after)?;
    }
    println!("figures: {}", json.display());
    if let Some(file) = &args.plot {
        std::fs::write(file, draw(args.mem, &aims, &samples))?;
        println!("plot: {}", file.display());
    }
    Ok(())
}

/// The guest's counters; none of its frames is lost.
fn counters(machine: &mut Machine) -> Result<String> {
    let stats = machine.say(NAME, "stats", "stats")?;
    ensure!(number(&stats, "lost")? == 0, "frames are lost: {stats}");
    Ok(stats)
}

fn table(rows: &[Row]) -> String {
    let mut table = Table::new([
        "",
        "time",
        "guest's own",
        "hypercalls",
        "2M / 64K / 4K extents",
        "2 MiB leaves",
        "data",
    ]);
    for row in rows {
        table.row(vec![
            format!("{} to {} MiB", row.op, row.target_mib),
            format!("{:.2} s", row.wall_s),
            format!("{:.2} s", row.guest_s),
            row.hypercalls.to_string(),
            format!(
                "{} / {} / {}",
                row.extents_2m, row.extents_64k, row.extents_4k
            ),
            format!("{} -> {}", row.leaves_2m_before, row.leaves_2m_after),
            format!("ok, {} frames", row.verified_frames),
        ]);
    }
    table.render()
}

/// Looks at the nested page tables again and again.
struct Watcher {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<(Instant, u64)>>,
}

impl Watcher {
    fn start(tables: NestedTables, op: &'static str, mem: u64, target: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mapped = || tables.count(0, mem / 2).ok().map(Leaves::mib);
            let first = mapped().unwrap_or(0);
            let bar = ui::bar(op, first.abs_diff(target));
            let mut samples = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                // A table that changes under the eye is looked at again.
                if let Some(mib) = mapped() {
                    bar.set_position(first.abs_diff(mib));
                    samples.push((Instant::now(), mib));
                }
                std::thread::sleep(TICK);
            }
            bar.finish_and_clear();
            samples
        });
        Self { stop, thread }
    }

    fn finish(self) -> Result<Vec<(Instant, u64)>> {
        self.stop.store(true, Ordering::Relaxed);
        let samples = self.thread.join();
        samples.map_err(|_| anyhow!("the thread that looks at memory panicked"))
    }
}

fn draw(mem: u64, aims: &[(Instant, u64)], samples: &[(Instant, u64)]) -> String {
    const LEFT: f64 = 70.0;
    const TOP: f64 = 50.0;
    let mut svg = svg::open(LEFT + PANEL_WIDTH + 30.0, TOP + PANEL_HEIGHT + 50.0);
    let title = format!("A domain of {mem} MiB: memory mapped (blue) and target (red), MiB over s");
    svg::text(&mut svg, LEFT, 22.0, &title, "start");
    if let ([(from, _), ..], [.., (to, _)]) = (samples, samples) {
        let panel = Panel {
            left: LEFT,
            top: TOP,
            from: *from,
            to: *to,
            origin: *from,
            highest: mem,
        };
        panel.axes(&mut svg);
        let mut stairs = vec![(*from, mem)];
        for &(at, target) in aims {
            let before = stairs.last().map_or(mem, |&(_, level)| level);
            stairs.extend([(at, before), (at, target)]);
        }
        stairs.push((*to, stairs.last().map_or(mem, |&(_, level)| level)));
        panel.line(&mut svg, "#d1242f", &stairs);
        panel.line(&mut svg, "#1f6feb", samples);
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_target_are_drawn() {
        let from = Instant::now();
        let later = from + Duration::from_secs(2);
        let svg = draw(1536, &[(from, 512)], &[(from, 1536), (later, 512)]);
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert!(svg.ends_with("</svg>\n"));
        assert!(draw(1536, &[], &[]).ends_with("</svg>\n"));
    }
}
