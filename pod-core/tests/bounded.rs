//! Work per call against 1 TiB in which nothing can be reclaimed.

use pod_core::sim::{Full, Memory};
use pod_core::{
    Budget, Config, Demand, FrameCount, Gfn, Order, Pod, Policy, ReclaimStep, Sizes, Toucher, Vcpu,
    Wait,
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
