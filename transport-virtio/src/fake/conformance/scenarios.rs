//! What happens around a driver while its judge watches.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use balloon_core::{FrameCount, Order, Pfn};

use super::{Driver, Kernel, frames};
use crate::fake::{FakeDevice, FakeMemory, Profile};
use crate::protocol::{Features, QueueId};

/// Steps in which a driver is to get anywhere.
const PATIENCE: usize = 2000;

const SERVICES: Features = Features::STATS_VQ
    .union(Features::FREE_PAGE_HINT)
    .union(Features::PAGE_REPORTING);

const SUSPEND: Features = Features::from_bits_retain(1 << 43);

type Rules = BTreeSet<&'static str>;

/// A kernel, and what happens around it.
type Scenario<D> = (Kernel, fn(&mut Stage<D>));

/// The rules broken in all scenarios, or up to the one in which `until` is.
pub(super) fn play_all<D: Driver>(until: Option<&str>) -> Rules {
    let mut rules = Rules::new();
    if !D::binds_to(5) || D::binds_to(13) {
        rules.insert("1");
    }
    let legacy = Profile::qemu(SERVICES).without(Features::VERSION_1);
    if Stage::<D>::start(&Kernel::new(legacy)).is_some() {
        rules.extend(["28", "37"]);
    }
    for (kernel, scenario) in scenarios::<D>() {
        if until.is_some_and(|rule| rules.contains(rule)) {
            break;
        }
        play(&mut rules, &kernel, scenario);
    }
    let quiet = Kernel::new(Profile::qemu(Features::empty()));
    let divided = || Stage::<D>::start(&quiet).is_some_and(Stage::believes_lies);
    if until.is_none_or(|rule| !rules.contains(rule)) && divided() {
        rules.insert("17");
    }
    rules
}

fn scenarios<D: Driver>() -> Vec<Scenario<D>> {
    let quiet = Kernel::new(Profile::qemu(Features::empty()));
    let serving = |profile| Kernel {
        services: SERVICES,
        ..Kernel::new(profile)
    };
    let hinting = Profile::qemu(Features::FREE_PAGE_HINT);
    let mut scenarios: Vec<Scenario<D>> = Vec::from([
        (quiet.clone(), Stage::odd_lengths as fn(&mut Stage<D>)),
        (quiet.clone(), Stage::restless),
        (quiet.clone(), Stage::deaf),
        (quiet.clone(), Stage::greedy),
        (quiet.clone(), Stage::under_pressure),
        (serving(quiet.profile), Stage::statistics),
        (serving(hinting), Stage::hints),
        (superpages(), Stage::superpages),
    ]);
    // Queues of any size: a driver that refuses one has not read R6.
    for size in [2, 32, 256] {
        let profile = Profile::qemu(SERVICES)
            .with_size(QueueId::Inflate, size)
            .with_size(QueueId::Reporting, size);
        scenarios.push((serving(profile), Stage::live));
    }
    // Kernels that rely on what free frames hold; devices that know and one that
    // does not.
    for profile in [
        Profile::qemu(SERVICES | Features::PAGE_POISON),
        Profile::specification(Features::MUST_TELL_HOST | Features::PAGE_POISON),
        Profile::qemu(Features::PAGE_REPORTING),
    ] {
        let poison = Some(0x5a5a_5a5a);
        let kernel = Kernel {
            poison,
            ..serving(profile)
        };
        scenarios.push((kernel, Stage::live));
    }
    for profile in profiles() {
        for services in [Features::empty(), SERVICES] {
            for scattered in [false, true] {
                let kernel = Kernel {
                    services,
                    scattered,
                    ..Kernel::new(profile)
                };
                scenarios.push((kernel, Stage::live));
            }
        }
    }
    scenarios
}

/// Each device model, in variants that matter.
fn profiles() -> [Profile; 10] {
    [
        Profile::specification(Features::PAGE_REPORTING),
        Profile::specification(Features::MUST_TELL_HOST | SERVICES),
        Profile::specification(Features::ACCESS_PLATFORM | SUSPEND),
        Profile::qemu(Features::PAGE_REPORTING | Features::PAGE_POISON),
        Profile::qemu(SERVICES | Features::PAGE_POISON),
        Profile::firecracker(Features::FREE_PAGE_HINT | Features::PAGE_REPORTING),
        Profile::cloud_hypervisor(Features::PAGE_REPORTING),
        Profile::cloud_hypervisor(Features::empty()),
        Profile::crosvm(Features::STATS_VQ | Features::PAGE_REPORTING),
        Profile::libkrun(SERVICES),
    ]
}

