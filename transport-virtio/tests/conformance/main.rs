//! The rules for a virtio-balloon driver, each by its number: 1 to 41 are the
//! specification's, R1 to R15 what known devices demand on top; the table is the
//! checker's.
//!
//! [`suite`] puts this crate's driver, with bulk and without, to the suite for any
//! driver, and a naive one, which proves for each rule that its test can fail.
//! What follows is what this driver does beyond its duties: what it may, and how.

// Whole guests on memory that is safe code: hours under Miri, and nothing for it
// to find. What is unsafe it sees in the unit tests.
#![cfg(not(any(miri, loom)))]
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod guest;
mod naive;
mod ours;
mod services;

use balloon_core::{Budget, Engine, FrameCount, Granularity, Ledger, Policy, Transport, Via};
use transport_virtio::testing::{self, Profile};
use transport_virtio::{DriverOptions, Features, QueueId};

use guest::{FRAMES, Guest, QUEUES, broken, profiles, serving};

/// The suite that any driver can be put to.
mod suite {
    mod with_bulk {
        transport_virtio::conformance_suite!(crate::ours::Ours<true>);
    }

    mod without_bulk {
        transport_virtio::conformance_suite!(crate::ours::Ours<false>);
    }

    /// Of whoever wants to see the suite at work: a driver that is not ours.
    mod naive {
        transport_virtio::conformance_suite!(crate::naive::Naive);

        #[test]
        fn each_rule_fails_for_a_driver_that_breaks_it() {
            // Our rings cannot be made to break these: the checker's own tests do.
            let violable = RULES
                .iter()
                .filter(|rule| !["R1", "R4b", "R9"].contains(rule));
            let unseen = |rule: &&&'static str| !crate::naive::is_seen_to_break(rule);
            let missed: Vec<_> = violable.filter(unseen).collect();
            assert!(missed.is_empty(), "{missed:?}");
        }

        /// Where the device has a queue for reports, which QEMU's plainest has not.
        #[test]
        fn rule_17_is_kept_under_any_numbering_though_the_device_lies() {
            assert!(crate::naive::is_seen_to_break_by("17", "17 if lied to"));
        }

        #[test]
        fn rule_32_covers_who_does_not_hear_the_end_of_a_round() {
            for fault in ["32 not stopped", "32 not done"] {
                assert!(crate::naive::is_seen_to_break_by("32", fault), "{fault}");
            }
        }

        #[test]
        fn rule_19_covers_what_is_given_in_bulk() {
            for fault in ["19 told only", "19 not back"] {
                assert!(crate::naive::is_seen_to_break_by("19", fault), "{fault}");
            }
        }
    }
}

#[test]
fn rule_02_r5_r6_queues_are_found_whatever_their_numbers_and_sizes() {
    for profile in profiles() {
        for size in [2, 32, 256] {
            let profile = profile.with_size(QueueId::Reporting, size);
            let balloon = testing::bring_up::<16>(profile, &DriverOptions::new()).unwrap();
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
fn rule_06_version_1_and_the_generation_guard() {
    let mut guest = Guest::new(Profile::qemu(Features::empty()), DriverOptions::new());
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
        DriverOptions::new().without_bulk(),
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
fn rule_11_r12_gives_while_below_the_target_but_not_everything() {
    let mut guest = Guest::new(Profile::qemu(Features::empty()), DriverOptions::new());
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
    let mut guest = Guest::new(
        Profile::qemu(Features::PAGE_REPORTING),
        DriverOptions::new(),
    );
    guest.settle(1000);
    guest.settle(10);
    assert_eq!(guest.held(), 10);
}

#[test]
fn rule_14_deflate_on_oom_is_accepted() {
    let guest = Guest::new(
        Profile::qemu(Features::DEFLATE_ON_OOM),
        DriverOptions::new(),
    );
    assert!(guest.balloon.capabilities().deflate_on_oom);
    let without = Guest::new(Profile::qemu(Features::empty()), DriverOptions::new());
    assert!(!without.balloon.capabilities().deflate_on_oom);
}

#[test]
fn rule_15_what_was_told_away_is_told_back() {
    let mut guest = Guest::new(Profile::qemu(Features::empty()), DriverOptions::new());
    guest.settle(1000);
    assert_eq!(guest.device().checker().told(), 1000);
    guest.settle(0);
    assert_eq!(guest.device().checker().told(), 0);
}

#[test]
fn rule_16_with_must_tell_host_frames_wait_for_the_answer() {
    let profile = Profile::specification(Features::MUST_TELL_HOST);
    let mut guest = Guest::new(profile, DriverOptions::new());
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
fn rule_19_the_size_is_published_after_each_change_by_either_path() {
    for options in [DriverOptions::new(), DriverOptions::new().without_bulk()] {
        let mut guest = Guest::new(Profile::qemu(Features::PAGE_REPORTING), options);
        for target in [300, 17, 1500, 0] {
            guest.settle(target);
            assert_eq!(guest.held(), u64::from(target));
        }
    }
}

#[test]
fn rule_39_41_bulk_given_ranges_are_writable_and_left_alone() {
    let mut guest = Guest::new(
        Profile::qemu(Features::PAGE_REPORTING),
        DriverOptions::new(),
    );
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
    let mut guest = Guest::new(Profile::qemu(Features::empty()), DriverOptions::new());
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
    let mut guest = Guest::new(Profile::qemu(Features::empty()), DriverOptions::new());
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
fn rule_r4_host_pages_of_2_mib_are_named_whole() {
    const TARGET: u32 = 1024;
    let freed = |options| {
        let mut guest = Guest::new(Profile::qemu(Features::empty()), options);
        guest.device().checker_mut().set_superpages();
        let mut policy = Policy::DEFAULT;
        policy.granularity = Granularity::Adaptive;
        guest.engine = Engine::new(guest.shared, policy);
        guest.settle(TARGET);
        assert_eq!(guest.broken(), [""; 0]);
        guest.device().checker().freed()
    };
    assert_eq!(
        freed(DriverOptions::new()),
        FrameCount::ZERO,
        "halves free nothing"
    );
    let whole = DriverOptions::new().with_host_superpages();
    assert_eq!(freed(whole), FrameCount::new(TARGET.into()));
}
