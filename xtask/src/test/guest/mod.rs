//! The QEMU stage: real guests on two QEMUs and five boards.
//!
//! [`CASES`] are what a guest is put through, [`rows`] are machines that differ in what their device offers.
//! Some run each time, all of them by `--all-rows`. Guests have at most 1 GiB, and run one after the other, when
//! nothing compiles.

mod balloon;
mod bridges;
mod case;
mod huge_pages;
mod libvirt;
mod migration;
mod minimal;
mod rows;
mod services;
mod snapshot;
mod unplug;

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};

use case::{Case, Site};
use rows::Row;

use crate::exec::Runner;
use crate::image::{self, Guest};
use crate::setup::{self, Qemu};
use crate::vm::{Architecture, Board};
use crate::workspace::Workspace;
use Board::{Microvm, Pc, Q35, VirtMmio, VirtPci};

/// What guests are put through.
const CASES: &[Case] = &[
    Case {
        name: "bulk path",
        about: "inflate, rest, deflate by bulk ranges",
        boards: &Board::ALL,
        run: balloon::bulk_path,
    },
    Case {
        name: "PFN path",
        about: "the same page by page",
        boards: &[Pc, Microvm, VirtPci],
        run: balloon::pfn_path,
    },
    Case {
        name: "panic",
        about: "a guest that panics turns the run red",
        boards: &[Pc, Microvm, VirtMmio],
        run: balloon::panic,
    },
    Case {
        name: "no device",
        about: "no balloon device at all",
        boards: &[Pc, Microvm, VirtPci],
        run: balloon::no_device,
    },
    Case {
        name: "PFN by choice",
        about: "reporting is offered and not used",
        boards: &[Pc, VirtMmio],
        run: balloon::pfn_by_choice,
    },
    Case {
        name: "odd targets",
        about: "targets above memory, zero, one byte",
        boards: &[Pc, VirtPci],
        run: balloon::odd_targets,
    },
    Case {
        name: "storm",
        about: "a hundred targets a second",
        boards: &[Pc, VirtMmio],
        run: balloon::storm,
    },
    Case {
        name: "change of mind",
        about: "a new target while requests are in flight",
        boards: &[Pc, VirtMmio],
        run: balloon::change_of_mind,
    },
    Case {
        name: "too little",
        about: "more is asked than the guest can give",
        boards: &[Pc, VirtPci],
        run: balloon::too_little,
    },
    Case {
        name: "statistics",
        about: "the host asks what the guest knows",
        boards: &[Pc, VirtMmio],
        run: services::statistics,
    },
    Case {
        name: "reports",
        about: "free memory goes to the host by itself",
        boards: &[Pc, VirtPci],
        run: services::reports,
    },
    Case {
        name: "live migration",
        about: "to another QEMU, with hints, while the balloon inflates",
        boards: &[Pc, VirtPci],
        run: migration::live,
    },
    Case {
        name: "migration with reports",
        about: "hints, free page reports and bulk ranges at once, here and there",
        boards: &[Pc, VirtMmio],
        run: migration::live_with_reports,
    },
    Case {
        name: "save and restore",
        about: "to a file and back with a full balloon",
        boards: &[Pc, VirtMmio],
        run: migration::saved,
    },
    Case {
        name: "restore on a younger host",
        about: "the counter is lower than what the guest has read of its clock",
        boards: &[Pc, VirtPci],
        run: migration::restored_on_younger_host,
    },
    Case {
        name: "snapshot",
        about: "back to a snapshot that was taken with a full balloon",
        boards: &[Pc, VirtPci],
        run: snapshot::run,
    },
    Case {
        name: "killed",
        about: "QEMU dies in the middle of an inflation",
        boards: &[Pc, VirtPci],
        run: migration::killed,
    },
    Case {
        name: "reset",
        about: "the machine is reset with a full balloon",
        boards: &[Pc, VirtMmio],
        run: migration::reset,
    },
    Case {
        name: "tour",
        about: "the targets that simulated and Xen guests follow, too",
        boards: &[Pc, VirtPci],
        run: balloon::tour,
    },
];

