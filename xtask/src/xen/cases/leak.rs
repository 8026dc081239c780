//! Memory given to Xen is the next domain's, as it is.

use anyhow::{Result, ensure};

use super::life::free_memory;
use super::{Domain, LIMIT, MIB, ask, create, full, number, pv, quit, reached};
use crate::xen::guest::UNCLEARED;
use crate::xen::host::Host;

/// What of the free memory the searching domain leaves, for its page tables and what
/// Xen keeps of it.
const LEFT_MIB: u64 = 32;
/// What a domain gives away.
const GIVEN_MIB: u64 = 40;

/// Domains that clear what they give, and such that do not; see [`leak`].
const TIGHT: [&str; 2] = ["tight", "pv-tight"];
const LEAKY: [&str; 2] = ["leaky", "pv-leaky"];
const STRANGER: &str = "stranger";

/// PVH and PV domains that clear and that do not, and one that searches.
pub(super) fn domains() -> Vec<Domain> {
    let [tight, pv_tight] = TIGHT;
    let [leaky, pv_leaky] = LEAKY;
    vec![
        full(tight),
        pv(pv_tight),
        full(leaky).with(UNCLEARED),
        pv(pv_leaky).with(UNCLEARED),
        Domain::pvh(STRANGER, 64).with("search=first"),
    ]
}

/// A domain that is created next, from all free memory, finds nothing of what the
/// clearing ones gave and migrated, and most of what the others did: so it would find
/// what there is. What it does not get of that stays in Xen's hands, with the
/// pattern: those come last.
pub(super) fn leak(host: &mut Host) -> Result<()> {
    for name in TIGHT {
        let found = given(host, name)?;
        ensure!(found == 0, "{found} frames of `{name}` can be read");
    }
    for name in LEAKY {
        let found = given(host, name)?;
        let most = GIVEN_MIB * MIB * 3 / 4;
        ensure!(found >= most, "the search finds {found} frames alone");
    }
    Ok(())
}

/// Frames that can be read of what a domain gives, whose free memory is full of the
/// pattern.
fn given(host: &mut Host, name: &str) -> Result<u64> {
    create(host, name)?;
    host.must(&format!("xl mem-set {name} {}m", 64 - GIVEN_MIB), LIMIT)?;
    reached(host, name, GIVEN_MIB * MIB)?;
    let moved = ask(host, name, "move", "moved")?;
    ensure!(moved.contains("came=true freed=true"), "@moved {moved}");
    let found = stranger(host)?;
    quit(host, name)?;
    host.must(&format!("forget {name}"), LIMIT)?;
    Ok(found)
}

/// Frames with the pattern in nearly all free memory.
fn stranger(host: &mut Host) -> Result<u64> {
    let mib = free_memory(host)?.saturating_sub(LEFT_MIB);
    let create = format!("xl create -q /guests/{STRANGER}.cfg memory={mib} maxmem={mib}");
    host.must(&create, LIMIT)?;
    host.must(&format!("follow {STRANGER} &"), LIMIT)?;
    let (_, searched) = host.event(STRANGER, "searched", LIMIT, |_| true)?;
    let frames = number(&searched, "frames")?;
    ensure!(frames > (mib - LEFT_MIB) * MIB, "@searched {searched}");
    host.event(STRANGER, "ready", LIMIT, |_| true)?;
    host.must(&format!("say {STRANGER} quit"), LIMIT)?;
    host.event(STRANGER, "done", LIMIT, |_| true)?;
    host.must(&format!("forget {STRANGER}"), LIMIT)?;
    number(&searched, "found")
}
