//! `cargo xtask sim`: a door to the simulator, `examples/simulator`.

mod mutants;
pub(crate) mod tour;

use anyhow::Result;
use xshell::cmd;

use crate::exec::Runner;
use crate::workspace::Workspace;

/// Run the deterministic whole-system simulator.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
  cargo xtask sim                               1000 seeds on every kind of host
  cargo xtask sim --seeds 100000
  cargo xtask sim --seed 7 --host xen --trace   one run, with everything that happens
  cargo xtask sim --mutants                     breaks the code on purpose; each must be found")]
pub(crate) struct Args {
    /// Plant bugs in a copy of the checkout, one at a time, and see that each is found.
    #[arg(long)]
    mutants: bool,
    /// Arguments of the simulator, such as `--seeds 1000` or `--seed 7 --trace`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Builds and runs it.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    if args.mutants {
        return mutants::run(workspace);
    }
    let arguments = &args.arguments;
    let shell = workspace.shell()?;
    cmd!(
        shell,
        "cargo run --quiet --release --package simulator -- {arguments...}"
    )
    .run()?;
    Ok(())
}

/// The test stage: as many seeds as fit its budget, and a sample of the planted bugs.
pub(crate) fn stage(workspace: &Workspace, runner: &mut Runner) -> Result<String> {
    let shell = workspace.shell()?;
    let output = runner.run(cmd!(
        shell,
        "cargo run --release --package simulator -- --seeds 1000"
    ))?;
    let last = output
        .lines()
        .rev()
        .find(|line| line.contains("nothing found"));
    anyhow::ensure!(
        last.is_some(),
        "the simulator did not say that it found nothing"
    );
    let found = mutants::sample(workspace, runner)?;
    Ok(format!(
        "1000 seeds on 5 kinds of host, nothing found; {found} planted bugs found"
    ))
}
