//! Machines that differ in what their device offers: a row names the board, the QEMU, how the device
//! interrupts, and its options. Every row is asked the same [`questions`].

mod questions;

use std::fmt;

use super::Release::{self, New, Old};
use super::case::Site;
use crate::vm::Board::{self, Microvm, Pc, Q35, VirtMmio, VirtPci};
use crate::vm::Machine;

pub(super) use questions::run;

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
/// The guest declines it: its queues are split.
const PACKED: Options = Options(1 << 6);
/// Not of the device: the guest relies on what free frames hold.
const RELIES: Options = Options(1 << 7);

const NAMES: [(Options, &str); 8] = [
    (HINT, "hint"),
    (REPORTING, "reporting"),
    (POISON, "poison"),
    (OOM, "oom"),
    (EVENT_IDX, "event_idx"),
    (INDIRECT, "indirect"),
    (PACKED, "packed"),
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
#[rustfmt::skip] // A row a line.
pub(super) const CHOSEN: &[Row] = &[
    row(New, Pc, Messages, &[POISON, OOM, EVENT_IDX, INDIRECT, PACKED]),
    row(New, Pc, Polled, &[HINT, REPORTING, POISON, PACKED, RELIES]),
    row(Old, Pc, Line, &[HINT, REPORTING, EVENT_IDX]),
    row(New, Q35, Line, &[HINT, POISON, OOM]),
    row(New, Q35, Messages, &[REPORTING, INDIRECT, RELIES]),
    row(Old, Q35, Polled, &[EVENT_IDX, PACKED]),
    row(New, Microvm, Line, &[HINT, REPORTING, POISON, EVENT_IDX, PACKED, RELIES]),
    row(Old, Microvm, Polled, &[OOM, INDIRECT]),
    row(New, VirtMmio, Polled, &[HINT, OOM, INDIRECT, RELIES]),
    row(Old, VirtMmio, Line, &[POISON, EVENT_IDX, INDIRECT, PACKED, RELIES]),
    row(Old, VirtMmio, Line, &[HINT, REPORTING, OOM, PACKED]),
    row(New, VirtPci, Messages, &[HINT, REPORTING, OOM, EVENT_IDX]),
    row(Old, VirtPci, Line, &[HINT, POISON, OOM, INDIRECT, PACKED, RELIES]),
    row(Old, VirtPci, Polled, &[POISON, EVENT_IDX, INDIRECT, RELIES]),
];

/// Every combination of what a device can offer and a guest accept, on every board and QEMU. The ways to
/// interrupt and packed queues take turns, and a guest relies on what free frames hold wherever the device
/// can know of it.
pub(super) fn all() -> Vec<Row> {
    let device = PACKED.0;
    let mut rows = CHOSEN.to_vec();
    for release in Release::ALL {
        for board in Board::ALL {
            for bits in 0..device {
                let mut options = Options(bits);
                if options.has(POISON) {
                    options = options.and(RELIES);
                }
                if bits.count_ones() % 2 == 1 {
                    options = options.and(PACKED);
                }
                let ways = ways(release, board);
                let turn = usize::from(bits ^ bits >> 3) % ways.len();
                let row = ways.get(turn).map(|interrupts| Row {
                    release,
                    board,
                    interrupts: *interrupts,
                    options,
                });
                rows.extend(row.filter(|row| !CHOSEN.contains(row)));
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

/// An interrupt for an answer, as QEMU traces it: device and queue.
const INTERRUPT: &str = "virtio_notify";

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

    /// A PCI device that does not know the interface of before virtio 1.0, and has another number for that;
    /// on the oldest board it is transitional, which is QEMU's choice everywhere.
    fn is_modern(&self) -> bool {
        matches!(self.board, Q35 | VirtPci)
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

    /// Where ranges go: each feature that is offered moves the queues behind its own, taken or not.
    fn reporting_queue(&self) -> u32 {
        3 + u32::from(self.options.has(HINT))
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
            .trace(INTERRUPT)
            .balloon_option(switch("page-poison=on", "page-poison=off", POISON))
            .balloon_option(switch("deflate-on-oom=on", "deflate-on-oom=off", OOM))
            .balloon_option(switch("event_idx=on", "event_idx=off", EVENT_IDX))
            .balloon_option(switch("packed=on", "packed=off", PACKED))
            .balloon_option(switch("indirect_desc=on", "indirect_desc=off", INDIRECT))
            .reporting(options.has(REPORTING))
            .append("fill=all")
            .append("keep=20")
            .append(if self.takes_hints() {
                "services=statistics,hints,reports"
            } else {
                "services=statistics,reports"
            })
            .append(&format!("interrupts={}", self.interrupts.name()));
        if self.is_modern() {
            machine = machine.balloon_option("disable-legacy=on");
        }
        if options.has(HINT) {
            machine = machine.hinting();
        }
        if options.has(RELIES) {
            machine = machine.append("poison=5aa555aa");
        }
        machine
    }
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
                    every.extend((0..=u8::MAX).map(|bits| Row {
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
                    .map(|row| row.options.0 % PACKED.0)
                    .collect();
                assert_eq!(device.len(), 64);
            }
        }
        let names: BTreeSet<String> = all.iter().map(ToString::to_string).collect();
        assert!(
            names.contains("QEMU 7.2 microvm line +reporting +packed"),
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
