//! `cargo xtask sim`: a door to the simulator, an optimised example of `balloon-core`.

use anyhow::{Result, bail};
use xshell::cmd;

use crate::workspace::Workspace;

/// Run the deterministic whole-system simulator.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Arguments of the simulator, such as `--seeds 1000`, `--seed 7 --trace` or `--help`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Builds and runs it.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    if !workspace
        .root()
        .join("examples/simulator/Cargo.toml")
        .is_file()
    {
        bail!("this checkout has no simulator yet (examples/simulator)");
    }
    let arguments = &args.arguments;
    let shell = workspace.shell()?;
    cmd!(
        shell,
        "cargo run --release --package simulator -- {arguments...}"
    )
    .run()?;
    Ok(())
}
