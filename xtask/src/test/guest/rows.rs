//! Machines that differ in what their device offers: a row names the board, the QEMU, how the device
//! interrupts, and its options. Every row ends in the same questions.

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::Release::{self, New, Old};
use super::beside::{wait_for_reports, wait_for_resident};
use super::case::{BOOT, INFLATE_QUEUE, MIB, Site, check_whole, resize, wait_for};
use crate::demo::ask;
use crate::vm::Board::{self, Microvm, Pc, Q35, VirtMmio, VirtPci};
use crate::vm::{Machine, Vm, resident};

/// A machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) release: Release,
    pub(super) board: Board,
    interrupts: Interrupts,
    options: Options,
}

/// How the device tells the guest that something happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Interrupts {
    /// INTx, or the line of a virtio-mmio device.
    Line,
    /// MSI-X.
    Messages,
    /// The guest looks now and then.
    None,
}
use Interrupts::{Line, Messages, None as Polled};

impl Interrupts {
    /// As on the guest's command line.
    fn name(self) -> &'static str {
        match self {
            Line => "line",
            Messages => "messages",
            Polled => "none",
        }
    }
}

/// What the device offers, and what the guest relies on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Options(u8);

const NOTHING: Options = Options(0);
const HINT: Options = Options(1 << 0);
const REPORTING: Options = Options(1 << 1);
const POISON: Options = Options(1 << 2);
const OOM: Options = Options(1 << 3);
const EVENT_IDX: Options = Options(1 << 4);
const INDIRECT: Options = Options(1 << 5);
/// Not of the device: the guest relies on what free frames hold.
const RELIES: Options = Options(1 << 6);

const NAMES: [(Options, &str); 7] = [
    (HINT, "hint"),
    (REPORTING, "reporting"),
    (POISON, "poison"),
    (OOM, "oom"),
    (EVENT_IDX, "event_idx"),
    (INDIRECT, "indirect"),
    (RELIES, "relies"),
];

impl Options {
    const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (release, board) = (self.release.name(), self.board.name());
        write!(f, "{release} {board} {}", self.interrupts.name())?;
        NAMES
            .into_iter()
            .filter(|(option, _)| self.options.has(*option))
            .try_for_each(|(_, name)| write!(f, " +{name}"))
    }
}

const fn row(release: Release, board: Board, interrupts: Interrupts, options: &[Options]) -> Row {
    let mut all = NOTHING;
    let mut left = options;
    while let [first, rest @ ..] = left {
        all = all.and(*first);
        left = rest;
    }
    Row {
        release,
        board,
        interrupts,
        options: all,
    }
}

/// Those that run each time: any two choices that can meet in a machine meet in one of them.
pub(super) const CHOSEN: &[Row] = &[
    row(New, Pc, Messages, &[HINT, POISON, OOM, EVENT_IDX, INDIRECT]),
    row(Old, Pc, Line, &[HINT, REPORTING, OOM]),
    row(Old, Pc, Polled, &[EVENT_IDX, INDIRECT, RELIES]),
    row(New, Q35, Line, &[HINT, REPORTING, POISON, OOM, EVENT_IDX]),
    row(New, Q35, Messages, &[OOM, INDIRECT]),
    row(Old, Q35, Polled, &[HINT, POISON, RELIES]),
    row(New, Microvm, Polled, &[HINT, EVENT_IDX, RELIES]),
    row(Old, Microvm, Line, &[REPORTING, POISON, EVENT_IDX]),
    row(Old, Microvm, Polled, &[REPORTING, POISON, OOM, INDIRECT]),
    row(New, VirtMmio, Line, &[OOM, RELIES]),
    row(
        New,
        VirtMmio,
        Polled,
        &[HINT, REPORTING, EVENT_IDX, INDIRECT],
    ),
    row(Old, VirtMmio, Line, &[HINT, REPORTING, POISON, RELIES]),
    row(New, VirtPci, Messages, &[HINT, REPORTING, RELIES]),
    row(New, VirtPci, Polled, &[REPORTING, OOM, INDIRECT, RELIES]),
    row(Old, VirtPci, Line, &[HINT, POISON, EVENT_IDX, INDIRECT]),
];

