//! The rules for a virtio-balloon driver, each by its number: 1 to 41 are the
//! specification's, R1 to R12 what known devices demand on top.
//!
//! 28 and 37 bind the legacy interface: what there is to test is that it is not
//! driven. 22 and 38 bind the kernel's frame source, which owns the content of
//! frames: what there is to test is that it is asked to fill each at a time when
//! the device no longer writes to it.
//!
//! Most run the whole driver against a device whose judge watches; the judge's
//! own table says what it looks at. `judge_sees` at the end shows that a driver
//! that breaks a rule is caught.

// Whole guests on memory that is safe code: hours under Miri, and nothing for it
// to find. What is unsafe it sees in the unit tests.
#![cfg(not(any(miri, loom)))]
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

extern crate alloc;

mod guest;
mod judge_sees;
mod services;

use balloon_core::{
    Budget, Engine, FrameCount, FrameRange, GivePath, Ledger, Nanos, Pfn, Policy as Pace, Slots,
    Transport, Unit,
};
use transport_virtio::fake::{self, FakeBalloon, Profile};
use transport_virtio::pci::PciId;
use transport_virtio::{ConfigIo, Device, Features, Handshake, Policy, QueueId, wanted_features};

use guest::{FIRST, FRAMES, Guest, QUEUES, SUSPEND, broken, never_broken, profiles, serving};

#[test]
fn rule_01_device_5_and_not_13() {
    assert!(PciId::MODERN.is_balloon() && PciId::TRANSITIONAL.is_balloon());
    assert!(
        !PciId {
            vendor: 0x1af4,
            device: 0x1040 + 13
        }
        .is_balloon()
    );
}

#[test]
fn rule_02_r5_r6_queues_are_found_whatever_their_numbers_and_sizes() {
    for profile in profiles() {
        for size in [2, 32, 256] {
            let profile = profile.with_size(QueueId::Reporting, size);
            let balloon = fake::bring_up::<16>(profile, &Policy::new()).unwrap();
            let found = |queue| balloon.queues().map().index(queue).map(|index| index.get());
            for queue in QUEUES {
                let wanted = balloon.negotiated().contains(queue.feature());
                assert_eq!(
                    found(queue),
                    profile.index(queue).filter(|_| wanted),
                    "{profile:?}"
                );
            }
            assert_eq!(broken(balloon.queues().device()), [""; 0]);
        }
    }
}

#[test]
fn rule_03_must_tell_host_is_accepted_when_offered() {
    let profile = Profile::specification(Features::MUST_TELL_HOST | Features::PAGE_REPORTING);
    let guest = Guest::new(profile, Policy::new());
    assert!(
        guest
            .balloon
            .negotiated()
            .contains(Features::MUST_TELL_HOST)
    );
    assert_eq!(guest.broken(), [""; 0]);
}

#[test]
fn rule_04_poison_is_declined_by_a_guest_that_does_not_poison() {
    let profile = Profile::qemu(Features::PAGE_POISON);
    assert!(
        !Guest::new(profile, Policy::new())
            .balloon
            .negotiated()
            .contains(Features::PAGE_POISON)
    );
}

#[test]
fn rule_06_version_1_and_the_generation_guard() {
    let mut guest = Guest::new(Profile::qemu(Features::empty()), Policy::new());
    assert!(guest.balloon.negotiated().contains(Features::VERSION_1));
    guest.device().restless = true;
    assert!(guest.balloon.read_target().is_err());
    guest.device().restless = false;
    assert!(guest.balloon.read_target().is_ok());
}

#[test]
fn rule_07_sizes_are_little_endian() {
    // On every CPU: the fake speaks values, the memory of the rings bytes.
    let mut guest = Guest::new(
        Profile::qemu(Features::empty()),
        Policy::new().without_bulk(),
    );
    guest.device().set_target(1);
    guest.step();
    guest.step();
    let chain = guest.device().take(QueueId::Inflate).unwrap();
    let content = guest.device().content(chain.descriptors[0]);
    assert_eq!(content[2..], [0, 0], "low half first");
    assert!(content[1] != 0);
}

