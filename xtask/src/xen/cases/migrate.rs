//! A live migration to the same host, with the balloon at work all the while.

use std::time::Instant;

use anyhow::{Result, ensure};

use super::sizes::write_target;
use super::{LIMIT, MIB, ask, create, quit, reached, scatter};
use crate::xen::host::Host;

const NAME: &str = "migrate";
/// What the tools call a domain that is not all there.
const COMING: &str = "migrate--incoming";
/// Where the tools' end is written, and what they said.
const ENDED: &str = "/tmp/migrated";
const SAID: &str = "/tmp/migration";

const TRIES: u32 = 8;

/// Nobody tells a guest that it is migrated: it gives, takes, and migrates as ever, in
/// single frames and superpages. Wherever it comes to, all of its memory is memory,
/// and what it held it holds.
pub(super) fn live(host: &mut Host) -> Result<()> {
    create(host, NAME)?;
    scatter(host, NAME)?;
    host.must(&format!("xl mem-set {NAME} 40m"), LIMIT)?;
    reached(host, NAME, 24 * MIB)?;
    host.must(&format!("follow {NAME} {COMING} &"), LIMIT)?;
    // The tools give up when a frame is given while they are about to map it.
    let mut tries = 1;
    while let Err(error) = migrate(host) {
        let raced = error.to_string().contains("Mapping of pfn");
        ensure!(raced && tries < TRIES, "try {tries}: {error}");
        tries += 1;
    }
    let forget = "rm -f /run/console-* /var/log/xen/console/guest-";
    host.must(&format!("{forget}{NAME}.log"), LIMIT)?;
    host.event(NAME, "woken", LIMIT, |how| how.starts_with("Restored"))?;
    // What was given while the tools copied it they have populated over there, and the domain
    // is charged for it: its limit is raised beyond its memory, and `xl mem-set` would lower it.
    host.must(&format!("xl mem-max {NAME} 96m"), LIMIT)?;
    write_target(host, NAME, "64512")?;
    reached(host, NAME, MIB)?;
    // Each frame that came is written to, and read again.
    ask(host, NAME, "fill", "filled")?;
    ask(host, NAME, "verify", "verify")?;
    ask(host, NAME, "free", "freed")?;
    write_target(host, NAME, "32768")?;
    reached(host, NAME, 32 * MIB)?;
    write_target(host, NAME, "65536")?;
    reached(host, NAME, 0)?;
    quit(host, NAME)
}

/// Migrates the domain while its targets change.
fn migrate(host: &mut Host) -> Result<()> {
    let migrate = format!("xl migrate -s '' {NAME} 'xl migrate-receive'");
    host.must(&format!("rm -f {ENDED}"), LIMIT)?;
    let begun = format!("({migrate}; echo $? > {ENDED}) > {SAID} 2>&1 &");
    host.must(&begun, LIMIT)?;
    let deadline = Instant::now() + LIMIT;
    let mut rounds = 0;
    while host.run(&format!("[ -e {ENDED} ]"), LIMIT)?.code != 0 {
        ensure!(Instant::now() < deadline, "the migration does not end");
        // Towards its end nobody has that name.
        for kib in [53_248, 28_672] {
            host.run(&format!("storm {NAME} {kib} 2> /dev/null"), LIMIT)?;
            host.run(&format!("say {NAME} compact 2> /dev/null"), LIMIT)?;
        }
        rounds += 1;
    }
    let code = host.must(&format!("cat {ENDED}"), LIMIT)?.text();
    let said = host.must(&format!("cat {SAID}"), LIMIT)?.text();
    ensure!(code.trim() == "0", "`{migrate}` ended with {code}:\n{said}");
    ensure!(rounds > 0, "the balloon had no time to do anything");
    Ok(())
}
