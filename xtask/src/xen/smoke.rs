//! One domain, down and up.

use std::time::Duration;

use anyhow::Result;

use super::{Bench, Domain, Size};

const LIMIT: Duration = Duration::from_secs(60);

/// Boots a domain of `mib` MiB, halves it and makes it whole again.
pub(super) fn run(bench: &Bench, mib: u64) -> Result<()> {
    let domain = Domain::pvh("one", mib).with("fill=all").with("keep=20");
    let size = Size {
        machine_mib: u32::try_from(mib)? + 512,
        dom0_mib: 192,
    };
    let mut host = bench.boot("smoke", size, &[domain])?;
    host.must("xl create -q /guests/one.cfg", LIMIT)?;
    host.must("follow one &", LIMIT)?;
    let (_, ready) = host.event("one", "ready", LIMIT, |_| true)?;
    println!("ready {ready}");
    for target in [mib / 2, mib] {
        host.must(&format!("xl mem-set one {target}m"), LIMIT)?;
        let (_, reached) = host.event("one", "balloon", LIMIT, |_| true)?;
        let (_, verified) = host.event("one", "verify", LIMIT, |_| true)?;
        println!("{target} MiB: {reached}; {verified}");
    }
    host.must("say one stats", LIMIT)?;
    let (_, stats) = host.event("one", "stats", LIMIT, |_| true)?;
    println!("{stats}");
    host.must("say one quit", LIMIT)?;
    let (_, done) = host.event("one", "done", LIMIT, |_| true)?;
    println!("done {done}");
    Ok(())
}
