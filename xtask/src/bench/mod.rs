//! `cargo xtask bench NAME`: the benches, each in a file of its own.
//!
//! A bench compares optimised code with optimised peers, while everyday xtask is a debug build
//! without the peers. So the door opens twice: without the feature `bench` it runs
//! `cargo run --profile bench --features bench` with the same arguments; with it, it dispatches.
//!
//! A bench is a module with `pub(crate) fn run(workspace: &Workspace, arguments: &[String]) -> Result<()>`
//! that parses its own arguments (`clap::Parser::parse_from`, so that `--help` works), a name in
//! [`NAMES`] and an arm in [`dispatch`]. Crates it compares with are optional dependencies that the feature
//! `bench` turns on. Its JSON is [`Workspace::output`]`("bench-NAME.json")`.

use anyhow::{Result, bail};
use xshell::cmd;

use crate::workspace::Workspace;

/// The benches there are, with what they measure.
const NAMES: &[(&str, &str)] = &[];

/// Run a bench in an optimised build: `cargo xtask bench alloc --help`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which one; without it, their names are printed.
    name: Option<String>,
    /// Arguments of the bench.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Runs a bench, in an optimised build of this program.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    let Some(name) = &args.name else {
        NAMES
            .iter()
            .for_each(|(name, about)| println!("{name:<8} {about}"));
        return Ok(());
    };
    if !NAMES.iter().any(|(known, _)| known == name) {
        bail!("there is no bench `{name}`; `cargo xtask bench` names them");
    }
    if cfg!(feature = "bench") {
        return dispatch(workspace, name, &args.arguments);
    }
    let shell = workspace.shell()?;
    let arguments = &args.arguments;
    let package = env!("CARGO_PKG_NAME");
    cmd!(shell, "cargo run --quiet --profile bench --package {package} --features bench -- bench {name} {arguments...}")
        .quiet()
        .run()?;
    Ok(())
}

fn dispatch(_workspace: &Workspace, name: &str, _arguments: &[String]) -> Result<()> {
    bail!("`{name}` is not part of this build")
}
