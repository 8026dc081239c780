//! `cargo xtask bench NAME`: the benches.
//!
//! A bench with peers is a package of its own under `benches/`, `bench-NAME`, so that they are compiled only
//! by who measures; one without is an example of its crate. It is built with the profile `bench` and prints
//! rows of JSON. What xtask does with those (a table, a plot, `target/xtask/bench-NAME.json`) is in a file
//! here, `NAME.rs`, with `pub(crate) fn run(workspace: &Workspace, arguments: &[String]) -> Result<()>`, which
//! parses its own arguments (`clap::Parser::parse_from`, so that `--help` works) and has a line in [`BENCHES`].

mod alloc;
mod chunk;
mod pod;
mod step;
mod virtio;
mod xen;

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Serialize, de::DeserializeOwned};

use crate::workspace::Workspace;

/// A bench, by name.
#[derive(Debug)]
struct Bench {
    name: &'static str,
    about: &'static str,
    run: fn(&Workspace, &[String]) -> Result<()>,
}

const BENCHES: &[Bench] = &[
    Bench {
        name: "alloc",
        about: "buddy-alloc beside its peers: time, metadata, balloon quality",
        run: alloc::run,
    },
    Bench {
        name: "chunk",
        about: "7 GiB told to a device in four ways: page numbers, pipelined, chunks, ranges",
        run: chunk::run,
    },
    Bench {
        name: "pod",
        about: "pod-core: zero scan, operations, superpage yield, worst sweep, metadata",
        run: pod::run,
    },
    Bench {
        name: "step",
        about: "instructions of the longest step with the smallest budget, on each path",
        run: step::run,
    },
    Bench {
        name: "virtio",
        about: "the QEMU guest beside Linux: inflate, deflate, free page reporting",
        run: virtio::run,
    },
    Bench {
        name: "xen",
        about: "1 GiB out of and into domains of a real Xen: Linux, ours, bare hypercalls",
        run: xen::run,
    },
];

/// Run a bench in an optimised build: `cargo xtask bench NAME --help`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which one; without it, they are listed.
    name: Option<String>,
    /// Arguments of the bench.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Runs a bench.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    let Some(name) = &args.name else {
        BENCHES
            .iter()
            .for_each(|bench| println!("{:<8} {}", bench.name, bench.about));
        return Ok(());
    };
    match BENCHES.iter().find(|bench| bench.name == name) {
        Some(bench) => (bench.run)(workspace, &args.arguments),
        None => bail!("there is no bench `{name}`; `cargo xtask bench` lists them"),
    }
}

/// Builds a bench in an optimised build, runs it with `cargo run ARGUMENTS`, and reads its rows.
fn rows<R: DeserializeOwned>(workspace: &Workspace, arguments: &[&str]) -> Result<Vec<R>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(workspace.root())
        .args(["run", "--quiet", "--profile", "bench"])
        .args(arguments)
        .stderr(Stdio::inherit())
        .output()
        .context("starting cargo")?;
    ensure!(
        output.status.success(),
        "the bench failed: {}",
        output.status
    );
    let text = String::from_utf8(output.stdout).context("the rows are no text")?;
    text.lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("no row: {line}")))
        .collect()
}

/// Writes rows to `target/xtask/FILE`.
fn keep<R: Serialize>(workspace: &Workspace, file: &str, rows: &[R]) -> Result<PathBuf> {
    let path = workspace.output(file)?;
    std::fs::write(&path, serde_json::to_string_pretty(rows)? + "\n")
        .with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}