/// Every combination of what a device can offer, on every board and QEMU. The ways to interrupt take turns,
/// and a guest relies on what free frames hold wherever the device can know of it.
pub(super) fn all() -> Vec<Row> {
    let device = RELIES.0;
    let mut rows = CHOSEN.to_vec();
    for release in Release::ALL {
        for board in Board::ALL {
            for bits in 0..device {
                let mut options = Options(bits);
                if options.has(POISON) {
                    options = options.and(RELIES);
                }
                let ways = ways(release, board);
                let turn = usize::from(bits ^ bits >> 3) % ways.len();
                rows.extend(ways.get(turn).map(|interrupts| Row {
                    release,
                    board,
                    interrupts: *interrupts,
                    options,
                }));
            }
        }
    }
    rows
}

/// How a device can interrupt there: the old QEMU's balloon has no MSI-X.
fn ways(release: Release, board: Board) -> &'static [Interrupts] {
    if board.has_pci() && release == New {
        &[Line, Messages, Polled]
    } else {
        &[Line, Polled]
    }
}

const MEMORY_MIB: u64 = 192;
const HALF: u64 = MEMORY_MIB / 2 * MIB;
const PATIENCE: Duration = Duration::from_secs(20);

impl Row {
    /// The feature bits that both sides are to agree on.
    fn features(&self) -> u64 {
        let bit = |number: u32, on: bool| u64::from(on) << number;
        let has = |option| self.options.has(option);
        bit(1, true)
            | bit(2, has(OOM))
            | bit(3, self.takes_hints())
            | bit(4, self.tells_poison())
            | bit(5, self.reports())
            | bit(28, has(INDIRECT))
            | bit(29, has(EVENT_IDX))
            | bit(32, true)
    }

    /// QEMU interrupts for the first thing that happens on a queue with `EVENT_IDX`, for hints from their own
    /// thread, which aborts software emulation: the guest must not set that queue up.
    fn takes_hints(&self) -> bool {
        self.options.has(HINT) && !self.options.has(EVENT_IDX)
    }

    fn tells_poison(&self) -> bool {
        self.options.has(POISON) && self.options.has(RELIES)
    }

    /// Who relies on what free frames hold reports them only to a device that knows.
    fn reports(&self) -> bool {
        self.options.has(REPORTING) && (self.tells_poison() || !self.options.has(RELIES))
    }

    /// The balloon goes by ranges.
    fn bulk(&self) -> bool {
        self.options.has(REPORTING) && !self.options.has(RELIES)
    }

    fn machine(&self, site: &Site<'_>) -> Machine {
        let options = self.options;
        let switch = |on, off, option| if options.has(option) { on } else { off };
        let mut machine = site
            .machine(MEMORY_MIB)
            .balloon_option(switch("page-poison=on", "page-poison=off", POISON))
            .balloon_option(switch("deflate-on-oom=on", "deflate-on-oom=off", OOM))
            .balloon_option(switch("event_idx=on", "event_idx=off", EVENT_IDX))
            .balloon_option(switch("indirect_desc=on", "indirect_desc=off", INDIRECT))
            .reporting(options.has(REPORTING))
            .append("fill=all")
            .append("keep=20")
            .append(if self.takes_hints() {
                "beside=statistics,hints,reports"
            } else {
                "beside=statistics,reports"
            })
            .append(&format!("interrupts={}", self.interrupts.name()));
        if options.has(HINT) {
            machine = machine.hinting();
        }
        if options.has(RELIES) {
            machine = machine.append("poison=5aa555aa");
        }
        machine
    }
}

