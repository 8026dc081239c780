//! `cargo xtask test`: everything the project is held to, in stages.
//!
//! Stages run one after the other, so that no guest ever runs beside a compile. Each sets up what it
//! needs; one that cannot fails with the reason. The budgets are for two cores and a cold start, tools
//! included; their sum is under 50 minutes.

mod bare;
mod counts;
mod downstream;
mod fuzzing;
mod guest;
mod host;
mod models;

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::exec::Runner;
use crate::sim;
use crate::ui::{self, Table};
use crate::workspace::Workspace;
use crate::xen;

/// A stage that takes this many times its budget hangs...
const PATIENCE: u32 = 4;
/// ...but not before this much time has passed: the machine may have other work.
const LEAST_PATIENCE: Duration = minutes(20);

/// Set up and run the test stages (all of them unless some are named).
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Each stage installs what it needs, prints its time, and keeps its full output in
target/xtask/log/STAGE.log. A run ends with a table and the line `N passed, M failed`, which
counts stages.

  cargo xtask test --list
  cargo xtask test fmt clippy unit
  cargo xtask test qemu --case storm
  cargo xtask test qemu --all-rows --case microvm
  cargo xtask test qemu --case 'huge pages'
  cargo xtask test qemu --case libvirt
  cargo xtask test xen --case save")]
pub(crate) struct Args {
    /// Stages to run, in this order.
    #[arg(value_name = "STAGE")]
    stages: Vec<String>,
    /// Name the stages with their time budgets, and run none.
    #[arg(long)]
    list: bool,
    /// Of the stages `qemu` and `xen`, run only the cases with this in their name.
    #[arg(long, value_name = "NAME")]
    case: Option<String>,
    /// Of the stage `qemu`, run every case on every board and every row of options: half an hour.
    #[arg(long)]
    all_rows: bool,
}

/// A part of the tests.
#[derive(Debug)]
struct Stage {
    name: &'static str,
    /// From cold, on two cores.
    budget: Duration,
    about: &'static str,
    /// Returns what it did in a few words.
    run: Run,
}

/// How a stage is run.
#[derive(Debug)]
enum Run {
    /// As a whole.
    Whole(fn(&Workspace, &mut Runner) -> Result<String>),
    /// Its cases, as far as their names contain a text.
    Cases(fn(&Workspace, &mut Runner, &str) -> Result<String>),
    /// The same, or more of them than each time.
    Rows(fn(&Workspace, &mut Runner, &str, bool) -> Result<String>),
}

const fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(60 * minutes)
}

/// The stages, cheapest first.
const STAGES: &[Stage] = &[
    Stage {
        name: "fmt",
        budget: minutes(1),
        about: "formatting; sizes of files; counts of unsafe",
        run: Run::Whole(host::fmt),
    },
    Stage {
        name: "clippy",
        budget: minutes(4),
        about: "lints of all targets, warnings are errors",
        run: Run::Whole(host::clippy),
    },
    Stage {
        name: "unit",
        budget: minutes(5),
        about: "unit, contract, property and doc tests",
        run: Run::Whole(host::test),
    },
    Stage {
        name: "docs",
        budget: minutes(1),
        about: "documentation, warnings are errors",
        run: Run::Whole(host::docs),
    },
    Stage {
        name: "powerset",
        budget: minutes(3),
        about: "every combination of features, bare target",
        run: Run::Whole(bare::powerset),
    },
    Stage {
        name: "bare",
        budget: minutes(2),
        about: "libraries for three bare-metal targets",
        run: Run::Whole(bare::targets),
    },
    Stage {
        name: "msrv",
        budget: minutes(1),
        about: "libraries with the oldest Rust they promise",
        run: Run::Whole(bare::msrv),
    },
    Stage {
        name: "sim",
        budget: minutes(3),
        about: "whole guests and hosts from seeds, with an oracle",
        run: Run::Whole(sim::stage),
    },
    Stage {
        name: "loom",
        budget: minutes(4),
        about: "concurrency models, all interleavings",
        run: Run::Whole(models::loom),
    },
    Stage {
        name: "miri",
        budget: minutes(6),
        about: "undefined behaviour, stacked and tree borrows",
        run: Run::Whole(models::miri),
    },
    Stage {
        name: "fuzz",
        budget: minutes(5),
        about: "each fuzz target for a few seconds, and its corpus",
        run: Run::Whole(fuzzing::smoke),
    },
    Stage {
        name: "qemu",
        budget: minutes(7),
        about: "guests on two QEMUs and five boards of two architectures",
        run: Run::Rows(guest::boot),
    },
    Stage {
        name: "xen",
        budget: minutes(6),
        about: "guests as domains of two real Xens with their real tools",
        run: Run::Cases(xen::stage),
    },
    Stage {
        name: "downstream",
        budget: minutes(1),
        about: "a kernel built against the packaged crates",
        run: Run::Whole(downstream::build),
    },
];

