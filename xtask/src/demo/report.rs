//! The demo's figures, for people and for programs.

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use super::cycle::{Cycle, Path};
use super::floor::Floor;
use crate::ui::Table;

#[derive(Debug, Serialize)]
struct Document<'a> {
    mem_mib: u64,
    target_mib: u64,
    floor_2m_s: f64,
    floor_4k_s: f64,
    runs: Vec<Run<'a>>,
}

#[derive(Debug, Serialize)]
struct Run<'a> {
    path: &'a str,
    inflate_s: f64,
    inflate_cpu_s: f64,
    deflate_s: f64,
    kicks: u64,
    rss_before_mib: u64,
    rss_after_mib: u64,
    data_ok: bool,
}

/// `target/xtask/demo.json`.
pub(super) fn json(
    mem_mib: u64,
    target_mib: u64,
    floor: &Floor,
    cycles: &[Cycle],
) -> Result<String> {
    let runs = cycles.iter().map(|cycle| Run {
        path: cycle.path.name(),
        inflate_s: rounded(cycle.inflate),
        inflate_cpu_s: rounded(cycle.inflate_cpu),
        deflate_s: rounded(cycle.deflate),
        kicks: cycle.kicks,
        rss_before_mib: cycle.rss_before >> 20,
        rss_after_mib: cycle.rss_after >> 20,
        data_ok: cycle.data_ok,
    });
    let document = Document {
        mem_mib,
        target_mib,
        floor_2m_s: rounded(floor.two_mib),
        floor_4k_s: rounded(floor.four_kib),
        runs: runs.collect(),
    };
    Ok(serde_json::to_string_pretty(&document)? + "\n")
}

/// The table that ends the demo.
pub(super) fn table(floor: &Floor, cycles: &[Cycle]) -> String {
    let mut table = Table::new(["", "bulk path", "PFN path", "aim"]);
    let mut row = |label: &str, aim: &str, cell: &dyn Fn(&Cycle) -> String| {
        let of = |path| {
            cycles
                .iter()
                .find(|cycle| cycle.path == path)
                .map_or_else(|| "-".to_owned(), cell)
        };
        table.row(vec![
            label.to_owned(),
            of(Path::Reporting),
            of(Path::Pfn),
            aim.to_owned(),
        ]);
    };
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    let time = |time: Duration| format!("{:.3} s", time.as_secs_f64());
    let times = |time: Duration, floor: Duration| {
        format!("{:.2} x", time.as_secs_f64() / floor.as_secs_f64())
    };

    row("inflate, time", "bulk <= 0.5 s", &|cycle| {
        time(cycle.inflate)
    });
    row(
        "  over the floor of its step",
        "PFN <= 3.5 x",
        &|cycle| match cycle.path {
            Path::Reporting => times(cycle.inflate, floor.two_mib),
            Path::Pfn => times(cycle.inflate, floor.four_kib),
        },
    );
    row("  host CPU", "bulk <= 0.5 s", &|cycle| {
        time(cycle.inflate_cpu)
    });
    row("  kicks, counted by QEMU", "PFN <= 200", &|cycle| {
        cycle.kicks.to_string()
    });
    row("  ranges, counted by the guest", "", &|cycle| {
        cycle.ranges.to_string()
    });
    row("deflate, time", "", &|cycle| time(cycle.deflate));
    row("  host CPU", "", &|cycle| time(cycle.deflate_cpu));
    row("host memory before", "", &|cycle| mib(cycle.rss_before));
    row("  1 s after the inflation", "", &|cycle| {
        mib(cycle.rss_after)
    });
    row("  30 s after the inflation", "", &|cycle| {
        mib(cycle.rss_after_30s)
    });
    row(
        "  after the deflation",
        "",
        &|cycle| mib(cycle.rss_deflated),
    );
    row("at rest: wake-ups by the balloon", "0", &|cycle| {
        cycle.idle_wakeups.to_string()
    });
    row("  host CPU of QEMU", "< 1 %", &|cycle| {
        format!("{:.2} %", cycle.idle_percent)
    });
    row("guest's data", "intact", &|cycle| {
        if cycle.data_ok { "intact" } else { "DAMAGED" }.to_owned()
    });
    table.render()
}

/// Seconds to a tenth of a millisecond: more would be noise.
fn rounded(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10_000.0
}
