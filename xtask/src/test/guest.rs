//! The QEMU stage: real guests on two QEMUs and two boards.
//!
//! What is asked of them is in [`super::guest_cases`]. Guests have at most 1 GiB, and run one after the
//! other, when nothing compiles.

use anyhow::{Result, bail};

use super::guest_cases::{CASES, Case, Site, Where};
use crate::exec::Runner;
use crate::image::{self, Guest};
use crate::setup::{self, Qemu};
use crate::vm::Board;
use crate::workspace::Workspace;

/// Boots every case on every site it is meant for, as far as its name contains `filter`.
pub(super) fn boot(workspace: &Workspace, runner: &mut Runner, filter: &str) -> Result<String> {
    let chosen: Vec<&Case> = CASES
        .iter()
        .filter(|case| case.name.contains(filter))
        .collect();
    if chosen.is_empty() {
        let known: Vec<&str> = CASES.iter().map(|case| case.name).collect();
        bail!(
            "no case is called like `{filter}`; there are: {}",
            known.join(", ")
        );
    }
    let elf = image::build(workspace, runner, Guest::Qemu)?;
    let emulators = setup::emulators(workspace, runner)?;
    let folder = workspace.output("guests")?;
    let mut failures = Vec::new();
    let mut boots = 0;
    for (qemu, board) in sites(&emulators) {
        for case in chosen
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
        return Ok(format!("{boots} boots, {} cases", chosen.len()));
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
