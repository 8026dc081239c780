//! Frames migrated for others: one by one, and for superpages' sake.

use std::time::Instant;

use anyhow::{Result, ensure};

use super::{LIMIT, MIB, SUPERPAGES, ask, create, number, quit, reached, scatter, stats};
use crate::xen::host::Host;
use crate::xen::leaves::NestedTables;

/// By move, on a PVH domain: the content comes along.
pub(super) fn moves(host: &mut Host) -> Result<()> {
    migrations(host, "move")
}

/// By exchange, on a PV domain: what comes can be used.
pub(super) fn exchanges(host: &mut Host) -> Result<()> {
    migrations(host, "exchange")
}

/// Without memory for the domain's tables a refused migration takes both frames, and a
/// frame that a growth is charged for is nowhere: all of that is counted. A superpage
/// needs no table and is served. When there are tables the balloon works as before.
pub(super) fn starve(host: &mut Host) -> Result<()> {
    let name = "starve";
    create(host, name)?;
    // Not by `xl`: the limit is to stay.
    let node = format!("/local/domain/$(xl domid {name})/memory/target");
    host.must(&format!("xenstore-write {node} {}", 48 * 1024), LIMIT)?;
    reached(host, name, 16 * MIB)?;
    let starved = ask(host, name, "starve", "starved")?;
    for good in [
        "torn=torn gone=true",
        "first=no-tables second=no-tables third=done",
        "back=true",
    ] {
        ensure!(starved.contains(good), "{good}: @starved {starved}");
    }
    let (lost, charged) = (number(&starved, "lost")?, number(&starved, "charged")?);
    // The torn pair was charged for already. Each single frame wanted then costs one; the
    // superpage needs no table and is served.
    ensure!(
        lost == 3 && charged == 2 + 512,
        "{lost} frames lost, {charged} more charged: {starved}"
    );
    // The domain is charged for what it lost, and for the superpage, until its end.
    host.must(&format!("xl mem-max {name} 72m"), LIMIT)?;
    host.must(&format!("xenstore-write {node} {}", 64 * 1024), LIMIT)?;
    reached(host, name, 0)?;
    quit(host, name)
}

/// Frames are migrated while the domain owns less than it may, all it may, and
/// more than it may.
fn migrations(host: &mut Host, name: &str) -> Result<()> {
    create(host, name)?;
    host.must(&format!("xl mem-set {name} 32m"), LIMIT)?;
    reached(host, name, 32 * MIB)?;
    let migrate = |host: &mut Host| -> Result<(u64, u64)> {
        let moved = ask(host, name, "move", "moved")?;
        ensure!(
            moved.starts_with("frames=512 came=true freed=true"),
            "@moved {moved}"
        );
        Ok((number(&moved, "owned")?, number(&moved, "limit")?))
    };
    let (owned, limit) = migrate(host)?;
    ensure!(owned < limit, "{owned} frames owned, {limit} allowed");
    // `xl` sets the limit so far above the target. The guest takes its time.
    let slack = limit - 32 * MIB;
    ask(host, name, "'pace 600000'", "pace")?;
    for wanted in [owned, owned - 8 * MIB] {
        let kib = (wanted - slack) * 4;
        host.must(&format!("xl mem-set {name} {kib}k"), LIMIT)?;
        let now = migrate(host)?;
        ensure!(
            now == (owned, wanted),
            "{now:?} frames owned and allowed, not {:?}",
            (owned, wanted)
        );
    }
    host.must(
        &format!("say {name} 'pace 0'; xl mem-set {name} 64m"),
        LIMIT,
    )?;
    reached(host, name, 0)?;
    quit(host, name)
}

/// By move.
pub(super) fn compact(host: &mut Host) -> Result<()> {
    create(host, "compact")?;
    let tables = NestedTables::find(host)?;
    gather(host, "compact", Some(&tables))
}

/// By exchange.
pub(super) fn pv_compact(host: &mut Host) -> Result<()> {
    create(host, "pv-compact")?;
    gather(host, "pv-compact", None)
}

/// A balloon of superpages and single frames gives back its superpages first. The
/// rest is gathered: every superpage that can be made of free memory is, and the
/// data in use stays what it was.
fn gather(host: &mut Host, name: &str, tables: Option<&NestedTables>) -> Result<()> {
    let mapped = || tables.map(|tables| tables.count(0, SUPERPAGES)).transpose();
    host.must(&format!("xl mem-set {name} 56m"), LIMIT)?;
    reached(host, name, 8 * MIB)?;
    scatter(host, name)?;
    host.must(&format!("xl mem-set {name} 40m"), LIMIT)?;
    reached(host, name, 24 * MIB)?;
    published(host, name, "4")?;
    let mixed = mapped()?;
    let before = number(&stats(host, name)?, "deflated_2m")?;
    host.must(&format!("xl mem-set {name} 48m"), LIMIT)?;
    reached(host, name, 16 * MIB)?;
    let taken = number(&stats(host, name)?, "deflated_2m")? - before;
    ensure!(taken == 4, "{taken} superpages taken of the 4 given");
    if let (Some(mixed), Some(now)) = (mixed, mapped()?) {
        ensure!(
            now.superpages == mixed.superpages + 4 && now.frames == mixed.frames,
            "{mixed:?} before 4 superpages came, {now:?} after"
        );
    }
    ask(host, name, "free", "freed")?;
    let report = ask(host, name, "compact", "compacted")?;
    host.event(name, "verify", LIMIT, |text| text.starts_with("ok"))?;
    let count = |key| number(&report, key);
    ensure!(count("moves")? > 0, "nothing was moved: {report}");
    ensure!(
        count("blocks_before")? < count("blocks")? && count("blocks")? == count("possible")?,
        "not all superpages that are possible: {report}"
    );
    host.must(&format!("xl mem-set {name} 64m"), LIMIT)?;
    reached(host, name, 0)?;
    published(host, name, "2048")?;
    quit(host, name)
}

/// Waits until the store says in which blocks of KiB the guest gives memory: it
/// tells when it has to break superpages, and when it has none to mend.
fn published(host: &mut Host, name: &str, kib: &str) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    let read = format!("xenstore-read /local/domain/$(xl domid {name})/data/balloon/unit");
    loop {
        let unit = host.must(&read, LIMIT)?.text();
        if unit.trim() == kib {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "the unit is {unit}, not {kib}");
    }
}
