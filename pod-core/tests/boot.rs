//! Guests that boot ballooned: scrubbers, data, balloons that are early, late, short or absent.

use pod_core::sim::{Balloon, Boot, Outcome, Scrub, World};
use pod_core::{Config, FrameCount, Level, Order, Pattern, Rules};

const MIB: u64 = 256;
const POISON: u64 = 0xaaaa_aaaa_aaaa_aaaa;

fn config(max: u64) -> Config {
    Config {
        slack: FrameCount::ZERO,
        ..Config::new(FrameCount::new(max))
    }
}

fn boot(max: u64, target: u64, vcpus: usize, boot: &Boot) -> Outcome {
    let mut world = World::built(&config(max), target, 2 * max, vcpus);
    let outcome = boot.run(&mut world);
    world.check();
    outcome
}

const LATE: Boot = Boot {
    scrub: Scrub::Word(0),
    balloon: Balloon::Late,
    extent: Order::FRAME,
    piece: Order::FRAME,
    data: 6 * MIB,
    early_data: 100,
    seed: 1,
};

#[test]
fn scrubbing_guest_with_a_late_balloon_survives_on_any_number_of_vcpus() {
    for vcpus in [1, 2, 4, 16, 64] {
        for seed in 0..2 {
            let outcome = boot(32 * MIB, 12 * MIB, vcpus, &Boot { seed, ..LATE });
            assert!(
                outcome.survived,
                "{vcpus} vcpus, seed {seed}: {}",
                outcome.stats
            );
            assert_eq!(outcome.stats.debt().get(), 0, "{}", outcome.stats);
        }
    }
}

#[test]
fn early_balloon_never_runs_dry() {
    let early = Boot {
        balloon: Balloon::Early,
        ..LATE
    };
    let outcome = boot(64 * MIB, 24 * MIB, 4, &early);
    assert!(outcome.survived);
    assert!(outcome.worst < Level::Dry, "{:?}", outcome.worst);
}

#[test]
fn absent_balloon_exhausts_only_a_guest_that_dirties_its_share_and_not_unannounced() {
    let absent = Boot {
        balloon: Balloon::Absent,
        early_data: 0,
        ..LATE
    };
    assert!(
        boot(
            64 * MIB,
            24 * MIB,
            4,
            &Boot {
                data: 20 * MIB,
                ..absent
            }
        )
        .survived
    );
    let outcome = boot(
        64 * MIB,
        24 * MIB,
        4,
        &Boot {
            data: 40 * MIB,
            ..absent
        },
    );
    assert!(!outcome.survived);
    assert!(outcome.warned, "died without a warning");
}

#[test]
fn pattern_scrubber_dies_with_a_warning_or_lives_with_the_pattern_configured() {
    let poison = Boot {
        scrub: Scrub::Word(POISON),
        ..LATE
    };
    let outcome = boot(64 * MIB, 24 * MIB, 2, &poison);
    assert!(!outcome.survived && outcome.warned, "{:?}", outcome.worst);

    let mut known = config(64 * MIB);
    known.patterns[1] = POISON;
    known.patterns_used = 2;
    let mut world = World::new(&known, 128 * MIB, 2);
    world.set_target(24 * MIB);
    world.mark_all(Pattern::ZERO);
    let outcome = poison.run(&mut world);
    world.check();
    assert!(outcome.survived, "{}", outcome.stats);
}

#[test]
fn most_memory_is_in_superpages_after_boot() {
    let outcome = boot(
        256 * MIB,
        96 * MIB,
        4,
        &Boot {
            extent: Order::SUPERPAGE,
            data: 64 * MIB,
            ..LATE
        },
    );
    let census = outcome.census;
    assert!(outcome.survived);
    assert!(
        census.small.get() * 10 < census.ram().get(),
        "{census:?} {}",
        outcome.stats
    );
}

#[test]
fn more_memory_is_in_superpages_than_with_the_rules_of_xen() {
    for (vcpus, piece) in [(4, Order::FRAME), (16, Order::FRAME), (4, Order::SUPERPAGE)] {
        let [full, xen] = [Rules::FULL, Rules::XEN].map(|rules| {
            let rules = Config {
                rules,
                ..config(128 * MIB)
            };
            let mut world = World::built(&rules, 64 * MIB, 256 * MIB, vcpus);
            let guest = Boot {
                extent: Order::SUPERPAGE,
                piece,
                data: 32 * MIB,
                ..LATE
            };
            let outcome = guest.run(&mut world);
            world.check();
            assert!(outcome.survived, "{}", outcome.stats);
            let large = outcome.census.superpages.get() + outcome.census.gigas.get();
            large * 1000 / outcome.census.ram().get()
        });
        assert!(full > xen, "{vcpus} vCPUs: {full} against {xen} of 1000");
    }
}