/// Boots a row's machine and asks its questions.
pub(super) fn run(site: &Site<'_>, row: Row) -> Result<()> {
    site.with(row.machine(site), |vm| {
        let freed = vm.console.wait("freed", BOOT)?.number("frames")? * 4096;
        agreed(vm, row)?;
        reported(vm, row, freed)?;
        // QEMU looks at every queue once when the device starts, and calls that a kick.
        let kicks = vm.kicks_of(INFLATE_QUEUE)?;
        resize(vm, HALF)?;
        let told = vm.kicks_of(INFLATE_QUEUE)? > kicks;
        ensure!(
            told != row.bulk(),
            "frames went through the {} queue",
            if told { "inflate" } else { "reporting" }
        );
        whole(vm, row)?;
        relieved(vm, row)?;
        vm.console.send("free")?;
        vm.console.wait("freed", PATIENCE)?;
        resize(vm, MEMORY_MIB * MIB)?;
        whole(vm, row)?;
        let interrupted = ask(vm, "device")?.number("interrupted")?;
        ensure!(
            (interrupted > 0) == (row.interrupts != Polled),
            "the device interrupted {interrupted} times"
        );
        vm.finish()
    })
}

/// The features, the way of interrupting, and where the queues are: both sides' word.
fn agreed(vm: &mut Vm, row: Row) -> Result<()> {
    let told = ask(vm, "device")?;
    let features = told.number("features")?;
    ensure!(
        features == row.features(),
        "features {features:#x} were agreed on, {:#x} expected",
        row.features()
    );
    let hint = row.options.has(HINT);
    let place = |exists: bool, index: u64| match exists {
        true => index.to_string(),
        false => "none".to_owned(),
    };
    for (key, expected) in [
        (
            "bus",
            (if row.board.has_pci() { "pci" } else { "mmio" }).to_owned(),
        ),
        ("interrupts", row.interrupts.name().to_owned()),
        ("statistics", place(true, 2)),
        ("hint", place(row.takes_hints(), 3)),
        // Each feature that is offered moves the queues behind its own, taken or not.
        ("reporting", place(row.reports(), 3 + u64::from(hint))),
    ] {
        let found = told.word(key)?;
        ensure!(found == expected, "{key} is {found}, {expected} expected");
    }
    let known = device_features(vm)?;
    let missing: Vec<&str> = NAMES_IN_QEMU
        .into_iter()
        .filter(|(bit, name)| (features >> bit & 1 == 1) != known.contains(name))
        .map(|(_, name)| name)
        .collect();
    ensure!(
        missing.is_empty(),
        "QEMU sees {missing:?} otherwise: {known}"
    );
    Ok(())
}

/// Feature bits as QEMU names those that the guest accepted.
const NAMES_IN_QEMU: [(u32, &str); 7] = [
    (1, "VIRTIO_BALLOON_F_STATS_VQ"),
    (2, "VIRTIO_BALLOON_F_DEFLATE_ON_OOM"),
    (3, "VIRTIO_BALLOON_F_FREE_PAGE_HINT"),
    (4, "VIRTIO_BALLOON_F_PAGE_POISON"),
    (5, "VIRTIO_BALLOON_F_REPORTING"),
    (28, "VIRTIO_RING_F_INDIRECT_DESC"),
    (29, "VIRTIO_RING_F_EVENT_IDX"),
];

/// The features the guest accepted, by QEMU's account.
fn device_features(vm: &mut Vm) -> Result<String> {
    let devices = vm.qmp.execute("x-query-virtio", json!({}))?;
    let path = devices.pointer("/0/path").and_then(Value::as_str);
    let path = path.context("QEMU has no virtio device")?;
    let status = vm
        .qmp
        .execute("x-query-virtio-status", json!({ "path": path }))?;
    let features = status.get("guest-features");
    Ok(features.context("no features in its status")?.to_string())
}

/// What is free goes to the host by itself, unless the host must not touch it.
fn reported(vm: &mut Vm, row: Row, freed: u64) -> Result<()> {
    if !row.reports() {
        let reported = ask(vm, "beside")?.number("reported")?;
        ensure!(reported == 0, "{reported} frames were reported to nobody");
        return Ok(());
    }
    // What is left of large blocks at the edges of what is kept stays.
    wait_for_reports(vm, freed / 10 * 9)?;
    if row.tells_poison() {
        let resident = resident(vm.pid())?;
        ensure!(
            resident > freed,
            "the host discarded what it was told to preserve: {resident} bytes are resident"
        );
        whole(vm, row)
    } else {
        wait_for_resident(vm, MEMORY_MIB * MIB - freed / 10 * 9)
    }
}

