//! What a guest is put through. Each case boots a machine of its own and ends it.

use std::path::{Path as FilePath, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::{beside_cases, migration_cases};
use crate::demo::{Path, Plan, measure, stats};
use crate::setup::Qemu;
use crate::sim::tour;
use crate::vm::{Board, Failure, Machine, Vm, resident};

pub(super) const MIB: u64 = 1 << 20;
pub(super) const BOOT: Duration = Duration::from_secs(60);
const REACH: Duration = Duration::from_secs(60);
const ANSWER: Duration = Duration::from_secs(20);

/// Where a case runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Where {
    /// On each QEMU and each board.
    Everywhere,
    /// On one board of each QEMU: it is about the balloon, not about the machine.
    OneBoard,
}

/// A machine to try something on.
#[derive(Debug)]
pub(super) struct Site<'a> {
    pub(super) qemu: &'a Qemu,
    pub(super) board: Board,
    pub(super) elf: &'a FilePath,
    pub(super) folder: PathBuf,
}

/// Something to try.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    pub(super) place: Where,
    pub(super) run: fn(&Site<'_>) -> Result<()>,
}

/// All of them.
pub(super) const CASES: &[Case] = &[
    Case {
        name: "bulk path",
        about: "inflate, rest, deflate by bulk ranges",
        place: Where::Everywhere,
        run: bulk_path,
    },
    Case {
        name: "PFN path",
        about: "the same page by page",
        place: Where::Everywhere,
        run: pfn_path,
    },
    Case {
        name: "panic",
        about: "a guest that panics turns the run red",
        place: Where::Everywhere,
        run: panic,
    },
    Case {
        name: "no device",
        about: "no balloon device at all",
        place: Where::Everywhere,
        run: no_device,
    },
    Case {
        name: "PFN by choice",
        about: "reporting is offered and not used",
        place: Where::OneBoard,
        run: pfn_by_choice,
    },
    Case {
        name: "odd targets",
        about: "targets above memory, zero, one byte",
        place: Where::OneBoard,
        run: odd_targets,
    },
    Case {
        name: "storm",
        about: "a hundred targets a second",
        place: Where::OneBoard,
        run: storm,
    },
    Case {
        name: "change of mind",
        about: "a new target while requests are in flight",
        place: Where::OneBoard,
        run: change_of_mind,
    },
    Case {
        name: "too little",
        about: "more is asked than the guest can give",
        place: Where::OneBoard,
        run: too_little,
    },
    Case {
        name: "statistics",
        about: "the host asks what the guest knows",
        place: Where::OneBoard,
        run: beside_cases::statistics,
    },
    Case {
        name: "reports",
        about: "free memory goes to the host by itself",
        place: Where::OneBoard,
        run: beside_cases::reports,
    },
    Case {
        name: "live migration",
        about: "to another QEMU, with hints, while the balloon inflates",
        place: Where::OneBoard,
        run: migration_cases::live,
    },
    Case {
        name: "save and restore",
        about: "to a file and back with a full balloon",
        place: Where::OneBoard,
        run: migration_cases::saved,
    },
    Case {
        name: "reset",
        about: "the machine is reset with a full balloon",
        place: Where::OneBoard,
        run: migration_cases::reset,
    },
    Case {
        name: "tour",
        about: "the targets that simulated and Xen guests follow, too",
        place: Where::OneBoard,
        run: tour,
    },
];

impl Site<'_> {
    pub(super) fn machine(&self, mem_mib: u64) -> Machine {
        Machine::new(self.board, mem_mib, self.elf)
    }

    /// Boots `machine`, lets `act` use it, and explains what went wrong with the guest's own log.
    pub(super) fn with(
        &self,
        machine: Machine,
        act: impl FnOnce(&mut Vm) -> Result<()>,
    ) -> Result<()> {
        let mut vm = Vm::start(self.qemu, machine, &self.folder)?;
        act(&mut vm).map_err(|error| vm.explain(error))
    }
}

fn bulk_path(site: &Site<'_>) -> Result<()> {
    cycle(site, Path::Reporting)
}

fn pfn_path(site: &Site<'_>) -> Result<()> {
    cycle(site, Path::Pfn)
}

