//! When a touch is told that nothing is left, and what that costs.
#![expect(clippy::unwrap_used, reason = "a test")]

use pod_core::sim::{Content, World};
use pod_core::{
    Budget, Config, Demand, FrameCount, Gfn, Order, Policy, ReclaimStep, Toucher, Vcpu, Wait,
};

const SUPER: u64 = 512;
const REGIONS: u64 = 8;
const PAGES: u64 = REGIONS * SUPER;
/// Visits of regions in a pass: the map is twice as large as what the guest owns.
const VISITS: u64 = 2 * 2 * REGIONS;
/// A promise for which there is no frame.
const TOUCHED: Gfn = Gfn::new(PAGES + 5);
const NOTHING_LEFT: Demand = Demand::Exhausted(Policy::Pause);

/// A guest that has filled all frames it owns with data.
fn full_of_data(tracks_writes: bool, reserve: u64) -> World {
    full_of_data_of(tracks_writes, reserve, 2)
}

fn full_of_data_of(tracks_writes: bool, reserve: u64, lanes: usize) -> World {
    let mut config = Config::new(FrameCount::new(2 * PAGES));
    config.slack = FrameCount::ZERO;
    config.reserve = FrameCount::new(reserve);
    let mut world = World::built(&config, PAGES, 4 * PAGES, lanes);
    world.sim.traits.tracks_writes = tracks_writes;
    world.sim.traits.max_order = Order::FRAME;
    for gfn in (0..PAGES).map(Gfn::new) {
        let by = Toucher::Host;
        while world.with(|p, s| p.demand(s, gfn, by, Order::MAX, &mut Budget::default()))
            == Ok(Demand::Retry(Wait::Sweeping))
        {}
        let written = world.sim.guest_write(0, gfn, Content::Data(gfn.get() + 1));
        assert_eq!(written, Ok(()));
    }
    world.sim.traits.max_order = Order::MAX;
    world
}

fn touch(world: &mut World, by: Toucher, gfn: Gfn, budget: &mut Budget) -> Demand {
    world.with(|p, s| p.demand(s, gfn, by, Order::MAX, budget).unwrap())
}

fn vcpu(index: u16) -> Toucher {
    Toucher::Vcpu(Vcpu::new(index))
}

/// Calls until there is an answer; the looks that took.
fn answer(world: &mut World, by: Toucher, gfn: Gfn) -> (Demand, u64) {
    let mut looks = 0;
    loop {
        let mut budget = Budget::default();
        let answer = touch(world, by, gfn, &mut budget);
        looks += u64::from(budget.used());
        if answer != Demand::Retry(Wait::Sweeping) {
            return (answer, looks);
        }
    }
}

fn zero(world: &mut World, pages: impl Iterator<Item = u64>) {
    for gfn in pages.map(Gfn::new) {
        assert_eq!(world.sim.guest_write(1, gfn, Content::ZERO), Ok(()));
    }
}

#[test]
fn a_pass_begun_by_somebody_else_is_not_complete() {
    for tracks_writes in [false, true] {
        for idle in [false, true] {
            let mut world = full_of_data(tracks_writes, 0);
            assert_eq!(answer(&mut world, vcpu(0), TOUCHED).0, NOTHING_LEFT);
            // At any moment of somebody else's pass the guest frees most of its memory.
            loop {
                let before = world.clone();
                let budget = &mut Budget::new(2100);
                let over = if idle {
                    world.with(|p, s| p.reclaim_step(s, budget)) == Ok(ReclaimStep::Done)
                } else {
                    let other = Gfn::new(2 * PAGES - 1);
                    touch(&mut world, vcpu(1), other, budget) == NOTHING_LEFT
                };
                if over {
                    break;
                }
                let mut world = before;
                zero(&mut world, (0..PAGES).filter(|g| g / SUPER != 1));
                let budget = &mut Budget::new(u32::MAX);
                let at_once = touch(&mut world.clone(), vcpu(0), TOUCHED, budget);
                assert!(matches!(at_once, Demand::Populated(_)), "{at_once:?}");
                let (answer, looks) = answer(&mut world, vcpu(0), TOUCHED);
                let populated = matches!(answer, Demand::Populated(_));
                assert!(populated && looks <= 2 * PAGES, "{answer:?}, {looks} looks");
            }
        }
    }
}

