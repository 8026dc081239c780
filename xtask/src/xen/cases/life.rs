//! Created, saved, restored, destroyed.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Error, Result, ensure};

use super::{LIMIT, MIB, ask, create, number, quit, reached, scatter, stats};
use crate::xen::guest::SHIPPED_NAME;
use crate::xen::host::Host;

/// A domain in a file, in the first domain's memory.
const FILE: &str = "/tmp/saved";

/// The configuration file that ships with the guest, as its README says: in the
/// kernel's folder, and as a PV domain, too.
pub(super) fn shipped(host: &mut Host) -> Result<()> {
    for kind in ["pvh", "pv"] {
        let create = format!("cd /guests && xl create -q {SHIPPED_NAME}.cfg 'type=\"{kind}\"'");
        host.must(&create, LIMIT)?;
        host.must(&format!("follow {SHIPPED_NAME} &"), LIMIT)?;
        host.event(SHIPPED_NAME, "ready", LIMIT, |_| true)?;
        host.must(&format!("xl mem-set {SHIPPED_NAME} 128m"), LIMIT)?;
        reached(host, SHIPPED_NAME, 128 * MIB)?;
        host.must(&format!("say {SHIPPED_NAME} quit"), LIMIT)?;
        host.event(SHIPPED_NAME, "done", LIMIT, |token| token == "by-hand")?;
        host.must(&format!("forget {SHIPPED_NAME}"), LIMIT)?;
    }
    Ok(())
}

/// Each way into Xen: through its page, as both kinds of guest, and by each
/// vendor's instruction. QEMU's software CPU virtualizes as AMD's do: the other one
/// is an invalid operation. Every other case goes by the instruction that fits.
pub(super) fn gates(host: &mut Host) -> Result<()> {
    for name in ["gates", "pv-page"] {
        create(host, name)?;
        for mib in [48, 64] {
            host.must(&format!("xl mem-set {name} {mib}m"), LIMIT)?;
            reached(host, name, (64 - mib) * MIB)?;
        }
    }
    quit(host, "pv-page")?;
    host.must("say gates vmmcall", LIMIT)?;
    let answered = |text: &str| text.starts_with("xen=");
    host.event("gates", "version", LIMIT, answered)?;
    host.must("say gates vmcall", LIMIT)?;
    let refused = host.event("gates", "version", LIMIT, answered);
    let refused = refused.err().map(|error| format!("{error:#}"));
    ensure!(
        refused.is_some_and(|text| text.contains("exception vector=6")),
        "vmcall is no invalid operation"
    );
    host.must("xl destroy gates", LIMIT)?;
    Ok(())
}

fn save_to_file(host: &mut Host, name: &str, options: &str) -> Result<()> {
    let save = format!("xl save {options} {name} {FILE} > /dev/null 2>&1");
    host.must(&save, LIMIT)?;
    Ok(())
}

/// Restores the saved domain, with another configuration if there is one; what
/// it says when it is back.
fn restore(host: &mut Host, name: &str, config: &str) -> Result<String> {
    host.must(
        &format!("xl restore {config} {FILE} > /dev/null 2>&1 && rm -f {FILE} /run/console-*"),
        LIMIT,
    )?;
    let (_, woken) = host.event(name, "woken", LIMIT, |how| how.starts_with("Restored"))?;
    host.event(name, "verify", LIMIT, |text| text.starts_with("ok"))?;
    Ok(woken)
}

/// Saved in vain, and saved and restored with memory in the balloon, twice; with
/// events by way of the local APIC, before and after. A larger maximum at a restore
/// is nothing that the balloon could give.
pub(super) fn save(host: &mut Host) -> Result<()> {
    let upcall = |line: &str| line.contains("upcall vector");
    host.forget_log();
    // Its first event comes before it knows how to take one.
    host.must("xl create -q -p /guests/save.cfg", LIMIT)?;
    host.must("say save stats; follow save &", LIMIT)?;
    host.must("xl unpause save", LIMIT)?;
    host.event("save", "freed", LIMIT, |_| true)?;
    host.event("save", "stats", LIMIT, |_| true)?;
    host.wait_line(LIMIT, upcall)?;
    host.must("xl mem-set save 32m", LIMIT)?;
    reached(host, "save", 32 * MIB)?;
    save_to_file(host, "save", "-c")?;
    host.event("save", "woken", LIMIT, |how| how.starts_with("Cancelled"))?;
    host.must(&format!("rm {FILE}"), LIMIT)?;
    let wide = "/tmp/wide.cfg";
    let widen = format!("sed s/maxmem=64/maxmem=96/ /guests/save.cfg > {wide}");
    host.must(&widen, LIMIT)?;
    for (mib, config) in [(64, ""), (40, wide)] {
        save_to_file(host, "save", "")?;
        host.forget_log();
        restore(host, "save", config)?;
        let maximum = if config.is_empty() { 64 } else { 96 };
        let read = "xenstore-read /local/domain/$(xl domid save)/memory/static-max";
        let told = host.must(read, LIMIT)?.text();
        ensure!(told.trim() == (maximum * 1024).to_string(), "{told}");
        host.wait_line(LIMIT, upcall)?;
        host.must(&format!("xl mem-set save {mib}m"), LIMIT)?;
        reached(host, "save", (64 - mib) * MIB)?;
    }
    quit(host, "save")
}