fn superpages() -> Kernel {
    let page = Order::SUPERPAGE.frames().get();
    Kernel {
        superpages: true,
        frames: frames(page, 4 * page),
        ..Kernel::new(Profile::qemu(Features::empty()))
    }
}

/// One scenario; what it breaks is added to `rules`.
fn play<D: Driver>(rules: &mut Rules, kernel: &Kernel, scenario: fn(&mut Stage<D>)) {
    let Some(mut stage) = Stage::start(kernel) else {
        // It has to drive every device here; they differ in the sizes of queues.
        rules.insert("R6");
        return;
    };
    scenario(&mut stage);
    let violations = stage.driver.device().judge().violations();
    rules.extend(violations.iter().map(|violation| violation.rule));
}

/// A driver, the programs beside it, and chance.
struct Stage<D> {
    driver: D,
    kernel: Kernel,
    used: Vec<Pfn>,
    /// Requests that the device has taken and not answered.
    taken: Vec<(QueueId, u32)>,
    random: u64,
}

impl<D: Driver> Stage<D> {
    fn start(kernel: &Kernel) -> Option<Self> {
        let memory = FakeMemory::new(D::DMA_BYTES);
        let mut device = FakeDevice::new(kernel.profile, memory.clone());
        let judge = device.judge_mut();
        judge.set_memory(kernel.frames.start()..kernel.frames.end());
        if kernel.poison.is_some() {
            judge.set_poison();
        }
        if kernel.superpages {
            judge.set_superpages();
        }
        Some(Self {
            driver: D::bring_up(device, memory, kernel)?,
            kernel: kernel.clone(),
            used: Vec::new(),
            taken: Vec::new(),
            random: 0x9e37_79b9_7f4a_7c15,
        })
    }

    fn device(&mut self) -> &mut FakeDevice {
        self.driver.device()
    }

    fn note(&mut self, rule: &'static str, what: &'static str) {
        self.device().judge_mut().note(rule, what);
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % bound
    }

    fn step(&mut self) {
        self.driver.step();
        for pfn in self.driver.take_filled() {
            self.device().judge_mut().fills(pfn);
        }
        self.device().judge_mut().steps();
    }

    fn allocate(&mut self) -> bool {
        let Some(pfn) = self.driver.allocate() else {
            return false;
        };
        self.device().judge_mut().uses(pfn);
        self.used.push(pfn);
        true
    }

    /// Programs end; a few of them at random, or all.
    fn free_down_to(&mut self, keep: usize) {
        while self.used.len() > keep {
            let pfn = self.used.swap_remove(0);
            self.driver.free(pfn);
        }
    }

    /// Programs come and go.
    fn churn(&mut self) {
        for _ in 0..self.below(8) {
            self.allocate();
        }
        let keep = 32 + self.below(32);
        self.free_down_to(usize::try_from(keep).unwrap_or(0));
    }

    /// The device takes some of what there is, and answers some of what it has.
    fn serve(&mut self) {
        for queue in QueueId::ALL {
            for _ in 0..self.below(4) {
                if let Some(chain) = self.device().take(queue) {
                    self.taken.push((queue, chain.head.into()));
                }
            }
        }
        let answers = self.below(8).min(self.taken.len() as u64);
        let answers = usize::try_from(answers).unwrap_or(0);
        for (queue, head) in self.taken.drain(..answers).collect::<Vec<_>>() {
            self.device().answer(queue, head, 0);
        }
    }

    /// Whether the driver publishes this size within its time.
    fn reaches(&mut self, target: u32) -> bool {
        self.device().set_target(target);
        (0..PATIENCE).any(|_| {
            self.step();
            self.serve();
            self.device().actual() == target
        })
    }

    fn live(&mut self) {
        let frames = self.kernel.frames.count().get();
        for round in 0..160_u32 {
            if round % 20 == 0 {
                let target = self.below(frames - 256);
                self.device().set_target(u32::try_from(target).unwrap_or(0));
            }
            // Open a round, open another over it, stop it, finish it.
            match round % 120 {
                0 | 30 => self.device().set_hint_command(7 + round),
                60 => self.device().set_hint_command(0),
                90 => self.device().set_hint_command(1),
                _ => {}
            }
            self.step();
            self.churn();
            self.serve();
        }
        self.device().set_hint_command(1);
        self.free_down_to(0);
        let giving = u32::try_from(frames / 2).unwrap_or(0);
        if !self.reaches(giving) {
            self.note("11", "a size that is possible is not reached");
        }
        self.settle();
        let told = self.device().judge().told();
        let bulk = self
            .kernel
            .profile
            .offered()
            .contains(Features::PAGE_REPORTING);
        if !bulk && self.device().actual() as usize != told {
            self.note("19", "the size is not what was given");
        }
        if self.reaches(0) {
            self.settle();
            if self.device().judge().told() != 0 {
                self.note("15", "taken back without having been told back");
            }
        }
        // What came back is used.
        while self.allocate() {}
    }

