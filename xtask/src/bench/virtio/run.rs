//! One resize or one report of one guest, seen from the host alone: the same for ours and for Linux.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::demo::{Sample, Sampler};
use crate::vm::{Usage, Vm, resident};

/// Linux under emulation fills 7 GiB in some ten seconds, and gives them in as many.
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
    pub(super) start: Instant,
    pub(super) samples: Vec<Sample>,
}

/// Asks, and waits until the host's memory and `query-balloon` show it.
pub(super) fn run(vm: &mut Vm, ask: Ask) -> Result<Took> {
    let (Ask::Resize { fall, .. } | Ask::Free { fall }) = ask;
    let counts = |vm: &Vm| -> Result<[u64; 3]> {
        let [interrupts, writes] = EVENTS;
        Ok([vm.kicks()?, vm.traced(interrupts)?, vm.traced(writes)?])
    };
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
                    "the guest does not reach {to} bytes"
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
    let [kicks, interrupts, config_writes] =
        [0, 1, 2].map(|i: usize| after.get(i).zip(before.get(i)).map_or(0, |(a, b)| a - b));
    Ok(Took {
        wall: end - start,
        cpu,
        kicks,
        interrupts,
        config_writes,
        rss_after: resident(vm.pid())?,
        reached,
        start,
        samples,
    })
}

/// Lets the guest touch its memory.
pub(super) fn fill(vm: &mut Vm) -> Result<()> {
    vm.console.wait("ready", LIMIT)?;
    vm.console.send("fill")?;
    vm.console.wait("filled", LIMIT)?;
    Ok(())
}

/// Lets the guest free what it filled.
pub(super) fn free(vm: &mut Vm) -> Result<()> {
    vm.console.send("free")?;
    vm.console.wait("freed", LIMIT)?;
    Ok(())
}
