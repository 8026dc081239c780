//! Targets, sensible and not, and the store that says them.

use anyhow::{Result, ensure};

use super::{LIMIT, MIB, SPECIAL, SUPERPAGES, charged, create, number, quit, reached, stats};
use crate::sim::tour;
use crate::xen::host::Host;
use crate::xen::leaves::{self, NestedTables};

pub(super) fn write_target(host: &mut Host, name: &str, value: &str) -> Result<()> {
    let command =
        format!("xenstore-write /local/domain/$(xl domid {name})/memory/target \"{value}\"");
    host.must(&command, LIMIT)?;
    Ok(())
}

/// Halts of a guest that nobody wants anything of, in a second.
fn rests(host: &mut Host, name: &str) -> Result<()> {
    let before = number(&stats(host, name)?, "wakeups")?;
    host.must("sleep 1", LIMIT)?;
    let woken = number(&stats(host, name)?, "wakeups")? - before;
    // Each line of the console wakes it, in as many pieces as it comes.
    ensure!(woken <= 8, "{woken} wake-ups in a second at rest");
    Ok(())
}

/// Down and up by `xl mem-set`, seen by Xen too, and asleep in the end. Each size
/// in MiB is also shown to `look`.
fn round(host: &mut Host, name: &str, look: impl Fn(u64) -> Result<()>) -> Result<String> {
    for mib in [40, 24, 64, 32, 64] {
        host.must(&format!("xl mem-set {name} {mib}m"), LIMIT)?;
        reached(host, name, (64 - mib) * MIB)?;
        let charged = charged(host, name)?;
        ensure!(
            charged.abs_diff(mib * MIB) <= SPECIAL + MIB,
            "{mib} MiB wanted, {charged} frames charged"
        );
        look(mib)?;
    }
    rests(host, name)?;
    stats(host, name)
}

/// A PVH domain gives and takes whole superpages only: so says the guest, and so
/// say its nested page tables.
pub(super) fn cycle(host: &mut Host) -> Result<()> {
    create(host, "cycle")?;
    let tables = NestedTables::find(host)?;
    let full = tables.count(0, SUPERPAGES)?;
    let stats = round(host, "cycle", |mib| {
        let now = tables.count(0, SUPERPAGES)?;
        ensure!(
            now.mib().abs_diff(mib) <= 1,
            "{mib} MiB wanted, {now:?} mapped"
        );
        let kept = full.superpages.saturating_sub((64 - mib) / 2);
        leaves::ensure_kept(kept, now.superpages)
    })?;
    for key in ["inflated_4k", "deflated_4k", "downgrades", "short"] {
        ensure!(number(&stats, key)? == 0, "{stats}");
    }
    quit(host, "cycle")
}

/// A PV domain gives machine frames and takes superpages.
pub(super) fn pv_cycle(host: &mut Host) -> Result<()> {
    create(host, "pv-cycle")?;
    let stats = round(host, "pv-cycle", |_| Ok(()))?;
    for key in ["inflated_2m", "deflated_4k", "short"] {
        ensure!(number(&stats, key)? == 0, "{stats}");
    }
    quit(host, "pv-cycle")
}

/// Ends in the same sizes as every other guest on the same tour.
pub(super) fn tour(host: &mut Host) -> Result<()> {
    travel(host, "tour")
}

/// So does a PV guest.
pub(super) fn pv_tour(host: &mut Host) -> Result<()> {
    travel(host, "pv-tour")
}

fn travel(host: &mut Host, name: &str) -> Result<()> {
    create(host, name)?;
    for leg in tour::legs()? {
        host.must(&format!("xl mem-set {name} {}m", 64 - leg.mib), LIMIT)?;
        if leg.stands {
            reached(host, name, leg.mib * MIB)?;
        }
    }
    quit(host, name)
}

/// Targets that change faster than they can be followed end at the last one.
pub(super) fn storm(host: &mut Host) -> Result<()> {
    weather(host, "storm")
}

/// Also for a PV guest.
pub(super) fn pv_storm(host: &mut Host) -> Result<()> {
    weather(host, "pv-storm")
}

