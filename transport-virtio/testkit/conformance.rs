//! The rules as a suite for any driver.
//!
//! A [`Driver`] is brought up on devices numbered and sized like known models; a
//! kernel beside it allocates and frees and runs out of memory, the host moves its
//! target, opens rounds of hints, and under each numbering also answers late, oddly,
//! what it was not asked, or not at all. The [`checker`](super::checker) notes each rule
//! that is broken, and says of each who is bound by it and how it is seen.
//! [`conformance_suite!`](crate::conformance_suite) makes a test of each rule.
//!
//! A driver that waits in a loop for an answer hangs the suite.

mod scenarios;
mod stage;

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use balloon_core::{FrameCount, FrameRange, Pfn};

use super::{FakeDevice, FakeMemory, Profile};
use crate::protocol::features::Features;

/// What is around the driver.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// What the device is like.
    pub profile: Profile,
    /// The frames there are, all free.
    pub frames: FrameRange,
    /// What the driver is to do beside the balloon, where the device can:
    /// `STATS_VQ`, `FREE_PAGE_HINT`, `PAGE_REPORTING`.
    pub services: Features,
    /// What every free frame holds, if the kernel relies on that. It fills what
    /// it gets back.
    pub poison: Option<u32>,
    /// No two neighbouring frames are handed out one after the other.
    pub scattered: bool,
    /// The host's pages are of 2 MiB and cannot be split.
    pub superpages: bool,
    /// An IOMMU sits between device and memory.
    pub translated: bool,
    /// Frames that are not for the balloon.
    pub floor: FrameCount,
}

impl Kernel {
    /// One that wants nothing but a balloon.
    #[must_use]
    pub fn new(profile: Profile) -> Self {
        Self {
            profile,
            frames: frames(0x100, 1024),
            services: Features::empty(),
            poison: None,
            scattered: false,
            superpages: false,
            translated: false,
            floor: FrameCount::new(32),
        }
    }
}

const fn frames(first: u64, count: u64) -> FrameRange {
    match FrameRange::new(Pfn::new(first), FrameCount::new(count)) {
        Some(range) => range,
        None => panic!("frames that there can be"),
    }
}

/// A driver on a fake device, with its kernel, to be tested.
pub trait Driver: Sized {
    /// Bytes of memory to share with the device.
    const DMA_BYTES: usize;

    /// Whether it drives devices of this type.
    fn binds_to(device_type: u16) -> bool;

    /// Brings it up; `None` if it refuses the device.
    fn bring_up(device: FakeDevice, memory: FakeMemory, kernel: &Kernel) -> Option<Self>;

    /// The device it drives.
    fn device(&mut self) -> &mut FakeDevice;

    /// A millisecond has passed, interrupts have come: does what there is to do,
    /// without waiting.
    fn step(&mut self);

    /// The kernel takes a frame for a program, which writes to it.
    fn allocate(&mut self) -> Option<Pfn>;

    /// A program gives a frame back.
    fn free(&mut self, frame: Pfn);

    /// Memory is short: gives the kernel what it may have at once, be it hinted or
    /// ballooned.
    fn relieve(&mut self) {}

    /// The device may have asked for a reset, and the kernel lets the driver start it anew.
    /// A driver that does so by itself has done it with its last steps.
    fn restart(&mut self) {}

    /// Whether it shows that the device owes it answers.
    fn is_waiting(&self) -> bool;

    /// Frames the kernel has filled since this was last asked.
    fn take_filled(&mut self) -> Vec<Pfn> {
        Vec::new()
    }
}

/// The rules that the driver breaks, by name.
#[must_use]
pub fn broken_rules<D: Driver>() -> BTreeSet<&'static str> {
    scenarios::play_all::<D>(None)
}

/// Whether the driver breaks this rule: as soon as that is seen, the rest is
/// left out.
#[must_use]
pub fn breaks<D: Driver>(rule: &str) -> bool {
    scenarios::play_all::<D>(Some(rule)).contains(rule)
}