/// What the demo measures, in small.
fn cycle(site: &Site<'_>, path: Path) -> Result<()> {
    let plan = Plan {
        mem_mib: 512,
        target_mib: 128,
        path,
        idle: Duration::from_secs(3),
    };
    site.with(plan.machine(site.board, site.elf), |vm| {
        let cycle = measure(vm, &plan)?;
        ensure!(
            cycle.data_ok,
            "the guest's data was damaged, or was not checked after each step"
        );
        ensure!(
            cycle.idle_wakeups == 0,
            "{} wake-ups by the balloon at rest",
            cycle.idle_wakeups
        );
        let buffers = (plan.mem_mib - plan.target_mib) * MIB / 4096 / 256;
        ensure!(
            cycle.kicks > 0,
            "memory went back without a kick: nothing was counted"
        );
        ensure!(
            cycle.kicks <= buffers / 4,
            "{} kicks for {buffers} buffers of 256 frames",
            cycle.kicks
        );
        // Ballooned memory is not touched again until somebody uses it.
        let fallen = cycle.rss_before - cycle.rss_after;
        ensure!(
            cycle.rss_deflated < cycle.rss_before - fallen / 2,
            "the deflation populated the host's memory"
        );
        Ok(())
    })
}

/// The host must see a panic as a failure, whatever else the run looked like.
fn panic(site: &Site<'_>) -> Result<()> {
    site.with(site.machine(256), |vm| {
        vm.console.wait("ready", BOOT)?;
        vm.console.send("panic")?;
        let Err(error) = vm.console.wait("stats", ANSWER) else {
            bail!("a guest that was to panic answers")
        };
        ensure!(
            error.to_string().contains("panicked"),
            "the panic was not told: {error:#}"
        );
        match vm.judge_exit()? {
            Err(Failure::Exit(Some(35))) => Ok(()),
            Err(other) => bail!("the run is red for another reason: {other}"),
            Ok(()) => bail!("a run in which the guest panicked counts as a success"),
        }
    })
}

fn no_device(site: &Site<'_>) -> Result<()> {
    site.with(
        site.machine(256).without_balloon().append("fill=all"),
        |vm| {
            vm.console.wait("freed", BOOT)?;
            ensure!(
                vm.qmp.query_balloon().is_err(),
                "this machine has a balloon"
            );
            check_whole(vm)?;
            vm.finish()
        },
    )
}

/// The guest obeys its command line: frames go page by page though the device offers reporting.
fn pfn_by_choice(site: &Site<'_>) -> Result<()> {
    let machine = site
        .machine(512)
        .reporting(true)
        .append("path=pfn")
        .append("fill=all");
    site.with(machine, |vm| {
        vm.console.wait("freed", BOOT)?;
        resize(vm, 256 * MIB)?;
        ensure!(
            vm.kicks_of(INFLATE_QUEUE)? > 0,
            "the inflate queue was not used"
        );
        resize(vm, 512 * MIB)?;
        check_whole(vm)?;
        vm.finish()
    })
}

/// The first queue of every balloon device.
const INFLATE_QUEUE: u32 = 0;

/// Nobody can ask for too much: the guest gives what it has, says where it stands, and runs on.
fn odd_targets(site: &Site<'_>) -> Result<()> {
    site.with(site.machine(256).reporting(true).append("fill=all"), |vm| {
        vm.console.wait("freed", BOOT)?;
        ensure!(
            vm.qmp.balloon(0).is_err(),
            "this QEMU accepts a target of zero: test what the guest does"
        );
        resize(vm, 128 * MIB)?;
        // QEMU clamps a target above memory to all of it.
        vm.qmp.balloon(4096 * MIB)?;
        wait_for(vm, 256 * MIB)?;
        vm.console.drain()?;
        vm.qmp.balloon(1)?;
        let left = wait_for_shortage(vm, 256 * MIB)?;
        ensure!(
            left < 128 * MIB,
            "asked for nearly everything, the guest keeps {left} bytes"
        );
        check_whole(vm)?;
        resize(vm, 256 * MIB)?;
        check_whole(vm)?;
        vm.finish()
    })
}

