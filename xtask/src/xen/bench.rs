//! One GiB out and back in, timed from outside, with what it cost and left.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::cases::number;
use super::host::{Host, Size};
use super::{Bench, Domain, leaves};
use crate::ui::Table;

const LIMIT: Duration = Duration::from_secs(120);
const MEMORY_MIB: u64 = 1536;
const LOW_MIB: u64 = 512;
/// The walk covers 1 GiB from here.
const WALK_FROM: u64 = 0x8000;
const WALK_BLOCKS: u64 = 512;

#[derive(Debug, Serialize)]
struct Row {
    guest: &'static str,
    op: &'static str,
    wall_s: f64,
    hypercalls: u64,
    extents: u64,
    leaves_2m: u64,
}

/// Runs it `repeat` times and writes `json`.
pub(super) fn run(bench: &Bench, repeat: u32, json: &Path) -> Result<()> {
    let domain = Domain::pvh("bench", MEMORY_MIB);
    let size = Size {
        machine_mib: 3072,
        dom0_mib: 600,
    };
    let memory = bench.folder.join("ram");
    let mut host = bench.boot_observed("bench", size, &[domain], Some(&memory))?;
    host.must("xl create -q /guests/bench.cfg", LIMIT)?;
    host.must("follow bench &", LIMIT)?;
    host.event("bench", "ready", LIMIT, |_| true)?;
    host.forget_log();
    host.must("xl debug-keys v; sleep 1", LIMIT)?;
    let root = root(&host).context("`xl debug-keys v` shows no nested page table")?;
    let walk = || leaves::count(&memory, root, WALK_FROM, WALK_BLOCKS);
    let before = walk()?;
    let mut rows = Vec::new();
    let mut counted = stats(&mut host)?;
    for _ in 0..repeat {
        for (op, mib) in [("give", LOW_MIB), ("take", MEMORY_MIB)] {
            let node = "memory/target";
            let path = format!("/local/domain/$(xl domid bench)/{node}");
            let wanted = (MEMORY_MIB - mib) * 256;
            let begun = Instant::now();
            host.must(&format!("xenstore-write {path} {}", mib * 1024), LIMIT)?;
            let (reached, _) = host.event("bench", "balloon", LIMIT, |text| {
                number(text, "actual").is_ok_and(|actual| actual == wanted)
            })?;
            let now = stats(&mut host)?;
            rows.push(Row {
                guest: "ours",
                op,
                wall_s: (reached - begun).as_secs_f64(),
                hypercalls: now.0 - counted.0,
                extents: now.1 - counted.1,
                leaves_2m: walk()?.superpages,
            });
            counted = now;
        }
    }
    let mut table = Table::new(["op", "wall s", "hypercalls", "extents", "2 MiB leaves"]);
    for row in &rows {
        table.row(vec![
            row.op.to_owned(),
            format!("{:.2}", row.wall_s),
            row.hypercalls.to_string(),
            row.extents.to_string(),
            format!("{} of {}", row.leaves_2m, before.superpages),
        ]);
    }
    println!("{}", table.render());
    std::fs::write(json, serde_json::to_string_pretty(&rows)?)?;
    println!("{}", json.display());
    Ok(())
}

/// Hypercalls and extents so far.
fn stats(host: &mut Host) -> Result<(u64, u64)> {
    host.must("say bench stats", LIMIT)?;
    let (_, stats) = host.event("bench", "stats", LIMIT, |_| true)?;
    let extents = [
        "given_2m",
        "given_64k",
        "given_4k",
        "taken_2m",
        "taken_64k",
        "taken_4k",
    ];
    let counts: Result<Vec<u64>> = extents.iter().map(|key| number(&stats, key)).collect();
    Ok((number(&stats, "hypercalls")?, counts?.into_iter().sum()))
}

/// Where Xen says the domain's nested page table begins.
fn root(host: &Host) -> Option<u64> {
    let mut roots = host.log.iter().filter_map(|line| {
        let (_, rest) = line.split_once("H_CR3 = 0x")?;
        let digits = rest.split_whitespace().next()?;
        u64::from_str_radix(digits, 16)
            .ok()
            .filter(|&root| root != 0)
    });
    roots.next_back()
}
