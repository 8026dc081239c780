//! What is asked of domains on real Xen.
//!
//! Cases share one boot and run one after the other, each with domains of its
//! own. A guest counts as good with its token alone, after its data was checked.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::guest::{Domain, KERNEL, SHIPPED_NAME};
use super::host::{Host, Size};
use super::{Bench, alone};
use crate::exec::Runner;
use crate::sim::tour;

const LIMIT: Duration = Duration::from_secs(60);
/// Frames of a MiB.
const MIB: u64 = 256;
/// Frames beside the memory map that a domain is charged for.
const SPECIAL: u64 = 16;

/// One case.
pub(super) struct Case {
    pub(super) name: &'static str,
    how: How,
}

/// What a case boots.
enum How {
    /// Our guest as the first domain, in this mode of Xen's command line.
    Alone(&'static str),
    /// Domains of a machine that all such cases share.
    Domains(fn() -> Vec<Domain>, fn(&mut Host) -> Result<()>),
}

/// In the order they run.
pub(super) const CASES: [Case; 13] = [
    Case {
        name: "dom0-pvh",
        how: How::Alone(alone::PVH),
    },
    Case {
        name: "cycle",
        how: How::Domains(|| vec![full("cycle")], cycle),
    },
    Case {
        name: "tour",
        how: How::Domains(|| vec![full("tour")], tour),
    },
    Case {
        name: "storm",
        how: How::Domains(|| vec![full("storm")], storm),
    },
    Case {
        name: "extremes",
        how: How::Domains(|| vec![full("extremes")], extremes),
    },
    Case {
        name: "garbage",
        how: How::Domains(|| vec![full("garbage")], garbage),
    },
    Case {
        name: "pair",
        how: How::Domains(|| vec![full("left"), full("right")], pair),
    },
    Case {
        name: "pod",
        how: How::Domains(
            || {
                let mut domain = Domain::pvh("pod", 96).with("fill=all").with("keep=100");
                domain.memory_mib = 32;
                vec![domain]
            },
            pod,
        ),
    },
    Case {
        name: "pod-touch",
        how: How::Domains(
            || {
                let mut domain = Domain::pvh("touch", 96);
                domain = domain.with("fill=all").with("touch=first");
                domain.memory_mib = 32;
                vec![domain]
            },
            pod_touch,
        ),
    },
    Case {
        name: "move",
        how: How::Domains(|| vec![full("move")], move_frames),
    },
    Case {
        name: "compact",
        how: How::Domains(|| vec![full("compact")], compact),
    },
    Case {
        name: "shipped",
        how: How::Domains(Vec::new, shipped),
    },
    Case {
        name: "save",
        how: How::Domains(|| vec![full("save")], save),
    },
];

/// A domain of 64 MiB that keeps a fifth of its memory in use.
fn full(name: &str) -> Domain {
    Domain::pvh(name, 64).with("fill=all").with("keep=20")
}

/// Cases for both QEMUs: the newest one reports reads of CR2 and CR3 wrongly to
/// a hypervisor, so that a guest has to do without.
pub(super) const BOTH: [&str; 2] = ["dom0-pvh", "cycle"];

/// Runs the cases whose name is `wanted`; says how many.
pub(super) fn run(
    bench: &Bench,
    runner: &mut Runner,
    wanted: impl Fn(&str) -> bool,
) -> Result<String> {
    let chosen: Vec<&Case> = CASES.iter().filter(|case| wanted(case.name)).collect();
    if chosen.is_empty() {
        let known: Vec<&str> = CASES.iter().map(|case| case.name).collect();
        bail!(
            "no case is called like that; there are: {}",
            known.join(", ")
        );
    }
    let mut shared = None;
    for case in &chosen {
        runner.bar().set_message(case.name.to_owned());
        let begun = Instant::now();
        let outcome = match case.how {
            How::Alone(mode) => alone::run(bench, case.name, mode),
            How::Domains(_, run) => {
                if shared.is_none() {
                    shared = Some(boot(bench, &chosen)?);
                }
                match &mut shared {
                    Some(host) => run(host).with_context(|| host.tail()),
                    None => Ok(()),
                }
            }
        };
        let good = outcome.is_ok();
        runner.say(&format!(
            "{}  {} ({:.1} s)",
            if good { "ok    " } else { "FAILED" },
            case.name,
            begun.elapsed().as_secs_f64()
        ))?;
        outcome.with_context(|| format!("case `{}`", case.name))?;
    }
    Ok(format!(
        "{} cases on QEMU {}",
        chosen.len(),
        bench.qemu.version()
    ))
}

/// The machine that the domains of these cases share.
fn boot(bench: &Bench, chosen: &[&Case]) -> Result<Host> {
    let domains: Vec<Domain> = chosen
        .iter()
        .flat_map(|case| match case.how {
            How::Domains(domains, _) => domains(),
            How::Alone(_) => Vec::new(),
        })
        .collect();
    let size = Size {
        machine_mib: 1200,
        dom0_mib: 500,
    };
    bench.boot("cases", size, &domains)
}

fn create(host: &mut Host, name: &str) -> Result<()> {
    host.must(&format!("xl create -q /guests/{name}.cfg"), LIMIT)?;
    host.must(&format!("follow {name} &"), LIMIT)?;
    host.event(name, "ready", LIMIT, |_| true)?;
    Ok(())
}

fn quit(host: &mut Host, name: &str) -> Result<()> {
    host.must(&format!("say {name} stats"), LIMIT)?;
    let (_, stats) = host.event(name, "stats", LIMIT, |_| true)?;
    ensure!(number(&stats, "lost")? == 0, "frames are lost: {stats}");
    host.must(&format!("say {name} quit"), LIMIT)?;
    host.event(name, "done", LIMIT, |token| token == name)?;
    Ok(())
}

/// Waits until the balloon holds `frames` and the guest's data was checked.
fn reached(host: &mut Host, name: &str, frames: u64) -> Result<()> {
    host.event(name, "balloon", LIMIT, |text| {
        number(text, "actual").is_ok_and(|actual| actual == frames)
    })?;
    host.event(name, "verify", LIMIT, |text| text.starts_with("ok"))?;
    Ok(())
}

/// What Xen charges the domain for, in frames.
fn charged(host: &mut Host, name: &str) -> Result<u64> {
    let answer = host.must(&format!("xl list {name}"), LIMIT)?;
    let line = answer.lines.iter().find(|line| line.starts_with(name));
    let line = line.context("`xl list` does not show the domain")?;
    let mib: u64 = line
        .split_whitespace()
        .nth(2)
        .and_then(|word| word.parse().ok())
        .context("`xl list` has no memory column")?;
    Ok(mib * MIB)
}

/// The number in `key=<n>`.
pub(super) fn number(text: &str, key: &str) -> Result<u64> {
    text.split_whitespace()
        .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
        .and_then(|value| value.parse().ok())
        .with_context(|| format!("`{text}` has no number `{key}=`"))
}

fn write_target(host: &mut Host, name: &str, value: &str) -> Result<()> {
    let command =
        format!("xenstore-write /local/domain/$(xl domid {name})/memory/target \"{value}\"");
    host.must(&command, LIMIT)?;
    Ok(())
}

/// Down and up by `xl mem-set`, whole superpages only, seen by Xen too.
fn cycle(host: &mut Host) -> Result<()> {
    create(host, "cycle")?;
    for mib in [40, 24, 64, 32, 64] {
        host.must(&format!("xl mem-set cycle {mib}m"), LIMIT)?;
        reached(host, "cycle", (64 - mib) * MIB)?;
        let charged = charged(host, "cycle")?;
        ensure!(
            charged.abs_diff(mib * MIB) <= SPECIAL + MIB,
            "{mib} MiB wanted, {charged} frames charged"
        );
    }
    host.must("say cycle stats", LIMIT)?;
    let (_, stats) = host.event("cycle", "stats", LIMIT, |_| true)?;
    for key in ["given_4k", "taken_4k", "downgrades", "short"] {
        ensure!(number(&stats, key)? == 0, "{stats}");
    }
    quit(host, "cycle")
}

/// Ends in the same sizes as every other guest on the same tour.
fn tour(host: &mut Host) -> Result<()> {
    create(host, "tour")?;
    for leg in tour::legs()? {
        host.must(&format!("xl mem-set tour {}m", 64 - leg.mib), LIMIT)?;
        if leg.stands {
            reached(host, "tour", leg.mib * MIB)?;
        }
    }
    quit(host, "tour")
}

/// Targets that change faster than they can be followed end at the last one.
fn storm(host: &mut Host) -> Result<()> {
    create(host, "storm")?;
    host.must("storm storm 34816", LIMIT)?;
    reached(host, "storm", 30 * MIB)?;
    for mib in [30, 64, 26, 60, 28, 64] {
        host.must(&format!("xl mem-set storm {mib}m"), LIMIT)?;
    }
    reached(host, "storm", 0)?;
    quit(host, "storm")
}

/// A target above the domain's limit is told and not insisted on; below what
/// the guest can do without it says what it could, and comes back.
fn extremes(host: &mut Host) -> Result<()> {
    create(host, "extremes")?;
    host.must("xl mem-set extremes 48m", LIMIT)?;
    reached(host, "extremes", 16 * MIB)?;
    write_target(host, "extremes", "104857600")?;
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
fn garbage(host: &mut Host) -> Result<()> {
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

/// Two domains at once, in opposite directions.
fn pair(host: &mut Host) -> Result<()> {
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
fn pod(host: &mut Host) -> Result<()> {
    host.must("xl create -q /guests/pod.cfg", LIMIT)?;
    host.must("follow pod &", LIMIT)?;
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
fn pod_touch(host: &mut Host) -> Result<()> {
    host.forget_log();
    host.must("xl create -q /guests/touch.cfg", LIMIT)?;
    host.wait_line(LIMIT, |line| line.contains("out of PoD memory"))?;
    host.must("xl destroy touch", LIMIT)?;
    Ok(())
}

/// Frames are traded by move while the domain owns all it may, content and all.
fn move_frames(host: &mut Host) -> Result<()> {
    create(host, "move")?;
    host.must("xl mem-set move 32m", LIMIT)?;
    reached(host, "move", 32 * MIB)?;
    // No frame more than it has.
    host.must("xl mem-max move 32m", LIMIT)?;
    for _ in 0..3 {
        host.must("say move move", LIMIT)?;
        let (_, moved) = host.event("move", "moved", LIMIT, |_| true)?;
        ensure!(
            moved.starts_with("frames=512 came=true freed=true"),
            "@moved {moved}"
        );
    }
    host.must("xl mem-max move 64m; xl mem-set move 64m", LIMIT)?;
    reached(host, "move", 0)?;
    quit(host, "move")
}

/// The configuration file that lies beside the guest, as its README says.
fn shipped(host: &mut Host) -> Result<()> {
    let create = format!("xl create -q /guests/{SHIPPED_NAME}.cfg 'kernel=\"{KERNEL}\"'");
    host.must(&create, LIMIT)?;
    host.must(&format!("follow {SHIPPED_NAME} &"), LIMIT)?;
    host.event(SHIPPED_NAME, "ready", LIMIT, |_| true)?;
    host.must(&format!("xl mem-set {SHIPPED_NAME} 128m"), LIMIT)?;
    reached(host, SHIPPED_NAME, 128 * MIB)?;
    host.must(&format!("say {SHIPPED_NAME} quit"), LIMIT)?;
    host.event(SHIPPED_NAME, "done", LIMIT, |token| token == "by-hand")?;
    Ok(())
}

/// A balloon of single frames is gathered by moves: every superpage that can be
/// made of free memory is, and the data in use stays what it was.
fn compact(host: &mut Host) -> Result<()> {
    create(host, "compact")?;
    host.event("compact", "freed", LIMIT, |_| true)?;
    for (command, event) in [("fill", "filled"), ("scatter", "scattered")] {
        host.must(&format!("say compact {command}"), LIMIT)?;
        host.event("compact", event, LIMIT, |_| true)?;
    }
    host.must("xl mem-set compact 48m", LIMIT)?;
    reached(host, "compact", 16 * MIB)?;
    host.must("say compact free", LIMIT)?;
    host.event("compact", "freed", LIMIT, |_| true)?;
    host.must("say compact compact", LIMIT)?;
    let (_, report) = host.event("compact", "compacted", LIMIT, |_| true)?;
    host.event("compact", "verify", LIMIT, |text| text.starts_with("ok"))?;
    let count = |key| number(&report, key);
    ensure!(count("moves")? > 0, "nothing was moved: {report}");
    ensure!(
        count("blocks_before")? < count("blocks")? && count("blocks")? == count("possible")?,
        "not all superpages that are possible: {report}"
    );
    host.must("xl mem-set compact 64m", LIMIT)?;
    reached(host, "compact", 0)?;
    quit(host, "compact")
}

/// Saved and restored with memory in the balloon, in the middle of an
/// inflation, and saved in vain.
fn save(host: &mut Host) -> Result<()> {
    const FILE: &str = "/tmp/saved";
    create(host, "save")?;
    host.must("xl mem-set save 32m", LIMIT)?;
    reached(host, "save", 32 * MIB)?;
    host.must(&format!("xl save -c save {FILE} > /dev/null 2>&1"), LIMIT)?;
    host.event("save", "woken", LIMIT, |how| how == "Cancelled")?;
    host.must(
        &format!("rm {FILE}; xl save save {FILE} > /dev/null 2>&1"),
        LIMIT,
    )?;
    host.must(&format!("xl restore {FILE} > /dev/null 2>&1"), LIMIT)?;
    host.event("save", "woken", LIMIT, |how| how == "Restored")?;
    host.event("save", "verify", LIMIT, |text| text.starts_with("ok"))?;
    host.must("xl mem-set save 64m", LIMIT)?;
    reached(host, "save", 0)?;
    // The save begins while the target is on its way.
    host.must(
        &format!("xl mem-set save 30m; rm {FILE}; xl save save {FILE} > /dev/null 2>&1"),
        LIMIT,
    )?;
    host.must(&format!("xl restore {FILE} > /dev/null 2>&1"), LIMIT)?;
    host.event("save", "woken", LIMIT, |how| how == "Restored")?;
    host.must("xl mem-set save 40m", LIMIT)?;
    reached(host, "save", 24 * MIB)?;
    host.must(&format!("rm {FILE}"), LIMIT)?;
    quit(host, "save")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_names_are_unique() {
        let mut names: Vec<_> = CASES.iter().map(|case| case.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CASES.len());
        assert!(BOTH.iter().all(|name| names.contains(name)));
    }
}
