//! What is asked of domains on real Xen.
//!
//! Cases share one boot and run one after the other, each with domains of its
//! own. A guest counts as good with its token alone, after its data was checked.

mod holes;
mod leak;
mod life;
mod migrate;
mod promises;
mod sizes;

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::guest::Domain;
use super::host::{Host, Size, number};
use super::{Bench, Job, alone};
use crate::exec::Runner;

/// Far more than anything takes, except on a machine that has much else to do.
const LIMIT: Duration = Duration::from_secs(180);
/// Frames of a MiB.
const MIB: u64 = 256;
/// Superpages of a domain of 64 MiB.
const SUPERPAGES: u64 = 32;
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

impl Case {
    const fn alone(name: &'static str, mode: &'static str) -> Self {
        Self {
            name,
            how: How::Alone(mode),
        }
    }

    const fn new(
        name: &'static str,
        domains: fn() -> Vec<Domain>,
        run: fn(&mut Host) -> Result<()>,
    ) -> Self {
        Self {
            name,
            how: How::Domains(domains, run),
        }
    }
}

/// In the order they run.
pub(super) const CASES: &[Case] = &[
    Case::alone("dom0-pvh", alone::PVH),
    Case::alone("dom0-pv", alone::PV),
    Case::new(
        "gates",
        || {
            vec![
                full("gates").with("gate=page"),
                pv("pv-page").with("gate=page"),
            ]
        },
        life::gates,
    ),
    Case::new("cycle", || vec![full("cycle")], sizes::cycle),
    Case::new("pv-cycle", || vec![pv("pv-cycle")], sizes::pv_cycle),
    Case::new("tour", || vec![full("tour")], sizes::tour),
    Case::new("pv-tour", || vec![pv("pv-tour")], sizes::pv_tour),
    Case::new("storm", || vec![full("storm")], sizes::storm),
    Case::new("pv-storm", || vec![pv("pv-storm")], sizes::pv_storm),
    Case::new("extremes", || vec![full("extremes")], sizes::extremes),
    Case::new("garbage", || vec![full("garbage")], sizes::garbage),
    Case::new("late", || vec![full("late")], sizes::late),
    Case::new("pair", || vec![full("left"), pv("right")], sizes::pair),
    Case::new("pod", || vec![promises::domain("pod")], promises::kept),
    Case::new(
        "pod-touch",
        || vec![promises::domain("touch").with("touch=first")],
        promises::broken,
    ),
    Case::new("move", || vec![full("move")], holes::moves),
    Case::new("exchange", || vec![pv("exchange")], holes::exchanges),
    Case::new("starve", || vec![full("starve")], holes::starve),
    Case::new("compact", || vec![full("compact")], holes::compact),
    Case::new("pv-compact", || vec![pv("pv-compact")], holes::pv_compact),
    Case::new("leak", leak::domains, leak::leak),
    Case::new("shipped", Vec::new, life::shipped),
    Case::new(
        "save",
        || vec![full("save").with("upcall=vcpu")],
        life::save,
    ),
    Case::new("vcpus", || vec![two_cpus("vcpus")], life::vcpus),
    Case::new("save-midway", || vec![full("midway")], life::save_midway),
    Case::new("migrate", || vec![full("migrate")], migrate::live),
    Case::new("save-pv", || vec![pv("save-pv")], life::save_pv),
    Case::new(
        "destroy",
        || vec![full("doomed"), full("other")],
        life::destroy,
    ),
];

/// Cases that the stage runs on both QEMUs: the newest one reports reads of CR2
/// and CR3 wrongly to a hypervisor, so that a guest has to do without.
pub(super) const BOTH: [&str; 4] = ["dom0-pvh", "dom0-pv", "cycle", "pv-cycle"];

/// A PVH domain of 64 MiB that keeps a fifth of its memory in use.
fn full(name: &str) -> Domain {
    Domain::pvh(name, 64).with("fill=all").with("keep=20")
}