#[test]
fn rule_08_r7_nothing_is_read_that_is_not_there() {
    never_broken(&["8"]);
    let short = Profile::cloud_hypervisor(Features::PAGE_REPORTING).with_config(8);
    let mut guest = Guest::new(short, Policy::new());
    guest.live();
    assert_eq!(guest.broken(), [""; 0]);
}

#[test]
fn rule_09_queues_before_driver_ok_before_notifications() {
    never_broken(&["9"]);
}

#[test]
fn rule_11_r12_gives_while_below_the_target_but_not_everything() {
    let mut guest = Guest::new(Profile::qemu(Features::empty()), Policy::new());
    guest.settle(1000);
    assert_eq!(guest.held(), 1000);
    // A target above all memory: what can be given is, and nothing is lost.
    guest.device().set_target(u32::MAX);
    guest.signal().config_changed();
    for _ in 0..2000 {
        guest.step();
        guest.serve();
    }
    assert_eq!(u64::from(guest.device().actual()), guest.held());
    assert!(guest.held() <= FRAMES);
    guest.source.check(FrameCount::ZERO);
}

#[test]
fn rule_12_takes_back_while_above_the_target() {
    let mut guest = Guest::new(Profile::qemu(Features::PAGE_REPORTING), Policy::new());
    guest.settle(1000);
    guest.settle(10);
    assert_eq!(guest.held(), 10);
}

#[test]
fn rule_13_nothing_is_taken_back_against_the_target() {
    for profile in profiles() {
        let mut guest = Guest::new(profile, Policy::new());
        guest.settle(1000);
        let before = guest.held();
        // The guest needs memory badly.
        while guest.source.allocate().is_some() {}
        for _ in 0..500 {
            guest.step();
            guest.serve();
            assert_eq!((guest.held(), guest.device().actual()), (before, 1000));
        }
    }
}

#[test]
fn rule_14_deflate_on_oom_is_accepted() {
    let guest = Guest::new(Profile::qemu(Features::DEFLATE_ON_OOM), Policy::new());
    assert!(guest.balloon.capabilities().deflate_on_oom);
    let without = Guest::new(Profile::qemu(Features::empty()), Policy::new());
    assert!(!without.balloon.capabilities().deflate_on_oom);
}

#[test]
fn rule_15_16_17_18_every_frame_has_one_owner_at_a_time() {
    never_broken(&["15", "16", "17", "18"]);
}

#[test]
fn rule_15_what_was_told_away_is_told_back() {
    let mut guest = Guest::new(Profile::qemu(Features::empty()), Policy::new());
    guest.settle(1000);
    assert_eq!(guest.device().judge().told(), 1000);
    guest.settle(0);
    assert_eq!(guest.device().judge().told(), 0);
}

#[test]
fn rule_16_with_must_tell_host_frames_wait_for_the_answer() {
    let profile = Profile::specification(Features::MUST_TELL_HOST);
    let mut guest = Guest::new(profile, Policy::new());
    guest.settle(1000);
    let free = guest.source.free();
    guest.device().set_target(0);
    guest.signal().config_changed();
    for _ in 0..100 {
        guest.step();
    }
    assert_eq!(guest.source.free(), free, "the device has answered nothing");
    guest.settle(0);
    assert!(guest.source.free() > free);
    assert_eq!(guest.broken(), [""; 0]);
}

#[test]
fn rule_17_frames_are_not_ballooned_before_the_answer() {
    let mut guest = Guest::new(Profile::qemu(Features::PAGE_REPORTING), Policy::new());
    guest.device().set_target(100);
    for _ in 0..100 {
        guest.step();
    }
    assert_eq!((guest.held(), guest.device().actual()), (0, 0));
    guest.settle(100);
}

