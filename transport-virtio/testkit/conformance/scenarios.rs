//! What happens around a driver while its checker watches.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use balloon_core::{FrameCount, Order};

use super::stage::{PATIENCE, Stage};
use super::{Driver, Kernel, frames};
use crate::protocol::features::Features;
use crate::protocol::numbering::QueueId;
use crate::testing::Profile;

const SERVICES: Features = Features::STATS_VQ
    .union(Features::FREE_PAGE_HINT)
    .union(Features::PAGE_REPORTING);

/// Frames of a range worth a report: less frees nothing on a host whose pages
/// are of 64 KiB.
const LARGE: u64 = 16;

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
    rules
}

fn scenarios<D: Driver>() -> Vec<Scenario<D>> {
    let quiet = Profile::qemu(Features::empty());
    let serving = |profile| Kernel {
        services: SERVICES,
        ..Kernel::new(profile)
    };
    let hinting = Profile::qemu(Features::FREE_PAGE_HINT);
    let reporting = Profile::qemu(Features::PAGE_REPORTING);
    let mut scenarios: Vec<Scenario<D>> = Vec::from([
        (serving(quiet), Stage::statistics as fn(&mut Stage<D>)),
        (serving(hinting), Stage::hints),
        (piecemeal(serving(hinting)), Stage::stopped_in_a_round),
        (piecemeal(serving(hinting)), Stage::done_in_a_round),
        (relying(serving(hinting)), Stage::short_in_a_round),
        (serving(reporting), Stage::reports),
        (superpages(), Stage::superpages),
    ]);
    for profile in [quiet, reporting] {
        let kernel = Kernel::new(profile.with(Features::DEFLATE_ON_OOM));
        scenarios.push((kernel, Stage::may_deflate_when_short));
    }
    for kernel in [
        Kernel::new(quiet),
        Kernel::new(reporting),
        serving(Profile::qemu(SERVICES)),
    ] {
        let ends: [fn(&mut Stage<D>); 3] = [Stage::reads_ones, Stage::reads_zeros, Stage::fails];
        scenarios.extend(ends.map(|scenario| (kernel.clone(), scenario)));
    }
    scenarios.extend(hostile(&Kernel::new(quiet)));
    for translated in [false, true] {
        let kernel = serving(Profile::qemu(SERVICES | Features::ACCESS_PLATFORM));
        let kernel = Kernel {
            translated,
            ..kernel
        };
        scenarios.push((kernel, Stage::live));
    }
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
        reporting,
    ] {
        scenarios.push((relying(serving(profile)), Stage::live));
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
    for profile in profiles() {
        for kernel in [Kernel::new(profile), serving(profile)] {
            scenarios.extend(hostile(&kernel));
        }
    }
    scenarios
}

/// Hosts that say odd things, or ask for what they cannot have.
fn hostile<D: Driver>(kernel: &Kernel) -> [Scenario<D>; 7] {
    let scenarios: [fn(&mut Stage<D>); 7] = [
        Stage::odd_lengths,
        Stage::restless,
        Stage::deaf,
        Stage::greedy,
        Stage::under_pressure,
        Stage::shrinking,
        Stage::lied_to,
    ];
    scenarios.map(|scenario| (kernel.clone(), scenario))
}

/// The same kernel, relying on what its free frames hold.
fn relying(kernel: Kernel) -> Kernel {
    Kernel {
        poison: Some(0x5a5a_5a5a),
        ..kernel
    }
}

/// The same kernel, with many ranges to name.
fn piecemeal(kernel: Kernel) -> Kernel {
    Kernel {
        scattered: true,
        ..kernel
    }
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
        // It has to drive every device here; they differ in the sizes of queues, and one
        // insists.
        let offered = kernel.profile.offered();
        let insists = offered.contains(Features::ACCESS_PLATFORM);
        rules.insert(if insists { "R10" } else { "R6" });
        return;
    };
    scenario(&mut stage);
    let violations = stage.driver.device().checker().violations();
    rules.extend(violations.iter().map(|violation| violation.rule));
}