    /// All that is on its way arrives.
    fn settle(&mut self) {
        for _ in 0..50 {
            self.step();
            self.serve();
        }
    }

    /// Whether a device that answers what it was not asked, twice, and in the end
    /// with an index that ran away, makes the driver give a frame two owners.
    ///
    /// The judge takes such a device at its word, so it is not asked.
    fn believes_lies(mut self) -> bool {
        for round in 0..300_u32 {
            self.device().set_target(round % 64 * 8);
            self.step();
            for queue in [QueueId::Inflate, QueueId::Deflate] {
                let head = self
                    .device()
                    .take(queue)
                    .map_or(99, |chain| chain.head.into());
                for id in [head, head ^ 1, u32::MAX - round] {
                    self.device().answer(queue, id, round);
                }
            }
            self.churn();
        }
        self.device().jump(QueueId::Inflate, 1000);
        self.settle();
        while self.allocate() {}
        let owners = self.used.len();
        self.used.sort_unstable();
        self.used.dedup();
        owners != self.used.len()
    }

    fn odd_lengths(&mut self) {
        self.device().set_target(100);
        for written in (0..200_u32).map(|round| u32::MAX - round) {
            self.step();
            if let Some(chain) = self.device().take(QueueId::Inflate) {
                let head = chain.head.into();
                self.device().answer(QueueId::Inflate, head, written);
            }
        }
        let told = self.device().judge().told();
        if self.device().actual() != 100 || told != 100 {
            self.note("21", "a used length is believed");
        }
    }

    /// The configuration changes at every look, for a while.
    fn restless(&mut self) {
        for _ in 0..20 {
            self.device().restless = true;
            self.step();
        }
        self.device().restless = false;
        if !self.reaches(100) {
            self.note("11", "a device that was restless is given up");
        }
    }

    fn deaf(&mut self) {
        self.device().set_target(500);
        for _ in 0..300 {
            self.step();
            self.churn();
        }
        if !self.driver.is_waiting() {
            self.note("R8", "nobody knows that the device does not answer");
        }
        if self.device().actual() != 0 {
            self.note("17", "counted as given before the answer");
        }
    }

    fn greedy(&mut self) {
        self.device().set_target(u32::MAX);
        for _ in 0..PATIENCE / 4 {
            self.step();
            self.serve();
        }
        if !self.allocate() {
            self.note("R12", "no memory is left");
        }
    }

    /// The kernel needs memory badly, and the host has not changed its mind.
    fn under_pressure(&mut self) {
        self.reaches(500);
        self.settle();
        let given = (self.device().actual(), self.device().judge().told());
        while self.allocate() {}
        for _ in 0..200 {
            self.step();
            self.serve();
        }
        if given != (self.device().actual(), self.device().judge().told()) {
            self.note("13", "taken back against the target");
        }
    }

    fn statistics(&mut self) {
        for round in 0..4 {
            for _ in 0..4 {
                self.step();
            }
            let mut chains = Vec::new();
            while let Some(chain) = self.device().take(QueueId::Statistics) {
                chains.push(chain);
            }
            if !self.device().judge().has_statistics() {
                let what = if round == 0 {
                    "no first statistics buffer"
                } else {
                    "no buffer after an answer"
                };
                self.note("24", what);
            }
            for chain in chains {
                let head = chain.head.into();
                self.device().answer(QueueId::Statistics, head, 0);
            }
        }
    }

    fn hints(&mut self) {
        let frames = self.kernel.frames.count().get();
        let obtainable = |stage: &mut Self| {
            while stage.allocate() {}
            let count = stage.used.len() as u64;
            stage.free_down_to(0);
            count
        };
        self.device().set_hint_command(9);
        for _ in 0..frames * 2 {
            self.step();
            self.serve();
        }
        if self.device().judge().in_round() {
            self.note("33", "a round with nothing more to offer stays open");
        }
        self.device().set_hint_command(0);
        self.settle();
        obtainable(self);
        self.device().set_hint_command(1);
        for _ in 0..PATIENCE {
            self.step();
            self.serve();
        }
        let floor = self.kernel.floor.get();
        if obtainable(self) + floor < frames {
            self.note("36", "hinted frames are not released at DONE");
        }
    }

    fn superpages(&mut self) {
        let page = u32::try_from(Order::SUPERPAGE.frames().get()).unwrap_or(0);
        self.reaches(2 * page);
        let freed = self.device().judge().freed();
        if freed < FrameCount::new(page.into()) {
            self.note("R4", "no host page is freed");
        }
    }
}