/// Runs stages. `false` if one failed.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<bool> {
    if args.list {
        print!("{}", list());
        return Ok(true);
    }
    let chosen = choose(&args.stages)?;
    let mut table = Table::new(["stage", "result", "time", "budget", "notes"]).ending_in_prose();
    let start = Instant::now();
    let (mut passed, mut failed) = (0, 0);
    for stage in chosen {
        let begun = Instant::now();
        let bar = ui::spinner(stage.name);
        let log = workspace.output(&format!("log/{}.log", stage.name))?;
        let mut runner = Runner::new(
            log,
            bar.clone(),
            (stage.budget * PATIENCE).max(LEAST_PATIENCE),
        )?;
        let case = args.case.as_deref().unwrap_or_default();
        let outcome = match stage.run {
            Run::Whole(run) => run(workspace, &mut runner),
            Run::Cases(run) => run(workspace, &mut runner, case),
            Run::Rows(run) => run(workspace, &mut runner, case, args.all_rows),
        };
        let time = ui::seconds(begun.elapsed());
        let (word, note) = match outcome {
            Ok(note) => {
                passed += 1;
                ui::finish(
                    &bar,
                    &format!("{:<11} ok      {time:>12}  {note}", stage.name),
                );
                ("ok", note)
            }
            Err(error) => {
                failed += 1;
                ui::finish(
                    &bar,
                    &format!("{:<11} FAILED  {time:>12}\n{error:#}\n", stage.name),
                );
                let reason = format!("{error:#}")
                    .lines()
                    .next()
                    .unwrap_or_default()
                    .to_owned();
                ("FAILED", reason)
            }
        };
        table.row(vec![
            stage.name.to_owned(),
            word.to_owned(),
            time,
            ui::seconds(stage.budget),
            shortened(&note),
        ]);
    }
    println!(
        "\n{}\n{} in all\n{}",
        table.render(),
        ui::seconds(start.elapsed()),
        closing(passed, failed)
    );
    Ok(failed == 0)
}

fn list() -> String {
    let mut table = Table::new(["stage", "budget", "what"]).ending_in_prose();
    for stage in STAGES {
        table.row(vec![
            stage.name.to_owned(),
            ui::seconds(stage.budget),
            stage.about.to_owned(),
        ]);
    }
    let sum = STAGES.iter().map(|stage| stage.budget).sum();
    table.row(vec![
        "sum".to_owned(),
        ui::seconds(sum),
        "from cold, on two cores".to_owned(),
    ]);
    table.render()
}

fn choose(names: &[String]) -> Result<Vec<&'static Stage>> {
    if names.is_empty() {
        return Ok(STAGES.iter().collect());
    }
    let find = |name: &String| match STAGES.iter().find(|stage| stage.name == name) {
        Some(stage) => Ok(stage),
        None => {
            let known: Vec<&str> = STAGES.iter().map(|stage| stage.name).collect();
            bail!(
                "there is no stage `{name}`; there are: {}",
                known.join(", ")
            )
        }
    };
    names.iter().map(find).collect()
}

/// The last line, in the form that scripts look for.
fn closing(passed: u32, failed: u32) -> String {
    format!("{passed} passed, {failed} failed")
}

fn shortened(note: &str) -> String {
    if note.chars().count() <= 60 {
        note.to_owned()
    } else {
        note.chars().take(59).chain(['…']).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_fit_the_promise() {
        let sum: Duration = STAGES.iter().map(|stage| stage.budget).sum();
        assert!(sum < minutes(50), "{sum:?}");
    }

    #[test]
    fn stages_are_chosen_by_name() {
        let names = ["clippy", "fmt"].map(str::to_owned);
        let chosen: Vec<_> = choose(&names)
            .unwrap()
            .iter()
            .map(|stage| stage.name)
            .collect();
        assert_eq!(chosen, ["clippy", "fmt"]);
        assert_eq!(choose(&[]).unwrap().len(), STAGES.len());
        let error = choose(&["nope".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("downstream"), "{error}");
    }

    #[test]
    fn closing_line_has_its_form() {
        assert_eq!(closing(11, 1), "11 passed, 1 failed");
    }
}