/// Makes a test of each rule for a [`Driver`](crate::testing::conformance::Driver).
///
/// In a module of its own, in a test with the standard library:
///
/// ```text
/// transport_virtio::conformance_suite!(MyDriver);
/// ```
#[macro_export]
macro_rules! conformance_suite {
    ($driver:ty) => {
        $crate::conformance_suite!(
            $driver,
            rule_01_device_5_and_not_13: "1",
            rule_02_queues_only_with_their_features: "2",
            rule_03_must_tell_host_is_accepted: "3",
            rule_04_poison_is_declined_by_who_does_not_poison: "4",
            rule_05_no_reports_to_who_does_not_know_the_poison: "5",
            rule_06_version_1_and_the_generation: "6",
            rule_07_little_endian: "7",
            rule_08_r7_nothing_is_read_that_is_not_there: "8",
            rule_09_queues_then_driver_ok_then_notifications: "9",
            rule_10_poison_is_told_before_driver_ok: "10",
            rule_11_gives_while_below_the_target: "11",
            rule_12_sizes_follow_the_target_down: "12",
            rule_13_takes_nothing_back_against_the_target: "13",
            rule_14_takes_back_against_the_target_only_in_need: "14",
            rule_15_what_was_told_away_is_told_back: "15",
            rule_16_must_tell_host_waits_for_the_answer: "16",
            rule_17_no_use_between_giving_and_its_answer: "17",
            rule_18_given_before_told_back: "18",
            rule_19_the_size_is_published: "19",
            rule_20_page_numbers_of_guest_memory: "20",
            rule_21_used_lengths_are_ignored: "21",
            rule_22_filled_when_the_device_is_done: "22",
            rule_23_one_statistics_buffer: "23",
            rule_24_again_after_each_answer: "24",
            rule_25_each_statistic_once: "25",
            rule_26_the_same_statistics_each_time: "26",
            rule_27_whole_statistics: "27",
            rule_28_37_the_legacy_interface_is_not_driven: "28",
            rule_30_commands_of_four_bytes: "30",
            rule_31_a_round_is_opened_once: "31",
            rule_32_hints_are_writable_and_in_a_round: "32",
            rule_33_a_round_is_closed: "33",
            rule_34_no_use_before_the_hint_is_answered: "34",
            rule_35_hinted_frames_are_filled_before_use: "35",
            rule_36_hinted_frames_are_kept_until_done: "36",
            rule_38_frames_taken_back_hold_the_poison: "38",
            rule_39_no_use_before_the_report_is_answered: "39",
            rule_40_reported_frames_hold_the_poison: "40",
            rule_41_large_ranges_are_reported: "41",
            rule_r1_256_page_numbers: "R1",
            rule_r2_one_descriptor: "R2",
            rule_r3_page_numbers_rise: "R3",
            rule_r4_whole_host_pages: "R4",
            rule_r4b_no_hint_of_four_bytes: "R4b",
            rule_r5_queues_where_they_are: "R5",
            rule_r6_queues_of_any_size: "R6",
            rule_r8_a_deaf_device_is_seen: "R8",
            rule_r9_256_statistics: "R9",
            rule_r10_platform_access_is_accepted: "R10",
            rule_r11_suspend_is_declined: "R11",
            rule_r12_memory_is_left: "R12",
            rule_r13_no_ranges_through_an_iommu: "R13",
            rule_r14_frames_of_a_device_that_is_gone_come_home: "R14",
            rule_r15_a_device_that_asks_for_a_reset_gets_one: "R15",
        );
    };
    ($driver:ty, $($test:ident: $rule:literal,)*) => {
        fn broken_rules() -> &'static std::collections::BTreeSet<&'static str> {
            type Rules = std::collections::BTreeSet<&'static str>;
            static BROKEN: std::sync::OnceLock<Rules> = std::sync::OnceLock::new();
            BROKEN.get_or_init($crate::testing::conformance::broken_rules::<$driver>)
        }

        $(
            #[test]
            fn $test() {
                assert!(!broken_rules().contains($rule), "{:?}", broken_rules());
            }
        )*

        /// The rules there are tests of.
        const RULES: &[&str] = &[$($rule),*];

        #[test]
        fn rules_without_a_test_are_kept() {
            let without = broken_rules().iter().filter(|rule| !RULES.contains(rule));
            // The test of 28 speaks for 37.
            let without: Vec<_> = without.filter(|rule| **rule != "37").collect();
            assert!(without.is_empty(), "{without:?}");
        }
    };
}