/// What some boards alone have.
const OF_SOME_BOARDS: &[Case] = &[
    Case {
        name: "root port",
        about: "the device is behind a port of PCI Express",
        boards: &[Q35, VirtPci],
        run: bridges::root_port,
    },
    Case {
        name: "bridge",
        about: "the device is behind a bridge for plain PCI",
        boards: &[Pc, Q35, VirtPci],
        run: bridges::bridge,
    },
    Case {
        name: "access platform",
        about: "the device insists on the platform's way to memory, with and without an IOMMU",
        boards: &[Q35, VirtPci],
        run: bridges::access_platform,
    },
    Case {
        name: "unplugged by numbers",
        about: "the device goes in the middle of an inflation, and comes back",
        boards: &[Q35, VirtPci],
        run: unplug::by_numbers,
    },
    Case {
        name: "unplugged by ranges",
        about: "the device goes with a full balloon that went by the bulk path, and comes back",
        boards: &[Q35, VirtPci],
        run: unplug::by_ranges,
    },
    Case {
        name: "minimal kernel",
        about: "the smallest example follows its targets",
        boards: &[Pc, Q35],
        run: minimal::run,
    },
    Case {
        name: "ACPI",
        about: "devices are in tables that the guest does not read",
        boards: &[Microvm],
        run: balloon::acpi,
    },
    Case {
        name: "GIC 3",
        about: "a PCI device where messages take an ITS",
        boards: &[VirtPci],
        run: balloon::gic_3,
    },
];

/// What runs only if it is named: it takes more than a machine that can be had everywhere.
const BY_NAME: &[Case] = &[
    Case {
        name: "huge pages",
        about: "memory in huge pages of the host: goes back by chains of two descriptors",
        boards: &[Pc],
        run: huge_pages::run,
    },
    Case {
        name: LIBVIRT,
        about: "a domain of libvirt, with its default layout of PCI: `virsh setmem`",
        boards: &[Q35],
        run: libvirt::run,
    },
];

/// The case that needs more packages than a QEMU.
const LIBVIRT: &str = "libvirt";

/// The QEMU that a boot runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Release {
    /// 10.0 or newer.
    New,
    /// 7.2.
    Old,
}

impl Release {
    const ALL: [Self; 2] = [Self::New, Self::Old];

    fn name(self) -> &'static str {
        match self {
            Self::New => "new QEMU",
            Self::Old => "QEMU 7.2",
        }
    }
}

/// One machine to boot.
#[derive(Debug)]
struct Boot {
    name: String,
    release: Release,
    board: Board,
    what: What,
}

#[derive(Debug, Clone, Copy)]
enum What {
    Case(&'static Case),
    Row(Row),
}

impl What {
    fn about(self) -> &'static str {
        match self {
            Self::Case(case) => case.about,
            Self::Row(_) => "the features agreed on, and what they promise",
        }
    }

    fn run(self, site: &Site<'_>) -> Result<()> {
        match self {
            Self::Case(case) => (case.run)(site),
            Self::Row(row) => rows::run(site, row),
        }
    }
}

/// What there is to boot, as far as its name contains `filter`: what runs each time, or `all` of it.
fn boots(all: bool, filter: &str) -> Vec<Boot> {
    let named = BY_NAME
        .iter()
        .filter(|case| !filter.is_empty() && case.name.contains(filter));
    let mut boots = Vec::new();
    for release in Release::ALL {
        let on = |case: &'static Case, boards: &[Board]| {
            let boot = |&board: &Board| Boot {
                name: format!("{} on {} {}", case.name, release.name(), board.name()),
                release,
                board,
                what: What::Case(case),
            };
            boards.iter().map(boot).collect::<Vec<_>>()
        };
        for case in CASES {
            boots.extend(on(case, if all { &Board::ALL } else { case.boards }));
        }
        for case in OF_SOME_BOARDS.iter().chain(named.clone()) {
            boots.extend(on(case, case.boards));
        }
    }
    let rows = if all {
        rows::all()
    } else {
        rows::CHOSEN.to_vec()
    };
    boots.extend(rows.into_iter().map(|row| Boot {
        name: format!("row: {row}"),
        release: row.release,
        board: row.board,
        what: What::Row(row),
    }));
    boots.retain(|boot| boot.name.contains(filter));
    boots
}

