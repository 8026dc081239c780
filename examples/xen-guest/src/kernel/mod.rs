//! The kernel proper: owns the domain, obeys the toolstack, sleeps in between.

mod alone;
mod balloon;
#[path = "../../../qemu-guest/src/kernel/memory.rs"]
mod memory;
#[expect(unsafe_code, reason = "touches the frames the workload holds")]
#[path = "../../../qemu-guest/src/kernel/ram.rs"]
mod ram;
#[expect(unsafe_code, reason = "enters the hypervisor, maps shared pages")]
mod xen;

use balloon_core::{FrameCount, FrameRange, Nanos, Pfn};
use buddy_alloc::{Frame, Zone};
use guest_rt::{BootInfo, Instant, LineBuffer, console, exit_success, interrupts, println, timer};
use qemu_guest::{Command, Damage, Fill, Options, Ram as _, Workload, WorkloadError, word_of};
use transport_xen::pod::Promise;

use balloon::{Balloon, Left, News, time};
use memory::Memory;
use ram::PhysicalRam;

guest_rt::entry!(main);

/// Longest command; see [`LineBuffer`].
const LINE: usize = 64;
/// Until then a balloon that owes memory has to have given it.
const BOOT_DEADLINE: Nanos = Nanos::from_secs(60);

struct Kernel {
    zone: Zone<'static>,
    workload: Workload<'static>,
    ram: PhysicalRam,
    balloon: Balloon,
    /// Halts that the store's event or the timer ended.
    balloon_wakeups: u64,
    /// Nothing is verified before memory may be touched.
    touching: bool,
}

fn main(mut boot: BootInfo) -> ! {
    let mut xen = match xen::hypercalls() {
        Ok(xen) => xen,
        Err(error) => panic!("{error}"),
    };
    let line = boot.command_line().clone();
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
    let balloon = match Balloon::start(xen, ties, frames) {
        Ok(balloon) => balloon,
        Err(error) => panic!("balloon: {error}"),
    };
    let promise = match Promise::at_boot(&mut xen, frames, BOOT_DEADLINE) {
        Ok(promise) => promise,
        Err(error) => panic!("reservation: {error}"),
    };
    let Memory { zone, held } = match memory::take_over(&mut boot) {
        Ok(memory) => memory,
        Err(error) => panic!("memory: {error}"),
    };
    // SAFETY: only the workload gets it, and that touches frames it allocated.
    #[expect(unsafe_code, reason = "here the frames get their owner")]
    let ram = unsafe { PhysicalRam::new() };
    let mut kernel = Kernel {
        zone,
        workload: Workload::new(held, options.keep),
        ram,
        balloon,
        balloon_wakeups: 0,
        touching: line.get("touch") == Some("first"),
    };
    println!(
        "@owed frames={} managed={}",
        promise.owed().get(),
        kernel.zone.stats().managed.get()
    );
    // Without a store nobody promised anything: the first domain starts full.
    kernel.touching |= !kernel.balloon.has_store();
    if !kernel.touching {
        kernel.keep(&promise);
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

impl Kernel {
    /// Gives what the domain owes before any memory is touched.
    fn keep(&mut self, promise: &Promise) {
        loop {
            let given = self.balloon.status(&self.zone).size;
            match promise.is_kept(given, time()) {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => panic!("{error}"),
            }
            if !self.step_balloon() {
                interrupts::idle_unless(|| Balloon::called() || timer::went_off());
            }
        }
        self.touching = true;
    }

    /// Works when there is work, and halts otherwise.
    fn run(&mut self, token: &str) -> ! {
        let mut input = LineBuffer::<LINE>::new();
        loop {
            while let Some(byte) = console::read_byte() {
                if let Some(line) = input.push(byte) {
                    match Command::parse(&line) {
                        None if line.trim_ascii() == "move" => self.move_holes(),
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
        let mut news = heapless::Vec::<News, 4>::new();
        let Left { more, wake_at } = self.balloon.step(&mut self.zone, |item| {
            // More than fit would be repeats.
            let _ = news.push(item);
        });
        match wake_at {
            Some(at) => timer::arm(Instant::from_nanos(at.get())),
            None => timer::disarm(),
        }
        for item in news {
            self.tell(item);
        }
        more
    }

    /// Passes news on, and checks that all went well: whoever gave or got
    /// memory has to prove that the rest is as it was.
    fn tell(&mut self, news: News) {
        match news {
            News::Reached { actual, target } => {
                println!("@balloon actual={} target={}", actual.get(), target.get());
            }
            News::Blocked { reason, actual } => {
                println!("@status blocked: {reason}; actual={}", actual.get());
            }
            News::Woken(woken) => println!("@woken {woken:?}"),
            News::BadTarget => {
                println!("@status the target is no number");
                return;
            }
            News::StoreGone => {
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
            Command::Fill => self.fill(),
            Command::Free => self.free(),
            Command::Quit => {
                println!("@done {token}");
                exit_success()
            }
            Command::Panic => panic!("asked for by the host"),
        }
    }

    /// Trades free frames for ballooned ones and back again: the content has to
    /// come along both times.
    fn move_holes(&mut self) {
        let order = buddy_alloc::Order::MIB_2;
        let Some(holes) = Balloon::some_held(&mut self.zone) else {
            println!("@moved frames=0");
            return;
        };
        let Ok(start) = self.zone.allocate(order, buddy_alloc::Preference::Any) else {
            println!("@moved frames=0");
            return;
        };
        let count = holes.count();
        let Some(ours) = FrameRange::new(Pfn::new(start.get()), count) else {
            return;
        };
        let pairs = || ours.frames().zip(holes.frames());
        for (frame, _) in pairs() {
            let frame = Frame::new(frame.get());
            self.ram.fill(frame, word_of(frame));
        }
        let begun = time();
        let there = self.balloon.trade(holes, ours);
        let nanos = time().saturating_sub(begun).get();
        // The holes are memory now, and nobody else's until they are holes again.
        let came = there
            && pairs().all(|(from, to)| {
                self.ram
                    .holds(Frame::new(to.get()), word_of(Frame::new(from.get())))
            });
        let back = self.balloon.trade(ours, holes);
        let whole = back
            && pairs().all(|(frame, _)| {
                let frame = Frame::new(frame.get());
                self.ram.holds(frame, word_of(frame))
            });
        if !whole {
            println!("@verify FAIL moved there={there} came={came} back={back}");
            return;
        }
        let freed = self.zone.free(start, order).is_ok();
        println!(
            "@moved frames={} came={came} freed={freed} nanos={nanos}",
            count.get()
        );
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
             hypercalls={} given_2m={} given_64k={} given_4k={} taken_2m={} taken_64k={} \
             taken_4k={} downgrades={} short={} holes={}",
            interrupts::wakeups(),
            self.balloon_wakeups,
            interrupts::taken(),
            self.zone.free_frames().get(),
            self.lost(),
            counters.hypercalls,
            counters.given.superpages,
            counters.given.medium,
            counters.given.frames,
            counters.taken.superpages,
            counters.taken.medium,
            counters.taken.frames,
            counters.downgrades,
            counters.short_counts,
            counters.holes_found,
        );
    }
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
