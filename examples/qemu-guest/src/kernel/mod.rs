//! The kernel proper: owns the machine, obeys the host, sleeps in between.

mod balloon;
#[expect(unsafe_code, reason = "maps the device and gives it memory")]
mod device;
mod memory;
#[expect(unsafe_code, reason = "touches the frames the workload holds")]
mod ram;
mod services;

use buddy_alloc::{FrameCount, Zone};
use guest_rt::{
    BootInfo, Instant, LineBuffer, console, exit_success, interrupts, now, println, timer,
};
use qemu_guest::{Command, Damage, Fill, Options, Poison, Workload, WorkloadError};

use balloon::{Balloon, Change};
use memory::Memory;
use ram::PhysicalRam;

guest_rt::entry!(main);

/// Longest command; see [`LineBuffer`].
const LINE: usize = 64;

struct Kernel {
    zone: Zone<'static>,
    workload: Workload<'static>,
    ram: PhysicalRam,
    balloon: Option<Balloon>,
    /// What free frames hold.
    poison: Option<Poison>,
    /// Halts that the balloon's interrupt or its timer ended.
    balloon_wakeups: u64,
}

fn main(mut boot: BootInfo) -> ! {
    let line = boot.command_line().clone();
    let options = match Options::read(&line) {
        Ok(options) => options,
        Err(error) => panic!("command line `{}`: {error}", line.as_str()),
    };
    let ram_kib = boot.ram().bytes() / 1024;
    let balloon = match Balloon::start(&mut boot, &options) {
        Ok(balloon) => Some(balloon),
        Err(error) => {
            println!("@status {error}");
            None
        }
    };
    let Memory { zone, held } = match memory::take_over(&mut boot) {
        Ok(memory) => memory,
        Err(error) => panic!("memory: {error}"),
    };
    // SAFETY: only the workload gets it, and that touches frames it allocated.
    #[expect(unsafe_code, reason = "here the frames get their owner")]
    let ram = unsafe { PhysicalRam::new() };
    let workload = Workload::new(held, options.keep);
    let mut kernel = Kernel {
        zone,
        workload,
        ram,
        balloon,
        poison: options.poison.map(Poison::new),
        balloon_wakeups: 0,
    };
    // Before the balloon gives any: what is free holds it from the start.
    kernel.poison_free();
    let managed = kernel.zone.stats().managed.get();
    println!("@ready ram={ram_kib} managed={managed}");
    defmt::info!("ready: {=u64} frames managed", managed);
    if options.fill == Fill::All {
        kernel.fill();
        kernel.free();
    }
    kernel.run(options.token)
}

