//! `cargo xtask bench xen`: the balloon of a Xen domain beside that of Linux.

use std::time::Duration;

use anyhow::Result;
use clap::Parser;

use crate::exec::Runner;
use crate::ui;
use crate::workspace::Workspace;
use crate::xen;

/// 1 GiB out and in on real Xen under QEMU 7.2: Linux 6.1, our guest, and the
/// bare hypercalls, on one boot. Rows in target/xtask/bench-xen.json; a figure that
/// misses its bar is an error.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench xen")]
struct Args {
    /// How often each; bars hold medians.
    #[arg(long, default_value_t = 5)]
    repeat: u32,
    /// The Xen it runs on.
    #[arg(long, default_value = "4.17")]
    xen: xen::Xen,
}

/// Runs it.
pub(crate) fn run(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    let args = Args::parse_from(
        std::iter::once("cargo xtask bench xen").chain(arguments.iter().map(String::as_str)),
    );
    let bar = ui::spinner("Xen");
    let log = workspace.output("log/bench-xen.log")?;
    let mut runner = Runner::new(log, bar.clone(), Duration::from_secs(3600))?;
    let outcome = xen::bench(workspace, &mut runner, args.xen, args.repeat);
    ui::finish(&bar, "Xen: done");
    outcome
}
