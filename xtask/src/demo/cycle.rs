//! One boot's worth of work: fill, inflate, rest, deflate, verify; and what it cost the host.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::sampler::{Sample, Sampler};
use crate::ui;
use crate::vm::{Event, Usage, Vm, resident};

const BOOT: Duration = Duration::from_secs(60);
/// Writing 8 GiB in software emulation takes some ten seconds on two quiet processors.
const FILL: Duration = Duration::from_secs(300);
const RESIZE: Duration = Duration::from_secs(120);
const VERIFY: Duration = Duration::from_secs(120);
const LEAD: Duration = Duration::from_millis(500);
/// Time between two questions to the monitor.
const PERIOD: Duration = Duration::from_millis(4);
/// Bytes of a frame, the unit of the guest's counts.
const FRAME: u64 = 4096;

/// How frames reach the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Path {
    /// Bulk ranges through the reporting queue.
    Reporting,
    /// Page frame numbers through the inflate queue.
    Pfn,
}

impl Path {
    /// Its name in tables and in JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Reporting => "reporting",
            Self::Pfn => "pfn",
        }
    }
}

/// What to do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// Memory of the guest.
    pub(crate) mem_mib: u64,
    /// What it shrinks to.
    pub(crate) target_mib: u64,
    /// By which path.
    pub(crate) path: Path,
    /// How long it then rests.
    pub(crate) idle: Duration,
}

/// What came out.
#[derive(Debug)]
pub(crate) struct Cycle {
    pub(crate) path: Path,
    pub(crate) inflate: Duration,
    pub(crate) inflate_cpu: Duration,
    pub(crate) deflate: Duration,
    pub(crate) deflate_cpu: Duration,
    /// Kicks during the inflation, counted by QEMU.
    pub(crate) kicks: u64,
    /// Ranges handed over during the inflation, counted by the guest.
    pub(crate) ranges: u64,
    pub(crate) rss_before: u64,
    pub(crate) rss_after: u64,
    pub(crate) rss_after_30s: u64,
    pub(crate) rss_deflated: u64,
    /// Wake-ups of the balloon while the guest rested.
    pub(crate) idle_wakeups: u64,
    /// Host processor time while it rested, in percent of one processor.
    pub(crate) idle_percent: f64,
    /// The guest's data was whole after the inflation, after the deflation and at the end.
    pub(crate) data_ok: bool,
    pub(crate) samples: Vec<Sample>,
    pub(crate) inflate_at: Instant,
    pub(crate) deflate_at: Instant,
}

/// Takes a machine that was just started through `plan`.
///
/// Lost frames, a panic, a target that is not met exactly or a run that does not count are errors;
/// damaged data is [`Cycle::data_ok`].
pub(crate) fn measure(vm: &mut Vm, plan: &Plan) -> Result<Cycle> {
    let pid = vm.pid();
    let (full, target) = (plan.mem_mib << 20, plan.target_mib << 20);
    let asked = full - target;
    fill(vm, plan)?;
    let sampler = Sampler::start(pid);
    // A plot shows a little of what was before.
    std::thread::sleep(LEAD);

    let before = vm.console.ask("stats")?;
    let rss_before = resident(pid)?;
    let kicks = vm.kicks()?;
    sampler.watch_for(rss_before.saturating_sub(asked / 100 * 99));
    let inflate = resize(vm, target, plan, Some(&sampler))?;
    let kicks = vm.kicks()? - kicks;
    settle(vm, asked)?;
    sleep_until(inflate.end + Duration::from_secs(1));
    let rss_after = resident(pid)?;

    let rested = rest(vm, plan, inflate.end)?;
    let after = &rested.before;
    // What the guest reckons that the host has gained is what it has.
    let gained = rss_before.saturating_sub(rss_after);
    let useful = FRAME * (after.number("useful")? - before.number("useful")?);
    ensure!(
        useful.abs_diff(gained) <= asked / 20,
        "the guest reckons that it gave {useful} useful bytes, the host gained {gained}"
    );

    let deflate = resize(vm, full, plan, None)?;
    settle(vm, 0)?;
    let rss_deflated = resident(pid)?;
    vm.console.send("verify")?;
    vm.console.wait("verify", VERIFY)?;
    let last = vm.console.ask("stats")?;
    ensure!(
        last.number("lost")? == 0,
        "the guest lost frames: {}",
        last.text()
    );
    ensure!(
        last.number("ballooned")? == 0,
        "frames stayed in the balloon: {}",
        last.text()
    );
    let samples = sampler.finish();
    vm.finish()?;

    Ok(Cycle {
        path: plan.path,
        inflate: inflate.end - inflate.start,
        inflate_cpu: inflate.cpu,
        deflate: deflate.end - deflate.start,
        deflate_cpu: deflate.cpu,
        kicks,
        ranges: after
            .number("ranges")?
            .saturating_sub(before.number("ranges")?),
        rss_before,
        rss_after,
        rss_after_30s: rested.rss_30s,
        rss_deflated,
        idle_wakeups: rested.wakeups,
        idle_percent: rested.percent,
        data_ok: vm.console.data_ok(3),
        samples,
        inflate_at: inflate.start,
        deflate_at: deflate.start,
    })
}

