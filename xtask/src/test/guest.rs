//! The QEMU stage: real guests on two QEMUs and two boards.
//!
//! What is asked of them is in [`super::guest_cases`]. Guests have at most 1 GiB, and run one after the
//! other, when nothing compiles.

use anyhow::{Result, bail};

use super::guest_cases::{CASES, Site, Where};
use crate::exec::Runner;
use crate::image::{self, Guest};
use crate::setup::{self, Qemu};
use crate::vm::Board;
use crate::workspace::Workspace;

/// Boots every case on every site it is meant for.
pub(super) fn boot(workspace: &Workspace, runner: &mut Runner) -> Result<String> {
    let elf = image::build(workspace, runner, Guest::Qemu)?;
    let emulators = setup::emulators(workspace, runner)?;
    let folder = workspace.output("guests")?;
    let mut failures = Vec::new();
    let mut boots = 0;
    for (qemu, board) in sites(&emulators) {
        for case in CASES
            .iter()
            .filter(|case| case.place == Where::Everywhere || board == Board::Pc)
        {
            let name = format!("{} on QEMU {} {}", case.name, qemu.version(), board.name());
            runner.bar().set_message(name.clone());
            let site = Site {
                qemu,
                board,
                elf: &elf,
                folder: folder.join(name.replace(' ', "-")),
            };
            boots += 1;
            let outcome = (case.run)(&site);
            runner.say(&format!(
                "{}{name}",
                if outcome.is_ok() {
                    "ok      "
                } else {
                    "FAILED  "
                }
            ))?;
            if let Err(error) = outcome {
                failures.push(format!("{name} ({}):\n{error:#}", case.about));
            }
        }
    }
    if failures.is_empty() {
        return Ok(format!("{boots} boots, {} cases", CASES.len()));
    }
    bail!(
        "{} of {boots} boots failed\n{}",
        failures.len(),
        failures.join("\n\n")
    )
}

fn sites(emulators: &[Qemu]) -> impl Iterator<Item = (&Qemu, Board)> {
    emulators
        .iter()
        .flat_map(|qemu| [Board::Pc, Board::Q35].map(|board| (qemu, board)))
}
