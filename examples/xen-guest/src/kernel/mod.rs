//! The kernel proper: owns the domain, obeys the toolstack, sleeps in between.

mod alone;
mod balloon;
#[expect(unsafe_code, reason = "copies what it moves")]
mod bench;
#[path = "../../../qemu-guest/src/kernel/memory.rs"]
mod memory;
#[expect(unsafe_code, reason = "is what Xen enters, in place of the CPU")]
mod pv;
#[expect(unsafe_code, reason = "touches the frames the workload holds")]
#[path = "../../../qemu-guest/src/kernel/ram.rs"]
mod ram;
#[expect(unsafe_code, reason = "clears what the balloon gives")]
mod scrub;
#[expect(unsafe_code, reason = "reads frames that nobody holds")]
mod search;
#[expect(unsafe_code, reason = "is where another CPU starts")]
mod second;
mod starve;
mod upcall;
#[expect(unsafe_code, reason = "enters the hypervisor, maps shared pages")]
mod xen;

use balloon_core::{FrameCount, Nanos, Report};
use buddy_alloc::Zone;
use guest_rt::{BootInfo, Instant, LineBuffer, console, exit_success, interrupts, println, timer};
use qemu_guest::{Command, Damage, Fill, Options, Workload, WorkloadError};
use transport_xen::pod::PodDeadline;
use transport_xen::{FrameMap, Translated};

use balloon::{Balloon, Change, Left, time};
use bench::Bare;
use memory::Memory;
use ram::PhysicalRam;
use scrub::Scrub;

guest_rt::entry!(main);

/// Longest command; see [`LineBuffer`].
const LINE: usize = 64;
/// Until then a balloon that owes memory has to have given it.
const BOOT_DEADLINE: Nanos = Nanos::from_secs(60);

struct Kernel<F> {
    zone: Zone<'static>,
    workload: Workload<'static>,
    ram: PhysicalRam,
    balloon: Balloon<F>,
    /// Halts that the store's event or the timer ended.
    balloon_wakeups: u64,
    /// Nothing is verified before memory may be touched.
    touching: bool,
    bare: Bare,
}

fn main(boot: BootInfo) -> ! {
    match pv::take_p2m() {
        Some(p2m) => start(boot, p2m),
        None => start::<Translated>(boot, Translated),
    }
}

fn start<F: FrameMap>(mut boot: BootInfo, map: F) -> ! {
    let line = boot.command_line().clone();
    let mut xen = match xen::find(&line) {
        Ok(xen) => xen,
        Err(error) => panic!("{error}"),
    };
    let options = match Options::read(&line) {
        Ok(options) => options,
        Err(error) => panic!("command line `{}`: {error}", line.as_str()),
    };
    let ties = match xen::connect(&boot) {
        Ok(ties) => ties,
        Err(error) => panic!("{error}"),
    };
    let ram_bytes = boot.ram().bytes();
    let frames = FrameCount::new(ram_bytes / 4096);
    // Named as Linux names it.
    let scrubs = line.get("xen_scrub_pages") != Some("0");
    // SAFETY: only the balloon gets it, for frames that it took; memory is mapped one
    // to one.
    #[expect(unsafe_code, reason = "here the balloon gets hold of memory")]
    let scrub = unsafe { Scrub::new(scrubs) };
    let mut balloon = match Balloon::start((xen, map, scrub), ties, frames) {
        Ok(balloon) => balloon,
        Err(error) => panic!("balloon: {error}"),
    };
    // Only a translated guest can be promised memory. Without a store nobody
    // did: the first domain starts full.
    let promise = if F::TRANSLATED && balloon.has_store() {
        match PodDeadline::at_boot(&mut xen, frames, BOOT_DEADLINE) {
            Ok(promise) => Some(promise),
            Err(error) => panic!("reservation: {error}"),
        }
    } else {
        None
    };
    let Memory { zone, held } = match memory::take_over(&mut boot) {
        Ok(memory) => memory,
        Err(error) => panic!("memory: {error}"),
    };
    balloon.watch_over(&zone);
    // SAFETY: only the workload gets it, and that touches frames it allocated.
    #[expect(unsafe_code, reason = "here the frames get their owner")]
    let ram = unsafe { PhysicalRam::new() };
    if line.get("search") == Some("first") {
        search::search(&zone);
    }
    let mut kernel = Kernel {
        zone,
        workload: Workload::new(held, options.keep),
        ram,
        balloon,
        balloon_wakeups: 0,
        touching: line.get("touch") == Some("first"),
        bare: Bare::new(),
    };
    println!(
        "@owed frames={} managed={}",
        promise
            .map_or(FrameCount::ZERO, |promise| promise.owed())
            .get(),
        kernel.zone.stats().managed.get()
    );
    match promise {
        Some(promise) if !kernel.touching => kernel.keep(&promise),
        _ => kernel.touching = true,
    }
    println!(
        "@ready ram={} managed={}",
        ram_bytes / 1024,
        kernel.zone.stats().managed.get()
    );
    if options.fill == Fill::All {
        kernel.fill();
        kernel.free();
    }
    if !kernel.balloon.has_store() {
        kernel.alone();
        kernel.obey(Command::Quit, options.token);
    }
    kernel.run(options.token)
}

