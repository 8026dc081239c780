//! One GiB out and back in: Linux, our guest, and the same hypercalls without any
//! driver, one after the other on one booted machine; each of them clears what it
//! gives, and each once more does not. A figure that misses its bar is an error.

mod bars;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use super::guest::{self, LINUX};
use super::host::{Host, Size, number};
use super::leaves::{Leaves, NestedTables};
use super::{Bench, Domain};
use crate::exec::Runner;
use crate::ui::Table;

const LIMIT: Duration = Duration::from_secs(120);
const MEMORY_MIB: u64 = 1536;
const LOW_MIB: u64 = 512;
/// Half of all memory is the most that single frames without neighbours make.
const SCATTERED_MIB: u64 = 1024;
/// The walk covers 1 GiB from here.
const WALK_FROM: u64 = 0x8000;
const WALK_BLOCKS: u64 = 512;
/// Our guest as a PV domain.
const PV: &str = "ours-pv";
/// Linux and ours that give memory as it is.
const LINUX_UNCLEARED: &str = "linux-uncleared";
const UNCLEARED: &str = "ours-uncleared";
/// The bare hypercalls after the frames were cleared.
const CLEARING: &str = "bare-clearing";
const OPS: [(&str, u64); 2] = [("give", LOW_MIB), ("take", MEMORY_MIB)];

#[derive(Debug, Default, Serialize)]
struct Row {
    guest: &'static str,
    op: &'static str,
    /// From outside, from the moment the target is written.
    wall_s: f64,
    /// By the guest's own clock, from the moment it hears of the target.
    guest_s: Option<f64>,
    /// Nobody counts those of Linux; of a PV guest without those for its page tables.
    hypercalls: Option<u64>,
    extents: Option<u64>,
    leaves_2m: Option<u64>,
}

impl Row {
    fn of_ours(op: &'static str) -> Self {
        Self {
            guest: "ours",
            op,
            ..Self::default()
        }
    }
}

/// A machine whose nested page tables can be read from outside.
pub(super) struct Machine {
    pub(super) host: Host,
    /// Those of the domain, once it is created.
    tables: Option<NestedTables>,
}

impl Machine {
    pub(super) fn boot(bench: &Bench, name: &str, size: Size, domains: &[Domain]) -> Result<Self> {
        Ok(Self {
            host: bench.boot(name, size, domains)?,
            tables: None,
        })
    }

    /// Creates a domain.
    fn start(&mut self, name: &str) -> Result<()> {
        let host = &mut self.host;
        host.must(&format!("xl create -q /guests/{name}.cfg"), LIMIT)?;
        host.must(&format!("follow {name} &"), LIMIT)?;
        host.event(name, "ready", LIMIT, |_| true)?;
        Ok(())
    }

    /// Creates a domain, the only one, and finds its page tables.
    pub(super) fn create(&mut self, name: &str) -> Result<()> {
        self.start(name)?;
        self.tables = Some(NestedTables::find(&mut self.host)?);
        Ok(())
    }

    /// 2 MiB leaves of the stretch that is looked at.
    pub(super) fn superpages(&self) -> Result<u64> {
        Ok(self.leaves(WALK_FROM, WALK_BLOCKS)?.superpages)
    }

    /// What maps so many stretches of 2 MiB from frame `first` on.
    pub(super) fn leaves(&self, first: u64, blocks: u64) -> Result<Leaves> {
        self.tables()?.count(first, blocks)
    }

    /// The page tables of the domain.
    pub(super) fn tables(&self) -> Result<&NestedTables> {
        self.tables.as_ref().context("no domain was created")
    }

    /// Sets a target and waits for a `balloon` event that fits; the seconds it
    /// took, and the event.
    pub(super) fn aim(
        &mut self,
        name: &str,
        mib: u64,
        fits: impl Fn(&str) -> bool,
    ) -> Result<(f64, String)> {
        let begun = self.host.aim(name, mib, LIMIT)?;
        let (at, text) = self.host.event(name, "balloon", LIMIT, fits)?;
        Ok(((at - begun).as_secs_f64(), text))
    }

    /// Hypercalls and extents of our guest so far.
    pub(super) fn stats(&mut self, name: &str) -> Result<(u64, u64)> {
        self.host.must(&format!("say {name} stats"), LIMIT)?;
        let (_, stats) = self.host.event(name, "stats", LIMIT, |_| true)?;
        ensure!(number(&stats, "lost")? == 0, "frames are lost: {stats}");
        let extents = ["inflated", "deflated"].into_iter().flat_map(|way| {
            ["2m", "64k", "4k"].map(|size| number(&stats, &format!("{way}_{size}")))
        });
        let extents: Result<Vec<u64>> = extents.collect();
        Ok((number(&stats, "hypercalls")?, extents?.into_iter().sum()))
    }

