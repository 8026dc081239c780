//! Cases about the balloon itself.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::case::{
    ANSWER, BOOT, INFLATE_QUEUE, MIB, Site, check_whole, resize, wait_for, wait_for_fall,
};
use crate::demo::{Path, Plan, measure};
use crate::sim::tour as course;
use crate::vm::{Board, Failure, Vm, resident};

pub(super) fn bulk_path(site: &Site<'_>) -> Result<()> {
    cycle(site, Path::Reporting)
}

pub(super) fn pfn_path(site: &Site<'_>) -> Result<()> {
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
pub(super) fn panic(site: &Site<'_>) -> Result<()> {
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

pub(super) fn no_device(site: &Site<'_>) -> Result<()> {
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

/// The board's devices are in its ACPI tables, which this guest does not read, and interrupt through a second I/O
/// APIC, which it does not drive: it does without, unless whoever starts it names the device and lets it poll.
pub(super) fn acpi(site: &Site<'_>) -> Result<()> {
    let machine = site
        .machine(256)
        .board_option("acpi=on")
        .reporting(true)
        .append("fill=all");
    site.with(machine.clone(), |vm| {
        vm.console.wait("freed", BOOT)?;
        let told = vm.console.ask("device")?;
        ensure!(told.text() == "none", "a device was found: {}", told.text());
        check_whole(vm)?;
        vm.finish()
    })?;
    // The last of 24 places.
    let machine = machine
        .append("virtio_mmio.device=512@0xfeb02e00:5")
        .append("interrupts=none");
    site.with(machine, |vm| {
        vm.console.wait("freed", BOOT)?;
        let before = resident(vm.pid())?;
        resize(vm, 128 * MIB)?;
        wait_for_fall(vm, before, 100 * MIB)?;
        resize(vm, 256 * MIB)?;
        check_whole(vm)?;
        vm.finish()
    })
}

/// A GIC of version 3 takes messages through its ITS, which this guest does not drive: a PCI device, which could
/// send some, uses its line.
pub(super) fn gic_3(site: &Site<'_>) -> Result<()> {
    let machine = site
        .machine(256)
        .board_option("gic-version=3")
        .reporting(true)
        .append("fill=all");
    site.with(machine, |vm| {
        vm.console.wait("freed", BOOT)?;
        resize(vm, 128 * MIB)?;
        resize(vm, 256 * MIB)?;
        let told = vm.console.ask("device")?;
        ensure!(
            told.word("interrupts")? == "line" && told.number("interrupted")? > 0,
            "the device does not interrupt by its line: {}",
            told.text()
        );
        check_whole(vm)?;
        vm.finish()
    })
}

/// The guest obeys its command line: frames go page by page though the device offers reporting.
pub(super) fn pfn_by_choice(site: &Site<'_>) -> Result<()> {
    let machine = site
        .machine(512)
        .reporting(true)
        .append("path=pfn")
        .append("fill=all");
    site.with(machine, |vm| {
        vm.console.wait("freed", BOOT)?;
        let kicks = vm.kicks_of(INFLATE_QUEUE)?;
        resize(vm, 256 * MIB)?;
        ensure!(
            vm.kicks_of(INFLATE_QUEUE)? > kicks,
            "the inflate queue was not used"
        );
        resize(vm, 512 * MIB)?;
        check_whole(vm)?;
        vm.finish()
    })
}

/// Nobody can ask for too much: the guest gives what it has, says where it stands, and runs on.
pub(super) fn odd_targets(site: &Site<'_>) -> Result<()> {
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
    })?;
    // By default it is left what it needs.
    let machine = site.machine(128).append("floor=default").append("fill=all");
    site.with(machine, |vm| {
        vm.console.wait("freed", BOOT)?;
        vm.console.drain()?;
        vm.qmp.balloon(MIB)?;
        let status = vm.console.wait("status", ANSWER)?;
        let left = 128 * MIB - status.number("actual")? * 4096;
        ensure!(
            (72 * MIB..73 * MIB).contains(&left),
            "of 128 MiB the guest keeps {left} bytes: {}",
            status.text()
        );
        check_whole(vm)?;
        vm.finish()
    })
}

pub(super) fn storm(site: &Site<'_>) -> Result<()> {
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
pub(super) fn change_of_mind(site: &Site<'_>) -> Result<()> {
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

pub(super) fn too_little(site: &Site<'_>) -> Result<()> {
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

/// Ends in the same sizes as every other guest on the same tour: by what it tells the host, by its own account,
/// and by what the host got.
pub(super) fn tour(site: &Site<'_>) -> Result<()> {
    let machine = site.machine(256).reporting(true).append("fill=all");
    site.with(machine, |vm| {
        vm.console.wait("freed", BOOT)?;
        let before = resident(vm.pid())?;
        for leg in course::legs()? {
            vm.qmp.balloon((256 - leg.mib) * MIB)?;
            if leg.stands {
                wait_for(vm, (256 - leg.mib) * MIB)?;
                let ballooned = vm.console.ask("stats")?.number("ballooned")? * 4096;
                ensure!(
                    ballooned == leg.mib * MIB,
                    "{ballooned} bytes are in the balloon, {} MiB were asked",
                    leg.mib
                );
                // Checks of what came back touch a few frames of it.
                wait_for_fall(vm, before, leg.mib * MIB / 4 * 3)?;
            }
        }
        check_whole(vm)?;
        vm.finish()
    })
}

/// Waits until the guest says that it has nothing left to give, and returns what it is left with: its own
/// word and `query-balloon` agree.
fn wait_for_shortage(vm: &mut Vm, memory: u64) -> Result<u64> {
    let status = vm.console.wait("status", ANSWER)?;
    ensure!(
        status.text().starts_with("blocked: no memory is free;"),
        "the guest stops for another reason: {}",
        status.text()
    );
    let left = memory - status.number("actual")? * 4096;
    wait_for(vm, left)?;
    Ok(left)
}
