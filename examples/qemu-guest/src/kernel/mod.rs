//! The kernel proper: owns the machine, obeys the host, sleeps in between.

mod memory;
#[expect(unsafe_code, reason = "touches the frames the workload holds")]
mod ram;

use buddy_alloc::Zone;
use guest_rt::{BootInfo, LineBuffer, console, exit_success, interrupts, println};
use qemu_guest::{Command, Damage, Fill, Options, Workload, WorkloadError};

use memory::Memory;
use ram::PhysicalRam;

guest_rt::entry!(main);

/// Longest command; see [`LineBuffer`].
const LINE: usize = 64;

struct Kernel {
    zone: Zone<'static>,
    workload: Workload<'static>,
    ram: PhysicalRam,
}

fn main(mut boot: BootInfo) -> ! {
    let line = boot.command_line().clone();
    let options = match Options::read(&line) {
        Ok(options) => options,
        Err(error) => panic!("command line `{}`: {error}", line.as_str()),
    };
    let ram_kib = boot.ram().bytes() / 1024;
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
    };
    println!(
        "@ready ram={ram_kib} managed={}",
        kernel.zone.stats().managed.get()
    );
    defmt::info!("managed {=u64} frames", kernel.zone.stats().managed.get());
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
            interrupts::idle_unless(console::has_input);
        }
    }

    fn obey(&mut self, command: Command, token: &str) {
        match command {
            Command::Verify => self.verify(),
            Command::Stats => self.stats(),
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

    fn verify(&mut self) {
        let checked = self.workload.verify(&self.ram);
        match checked {
            Ok(frames) => println!("@verify ok frames={}", frames.get()),
            Err(damage) => tell_damage(damage),
        }
    }

    fn stats(&self) {
        let stats = self.zone.stats();
        let lost = stats.managed.get() - stats.free.get() - self.workload.held().get();
        println!(
            "@stats wakeups={} balloon_wakeups=0 kicks=0 ranges=0 interrupts={} free={} ballooned=0 lost={lost}",
            interrupts::wakeups(),
            interrupts::taken(),
            stats.free.get(),
        );
    }
}

fn tell_damage(damage: Damage) {
    println!("@verify FAIL {damage}");
    defmt::error!("{=u64} frames are damaged", damage.bad);
}

/// An allocator that breaks its word is the end of this kernel.
fn must<T>(result: Result<T, WorkloadError>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("workload: {error}"),
    }
}