#[test]
fn pages_freed_behind_the_sweep_while_the_touch_waits_are_found() {
    for tracks_writes in [false, true] {
        let mut world = full_of_data(tracks_writes, 0);
        let mut waits = 0;
        loop {
            let budget = &mut Budget::new(600);
            if touch(&mut world, vcpu(0), TOUCHED, budget) == NOTHING_LEFT {
                break;
            }
            waits += 1;
            // A call visits one region, and a pass visits each region of the map twice. At the
            // end of the first pass all pages lie behind the sweep.
            if waits > VISITS {
                continue;
            }
            for region in 0..REGIONS {
                let mut world = world.clone();
                zero(&mut world, [region * SUPER + 7].into_iter());
                let (answer, _) = answer(&mut world, vcpu(0), TOUCHED);
                let populated = matches!(answer, Demand::Populated(_));
                assert!(
                    populated,
                    "after {waits} waits, region {region}: {answer:?}"
                );
            }
        }
        assert!(waits >= 2 * VISITS, "{waits} calls are not two passes");
    }
}

#[test]
fn nothing_is_left_after_one_pass_where_the_host_tracks_writes() {
    let mut world = full_of_data(true, 0);
    // A lookup and a peek of each page, be it in the list of recent regions or in the pass.
    for by in [vcpu(0), Toucher::Host] {
        let (end, looks) = answer(&mut world, by, TOUCHED);
        assert_eq!(end, NOTHING_LEFT);
        assert!(looks <= 2 * PAGES + 16 * REGIONS, "{looks} looks");
    }
    let (end, looks) = answer(&mut world, vcpu(0), TOUCHED);
    assert_eq!(end, NOTHING_LEFT);
    assert!(looks <= 4 * REGIONS + 2, "{looks} looks when all is known");
}

#[test]
fn touches_that_share_a_place_are_all_answered() {
    let mut world = full_of_data(false, 0);
    let mut calls = 0;
    let mut waiting: Vec<Gfn> = (0..4).map(|i| Gfn::new(PAGES + i)).collect();
    while !waiting.is_empty() {
        waiting.retain(|gfn| {
            calls += 1;
            let budget = &mut Budget::new(1);
            touch(&mut world, Toucher::Host, *gfn, budget) != NOTHING_LEFT
        });
        assert!(calls < 100 * REGIONS, "no answer for {waiting:?}");
    }
}

#[test]
fn many_touches_in_turns_are_all_answered() {
    // Between two calls for a frame the others make so many passes that it looks given up.
    for lanes in [1, 40] {
        let mut world = full_of_data_of(false, 0, lanes);
        let mut waiting: Vec<u16> = (0..80).collect();
        for _ in 0..200 {
            waiting.retain(|i| {
                let gfn = Gfn::new(PAGES + u64::from(*i));
                let budget = &mut Budget::new(6000);
                touch(&mut world, vcpu(*i), gfn, budget) != NOTHING_LEFT
            });
        }
        assert!(
            waiting.is_empty(),
            "{lanes} lanes: no answer for {waiting:?}"
        );
    }
}

#[test]
fn a_reserve_and_small_loans_cost_one_pass() {
    for reserve in [1, 16, 64] {
        let mut world = full_of_data(false, reserve);
        assert_eq!(answer(&mut world, vcpu(0), TOUCHED).0, NOTHING_LEFT);
        world.sim.traits.policy = Policy::Lend(FrameCount::new(1));
        let (answer, looks) = answer(&mut world, vcpu(0), TOUCHED);
        assert_eq!(answer, Demand::Populated(Order::FRAME));
        assert_eq!(
            world.stats().totals.lent,
            FrameCount::new(reserve + 1).get()
        );
        // Without write tracking a pass of several calls is checked by another.
        assert!(
            looks <= 2 * 2 * PAGES + 4 * SUPER,
            "reserve {reserve}: {looks} looks"
        );
    }
}
