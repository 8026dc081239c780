//! `cargo xtask bench pod`: runs the bench of `pod-core`, keeps its rows and prints them as a table.

use anyhow::Result;
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
    let words = [
        "--package",
        "pod-core",
        "--features",
        "test-utils",
        "--example",
        "bench",
    ];
    let rows: Vec<Row> = super::rows(workspace, &words)?;
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
    let path = super::keep(workspace, "bench-pod.json", &rows)?;
    println!("{}", path.display());
    Ok(())
}
