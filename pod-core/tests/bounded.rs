//! Work per call against 1 TiB in which nothing can be reclaimed.

use pod_core::sim::{Content, Full, Memory, World};
use pod_core::{
    Budget, Config, Demand, FrameCount, Gfn, Leave, Order, Pattern, Pod, Policy, ReclaimStep,
    Sizes, Toucher, Vcpu, Wait,
};

const TIB: u64 = 1 << 28;

#[test]
fn no_step_over_a_tebibyte_exceeds_its_budget() {
    let config = Config::new(FrameCount::new(TIB));
    let sizes = Sizes::for_guest(&config, FrameCount::new(1), 1);
    let mut memory = Memory::new(&sizes);
    let mut pod = Pod::new(config, memory.storage()).unwrap();
    let mut host = Full::adopted(&mut pod, true);
    let by = Toucher::Vcpu(Vcpu::new(0));
    // The half that looks at superpages; the page by page half has steps of the same bound.
    for _ in 0..2000 {
        let mut budget = Budget::default();
        let gfn = Gfn::new(TIB - 1);
        let answer = pod
            .demand(&mut host, gfn, by, Order::MAX, &mut budget)
            .unwrap();
        assert_eq!(answer, Demand::Retry(Wait::Sweeping));
        assert!(budget.used() <= 4096, "{} looks in one step", budget.used());
    }
    for tiny in [1, 100] {
        let mut budget = Budget::new(tiny);
        assert_eq!(
            pod.reclaim_step(&mut host, &mut budget),
            Ok(ReclaimStep::More)
        );
        assert!(budget.used() <= 6 * 512 + 16, "{} looks", budget.used());
    }
}

#[test]
fn a_second_pass_skips_what_was_seen_in_use_and_not_written() {
    const MAX: u64 = 1 << 20;
    let config = Config::new(FrameCount::new(MAX));
    let sizes = Sizes::for_guest(&config, FrameCount::new(1), 1);
    let mut memory = Memory::new(&sizes);
    let mut pod = Pod::new(config, memory.storage()).unwrap();
    let mut host = Full::adopted(&mut pod, true);
    let by = Toucher::Vcpu(Vcpu::new(0));
    let mut looks = [0; 2];
    for total in &mut looks {
        loop {
            let mut budget = Budget::default();
            let gfn = Gfn::new(MAX - 1);
            let answer = pod
                .demand(&mut host, gfn, by, Order::MAX, &mut budget)
                .unwrap();
            *total += u64::from(budget.used());
            assert!(budget.used() <= 4096);
            if answer == Demand::Exhausted(Policy::Pause) {
                break;
            }
        }
    }
    assert!(looks[0] >= MAX - 512, "the first pass looks at every page");
    assert!(looks[1] * 50 <= MAX, "{} looks of {MAX}", looks[1]);
}

/// The dearest guest there is: every page lies in a leaf of its own and looks empty without being
/// so, hence each costs a lookup, a peek, a scan, and the search for a leaf to make whole.
#[test]
fn pages_that_only_look_empty_keep_every_call_within_its_budget() {
    const SUPER: u64 = 512;
    let mut config = Config::new(FrameCount::new(8 * SUPER));
    config.slack = FrameCount::ZERO;
    let mut world = World::built(&config, 5 * SUPER, 16 * SUPER, 1);
    world.sim.traits.max_order = Order::FRAME;
    assert!((0..5 * SUPER).all(|gfn| world.write(0, Gfn::new(gfn), Content::Late(gfn))));
    world.sim.traits.max_order = Order::MAX;
    let mut worst = [0; 5];
    let mut note = |kind: usize, budget: &Budget| worst[kind] = budget.used().max(worst[kind]);
    let by = Toucher::Vcpu(Vcpu::new(0));
    for _ in 0..8 {
        let mut budget = Budget::default();
        let touched = Gfn::new(7 * SUPER);
        let answer = world.with(|p, s| p.demand(s, touched, by, Order::MAX, &mut budget));
        note(0, &budget);
        if answer == Ok(Demand::Exhausted(Policy::Pause)) {
            break;
        }
        let mut budget = Budget::default();
        assert!(world.with(|p, s| p.reclaim_step(s, &mut budget)).is_ok());
        note(1, &budget);
        let mut budget = Budget::default();
        assert!(world.with(|p, s| p.coalesce_step(s, &mut budget)).is_ok());
        note(2, &budget);
    }
    for leave in [Leave::Promise(Pattern::ZERO), Leave::Hole] {
        let mut at = 1;
        while at < 8 * SUPER {
            let (gfn, rest) = (Gfn::new(at), FrameCount::new(8 * SUPER - at));
            let mut budget = Budget::default();
            let step = world.with(|p, s| p.release(s, gfn, rest, leave, &mut budget));
            at += step.unwrap().progress.done.get();
            note(3, &budget);
        }
    }
    let mut budget = Budget::default();
    let all = FrameCount::new(8 * SUPER - 1);
    let marked = world.with(|p, s| p.mark(s, Gfn::new(1), all, Pattern::ZERO, &mut budget));
    assert!(marked.is_ok());
    note(4, &budget);
    assert!(
        worst.iter().all(|looks| (1..=4096).contains(looks)),
        "{worst:?}"
    );
}