#[test]
fn rule_19_the_size_is_published_after_each_change_by_either_path() {
    for policy in [Policy::new(), Policy::new().without_bulk()] {
        let mut guest = Guest::new(Profile::qemu(Features::PAGE_REPORTING), policy);
        for target in [300, 17, 1500, 0] {
            guest.settle(target);
            assert_eq!(guest.held(), u64::from(target));
        }
    }
}

#[test]
fn rule_20_r1_r2_r3_page_numbers_are_short_sorted_lists_of_guest_frames() {
    never_broken(&["20", "R1", "R2", "R3"]);
}

#[test]
fn rule_21_used_lengths_are_ignored() {
    let mut guest = Guest::new(Profile::qemu(Features::empty()), Policy::new());
    guest.device().set_target(10);
    guest.step();
    let chain = guest.device().take(QueueId::Inflate).unwrap();
    guest
        .device()
        .answer(QueueId::Inflate, chain.head.into(), 0xffff_ffff);
    guest.step();
    assert_eq!((guest.held(), guest.device().actual()), (10, 10));
}

/// Statistics, hints and reports served, and reporting not shared with bulk.

#[test]
fn rule_39_41_bulk_given_ranges_are_writable_and_left_alone() {
    never_broken(&["39", "41"]);
    let mut guest = Guest::new(Profile::qemu(Features::PAGE_REPORTING), Policy::new());
    guest.device().set_target(1000);
    guest.step();
    guest.step();
    let chain = guest.device().take(QueueId::Reporting).unwrap();
    assert!(
        chain
            .descriptors
            .iter()
            .all(|d| d.writable && d.len >= 4096)
    );
    assert!(guest.device().take(QueueId::Inflate).is_none());
}

#[test]
fn rule_r3_many_requests_go_with_one_notification() {
    let mut guest = Guest::new(Profile::qemu(Features::empty()), Policy::new());
    guest.device().set_target(1536);
    guest.budget = Budget::requests(16);
    guest.step();
    let mut requests = 0;
    while guest.device().take(QueueId::Inflate).is_some() {
        requests += 1;
    }
    assert_eq!(requests, 6);
    assert_eq!(guest.device().notified(QueueId::Inflate), 1);
}

#[test]
fn rule_r8_a_queue_that_is_never_served_is_visible_and_harmless() {
    let mut guest = Guest::new(Profile::qemu(Features::empty()), Policy::new());
    guest.device().set_target(1000);
    for _ in 0..20_000 {
        guest.step();
        guest.churn();
    }
    let status = guest.engine.status(&guest.source);
    assert!(!status.inflating.is_zero(), "{status:?}");
    assert!(guest.balloon.in_flight(QueueId::Inflate) > 0);
    guest.source.check(FrameCount::new(guest.used.len() as u64));
    assert_eq!(guest.broken(), [""; 0]);
}

#[test]
fn rule_r10_r11_platform_access_and_suspend_are_declined() {
    let all = Features::from_bits_retain(u64::MAX);
    let wanted = wanted_features(all, &Policy::new());
    assert!(!wanted.intersects(Features::ACCESS_PLATFORM | SUSPEND));
}

#[test]
fn rule_r4_host_pages_of_2_mib_are_named_whole() {
    const TARGET: u32 = 1024;
    let freed = |policy| {
        let mut guest = Guest::new(Profile::qemu(Features::empty()), policy);
        guest.device().judge_mut().set_superpages();
        let mut pace = Pace::DEFAULT;
        pace.unit = Unit::Adaptive;
        guest.engine = Engine::new(guest.shared, pace);
        guest.settle(TARGET);
        assert_eq!(guest.broken(), [""; 0]);
        guest.device().judge().freed()
    };
    assert_eq!(
        freed(Policy::new()),
        FrameCount::ZERO,
        "halves free nothing"
    );
    let whole = Policy::new().with_host_superpages();
    assert_eq!(freed(whole), FrameCount::new(TARGET.into()));
}