fn storm(site: &Site<'_>) -> Result<()> {
    site.with(
        site.machine(512)
            .reporting(site.board == Board::Pc)
            .append("fill=all"),
        |vm| {
            vm.console.wait("freed", BOOT)?;
            let start = Instant::now();
            for change in 0..300_u64 {
                // Neighbours far apart and of either sign: 37 is prime to 96.
                let step = change * 37 % 96;
                vm.qmp.balloon((128 + step * 4) * MIB)?;
                let due = start + Duration::from_millis(10) * u32::try_from(change)?;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            resize(vm, 200 * MIB)?;
            check_whole(vm)?;
            resize(vm, 512 * MIB)?;
            check_whole(vm)?;
            vm.finish()
        },
    )
}

/// A new target while frames of the old one are on their way: the PFN path is slow enough to be caught.
fn change_of_mind(site: &Site<'_>) -> Result<()> {
    let machine = site.machine(1024).append("path=pfn").append("fill=all");
    site.with(machine, |vm| {
        vm.console.wait("freed", BOOT)?;
        for (first, second) in [(128, 1000), (200, 512)] {
            resize(vm, 1024 * MIB)?;
            vm.console.send("fill")?;
            vm.console.wait("filled", BOOT)?;
            vm.console.send("free")?;
            vm.console.wait("freed", BOOT)?;
            let before = resident(vm.pid())?;
            vm.qmp.balloon(first * MIB)?;
            let asked = (1024 - first) * MIB;
            let fallen = wait_for_fall(vm, before, asked / 20)?;
            vm.qmp.balloon(second * MIB)?;
            ensure!(
                fallen < asked / 10 * 9,
                "nothing was in flight any more: {fallen} of {asked} bytes had been given"
            );
            wait_for(vm, second * MIB)?;
            check_whole(vm)?;
        }
        resize(vm, 1024 * MIB)?;
        check_whole(vm)?;
        vm.finish()
    })
}

/// Waits until host memory has fallen by `bytes`, and returns by how much it has.
pub(super) fn wait_for_fall(vm: &Vm, before: u64, bytes: u64) -> Result<u64> {
    let deadline = Instant::now() + REACH;
    loop {
        let fallen = before.saturating_sub(resident(vm.pid())?);
        if fallen >= bytes {
            return Ok(fallen);
        }
        ensure!(
            Instant::now() < deadline,
            "host memory fell by {fallen} bytes only"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn too_little(site: &Site<'_>) -> Result<()> {
    site.with(
        site.machine(256)
            .reporting(true)
            .append("fill=all")
            .append("keep=80"),
        |vm| {
            vm.console.wait("freed", BOOT)?;
            vm.console.drain()?;
            vm.qmp.balloon(64 * MIB)?;
            let left = wait_for_shortage(vm, 256 * MIB)?;
            ensure!(
                left > 64 * MIB,
                "the guest gave memory that it uses: {left} bytes are left"
            );
            check_whole(vm)?;
            resize(vm, 256 * MIB)?;
            check_whole(vm)?;
            vm.finish()
        },
    )
}

/// Ends in the same sizes as every other guest on the same tour.
fn tour(site: &Site<'_>) -> Result<()> {
    let machine = site.machine(256).reporting(true).append("fill=all");
    site.with(machine, |vm| {
        vm.console.wait("freed", BOOT)?;
        for leg in tour::legs()? {
            vm.qmp.balloon((256 - leg.mib) * MIB)?;
            if leg.stands {
                wait_for(vm, (256 - leg.mib) * MIB)?;
            }
        }
        check_whole(vm)?;
        vm.finish()
    })
}

/// Waits until the guest says that it keeps the rest for itself, and returns what it is left with: its own
/// word and `query-balloon` agree.
fn wait_for_shortage(vm: &mut Vm, memory: u64) -> Result<u64> {
    let status = vm.console.wait("status", ANSWER)?;
    ensure!(
        status
            .text()
            .starts_with("blocked: the kernel keeps the memory that is left;"),
        "the guest stops for another reason: {}",
        status.text()
    );
    let left = memory - status.number("actual")? * 4096;
    wait_for(vm, left)?;
    Ok(left)
}

/// Asks for `bytes` and waits until `query-balloon` shows exactly that.
pub(super) fn resize(vm: &mut Vm, bytes: u64) -> Result<()> {
    vm.qmp.balloon(bytes)?;
    wait_for(vm, bytes)
}

pub(super) fn wait_for(vm: &mut Vm, bytes: u64) -> Result<()> {
    let deadline = Instant::now() + REACH;
    loop {
        let actual = vm.qmp.query_balloon()?;
        if actual == bytes {
            return Ok(());
        }
        vm.console.check_all()?;
        ensure!(
            Instant::now() < deadline,
            "query-balloon stays at {actual}, {bytes} were asked\n{}",
            vm.console.tail()
        );
        std::thread::sleep(Duration::from_millis(4));
    }
}

/// The guest answers, its data is whole, and no frame is lost.
pub(super) fn check_whole(vm: &mut Vm) -> Result<()> {
    vm.console.drain()?;
    vm.console.send("verify")?;
    vm.console.wait("verify", ANSWER)?;
    ensure!(
        vm.console.data_ok(1),
        "the guest's data was damaged\n{}",
        vm.console.tail()
    );
    let answer = stats(vm)?;
    ensure!(
        answer.number("lost")? == 0,
        "frames were lost: {}",
        answer.text()
    );
    Ok(())
}
