//! `cargo xtask fuzz TARGET`: a door to cargo-fuzz.
//!
//! `fuzz/` is a conventional cargo-fuzz folder, so `cargo +nightly fuzz run TARGET` does the same; this
//! brings the pinned nightly and the pinned cargo-fuzz along.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use xshell::cmd;

use crate::exec::Runner;
use crate::setup::{self, tools};
use crate::ui;
use crate::workspace::{NIGHTLY, Workspace};

/// Fuzz one target of `fuzz/README.md` for a while.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A name from the table in `fuzz/README.md`.
    target: String,
    /// How long.
    #[arg(long, default_value_t = 60, value_name = "N")]
    seconds: u64,
    /// Without the address sanitizer and without tracing comparisons: many times as many executions,
    /// for long campaigns against safe code.
    #[arg(long)]
    fast: bool,
}

/// Fuzzes one target.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    let known = targets(workspace)?;
    if !known.contains(&args.target) {
        let known: Vec<String> = known.into_iter().collect();
        bail!(
            "there is no fuzz target `{}`; there are: {}",
            args.target,
            known.join(", ")
        );
    }
    let bar = ui::spinner(&format!("fuzz {}", args.target));
    let limit = Duration::from_secs(args.seconds + 1800);
    let mut runner = Runner::new(workspace.output("log/fuzz.log")?, bar.clone(), limit)?;
    set_up(workspace, &mut runner)?;
    let summary = fuzz(
        workspace,
        &mut runner,
        &args.target,
        args.seconds,
        args.fast,
    )?;
    ui::finish(&bar, &format!("{}: {summary}", args.target));
    Ok(())
}

/// What cargo-fuzz needs: itself, the pinned nightly, and a C++ compiler for libFuzzer.
pub(crate) fn set_up(workspace: &Workspace, runner: &mut Runner) -> Result<()> {
    setup::cxx(workspace, runner)?;
    setup::nightly(workspace, runner, &["rust-src"])?;
    setup::tool(workspace, runner, tools::FUZZ)
}

/// The targets, which the README's table and the manifest name alike.
pub(crate) fn targets(workspace: &Workspace) -> Result<BTreeSet<String>> {
    let read = |file: &str| {
        let path = workspace.root().join("fuzz").join(file);
        std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    };
    let documented = documented(&read("README.md")?);
    let built = built(&read("Cargo.toml")?);
    ensure!(
        documented == built,
        "fuzz/README.md and the [[bin]]s of fuzz/Cargo.toml differ: only in one of them: {:?}",
        documented.symmetric_difference(&built).collect::<Vec<_>>()
    );
    ensure!(!built.is_empty(), "fuzz/ has no targets");
    Ok(built)
}

/// Builds a target, with its sanitizer unless it is to be `fast`, and runs it. Returns what libFuzzer
/// says at the end.
pub(crate) fn fuzz(
    workspace: &Workspace,
    runner: &mut Runner,
    target: &str,
    seconds: u64,
    fast: bool,
) -> Result<String> {
    let shell = workspace.shell()?;
    let toolchain = format!("+{NIGHTLY}");
    let (folder, build): (_, &[&str]) = if fast {
        ("fuzz-fast", &["--sanitizer=none", "--no-trace-compares"])
    } else {
        ("fuzz", &[])
    };
    let folder = workspace.target().join(folder);
    let time = format!("-max_total_time={seconds}");
    // The committed corpus is what `cargo test` replays: what grows from it goes to a copy.
    let grown = workspace.output(&format!("corpus/{target}"))?;
    std::fs::create_dir_all(&grown)?;
    let mut corpora = vec![grown];
    let seeds = workspace.root().join("fuzz/corpus").join(target);
    if seeds.is_dir() {
        corpora.push(seeds);
    }
    let output = runner.run(cmd!(
        shell,
        "cargo {toolchain} fuzz run --target-dir {folder} {build...} {target} {corpora...} -- {time} -print_final_stats=1"
    ))?;
    let done = output.lines().find_map(|line| line.strip_prefix("Done "));
    let done = done.with_context(|| format!("libFuzzer did not finish {target}"))?;
    Ok(done.to_owned())
}

/// Names in the first column of the table.
fn documented(readme: &str) -> BTreeSet<String> {
    let cells = readme
        .lines()
        .filter_map(|line| line.strip_prefix('|')?.split('|').next());
    let names = cells.map(|cell| cell.trim().trim_matches('`'));
    names
        .filter(|name| !name.is_empty() && *name != "target" && !name.starts_with("--"))
        .map(str::to_owned)
        .collect()
}

/// Names of the `[[bin]]`s.
fn built(manifest: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut in_bin = false;
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            in_bin = line == "[[bin]]";
        } else if let Some((key, value)) = line.split_once('=')
            && in_bin
            && key.trim() == "name"
        {
            names.insert(value.trim().trim_matches('"').to_owned());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_and_manifests_are_read() {
        let readme = "# Fuzz\n\n| target | crate |\n|---|---|\n| `run_merge` | balloon-core |\n| zone | buddy |\n";
        let manifest = "[package]\nname = \"x\"\n\n[[bin]]\nname = \"run_merge\"\npath = \"a\"\n[dependencies]\n\
                        name = 1\n[[bin]]\nname=\"zone\"\n";
        let both = BTreeSet::from(["run_merge".to_owned(), "zone".to_owned()]);
        assert_eq!(documented(readme), both);
        assert_eq!(built(manifest), both);
    }
}