impl<F: FrameMap> Kernel<F> {
    /// Gives what the domain owes before any memory is touched.
    ///
    /// Nothing is cleared for it: what is free has not been written since the boot.
    fn keep(&mut self, promise: &PodDeadline) {
        self.balloon.reservation().promise_stands(true);
        loop {
            let status = self.balloon.status(&self.zone);
            match promise.is_kept(status.size, status.target, time()) {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => panic!("{error}"),
            }
            if !self.step_balloon() {
                interrupts::idle_unless(|| balloon::called() || timer::went_off());
            }
        }
        self.balloon.reservation().promise_stands(false);
        self.touching = true;
    }

    /// Works when there is work, and halts otherwise.
    fn run(&mut self, token: &str) -> ! {
        let mut input = LineBuffer::<LINE>::new();
        loop {
            while let Some(byte) = console::read_byte() {
                if let Some(line) = input.push(byte) {
                    match Command::parse(&line) {
                        Some(command) => self.obey(command, token),
                        None => self.obey_bench(line.trim_ascii()),
                    }
                }
            }
            if self.step_balloon() {
                continue;
            }
            let balloon_calls = || balloon::called() || timer::went_off();
            if interrupts::idle_unless(|| console::has_input() || balloon_calls())
                && balloon_calls()
            {
                self.balloon_wakeups += 1;
            }
        }
    }

    /// One step of the balloon; whether there is more to do at once.
    fn step_balloon(&mut self) -> bool {
        timer::take_went_off();
        let mut changes = heapless::Vec::<Change, 4>::new();
        let Left { more, wake_at } = self.balloon.step(&mut self.zone, |item| {
            // More than fit would be repeats.
            let _ = changes.push(item);
        });
        match wake_at {
            Some(at) => timer::arm(Instant::from_nanos(at.get())),
            None => timer::disarm(),
        }
        for item in changes {
            self.tell(item);
        }
        more
    }

    /// Passes news on, and checks that all went well: whoever gave or got
    /// memory has to prove that the rest is as it was.
    fn tell(&mut self, change: Change) {
        match change {
            Change::Reached {
                actual,
                target,
                nanos,
            } => {
                println!(
                    "@balloon actual={} target={} nanos={}",
                    actual.get(),
                    target.get(),
                    nanos.get()
                );
            }
            Change::Compacted { report, nanos } => tell_compacted(&report, nanos),
            Change::Blocked { reason, actual } => {
                println!("@status blocked: {reason}; actual={}", actual.get());
            }
            Change::Saving { actual, target } => {
                println!("@saving actual={} target={}", actual.get(), target.get());
                return;
            }
            Change::Woken {
                how,
                actual,
                target,
            } => {
                println!(
                    "@woken {how:?} actual={} target={}",
                    actual.get(),
                    target.get()
                );
            }
            Change::BadTarget => {
                println!("@status the target is no number");
                return;
            }
            Change::Beyond(frames) => {
                println!(
                    "@status the target is beyond memory; frames={}",
                    frames.get()
                );
                return;
            }
            Change::StoreGone => {
                println!("@status the store is gone");
                return;
            }
        }
        if self.touching {
            self.verify();
        }
        let lost = self.lost();
        if lost != 0 {
            println!("@lost frames={lost}");
        }
    }

