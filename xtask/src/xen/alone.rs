//! Our guest as the first domain: no tools, no store, ready within a second.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::Bench;
use super::host::{FIRST, Host, Size, number};

const LIMIT: Duration = Duration::from_secs(60);

/// The first domain as a PVH guest.
pub(super) const PVH: &str = "dom0=pvh dom0-iommu=none";
/// As a PV guest, which is what Xen makes of it unasked.
pub(super) const PV: &str = "dom0=pv";

/// Boots it in `mode`; it gives half of its memory, migrations, takes all back, and
/// leaves. No store is no error.
pub(super) fn run(bench: &Bench, name: &str, mode: &str) -> Result<()> {
    let size = Size {
        machine_mib: 256,
        dom0_mib: 64,
    };
    let token = format!("token={name} fill=all keep=20");
    let transcript = bench.folder.join(format!("{name}.log"));
    let kernel = (bench.elf.as_path(), token.as_str());
    let mut host = Host::boot_alone(&bench.qemu, &bench.lab, kernel, mode, size, &transcript)?;
    host.event(FIRST, "ready", LIMIT, |_| true)?;
    for full in [false, true] {
        host.event(FIRST, "balloon", LIMIT, |text| {
            number(text, "actual").is_ok_and(|actual| (actual == 0) == full)
        })?;
        host.event(FIRST, "verify", LIMIT, |text| text.starts_with("ok"))?;
        if !full {
            let (_, moved) = host.event(FIRST, "moved", LIMIT, |_| true)?;
            ensure!(moved.contains("came=true freed=true"), "@moved {moved}");
        }
    }
    let (_, stats) = host.event(FIRST, "stats", LIMIT, |_| true)?;
    ensure!(number(&stats, "lost")? == 0, "frames are lost: {stats}");
    host.event(FIRST, "done", LIMIT, |token| token == name)?;
    Ok(())
}