/// Waits until the guest has touched all its memory and freed its share.
fn fill(vm: &mut Vm, plan: &Plan) -> Result<()> {
    let bar = ui::bar(
        &format!("{}: guest fills memory", plan.path.name()),
        plan.mem_mib,
    );
    vm.console.wait("ready", BOOT)?;
    let (watching, pid) = (bar.clone(), vm.pid());
    let watch = Follow::start(move || {
        resident(pid)
            .map(|bytes| watching.set_position(bytes >> 20))
            .is_ok()
    });
    let filled = vm.console.wait("filled", FILL);
    drop(watch);
    bar.finish_and_clear();
    filled?;
    vm.console.wait("freed", FILL)?;
    Ok(())
}

/// A resize, in time and in processor time of the host.
#[derive(Debug, Clone, Copy)]
struct Resize {
    start: Instant,
    end: Instant,
    cpu: Duration,
}

/// Asks for `bytes` and waits until `query-balloon` shows them, and the sampler its limit.
fn resize(vm: &mut Vm, bytes: u64, plan: &Plan, sampler: Option<&Sampler>) -> Result<Resize> {
    vm.console.drain()?;
    let verb = if sampler.is_some() {
        "inflate"
    } else {
        "deflate"
    };
    let bar = ui::bar(
        &format!("{}: {verb}", plan.path.name()),
        (plan.mem_mib - plan.target_mib).max(1),
    );
    let old = vm.qmp.query_balloon()?;
    let cpu = Usage::read(vm.pid())?;
    let start = Instant::now();
    let deadline = start + RESIZE;
    vm.qmp.balloon(bytes)?;
    let shown = loop {
        let actual = vm.qmp.query_balloon()?;
        let now = Instant::now();
        bar.set_position(actual.abs_diff(old) >> 20);
        if actual == bytes {
            break now;
        }
        vm.console.check_all()?;
        ensure!(
            now < deadline,
            "query-balloon stays at {actual} bytes, {bytes} were asked\n{}",
            vm.console.tail()
        );
        std::thread::sleep(PERIOD);
    };
    let end = sampler
        .map_or(Ok(shown), |sampler| sampler.crossed(deadline))?
        .max(shown);
    let cpu = Usage::read(vm.pid())?.since(cpu);
    bar.finish_and_clear();
    Ok(Resize { start, end, cpu })
}

/// Waits until the guest has reported the size of its balloon and checked its data.
fn settle(vm: &mut Vm, ballooned: u64) -> Result<()> {
    let frames = ballooned / FRAME;
    vm.console.wait_until("balloon", RESIZE, |event| {
        event.number("actual").is_ok_and(|actual| actual == frames)
    })?;
    vm.console.wait("verify", VERIFY)?;
    Ok(())
}

/// What a resting guest cost.
#[derive(Debug)]
struct Rested {
    before: Event,
    wakeups: u64,
    percent: f64,
    rss_30s: u64,
}

/// Leaves the guest alone.
fn rest(vm: &mut Vm, plan: &Plan, inflated: Instant) -> Result<Rested> {
    let before = vm.console.ask("stats")?;
    let bar = ui::bar(
        &format!("{}: guest at rest", plan.path.name()),
        plan.idle.as_secs(),
    );
    let cpu = Usage::read(vm.pid())?;
    let start = Instant::now();
    let half_minute = inflated + Duration::from_secs(30);
    let mut rss_30s = None;
    while start.elapsed() < plan.idle {
        std::thread::sleep(Duration::from_millis(100));
        bar.set_position(start.elapsed().as_secs());
        if rss_30s.is_none() && Instant::now() >= half_minute {
            rss_30s = Some(resident(vm.pid())?);
        }
    }
    let elapsed = start.elapsed();
    let cpu = Usage::read(vm.pid())?.since(cpu);
    bar.finish_and_clear();
    let after = vm.console.ask("stats")?;
    Ok(Rested {
        wakeups: after
            .number("balloon_wakeups")?
            .saturating_sub(before.number("balloon_wakeups")?),
        percent: if elapsed.is_zero() {
            0.0
        } else {
            100.0 * cpu.as_secs_f64() / elapsed.as_secs_f64()
        },
        rss_30s: rss_30s.map_or_else(|| resident(vm.pid()), Ok)?,
        before,
    })
}

fn sleep_until(when: Instant) {
    std::thread::sleep(when.saturating_duration_since(Instant::now()));
}

/// Does something every now and then in a thread, until dropped.
#[derive(Debug)]
struct Follow(Option<(std::sync::mpsc::Sender<()>, std::thread::JoinHandle<()>)>);

impl Follow {
    fn start(mut act: impl FnMut() -> bool + Send + 'static) -> Self {
        let (end, ended) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let pause = Duration::from_millis(200);
            while ended.recv_timeout(pause) == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
                && act()
            {}
        });
        Self(Some((end, thread)))
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        if let Some((end, thread)) = self.0.take() {
            drop(end);
            // It only moves a bar.
            let _ = thread.join();
        }
    }
}