/// The same with two CPUs that take events by themselves.
fn two_cpus(name: &str) -> Domain {
    Domain {
        vcpus: 2,
        ..full(name).with("upcall=vcpu")
    }
}

/// The same as [`full`] as a PV domain.
fn pv(name: &str) -> Domain {
    Domain::pv(name, 64).with("fill=all").with("keep=20")
}

/// Runs the cases of a job; says how many. A case that fails takes its machine along.
pub(super) fn run(job: &Job, runner: &Mutex<&mut Runner>) -> Result<String> {
    let Job { bench, cases } = job;
    let place = format!("Xen {} on QEMU {}", bench.lab.version, bench.qemu.version());
    let tell = |tell: &dyn Fn(&mut Runner) -> Result<()>| {
        tell(&mut runner.lock().unwrap_or_else(PoisonError::into_inner))
    };
    let mut shared = None;
    let mut failed = Vec::new();
    for case in cases {
        tell(&|runner| {
            runner.bar().set_message(case.name);
            Ok(())
        })?;
        let begun = Instant::now();
        let outcome = one(bench, case, cases, &mut shared);
        let word = if outcome.is_ok() { "ok    " } else { "FAILED" };
        let (name, seconds) = (case.name, begun.elapsed().as_secs_f64());
        tell(&|runner| runner.say(&format!("{word}  {place}: {name} ({seconds:.1} s)")))?;
        if let Err(error) = outcome {
            failed.push(format!("case `{name}` of {place}: {error:#}"));
            shared = None;
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n\n"));
    Ok(format!("{} cases of {place}", cases.len()))
}

fn one(bench: &Bench, case: &Case, cases: &[&Case], shared: &mut Option<Host>) -> Result<()> {
    match case.how {
        How::Alone(mode) => alone::run(bench, case.name, mode),
        How::Domains(_, run) => {
            let host = match shared {
                Some(host) => host,
                None => shared.insert(boot(bench, cases)?),
            };
            run(host).with_context(|| host.tail())
        }
    }
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

/// What `xl create` says when the child that is to watch the domain crashed: seen once on 4.17, a broken heap of its own.
const XL_CRASHED: &str = "daemonizing child";

fn create(host: &mut Host, name: &str) -> Result<()> {
    let command = format!("xl create -q /guests/{name}.cfg");
    let answer = host.run(&command, LIMIT)?;
    if answer.text().contains(XL_CRASHED) {
        // The domain stands, and nobody watches it.
        host.must(&format!("xl destroy {name}"), LIMIT)?;
        host.must(&command, LIMIT)?;
    } else {
        ensure!(answer.code == 0, "`{command}`: {}", answer.text());
    }
    host.must(&format!("follow {name} &"), LIMIT)?;
    host.event(name, "ready", LIMIT, |_| true)?;
    host.event(name, "freed", LIMIT, |_| true)?;
    Ok(())
}

fn quit(host: &mut Host, name: &str) -> Result<()> {
    stats(host, name)?;
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

/// What the guest counts, and that it has lost nothing.
fn stats(host: &mut Host, name: &str) -> Result<String> {
    host.must(&format!("say {name} stats"), LIMIT)?;
    let (_, stats) = host.event(name, "stats", LIMIT, |_| true)?;
    ensure!(number(&stats, "lost")? == 0, "frames are lost: {stats}");
    Ok(stats)
}

/// Tells the guest something and waits for its answer.
fn ask(host: &mut Host, name: &str, command: &str, event: &str) -> Result<String> {
    host.must(&format!("say {name} {command}"), LIMIT)?;
    Ok(host.event(name, event, LIMIT, |_| true)?.1)
}

/// Leaves the guest with holes of single frames between frames in use.
fn scatter(host: &mut Host, name: &str) -> Result<()> {
    ask(host, name, "fill", "filled")?;
    ask(host, name, "scatter", "scattered")?;
    Ok(())
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