/// Memory runs out with the balloon full: help comes where it was agreed on, and nowhere else.
fn relieved(vm: &mut Vm, row: Row) -> Result<()> {
    const WANTED: u64 = 512;
    vm.console.drain()?;
    vm.console.send(&format!("need {WANTED}"))?;
    let answer = vm.console.wait("need", PATIENCE)?;
    let usable = answer.number("usable")?;
    let expected = if row.options.has(OOM) { WANTED } else { 0 };
    ensure!(
        usable == expected && answer.number("used")? == usable,
        "out of memory, {expected} frames were to come from the balloon: {}",
        answer.text()
    );
    // The host hears of it, and the frames are the guest's: they hold what was written.
    wait_for(vm, HALF + usable * 4096)?;
    check_whole(vm)
}

/// The guest's data is whole, and free frames hold what they are to hold.
fn whole(vm: &mut Vm, row: Row) -> Result<()> {
    check_whole(vm)?;
    vm.console.send("verify")?;
    let poisoned = vm.console.wait("verify", PATIENCE)?.number("poisoned")?;
    ensure!(
        (poisoned > 0) == row.options.has(RELIES),
        "{poisoned} free frames were looked at"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// A row as a list of choices.
    fn choices(row: &Row) -> Vec<String> {
        let mut choices = vec![
            format!("{:?}", row.release),
            format!("{:?}", row.board),
            format!("{:?}", row.interrupts),
        ];
        choices.extend(
            NAMES
                .into_iter()
                .map(|(option, name)| format!("{name}={}", row.options.has(option))),
        );
        choices
    }

    fn pairs(rows: &[Row]) -> BTreeSet<(String, String)> {
        let pairs = rows.iter().flat_map(|row| {
            let choices = choices(row);
            let behind = |at: usize| choices.clone().into_iter().skip(at + 1);
            let pairs: Vec<_> = choices
                .iter()
                .enumerate()
                .flat_map(|(at, one)| behind(at).map(move |other| (one.clone(), other)))
                .collect();
            pairs
        });
        pairs.collect()
    }

    #[test]
    fn any_two_choices_meet_in_a_row_that_runs_each_time() {
        let mut every = Vec::new();
        for release in Release::ALL {
            for board in Board::ALL {
                for interrupts in ways(release, board) {
                    every.extend((0..=u8::MAX / 2).map(|bits| Row {
                        release,
                        board,
                        interrupts: *interrupts,
                        options: Options(bits),
                    }));
                }
            }
        }
        let (wanted, chosen) = (pairs(&every), pairs(CHOSEN));
        let missing: Vec<_> = wanted.difference(&chosen).collect();
        assert!(missing.is_empty(), "{missing:?}");
        let impossible: Vec<_> = chosen.difference(&wanted).collect();
        assert!(impossible.is_empty(), "{impossible:?}");
    }

    #[test]
    fn all_rows_are_every_combination_of_the_device_and_more() {
        let all = all();
        for release in Release::ALL {
            for board in Board::ALL {
                let device: BTreeSet<u8> = all
                    .iter()
                    .filter(|row| row.release == release && row.board == board)
                    .map(|row| row.options.0 & !RELIES.0)
                    .collect();
                assert_eq!(device.len(), 64);
            }
        }
        let names: BTreeSet<String> = all.iter().map(ToString::to_string).collect();
        assert!(
            names.contains("QEMU 7.2 microvm line +reporting"),
            "{names:?}"
        );
    }

    #[test]
    fn features_follow_from_options() {
        let features = |options: &[Options]| row(New, Pc, Line, options).features();
        assert_eq!(features(&[]), 0x1_0000_0002);
        assert_eq!(features(&[REPORTING, INDIRECT, EVENT_IDX]), 0x1_3000_0022);
        // Nobody who relies on free frames reports them to who does not know.
        assert_eq!(features(&[REPORTING, RELIES]), 0x1_0000_0002);
        assert_eq!(features(&[REPORTING, POISON]), 0x1_0000_0022);
        assert_eq!(features(&[REPORTING, POISON, RELIES]), 0x1_0000_0032);
    }
}