impl Kernel {
    /// Works when there is work, and halts otherwise.
    fn run(&mut self, token: &str) -> ! {
        let mut input = LineBuffer::<LINE>::new();
        loop {
            while let Some(byte) = console::read_byte() {
                if let Some(line) = input.push(byte) {
                    match Command::parse(&line) {
                        Some(command) => self.obey(command, token),
                        None => println!("unknown command `{line}`"),
                    }
                }
            }
            if self.step_balloon() {
                continue;
            }
            let balloon_calls = || Balloon::called() || timer::went_off();
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
        let Some(balloon) = &mut self.balloon else {
            return false;
        };
        let step = balloon.step(&mut self.zone, &mut self.ram);
        match step.wake_at {
            Some(at) => timer::arm(Instant::from_nanos(at.get())),
            None => timer::disarm(),
        }
        if let Some(change) = balloon.change(&self.zone) {
            self.tell(change);
        }
        step.more
    }

    /// Passes news on, and checks that all went well: whoever gave or got
    /// memory has to prove that the rest is as it was.
    fn tell(&mut self, change: Change) {
        match change {
            Change::Reached { actual, target } => {
                println!("@balloon actual={} target={}", actual.get(), target.get());
                defmt::info!("balloon reached {=u64} frames", actual.get());
            }
            Change::Blocked { reason, actual } => {
                println!("@status blocked: {reason}; actual={}", actual.get());
                defmt::warn!("balloon blocked: {}", reason);
            }
            Change::Moving => {
                println!("@status moving again");
                return;
            }
        }
        self.verify();
        let lost = self.lost();
        if lost != 0 {
            println!("@lost frames={lost}");
            defmt::error!("{=i64} frames are lost", lost);
        }
    }

    fn obey(&mut self, command: Command, token: &str) {
        match command {
            Command::Verify => self.verify(),
            Command::Stats => self.stats(),
            Command::Device => match &self.balloon {
                Some(balloon) => balloon.tell_device(),
                None => println!("@device none"),
            },
            Command::Services => self.services(),
            Command::Fill => self.fill(),
            Command::Free => self.free(),
            Command::Need(frames) => self.need(balloon_core::FrameCount::new(frames)),
            Command::Eject => {
                if let Some(balloon) = &self.balloon {
                    balloon.eject();
                }
            }
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
        self.poison_free();
        if let Some(balloon) = &mut self.balloon {
            balloon.services().freed();
        }
        println!(
            "@freed frames={} kept={}",
            freed.frames.get(),
            freed.kept.get()
        );
    }

    /// Fills what is free, if this kernel relies on what that holds.
    fn poison_free(&mut self) {
        if let Some(poison) = self.poison {
            poison.fill_free(&self.zone, &mut self.ram);
        }
    }

    /// Memory runs out while the workload needs more: what the balloon gives
    /// back is used at once.
    fn need(&mut self, frames: balloon_core::FrameCount) {
        must(self.workload.fill(&mut self.zone, &mut self.ram));
        let relieved = self
            .balloon
            .as_mut()
            .map(|balloon| balloon.relieve(&mut self.zone, &mut self.ram, frames));
        let relieved = relieved.unwrap_or_default();
        let filled = must(self.workload.fill(&mut self.zone, &mut self.ram));
        println!(
            "@need usable={} coming={} used={}",
            relieved.usable.get(),
            relieved.coming.get(),
            filled.frames.get()
        );
    }

    /// Checks the kept frames, that free ones hold what they are to hold, and
    /// that frames which came back can be used.
    fn verify(&mut self) {
        let free = self
            .poison
            .map(|poison| poison.check_free(&self.zone, &self.ram));
        let free = free.unwrap_or(Ok(FrameCount::ZERO));
        let kept = self.workload.verify(&self.ram);
        let returned = self
            .balloon
            .as_mut()
            .map(|balloon| balloon.log().take_returned());
        let returned = returned.into_iter().flatten();
        let tried = self
            .workload
            .try_returned(returned, &mut self.zone, &mut self.ram);
        self.poison_free();
        match (kept, tried, free) {
            (Ok(kept), Ok(tried), Ok(free)) => println!(
                "@verify ok frames={} returned={} poisoned={}",
                kept.get(),
                tried.get(),
                free.get()
            ),
            (Err(damage), ..) => tell_damage("kept", damage),
            (_, Err(damage), _) => tell_damage("returned", damage),
            (.., Err(damage)) => tell_damage("free", damage),
        }
    }

    /// Frames that nobody has any more, or, below zero, that two have: the
    /// allocator's count against the workload's and the balloon's own.
    fn lost(&self) -> i64 {
        let stats = self.zone.stats();
        let balloon = self
            .balloon
            .as_ref()
            .map_or(0, |balloon| balloon.out(&self.zone).get());
        let known = stats.free.get() + self.workload.held().get() + balloon;
        stats.managed.get().cast_signed() - known.cast_signed()
    }

    fn stats(&mut self) {
        let free = self.zone.free_frames().get();
        let (lost, wakeups, balloon_wakeups) =
            (self.lost(), interrupts::wakeups(), self.balloon_wakeups);
        let status = self.balloon.as_ref().map(|b| b.status(&self.zone));
        let (ballooned, useful) = status.map_or((0, 0), |status| {
            (status.size.get(), status.counters.useful.get())
        });
        let (kicks, ranges) = self.balloon.as_mut().map_or((0, 0), |balloon| {
            (balloon.kicks(), balloon.log().ranges_given())
        });
        println!(
            "@stats wakeups={wakeups} balloon_wakeups={balloon_wakeups} kicks={kicks} \
             ranges={ranges} interrupts={} free={free} ballooned={ballooned} useful={useful} \
             lost={lost} clock={}",
            interrupts::taken(),
            now().as_nanos() / 1_000_000,
        );
    }

    fn services(&mut self) {
        let Some(balloon) = &mut self.balloon else {
            println!("@services none");
            return;
        };
        let services = balloon.services();
        println!(
            "@services hinted={} hinted_while_inflating={} reported={} out={}",
            services.hinted().get(),
            services.hinted_while_inflating().get(),
            services.reported().get(),
            services.out().get(),
        );
    }
}

fn tell_damage(whose: &str, damage: Damage) {
    println!("@verify FAIL {whose} {damage}");
    defmt::error!("{=u64} {=str} frames are damaged", damage.bad, whose);
}

/// An allocator that breaks its word is the end of this kernel.
fn must<T>(result: Result<T, WorkloadError>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("workload: {error}"),
    }
}