    /// Tells our guest something; what it answers.
    pub(super) fn say(&mut self, name: &str, command: &str, event: &str) -> Result<String> {
        self.host.must(&format!("say {name} '{command}'"), LIMIT)?;
        Ok(self.host.event(name, event, LIMIT, |_| true)?.1)
    }
}

/// Runs it `repeat` times and writes `json`.
pub(super) fn run(bench: &Bench, runner: &mut Runner, repeat: u32, json: &Path) -> Result<()> {
    let linux = |name| Domain {
        kernel: LINUX,
        ramdisk: Some(guest::LINUX_INIT),
        arguments: "console=hvc0 quiet".to_owned(),
        ..Domain::pvh(name, MEMORY_MIB)
    };
    let domains = [
        linux("linux"),
        linux(LINUX_UNCLEARED).with(guest::UNCLEARED),
        Domain::pvh("ours", MEMORY_MIB),
        Domain::pvh(UNCLEARED, MEMORY_MIB).with(guest::UNCLEARED),
        Domain::pv(PV, MEMORY_MIB),
        Domain::pvh("bare", MEMORY_MIB),
    ];
    runner.bar().set_message("booting".to_owned());
    let size = Size {
        machine_mib: 3072,
        dom0_mib: 600,
    };
    let mut machine = Machine::boot(bench, "bench", size, &domains)?;
    let mut rows = Vec::new();
    for name in ["linux", LINUX_UNCLEARED] {
        runner.bar().set_message(name);
        measure_linux(&mut machine, name, repeat, &mut rows)?;
    }
    runner.bar().set_message("ours");
    measure_ours(&mut machine, repeat, &mut rows)?;
    for name in [UNCLEARED, PV] {
        runner.bar().set_message(name);
        machine.start(name)?;
        cycles(&mut machine, name, repeat, &mut rows)?;
        machine.say(name, "quit", "done")?;
    }
    runner.bar().set_message("the bare loop".to_owned());
    measure_bare(&mut machine, repeat, &mut rows)?;
    print(&rows);
    std::fs::write(json, serde_json::to_string_pretty(&rows)?)?;
    println!("{}", json.display());
    let verdicts = bars::verdicts(&rows);
    verdicts.iter().for_each(|verdict| println!("{verdict}"));
    let missed: Vec<String> = verdicts
        .iter()
        .filter(|verdict| !verdict.is_met())
        .map(ToString::to_string)
        .collect();
    ensure!(missed.is_empty(), "missed: {}", missed.join("; "));
    Ok(())
}

fn measure_linux(
    machine: &mut Machine,
    guest: &'static str,
    repeat: u32,
    rows: &mut Vec<Row>,
) -> Result<()> {
    machine.create(guest)?;
    machine.host.event(guest, "balloon", LIMIT, |_| true)?;
    for _ in 0..repeat {
        for (op, mib) in OPS {
            let (wall_s, _) = machine.aim(guest, mib, |_| true)?;
            rows.push(Row {
                guest,
                op,
                wall_s,
                leaves_2m: Some(machine.superpages()?),
                ..Row::default()
            });
        }
    }
    machine.host.must(&format!("xl destroy {guest}"), LIMIT)?;
    Ok(())
}

fn measure_ours(machine: &mut Machine, repeat: u32, rows: &mut Vec<Row>) -> Result<()> {
    machine.create("ours")?;
    cycles(machine, "ours", repeat, rows)?;
    machine.aim("ours", LOW_MIB, |_| true)?;
    for _ in 0..repeat {
        for (guest, op, command, event) in [
            ("ours", "move", "move", "moved"),
            ("ours", "move-pairs", "move pairs", "moved"),
            ("copy", "move", "copy", "copied"),
            ("copy", "move-pairs", "copy pairs", "copied"),
        ] {
            let text = machine.say("ours", command, event)?;
            let frames = number(&text, "frames")?;
            ensure!(frames > 0, "@{event} {text}");
            rows.push(Row {
                guest,
                op,
                wall_s: seconds(&text)?,
                guest_s: Some(seconds(&text)?),
                hypercalls: number(&text, "hypercalls").ok(),
                extents: Some(frames),
                leaves_2m: None,
            });
        }
    }
    machine.aim("ours", MEMORY_MIB, |_| true)?;
    compact(machine, rows)?;
    machine.say("ours", "quit", "done")?;
    Ok(())
}

