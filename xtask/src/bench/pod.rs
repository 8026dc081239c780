//! `cargo xtask bench pod`: runs the bench of `pod-core`, keeps its rows and prints them as a table.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use serde::{Deserialize, Serialize};

use crate::ui::Table;
use crate::workspace::Workspace;

/// The populate-on-demand engine: zero scan, operations, superpage yield, worst sweep, metadata.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench pod")]
struct Arguments {}

#[derive(Debug, Deserialize, Serialize)]
struct Row {
    test: String,
    config: String,
    value: f64,
    unit: String,
}

/// Builds and runs the bench in an optimised build.
pub(crate) fn run(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    let name = String::from("cargo xtask bench pod");
    let Arguments {} = Arguments::parse_from([name].iter().chain(arguments));
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(workspace.root())
        .args([
            "run",
            "--quiet",
            "--profile",
            "bench",
            "--package",
            "pod-core",
        ])
        .args(["--features", "test-utils", "--example", "bench"])
        .stderr(Stdio::inherit())
        .output()
        .context("cargo does not start")?;
    ensure!(
        output.status.success(),
        "the bench failed: {}",
        output.status
    );
    let text = String::from_utf8(output.stdout)?;
    let rows: Vec<Row> = text
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("no row: {line}")))
        .collect::<Result<_>>()?;
    let mut table = Table::new(["test", "config", "value", "unit"]);
    for row in &rows {
        table.row(vec![
            row.test.clone(),
            row.config.clone(),
            format!("{:.3}", row.value),
            row.unit.clone(),
        ]);
    }
    println!("{}", table.render());
    let path = workspace.output("bench-pod.json")?;
    fs::write(&path, serde_json::to_string_pretty(&rows)?)?;
    println!("{}", path.display());
    Ok(())
}