/// Boots what there is to boot, as far as its name contains `filter`.
pub(super) fn boot(
    workspace: &Workspace,
    runner: &mut Runner,
    filter: &str,
    all: bool,
) -> Result<String> {
    let boots = boots(all, filter);
    if boots.is_empty() {
        let cases = CASES.iter().chain(OF_SOME_BOARDS).chain(BY_NAME);
        let known: Vec<&str> = cases.map(|case| case.name).collect();
        bail!(
            "nothing is called like `{filter}`; there are: row, {}",
            known.join(", ")
        );
    }
    let mut labs = Vec::new();
    for architecture in [Architecture::X86_64, Architecture::Aarch64] {
        if boots
            .iter()
            .any(|boot| boot.board.architecture() == architecture)
        {
            labs.push(Lab::set_up(workspace, runner, architecture)?);
        }
    }
    if boots.iter().any(|boot| boot.name.starts_with(LIBVIRT)) {
        setup::libvirt(workspace, runner)?;
    }
    let folder = workspace.output("guests")?;
    let mut failures = Vec::new();
    for Boot {
        name,
        release,
        board,
        what,
    } in &boots
    {
        let lab = labs
            .iter()
            .find(|lab| lab.architecture == board.architecture());
        let Some(lab) = lab else { continue };
        runner.bar().set_message(name.clone());
        let site = Site {
            qemu: lab.qemu(*release),
            board: *board,
            elf: &lab.elf,
            minimal: lab.minimal.as_deref(),
            folder: folder.join(name.replace([' ', ':', '+'], "-")),
        };
        let outcome = what.run(&site);
        let word = if outcome.is_ok() {
            "ok      "
        } else {
            "FAILED  "
        };
        runner.say(&format!("{word}{name}"))?;
        if let Err(error) = outcome {
            failures.push(format!("{name} ({}):\n{error:#}", what.about()));
        }
    }
    ensure!(
        failures.is_empty(),
        "{} of {} boots failed\n{}",
        failures.len(),
        boots.len(),
        failures.join("\n\n")
    );
    let rows = boots
        .iter()
        .filter(|boot| boot.name.starts_with("row"))
        .count();
    Ok(format!(
        "{} boots, {rows} of them rows of options",
        boots.len()
    ))
}

/// What an architecture's guests need.
struct Lab {
    architecture: Architecture,
    elf: PathBuf,
    /// The smallest guest, where it runs.
    minimal: Option<PathBuf>,
    new: Qemu,
    old: Qemu,
}

impl Lab {
    fn set_up(
        workspace: &Workspace,
        runner: &mut Runner,
        architecture: Architecture,
    ) -> Result<Self> {
        let guest = match architecture {
            Architecture::X86_64 => Guest::Qemu,
            Architecture::Aarch64 => Guest::QemuAarch64,
        };
        let elf = image::build(workspace, runner, guest)?;
        let minimal = match architecture {
            Architecture::X86_64 => Some(image::build(workspace, runner, Guest::Minimal)?),
            Architecture::Aarch64 => None,
        };
        let [new, old] = setup::emulators(workspace, runner, architecture)?;
        runner.say(&format!(
            "{}: QEMU {} and {}",
            architecture.target(),
            new.version(),
            old.version()
        ))?;
        Ok(Self {
            architecture,
            elf,
            minimal,
            new,
            old,
        })
    }

    fn qemu(&self, release: Release) -> &Qemu {
        match release {
            Release::New => &self.new,
            Release::Old => &self.old,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_runs_on_both_architectures_each_time() {
        for case in CASES {
            for architecture in [Architecture::X86_64, Architecture::Aarch64] {
                let mut boards = case.boards.iter();
                assert!(
                    boards.any(|board| board.architecture() == architecture),
                    "{} on {architecture:?}",
                    case.name
                );
            }
        }
    }

    #[test]
    fn boots_are_as_many_as_the_readme_of_the_guest_says() {
        assert_eq!(boots(false, "").len(), 132);
        assert_eq!(boots(true, "").len(), 871);
    }

    #[test]
    fn boots_have_names_of_their_own() {
        let boots = boots(true, "");
        let names: std::collections::BTreeSet<&str> =
            boots.iter().map(|boot| boot.name.as_str()).collect();
        assert_eq!(names.len(), boots.len());
    }
}