/// Down and up again; `guest` is the domain's name, too. All memory was written to
/// before each time it is given. Only the domain whose page tables are known is
/// looked into.
fn cycles(
    machine: &mut Machine,
    guest: &'static str,
    repeat: u32,
    rows: &mut Vec<Row>,
) -> Result<()> {
    for _ in 0..repeat {
        for (op, mib) in OPS {
            machine.say(guest, "fill", "filled")?;
            machine.say(guest, "free", "freed")?;
            let counted = machine.stats(guest)?;
            let wanted = (MEMORY_MIB - mib) * 256;
            let (wall_s, text) = machine.aim(guest, mib, |text| {
                number(text, "actual").is_ok_and(|actual| actual == wanted)
            })?;
            let now = machine.stats(guest)?;
            rows.push(Row {
                guest,
                op,
                wall_s,
                guest_s: Some(seconds(&text)?),
                hypercalls: Some(now.0 - counted.0),
                extents: Some(now.1 - counted.1),
                leaves_2m: match guest {
                    "ours" => Some(machine.superpages()?),
                    _ => None,
                },
            });
        }
    }
    Ok(())
}

/// Superpages of a balloon of single frames, before and after compaction, and
/// when the balloon is empty again. Compaction moves frames in pairs that are no
/// neighbours.
fn compact(machine: &mut Machine, rows: &mut Vec<Row>) -> Result<()> {
    machine.say("ours", "fill", "filled")?;
    machine.say("ours", "scatter", "scattered")?;
    let mut row = Row::of_ours("scatter");
    (row.wall_s, _) = machine.aim("ours", SCATTERED_MIB, |_| true)?;
    machine.say("ours", "free", "freed")?;
    row.leaves_2m = Some(machine.superpages()?);
    rows.push(row);

    let mut row = Row::of_ours("compact");
    let (before, _) = machine.stats("ours")?;
    let begun = Instant::now();
    let text = machine.say("ours", "compact", "compacted")?;
    row.wall_s = begun.elapsed().as_secs_f64();
    verified(machine)?;
    row.guest_s = Some(seconds(&text)?);
    row.hypercalls = Some(machine.stats("ours")?.0 - before);
    row.extents = Some(number(&text, "moves")?);
    row.leaves_2m = Some(machine.superpages()?);
    rows.push(row);

    let mut row = Row::of_ours("refill");
    (row.wall_s, _) = machine.aim("ours", MEMORY_MIB, |_| true)?;
    verified(machine)?;
    row.leaves_2m = Some(machine.superpages()?);
    rows.push(row);
    Ok(())
}

fn verified(machine: &mut Machine) -> Result<()> {
    let host = &mut machine.host;
    host.event("ours", "verify", LIMIT, |text| text.starts_with("ok"))?;
    Ok(())
}

fn measure_bare(machine: &mut Machine, repeat: u32, rows: &mut Vec<Row>) -> Result<()> {
    machine.create("bare")?;
    let loops = [("bare-order9", "bare decrease"), (CLEARING, "bare scrub")];
    for (guest, give) in (0..repeat).flat_map(|_| loops) {
        for (op, command) in [("give", give), ("take", "bare populate")] {
            let text = machine.say("bare", command, "bare")?;
            rows.push(Row {
                guest,
                op,
                wall_s: seconds(&text)?,
                guest_s: Some(seconds(&text)?),
                hypercalls: Some(1),
                extents: Some(number(&text, "extents")?),
                leaves_2m: Some(machine.superpages()?),
            });
        }
    }
    machine.say("bare", "quit", "done")?;
    Ok(())
}

fn seconds(text: &str) -> Result<f64> {
    Ok(Duration::from_nanos(number(text, "nanos")?).as_secs_f64())
}

fn print(rows: &[Row]) {
    let mut table = Table::new([
        "guest",
        "op",
        "wall s",
        "guest s",
        "hypercalls",
        "extents",
        "2 MiB leaves",
    ]);
    let shown = |number: Option<u64>| number.map_or("-".to_owned(), |number| number.to_string());
    for row in rows {
        table.row(vec![
            row.guest.to_owned(),
            row.op.to_owned(),
            format!("{:.4}", row.wall_s),
            row.guest_s.map_or("-".to_owned(), |s| format!("{s:.4}")),
            shown(row.hypercalls),
            shown(row.extents),
            shown(row.leaves_2m),
        ]);
    }
    println!("{}", table.render());
}
