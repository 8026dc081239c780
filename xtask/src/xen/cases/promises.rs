//! Domains that see more memory than Xen has ready for them.

use anyhow::{Result, bail, ensure};

use super::{Domain, LIMIT, MIB, SPECIAL, number, quit, reached};
use crate::xen::host::Host;

/// A domain that starts with a third of its maximum.
pub(super) fn domain(name: &str) -> Domain {
    let mut domain = Domain::pvh(name, 96).with("fill=all").with("keep=100");
    domain.memory_mib = 32;
    domain
}

/// Entries without memory behind them, and the cache that covers them.
fn promises(host: &mut Host, name: &str) -> Result<(u64, u64)> {
    let domid = host.must(&format!("xl domid {name}"), LIMIT)?.text();
    let domid = domid.trim();
    host.must("xl dmesg -c > /dev/null; xl debug-keys q", LIMIT)?;
    let dump = host.must("xl dmesg | sed 's/^(XEN)//'", LIMIT)?;
    let mut ours = false;
    for line in &dump.lines {
        if line.contains("General information for domain") {
            ours = line.contains(&format!("domain {domid}:"));
        }
        if ours && line.contains("PoD entries=") {
            let line = line.replace("PoD entries", "entries");
            return Ok((number(&line, "entries")?, number(&line, "cachesize")?));
        }
    }
    bail!(
        "`xl debug-keys q` tells nothing of domain {domid}\n{}",
        dump.text()
    )
}

/// Started with less than its maximum: gives the difference before it touches
/// anything, then uses all the rest.
pub(super) fn kept(host: &mut Host) -> Result<()> {
    host.must("xl create -q -p /guests/pod.cfg", LIMIT)?;
    let (entries, cache) = promises(host, "pod")?;
    let short = entries.saturating_sub(cache);
    ensure!(
        short.abs_diff(64 * MIB) <= SPECIAL + MIB,
        "{entries} promises, {cache} frames: not what this case is about"
    );
    host.must("follow pod &", LIMIT)?;
    host.must("xl unpause pod", LIMIT)?;
    let (_, owed) = host.event("pod", "owed", LIMIT, |_| true)?;
    let owed = number(&owed, "frames")?;
    ensure!(
        owed.abs_diff(64 * MIB) <= SPECIAL + MIB,
        "{owed} frames owed"
    );
    host.event("pod", "ready", LIMIT, |_| true)?;
    let (entries, cache) = promises(host, "pod")?;
    ensure!(
        entries <= cache,
        "{entries} promises, {cache} frames to cover them"
    );
    host.event("pod", "freed", LIMIT, |_| true)?;
    host.must("say pod verify", LIMIT)?;
    host.event("pod", "verify", LIMIT, |text| text.starts_with("ok"))?;
    host.must("say pod free", LIMIT)?;
    host.must("xl mem-set pod 96m", LIMIT)?;
    reached(host, "pod", 0)?;
    quit(host, "pod")
}

/// The same guest told to touch first: Xen kills it, and that is the proof that
/// the case before proves something.
pub(super) fn broken(host: &mut Host) -> Result<()> {
    host.forget_log();
    host.must("xl create -q /guests/touch.cfg", LIMIT)?;
    host.wait_line(LIMIT, |line| line.contains("out of PoD memory"))?;
    host.must("xl destroy touch", LIMIT)?;
    Ok(())
}