impl<D: Driver> Stage<D> {
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
        if !self.size_is_true() {
            self.note("19", "the size is not what was given");
        }
        self.free_down_to(0);
        if self.reaches(0) {
            self.settle();
            if self.device().checker().told() != 0 {
                self.note("15", "taken back without having been told back");
            }
        }
        // What came back is used.
        if !self.size_is_true() {
            self.note("19", "the size is not what is left to take back");
        }
    }

    /// The host wants back to what it gave, in one go.
    fn shrinking(&mut self) {
        self.reaches(500);
        self.settle();
        self.device().set_target(100);
        let given = |stage: &mut Self| {
            let device = stage.device();
            (device.actual(), device.checker().told())
        };
        let mut before = given(self);
        for _ in 0..PATIENCE {
            self.step();
            self.serve();
            let now = given(self);
            if now.0 > before.0 || now.1 > before.1 {
                self.note("12", "given while the target was below the size");
            }
            before = now;
            if now.0 == 100 {
                return;
            }
        }
        self.note("12", "nothing, or not all, is taken back");
    }

    /// A device that answers what it was not asked, twice, with any length, and in
    /// the end with indices that ran away: no frame may have two owners.
    fn lied_to(&mut self) {
        for round in 0..120_u32 {
            self.device().set_target(round % 64 * 8);
            match round % 60 {
                0 | 10 => self.device().set_hint_command(7 + round),
                30 => self.device().set_hint_command(0),
                40 => self.device().set_hint_command(1),
                _ => {}
            }
            self.step();
            for queue in QueueId::ALL {
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
        for queue in QueueId::ALL {
            self.device().jump(queue, 1000);
        }
        self.settle();
        self.allocate_all();
        // The checker took the device at its word.
        self.device().checker_mut().forgive();
        let owners = self.used.len();
        self.used.sort_unstable();
        self.used.dedup();
        if owners != self.used.len() {
            self.note("17", "a frame has two owners");
        }
    }

    fn odd_lengths(&mut self) {
        self.device().set_target(100);
        for written in (0..200_u32).map(|round| u32::MAX - round) {
            self.step();
            for queue in QueueId::ALL {
                if let Some(chain) = self.device().take(queue) {
                    let head = chain.head.into();
                    self.device().answer(queue, head, written);
                }
            }
        }
        if self.device().actual() != 100 || !self.size_is_true() {
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

    /// A balloon of 300, and more on its way.
    fn half_way(&mut self) {
        self.reaches(300);
        self.device().set_hint_command(9);
        self.device().set_target(500);
        for _ in 0..4 {
            self.step();
        }
    }

    fn reads_ones(&mut self) {
        self.is_pulled_out(0xff);
    }

    fn reads_zeros(&mut self) {
        self.is_pulled_out(0);
    }

    /// The device is pulled out, and its place reads as this: nobody says so.
    fn is_pulled_out(&mut self, byte: u8) {
        self.half_way();
        self.device().gone = Some(byte);
        self.device().checker_mut().leaves();
        for _ in 0..PATIENCE {
            self.step();
        }
        self.allocate_all();
        if self.used.len() as u64 != self.kernel.frames.count().get() {
            self.note(
                "R14",
                "frames of a device that is gone stay away, or more go",
            );
        }
    }

    /// The device fails, and asks for a reset.
    fn fails(&mut self) {
        self.half_way();
        self.device().fail();
        let before = self.device().history().len();
        for _ in 0..50 {
            self.step();
        }
        // Until it is reset it may do what it was asked to.
        self.allocate_all();
        self.free_down_to(0);
        self.driver.restart();
        self.note_filled();
        self.forget_taken();
        let device = self.device();
        let mut since = device.history().iter().skip(before);
        if !since.any(|status| status.is_empty()) {
            return self.note("R15", "a device that asks for a reset is not given one");
        }
        self.device().set_hint_command(1);
        if !self.reaches(200) || !self.size_is_true() {
            self.note("R15", "a device is not followed after its reset");
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
        let given = (self.device().actual(), self.device().checker().told());
        self.allocate_all();
        for _ in 0..200 {
            self.relieve();
            self.step();
            self.serve();
        }
        if given != (self.device().actual(), self.device().checker().told()) {
            self.note("13", "taken back against the target");
        }
    }

    /// The host has allowed what [`under_pressure`](Self::under_pressure) forbids.
    fn may_deflate_when_short(&mut self) {
        self.reaches(500);
        for _ in 0..200 {
            self.step();
            self.serve();
            if self.device().actual() != 500 {
                return self.note("14", "taken back without need");
            }
        }
        self.allocate_all();
        self.relieve();
        if !self.size_is_true() {
            self.note("19", "the size is not what is left");
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
            if !self.device().checker().has_statistics() {
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
            stage.allocate_all();
            let count = stage.used.len() as u64;
            stage.free_down_to(0);
            count
        };
        self.device().set_hint_command(9);
        for _ in 0..frames * 2 {
            self.step();
            self.serve();
        }
        if self.device().checker().in_round() {
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

    fn stopped_in_a_round(&mut self) {
        self.end_a_round_by(0);
    }

    fn done_in_a_round(&mut self) {
        self.end_a_round_by(1);
    }

    /// The host has heard enough, and says so by a moved generation.
    fn end_a_round_by(&mut self, command: u32) {
        self.device().set_hint_command(9);
        for _ in 0..40 {
            self.step();
            self.serve();
        }
        self.device().set_hint_command(command);
        // A driver may need steps to hear it, and has requests on their way.
        for _ in 0..4 {
            self.step();
        }
        self.take(QueueId::Hint, usize::MAX);
        let named = self.device().checker().hints_taken();
        self.settle();
        self.take(QueueId::Hint, usize::MAX);
        if self.device().checker().hints_taken() != named {
            self.note("32", "hints in a round that the host has ended");
        }
    }

    /// Memory is short while the host may still copy hinted frames or not.
    fn short_in_a_round(&mut self) {
        self.device().set_hint_command(9);
        for _ in 0..self.kernel.frames.count().get() {
            self.step();
            self.serve();
        }
        self.settle();
        self.relieve();
        self.allocate_all();
    }

    /// All memory is free, in one piece.
    fn reports(&mut self) {
        for _ in 0..PATIENCE / 4 {
            self.step();
            self.serve();
        }
        let (frames, ranges) = self.device().checker().reported();
        if frames < ranges * LARGE {
            self.note("41", "free memory is reported piecemeal");
        }
    }

    fn superpages(&mut self) {
        let page = u32::try_from(Order::SUPERPAGE.frames().get()).unwrap_or(0);
        self.reaches(2 * page);
        let freed = self.device().checker().freed();
        if freed < FrameCount::new(page.into()) {
            self.note("R4", "no host page is freed");
        }
    }
}
