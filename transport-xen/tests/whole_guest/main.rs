//! A whole guest, engine to ring, between a hypervisor and a store that do what
//! they like: after each piece of work every frame is where the guest thinks it
//! is, and once both behave the target is reached and the domain can be saved.
//!
//! Each run has the same few hundred worlds. For other ones, and more:
//! `XEN_WORLDS=20000 cargo test --release -p transport-xen --test whole_guest`.

// Safe code all the way, and minutes long there.
#![cfg(not(miri))]
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod action;
mod world;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use transport_xen::testing::{FakeP2m, FakeXen, Kind};
use transport_xen::{FrameMap as _, Translated};

use action::action;
use world::{MAX_KIB, Start, live, memory};

/// Worlds of one run, each of one kind of guest.
fn worlds() -> ProptestConfig {
    let asked = std::env::var("XEN_WORLDS").ok();
    match asked.and_then(|count| count.parse().ok()) {
        Some(cases) => ProptestConfig::with_cases(cases),
        None => ProptestConfig {
            rng_seed: RngSeed::Fixed(6),
            ..ProptestConfig::with_cases(200)
        },
    }
}

fn start() -> impl Strategy<Value = Start> {
    let has_store = prop_oneof![7 => Just(true), 1 => Just(false)];
    (has_store, any::<bool>()).prop_map(|(has_store, scattered)| Start {
        has_store,
        scattered,
    })
}

proptest! {
    #![proptest_config(worlds())]

    #[test]
    fn whatever_happens_frames_are_kept_and_the_target_is_reached(
        kind in prop_oneof![Just(Kind::Pvh), Just(Kind::Pv), Just(Kind::Arm)],
        start in start(),
        actions in proptest::collection::vec(action(), 0..24),
        // As much as is not in use.
        kib in (MAX_KIB / 2..=MAX_KIB).prop_map(|kib| kib / 4 * 4),
    ) {
        let xen = FakeXen::new(kind, memory());
        match kind {
            Kind::Pvh => drop(live(xen, Translated::<true>, start, &actions, kib)),
            Kind::Arm => drop(live(xen, Translated::<false>, start, &actions, kib)),
            Kind::Pv => {
                let map = FakeP2m::of(&xen);
                let mut world = live(xen, map, start, &actions, kib);
                let xen = world.xen();
                let machines: Vec<_> = memory().frames().map(|pfn| xen.machine(pfn)).collect();
                let map = world.balloon.reservation_mut().map_mut();
                let mapped: Vec<_> = memory().frames().map(|pfn| map.unmap(pfn)).collect();
                prop_assert_eq!(machines, mapped);
            }
        }
    }
}