fn weather(host: &mut Host, name: &str) -> Result<()> {
    create(host, name)?;
    let before = number(&stats(host, name)?, "store_events")?;
    host.must(&format!("storm {name} 34816"), LIMIT)?;
    reached(host, name, 30 * MIB)?;
    let heard = number(&stats(host, name)?, "store_events")? - before;
    // One target makes about six, and what comes at once is one event.
    ensure!(heard >= 20, "{heard} events for 61 targets: no storm");
    for mib in [30, 64, 26, 60, 28, 64] {
        host.must(&format!("xl mem-set {name} {mib}m"), LIMIT)?;
    }
    reached(host, name, 0)?;
    quit(host, name)
}

/// A target above the domain's limit is told and not insisted on; below what
/// the guest can do without it says what it could, and comes back.
pub(super) fn extremes(host: &mut Host) -> Result<()> {
    create(host, "extremes")?;
    host.must("xl mem-set extremes 48m", LIMIT)?;
    reached(host, "extremes", 16 * MIB)?;
    write_target(host, "extremes", "104857600")?;
    let (_, beyond) = host.event("extremes", "status", LIMIT, |text| {
        text.contains("beyond memory")
    })?;
    ensure!(
        number(&beyond, "frames")? == 104_857_600 / 4 - 64 * MIB,
        "{beyond}"
    );
    let refused = |text: &str| text.starts_with("blocked: the host refuses");
    host.event("extremes", "status", LIMIT, refused)?;
    host.must("xl mem-set extremes 64m", LIMIT)?;
    reached(host, "extremes", 0)?;
    write_target(host, "extremes", "0")?;
    let (_, status) = host.event("extremes", "status", LIMIT, |text| {
        text.starts_with("blocked")
    })?;
    ensure!(number(&status, "actual")? > 30 * MIB, "{status}");
    host.event("extremes", "verify", LIMIT, |text| text.starts_with("ok"))?;
    write_target(host, "extremes", "65536")?;
    reached(host, "extremes", 0)?;
    quit(host, "extremes")
}

/// A target that is no number changes nothing, and the next one counts.
pub(super) fn garbage(host: &mut Host) -> Result<()> {
    create(host, "garbage")?;
    host.must("xl mem-set garbage 48m", LIMIT)?;
    reached(host, "garbage", 16 * MIB)?;
    for bad in ["many", " -5", "", "99999999999999999999"] {
        write_target(host, "garbage", bad)?;
        host.event("garbage", "status", LIMIT, |text| {
            text.contains("no number")
        })?;
    }
    host.must("say garbage stats", LIMIT)?;
    let (_, stats) = host.event("garbage", "stats", LIMIT, |_| true)?;
    ensure!(number(&stats, "ballooned")? == 16 * MIB, "{stats}");
    host.must("xl mem-set garbage 64m", LIMIT)?;
    reached(host, "garbage", 0)?;
    quit(host, "garbage")
}

/// A store that stops answering is asked again, ever more seldom; its late
/// answers do no harm.
pub(super) fn late(host: &mut Host) -> Result<()> {
    create(host, "late")?;
    host.must("xl mem-set late 48m", LIMIT)?;
    reached(host, "late", 16 * MIB)?;
    let before = stats(host, "late")?;
    ensure!(number(&before, "unanswered")? == 0, "{before}");
    host.must("late late 5", LIMIT)?;
    let after = stats(host, "late")?;
    // Two nodes are asked for, again after 2 s, and perhaps after 6 s.
    ensure!((2..=4).contains(&number(&after, "unanswered")?), "{after}");
    let woken = number(&after, "wakeups")? - number(&before, "wakeups")?;
    ensure!(woken <= 24, "{woken} wake-ups while the store was silent");
    host.must("xl mem-set late 64m", LIMIT)?;
    reached(host, "late", 0)?;
    quit(host, "late")
}

/// Two domains at once, one PVH and one PV, in opposite directions.
pub(super) fn pair(host: &mut Host) -> Result<()> {
    create(host, "left")?;
    create(host, "right")?;
    for (left, right) in [(32, 64), (64, 32), (40, 40), (64, 64)] {
        host.must(
            &format!("xl mem-set left {left}m; xl mem-set right {right}m"),
            LIMIT,
        )?;
        if left != 64 || right != 64 {
            // A target that is the size already makes no news.
            if left != 64 {
                reached(host, "left", (64 - left) * MIB)?;
            }
            if right != 64 {
                reached(host, "right", (64 - right) * MIB)?;
            }
        } else {
            reached(host, "left", 0)?;
            reached(host, "right", 0)?;
        }
    }
    quit(host, "left")?;
    quit(host, "right")
}