    fn obey(&mut self, command: Command, token: &str) {
        match command {
            Command::Verify => self.verify(),
            Command::Stats => self.stats(),
            // Devices, statistics and reports are virtio's; relief is tried there.
            Command::Device | Command::Services | Command::Eject | Command::Need(_) => {
                println!("`{command:?}` is not for Xen");
            }
            Command::Fill => self.fill(),
            Command::Free => self.free(),
            Command::Quit => {
                println!("@done {token}");
                exit_success()
            }
            Command::Panic => panic!("asked for by the host"),
        }
    }

    fn fill(&mut self) {
        let filled = must(self.workload.fill(&mut self.zone, &mut self.ram));
        println!("@filled frames={}", filled.frames.get());
    }

    fn free(&mut self) {
        let freed = must(self.workload.free(&mut self.zone));
        println!(
            "@freed frames={} kept={}",
            freed.frames.get(),
            freed.kept.get()
        );
    }

    /// Checks the kept frames, and that frames which came back can be used.
    fn verify(&mut self) {
        let kept = self.workload.verify(&self.ram);
        let returned = self.balloon.log().take_returned();
        let tried = self
            .workload
            .try_returned(returned, &mut self.zone, &mut self.ram);
        match (kept, tried) {
            (Ok(kept), Ok(tried)) => {
                println!("@verify ok frames={} returned={}", kept.get(), tried.get());
            }
            (Err(damage), _) => tell_damage("kept", damage),
            (_, Err(damage)) => tell_damage("returned", damage),
        }
    }

    /// Frames that nobody has any more, or, below zero, that two have.
    fn lost(&self) -> i64 {
        let stats = self.zone.stats();
        let status = self.balloon.status(&self.zone);
        let balloon = status.size.get() + status.inflating.get() + status.deflating.get();
        let known = stats.free.get() + self.workload.held().get() + balloon;
        stats.managed.get().cast_signed() - known.cast_signed()
    }

    fn stats(&mut self) {
        let size = self.balloon.status(&self.zone).size.get();
        let counters = self.balloon.counters();
        println!(
            "@stats wakeups={} balloon_wakeups={} interrupts={} free={} ballooned={size} lost={} \
             hypercalls={} inflated_2m={} inflated_64k={} inflated_4k={} deflated_2m={} deflated_64k={} \
             deflated_4k={} downgrades={} short={} holes={} cleared={} frames_lost={} unanswered={} \
             store_events={} store_events_cpu1={}",
            interrupts::wakeups(),
            self.balloon_wakeups,
            interrupts::taken() + pv::upcalls(),
            self.zone.free_frames().get(),
            self.lost(),
            counters.hypercalls,
            counters.inflated.superpages,
            counters.inflated.medium,
            counters.inflated.frames,
            counters.deflated.superpages,
            counters.deflated.medium,
            counters.deflated.frames,
            counters.downgrades,
            counters.short_counts,
            counters.holes_found,
            counters.cleared,
            counters.lost,
            self.balloon.unanswered(),
            xen::store_events(),
            second::store_events(),
        );
    }
}

fn tell_compacted(report: &Report, nanos: Nanos) {
    println!(
        "@compacted moves={} fewest={} blocks_before={} blocks={} possible={} nanos={}",
        report.moves.get(),
        report.fewest_moves.get(),
        report.before.blocks(),
        report.after.blocks(),
        report.before.possible_blocks(),
        nanos.get(),
    );
}

fn tell_damage(whose: &str, damage: Damage) {
    println!("@verify FAIL {whose} {damage}");
}

/// An allocator that breaks its word is the end of this kernel.
fn must<T>(result: Result<T, WorkloadError>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("workload: {error}"),
    }
}