/// Two CPUs: the second one alone takes the store's events, also after a restore,
/// and the balloon of the first one works by them.
pub(super) fn vcpus(host: &mut Host) -> Result<()> {
    let name = "vcpus";
    create(host, name)?;
    let mut taken = 0;
    for (mib, saved) in [(32, false), (64, true), (40, false)] {
        let before = taken;
        host.must(&format!("xl mem-set {name} {mib}m"), LIMIT)?;
        reached(host, name, (64 - mib) * MIB)?;
        let stats = stats(host, name)?;
        taken = number(&stats, "store_events_cpu1")?;
        let first = number(&stats, "store_events")?;
        // That the target has changed, and what it is.
        ensure!(
            first == 0 && taken >= before + 2,
            "the first CPU took {first} events, the second {taken} after {before}"
        );
        if saved {
            save_to_file(host, name, "")?;
            restore(host, name, "")?;
        }
    }
    quit(host, name)
}

/// Sets the target of a domain 16 MiB lower, in single frames, and returns while
/// it is on its way there. Each request takes `pace` ms, and there are 16.
fn inflate_slowly(host: &mut Host, name: &str, pace: u32) -> Result<()> {
    scatter(host, name)?;
    ask(host, name, &format!("'pace {pace}'"), "pace")?;
    host.must(&format!("xl mem-set {name} 48m"), LIMIT)?;
    let deadline = Instant::now() + LIMIT;
    let ballooned = loop {
        let ballooned = number(&stats(host, name)?, "ballooned")?;
        if ballooned > 0 {
            break ballooned;
        }
        ensure!(Instant::now() < deadline, "nothing is given");
    };
    ensure!(ballooned < 16 * MIB, "all of it is given");
    Ok(())
}

/// Frames given and wanted when the guest hears of its save, and when it is back.
fn midway(host: &mut Host, pace: u32, config: &str) -> Result<[(u64, u64); 2]> {
    inflate_slowly(host, "midway", pace)?;
    save_to_file(host, "midway", "")?;
    let (_, saving) = host.event("midway", "saving", LIMIT, |_| true)?;
    let woken = restore(host, "midway", config)?;
    let sizes = |text: &str| Ok::<_, Error>((number(text, "actual")?, number(text, "target")?));
    let (saving, woken) = (sizes(&saving)?, sizes(&woken)?);
    ensure!(
        saving.1 == 16 * MIB && 0 < saving.0 && saving.0 < saving.1,
        "not in the middle: {saving:?} frames given and wanted"
    );
    host.must("say midway 'pace 0'; xl mem-set midway 64m", LIMIT)?;
    reached(host, "midway", 0)?;
    ask(host, "midway", "free", "freed")?;
    Ok([saving, woken])
}

/// Saved in the middle of an inflation. The guest reaches its target first, for
/// that is the restored domain's limit; where this takes too long, a limit has
/// to be given.
pub(super) fn save_midway(host: &mut Host) -> Result<()> {
    create(host, "midway")?;
    let [_, woken] = midway(host, 200, "")?;
    ensure!(woken.0 == woken.1, "not at its target: {woken:?}");
    let [saving, woken] = midway(host, 20_000, "/guests/midway.cfg")?;
    ensure!(
        saving.0 <= woken.0 && woken.0 < woken.1,
        "not in the middle: {woken:?} frames given and wanted"
    );
    host.must("xl mem-set midway 32m", LIMIT)?;
    reached(host, "midway", 32 * MIB)?;
    quit(host, "midway")
}

/// A PV guest of ours cannot be saved, and says so in the store.
pub(super) fn save_pv(host: &mut Host) -> Result<()> {
    create(host, "save-pv")?;
    let node = "control/feature-suspend";
    let read = format!("xenstore-read /local/domain/$(xl domid save-pv)/{node}");
    let offered = host.must(&read, LIMIT)?;
    ensure!(offered.text().trim() != "1", "a suspend is offered");
    quit(host, "save-pv")
}

/// The host's free memory in MiB.
pub(super) fn free_memory(host: &mut Host) -> Result<u64> {
    let answer = host.must("xl info free_memory", LIMIT)?;
    let text = answer.text();
    text.trim().parse().with_context(|| format!("`{text}`"))
}

/// Destroyed in the middle of an inflation: the host has all of its memory
/// again, and others go on.
pub(super) fn destroy(host: &mut Host) -> Result<()> {
    create(host, "other")?;
    let free = free_memory(host)?;
    create(host, "doomed")?;
    inflate_slowly(host, "doomed", 500)?;
    host.must("xl destroy doomed", LIMIT)?;
    let deadline = Instant::now() + Duration::from_secs(20);
    while free_memory(host)?.abs_diff(free) > 1 {
        ensure!(Instant::now() < deadline, "memory of a dead domain is lost");
    }
    host.must("xl mem-set other 32m", LIMIT)?;
    reached(host, "other", 32 * MIB)?;
    quit(host, "other")
}
