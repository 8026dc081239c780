//! `cargo xtask bench chunk`: what telling a host in chunks saves, stage by stage.

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::ui::Table;
use crate::workspace::Workspace;

/// What is behind guest memory.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Backing {
    /// Anonymous memory with transparent huge pages.
    Anon,
    /// A shared memory file.
    Memfd,
}

impl Backing {
    const fn name(self) -> &'static str {
        match self {
            Self::Anon => "anon",
            Self::Memfd => "memfd",
        }
    }

    /// How many times faster than the old protocol chunks and ranges have to be.
    const fn bars(self) -> [(&'static str, f64); 2] {
        match self {
            Self::Anon => [("v8-chunks", 15.0), ("ranges", 20.0)],
            Self::Memfd => [("v8-chunks", 4.0), ("ranges", 4.0)],
        }
    }
}

/// The share of the old protocol's time that allocating frames may take in any mode.
const ALLOCATION: f64 = 0.05;

/// Seven of eight GiB given in four ways: 256 page numbers and wait (the old protocol), page numbers with
/// many requests in flight, chunks, ranges. Driver and device are two threads of one process, on memory
/// that is touched.
///
/// Needs 8 GiB of free memory and a quiet machine, takes a minute. Rows go to target/xtask/bench-chunk.json;
/// a figure that misses its bar is an error.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench chunk")]
struct Arguments {
    /// What is behind guest memory; one after the other unless said.
    #[arg(long, value_enum)]
    backing: Option<Backing>,
    /// Memory of the guest in MiB: less to see that it works, not to quote; no bars then.
    #[arg(long, value_name = "N")]
    mib: Option<u32>,
}

#[derive(Debug, Deserialize, Serialize)]
struct Row {
    mode: String,
    backing: String,
    allocate_s: f64,
    send_s: f64,
    translate_s: f64,
    discard_s: f64,
    total_s: f64,
    discards: u64,
    kicks: u64,
    interrupts: u64,
}

/// Builds and runs the bench, keeps its rows, prints them, holds them to the bars.
pub(crate) fn run(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    let name = String::from("cargo xtask bench chunk");
    let arguments = Arguments::parse_from([name].iter().chain(arguments));
    let mib = arguments.mib.map(|mib| mib.to_string());
    let backings = match &arguments.backing {
        Some(backing) => std::slice::from_ref(backing),
        None => Backing::value_variants(),
    };
    let mut measured = Vec::new();
    for &backing in backings {
        let mut words = vec!["--package", "balloon-device", "--bin", "bench-chunk", "--"];
        words.extend(["--backing", backing.name()]);
        if let Some(mib) = &mib {
            words.extend(["--mib", mib]);
        }
        let rows: Vec<Row> = super::rows(workspace, &words)?;
        println!("{}\n{}", backing.name(), table(&rows)?);
        measured.push((backing, rows));
    }
    let rows: Vec<&Row> = measured.iter().flat_map(|(_, rows)| rows).collect();
    println!(
        "{}",
        super::keep(workspace, "bench-chunk.json", &rows)?.display()
    );
    if arguments.mib.is_none() {
        for (backing, rows) in &measured {
            judge(*backing, rows)?;
        }
    }
    Ok(())
}

fn total<'a>(rows: &'a [Row], mode: &str) -> Result<&'a Row> {
    let row = rows.iter().find(|row| row.mode == mode);
    row.with_context(|| format!("no row for {mode}"))
}

/// Seconds of each stage with its share, and how many times faster than the old protocol.
fn table(rows: &[Row]) -> Result<String> {
    let old = total(rows, "old")?.total_s;
    let mut table = Table::new([
        "mode",
        "allocate",
        "send",
        "translate",
        "discard",
        "total s",
        "times old",
        "discards",
        "kicks",
        "interrupts",
    ]);
    for row in rows {
        let stage = |seconds: f64| format!("{seconds:.4} {:3.0} %", seconds / row.total_s * 100.0);
        table.row(vec![
            row.mode.clone(),
            stage(row.allocate_s),
            stage(row.send_s),
            stage(row.translate_s),
            stage(row.discard_s),
            format!("{:.4}", row.total_s),
            format!("{:.1}", old / row.total_s),
            row.discards.to_string(),
            row.kicks.to_string(),
            row.interrupts.to_string(),
        ]);
    }
    Ok(table.render())
}

fn judge(backing: Backing, rows: &[Row]) -> Result<()> {
    let old = total(rows, "old")?.total_s;
    for (mode, bar) in backing.bars() {
        let times = old / total(rows, mode)?.total_s;
        ensure!(
            times >= bar,
            "{mode} is {times:.1} times as fast as the old protocol, not {bar}"
        );
    }
    for row in rows {
        let share = row.allocate_s / old;
        ensure!(
            share <= ALLOCATION,
            "{}: allocating takes {:.1} % of the old protocol's time",
            row.mode,
            share * 100.0
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(chunks: f64, ranges: f64, allocate_s: f64) -> Vec<Row> {
        [("old", 4.0), ("v8-chunks", chunks), ("ranges", ranges)]
            .map(|(mode, total_s)| Row {
                mode: mode.into(),
                backing: "anon".into(),
                allocate_s,
                send_s: 0.0,
                translate_s: 0.0,
                discard_s: 0.0,
                total_s,
                discards: 1,
                kicks: 1,
                interrupts: 1,
            })
            .into()
    }

    #[test]
    fn every_bar_can_be_missed() {
        assert!(judge(Backing::Anon, &rows(0.2, 0.1, 0.1)).is_ok());
        assert!(judge(Backing::Anon, &rows(0.3, 0.1, 0.1)).is_err());
        assert!(judge(Backing::Anon, &rows(0.2, 0.3, 0.1)).is_err());
        assert!(judge(Backing::Anon, &rows(0.2, 0.1, 0.3)).is_err());
        assert!(judge(Backing::Memfd, &rows(0.9, 0.9, 0.1)).is_ok());
    }
}
