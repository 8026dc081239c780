//! One resize or one report of one guest, seen from the host alone: the same for ours and for Linux.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::demo::{Sample, Sampler};
use crate::vm::{Usage, Vm, resident};

/// Until a guest is ready.
const BOOT: Duration = Duration::from_secs(90);
/// Linux under emulation fills 7 GiB in some ten seconds.
const FILL: Duration = Duration::from_secs(120);
/// It gives them in as many, and reports them in twice as many.
const LIMIT: Duration = Duration::from_secs(120);
/// Time between two looks at `query-balloon`.
const PERIOD: Duration = Duration::from_millis(4);
/// What a plot shows before the request.
const LEAD: Duration = Duration::from_millis(300);

/// What is traced beside kicks.
pub(super) const EVENTS: [&str; 2] = ["virtio_notify", "virtio_balloon_set_config"];

/// What is asked of the guest.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ask {
    /// A size of the guest, in bytes; host memory is to fall by so much.
    Resize { to: u64, fall: u64 },
    /// To free memory; host memory is to fall by so much.
    Free { fall: u64 },
}

/// What it took.
#[derive(Debug)]
pub(super) struct Took {
    pub(super) wall: Duration,
    pub(super) cpu: Duration,
    pub(super) kicks: u64,
    pub(super) interrupts: u64,
    pub(super) config_writes: u64,
    pub(super) rss_after: u64,
    /// Until 50, 90 and 99 % of the fall.
    pub(super) reached: [Option<Duration>; 3],
    /// Steps of the balloon, where the guest counts them.
    pub(super) wakeups: Option<u64>,
    pub(super) start: Instant,
    pub(super) samples: Vec<Sample>,
}

/// What both guests have done so far, as QEMU saw it: kicks, interrupts, configuration writes.
fn counts(vm: &Vm) -> Result<[u64; 3]> {
    let [interrupts, writes] = EVENTS;
    Ok([vm.kicks()?, vm.traced(interrupts)?, vm.traced(writes)?])
}

fn between(before: [u64; 3], after: [u64; 3]) -> [u64; 3] {
    let [a, b, c] = before;
    let [d, e, f] = after;
    [d - a, e - b, f - c]
}

/// Asks, and waits until the host's memory and `query-balloon` show it.
pub(super) fn run(vm: &mut Vm, ask: Ask) -> Result<Took> {
    let (Ask::Resize { fall, .. } | Ask::Free { fall }) = ask;
    vm.console.drain()?;
    let before = counts(vm)?;
    let full = resident(vm.pid())?;
    let sampler = Sampler::start(vm.pid());
    std::thread::sleep(LEAD);
    sampler.watch_for(full.saturating_sub(fall / 100 * 99));
    let cpu = Usage::read(vm.pid())?;
    let start = Instant::now();
    let deadline = start + LIMIT;
    let shown = match ask {
        Ask::Resize { to, .. } => {
            vm.qmp.balloon(to)?;
            while vm.qmp.query_balloon()? != to {
                ensure!(
                    Instant::now() < deadline,
                    "the guest has not reached {} MiB within {} s but {} MiB",
                    to >> 20,
                    LIMIT.as_secs(),
                    vm.qmp.query_balloon()? >> 20
                );
                std::thread::sleep(PERIOD);
            }
            Instant::now()
        }
        Ask::Free { .. } => {
            vm.console.send("free")?;
            start
        }
    };
    let end = if fall > 0 {
        sampler.crossed(deadline)?.max(shown)
    } else {
        shown
    };
    let cpu = Usage::read(vm.pid())?.since(cpu);
    let after = counts(vm)?;
    std::thread::sleep(LEAD);
    let samples = sampler.finish();
    let reached = [50, 90, 99].map(|percent| {
        let limit = full.saturating_sub(fall / 100 * percent);
        let mut later = samples
            .iter()
            .filter(|sample| sample.at >= start && fall > 0);
        later
            .find(|sample| sample.bytes <= limit)
            .map(|sample| sample.at - start)
    });
    let [kicks, interrupts, config_writes] = between(before, after);
    Ok(Took {
        wall: end - start,
        cpu,
        kicks,
        interrupts,
        config_writes,
        rss_after: resident(vm.pid())?,
        reached,
        wakeups: None,
        start,
        samples,
    })
}

/// Leaves the guest alone for a while; `counts_wakeups` if it counts those of its balloon.
pub(super) fn rest(vm: &mut Vm, time: Duration, counts_wakeups: bool) -> Result<Took> {
    let wakeups = |vm: &mut Vm| -> Result<Option<u64>> {
        if !counts_wakeups {
            return Ok(None);
        }
        vm.console.drain()?;
        vm.console.send("stats")?;
        let stats = vm.console.wait("stats", LIMIT)?;
        Ok(Some(stats.number("balloon_wakeups")?))
    };
    let woken = wakeups(vm)?;
    let before = counts(vm)?;
    let cpu = Usage::read(vm.pid())?;
    let start = Instant::now();
    std::thread::sleep(time);
    let cpu = Usage::read(vm.pid())?.since(cpu);
    let wall = start.elapsed();
    let [kicks, interrupts, config_writes] = between(before, counts(vm)?);
    let wakeups = wakeups(vm)?
        .zip(woken)
        .map(|(after, before)| after - before);
    Ok(Took {
        wall,
        cpu,
        kicks,
        interrupts,
        config_writes,
        rss_after: resident(vm.pid())?,
        reached: [None; 3],
        wakeups,
        start,
        samples: Vec::new(),
    })
}

/// Lets the guest start and touch its memory.
pub(super) fn fill(vm: &mut Vm) -> Result<()> {
    vm.console.wait("ready", BOOT).context("booting")?;
    vm.console.send("fill")?;
    vm.console.wait("filled", FILL).context("filling memory")?;
    Ok(())
}

/// Lets the guest free what it filled.
pub(super) fn free(vm: &mut Vm) -> Result<()> {
    vm.console.send("free")?;
    vm.console.wait("freed", LIMIT).context("freeing memory")?;
    Ok(())
}
