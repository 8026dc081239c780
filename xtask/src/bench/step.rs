//! `cargo xtask bench step`: instructions of the longest step with the smallest budget, on each path.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use indicatif::ProgressBar;
use serde::Serialize;

use crate::exec::Runner;
use crate::setup;
use crate::ui::Table;
use crate::workspace::Workspace;

/// Instructions that one step may take.
const BAR: u64 = 100_000;

const PATHS: [&str; 10] = [
    "pfn-inflate",
    "pfn-deflate",
    "bulk-inflate",
    "bulk-deflate",
    "short-inflate",
    "short-deflate",
    "upgrade",
    "pfn-relief",
    "bulk-relief",
    "compaction",
];

/// What callgrind counts around, and records after.
const STEP: &str = "step::measured_step";

/// The engine over buddy-alloc with `Budget::SMALL`: instructions of the longest step on each path, counted
/// by callgrind. A path above 100,000 is an error.
///
/// Takes a minute; how busy the machine is does not matter. Rows go to target/xtask/bench-step.json.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench step")]
struct Arguments {
    /// Only these paths.
    paths: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Row {
    path: String,
    steps: usize,
    median: u64,
    longest: u64,
}

/// Builds the steps in an optimised build, counts, keeps the rows, prints them, holds them to the bar.
pub(crate) fn run(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    let name = String::from("cargo xtask bench step");
    let arguments = Arguments::parse_from([name].iter().chain(arguments));
    let log = workspace.output("log/bench-step.log")?;
    let mut runner = Runner::new(log, ProgressBar::hidden(), Duration::from_secs(600))?;
    setup::valgrind(workspace, &mut runner)?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let words = [
        "build",
        "--quiet",
        "--profile",
        "bench",
        "--package",
        "balloon-buddy-alloc",
    ];
    let built = Command::new(cargo)
        .current_dir(workspace.root())
        .args(words)
        .args(["--example", "step"])
        .status()
        .context("starting cargo")?;
    ensure!(built.success(), "the steps do not build: {built}");
    let mut table = Table::new(["path", "steps", "median", "longest"]);
    let mut rows = Vec::new();
    for path in PATHS {
        if arguments.paths.is_empty() || arguments.paths.iter().any(|wanted| wanted == path) {
            let row = count(workspace, path)?;
            table.row(vec![
                row.path.clone(),
                row.steps.to_string(),
                row.median.to_string(),
                row.longest.to_string(),
            ]);
            rows.push(row);
        }
    }
    println!("{}", table.render());
    let kept = super::keep(workspace, "bench-step.json", &rows)?;
    println!("{}", kept.display());
    judge(&rows)
}

/// Runs one path under callgrind, which writes a record after each step.
fn count(workspace: &Workspace, path: &str) -> Result<Row> {
    let folder = workspace.output(&format!("bench-step/{path}"))?;
    if folder.exists() {
        std::fs::remove_dir_all(&folder).context("removing the last records")?;
    }
    std::fs::create_dir_all(&folder).context("making room for the records")?;
    let ran = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no"])
        .arg(format!("--toggle-collect={STEP}"))
        .arg(format!("--dump-after={STEP}"))
        .arg(format!("--callgrind-out-file={}/out", folder.display()))
        .arg(workspace.target().join("release/examples/step"))
        .arg(path)
        .stderr(Stdio::null())
        .status()
        .context("starting valgrind")?;
    ensure!(ran.success(), "{path} failed under callgrind: {ran}");
    let mut counts = Vec::new();
    for record in std::fs::read_dir(&folder)? {
        let text = std::fs::read_to_string(record?.path())?;
        let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
        counts.extend(total.and_then(|total| total.trim().parse::<u64>().ok()));
    }
    // What is left at the end is a record of nothing.
    counts.retain(|&count| count > 0);
    counts.sort_unstable();
    let (Some(&longest), Some(&median)) = (counts.last(), counts.get(counts.len() / 2)) else {
        bail!("{path}: no step was counted");
    };
    Ok(Row {
        path: path.to_owned(),
        steps: counts.len(),
        median,
        longest,
    })
}

fn judge(rows: &[Row]) -> Result<()> {
    let over: Vec<String> = rows
        .iter()
        .filter(|row| row.longest > BAR)
        .map(|row| format!("{} {}", row.path, row.longest))
        .collect();
    ensure!(
        over.is_empty(),
        "more than {BAR} instructions in one step: {}",
        over.join(", ")
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_can_be_missed() {
        let row = |longest| Row {
            path: "bulk-inflate".into(),
            steps: 1,
            median: 1,
            longest,
        };
        assert!(judge(&[row(BAR)]).is_ok());
        assert!(judge(&[row(BAR), row(BAR + 1)]).is_err());
    }
}
