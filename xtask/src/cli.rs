//! The command line, and what its `--help` teaches.

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::workspace::Workspace;
use crate::{bench, count, demo, fuzz, image, sim, test, xen};

/// The one door for every task of this workspace.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, after_help = AFTER)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

const AFTER: &str = "\
Start here:
  cargo xtask demo            see a guest give 7 of 8 GiB back to its host, with figures
  cargo xtask test            everything the project is held to; what CI runs
  cargo xtask test --list     its stages and their time budgets
  cargo xtask test clippy     one of them

Tools that are missing are installed where that is possible (Debian packages need root);
otherwise the command to type is printed. What xtask builds, downloads and writes for itself
lies under target/xtask/.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the main job on a stock QEMU and measure it: inflate, idle, deflate, verify.
    Demo(demo::Args),
    /// Set up and run the test stages (all of them unless some are named).
    Test(test::Args),
    /// Build a guest kernel, print its path and the line that runs it.
    Image {
        /// Which guest.
        #[arg(default_value = "qemu")]
        guest: image::Guest,
    },
    /// Run a bench in an optimised build: `cargo xtask bench alloc --help`.
    Bench(bench::Args),
    Count(count::Args),
    /// Fuzz one target of `fuzz/README.md` for a while.
    Fuzz(fuzz::Args),
    /// Run the deterministic whole-system simulator.
    Sim(sim::Args),
    /// Boot real Xen with domains of ours: `cargo xtask xen --help`.
    #[command(subcommand)]
    Xen(xen::Task),
}

impl Cli {
    /// Runs the chosen task. `false` says that it ran and found something wrong.
    pub(crate) fn run(self) -> Result<bool> {
        let workspace = Workspace::find()?;
        match self.command {
            Command::Demo(args) => demo::run(&workspace, &args),
            Command::Test(args) => test::run(&workspace, &args),
            Command::Image { guest } => image::run(&workspace, guest).map(|()| true),
            Command::Bench(args) => bench::run(&workspace, &args).map(|()| true),
            Command::Count(args) => count::run(&workspace, &args).map(|()| true),
            Command::Fuzz(args) => fuzz::run(&workspace, &args).map(|()| true),
            Command::Sim(args) => sim::run(&workspace, &args).map(|()| true),
            Command::Xen(task) => xen::run(&workspace, &task),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
