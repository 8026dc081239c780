//! Measures the engine; one JSON row per figure on standard output.
//!
//! `cargo run --release -p pod-core --features test-utils --example bench`. Figures of the zero
//! scan depend on the machine, so every anchor is measured in the same run.
#![expect(clippy::print_stdout, reason = "the rows are the output")]
#![expect(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a benchmark"
)]

use core::hint::black_box;
use std::time::Instant;

use pod_core::scan::{self, PAGE_WORDS, Page};
use pod_core::sim::{Balloon, Boot, Content, Full, Memory, Scrub, Sim, World};
use pod_core::{
    Budget, Config, Demand, FrameCount, Gfn, Leave, Order, Pod, ReclaimStep, Rules, Sizes, Toucher,
    Vcpu,
};

const GIB: u64 = 1 << 18;
/// Memory on the map of the guests that boot: 512 MiB.
const GUEST: u64 = GIB / 2;
const SUPER: u64 = 512;

fn row(test: &str, config: &str, value: f64, unit: &str) {
    println!(
        "{{\"test\":\"{test}\",\"config\":\"{config}\",\"value\":{value:.3},\"unit\":\"{unit}\"}}"
    );
}

fn main() {
    scans();
    operations();
    yields();
    sweeps();
    metadata();
}

/// Passes over the pages; every case has its turn in each, so that all meet the same machine.
const PASSES: usize = 9;

/// One row for each case: its best pass, in nanoseconds per page.
fn per_page(name: &str, cases: &[(&str, Test)], pages: &[Page]) {
    let mut best = vec![f64::MAX; cases.len()];
    for _ in 0..PASSES {
        for ((_, test), best) in cases.iter().zip(&mut best) {
            let start = Instant::now();
            let hits = pages.iter().filter(|page| test(black_box(page))).count();
            black_box(hits);
            *best = best.min(start.elapsed().as_nanos() as f64 / pages.len() as f64);
        }
    }
    for ((case, _), best) in cases.iter().zip(best) {
        row(name, case, best, "ns/page");
    }
}

fn word_loop(page: &Page) -> bool {
    for word in page {
        if black_box(*word) != 0 {
            return false;
        }
    }
    true
}

fn eight_words(page: &Page) -> bool {
    page.chunks_exact(8)
        .all(|c| c.iter().fold(0, |all, w| all | w) == 0)
}

#[cfg(target_arch = "x86_64")]
fn avx2(page: &Page) -> bool {
    use core::arch::x86_64::{__m256i, _mm256_or_si256, _mm256_testz_si256};
    #[target_feature(enable = "avx2")]
    fn inner(page: &Page) -> bool {
        let vectors: &[__m256i] = {
            // SAFETY: any bits are a vector, and the split keeps to aligned whole ones.
            let (head, body, tail) = unsafe { page.align_to::<__m256i>() };
            if head.iter().chain(tail).any(|w| *w != 0) {
                return false;
            }
            body
        };
        vectors.chunks(4).all(|c| {
            let mut all = c[0];
            for v in &c[1..] {
                all = _mm256_or_si256(all, *v);
            }
            _mm256_testz_si256(all, all) == 1
        })
    }
    // SAFETY: only called where the CPU has it, see `scans`.
    unsafe { inner(page) }
}

type Test = fn(&Page) -> bool;

/// Zero test, cold and in cache, against the anchors; and the early exit.
fn scans() {
    // 512 MiB does not fit any cache: every pass is cold.
    let mut pages = vec![[0_u64; PAGE_WORDS]; GUEST as usize];
    for page in &mut pages {
        page[17] = 1;
        page[17] = black_box(0);
    }
    let warm = vec![[0_u64; PAGE_WORDS]; 64];
    let mut cases: Vec<(&str, Test)> = vec![
        ("engine", scan::is_zero),
        ("word loop", word_loop),
        ("8-word OR", eight_words),
    ];
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        cases.push(("AVX2", avx2));
    }
    per_page("zero scan, cold", &cases, &pages);
    per_page("zero scan, 64 pages warm", &cases, &warm);
    let mut seed = 1_u64;
    for page in &mut pages {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        page[(seed >> 33) as usize % 8] = seed | 1;
    }
    per_page("non-zero page, early exit", &cases, &pages);
    let peek: Test = |page| scan::peek(page).is_some();
    per_page("peek, cold", &[("engine", peek)], &pages);
}

fn guest(max: u64, target: u64, rules: Rules, vcpus: usize) -> World {
    let mut config = Config::new(FrameCount::new(max));
    config.slack = FrameCount::ZERO;
    config.rules = rules;
    World::built(&config, target, max + max / 4, vcpus)
}

/// Demand, split, reclaim and release on the simulator, whose table work is part of the time.
fn operations() {
    type Run = fn() -> (f64, f64);
    let cases: [(&str, Run); 7] = [
        ("demand, 2 MiB", || demand(Order::MAX, SUPER)),
        ("demand, 4 KiB, tied run", || demand(Order::FRAME, 1)),
        ("split of a 2 MiB promise", split),
        ("reclaim, 2 MiB", || reclaim(Order::MAX)),
        ("reclaim, 512 x 4 KiB in one run", || reclaim(Order::FRAME)),
        ("release, 2 MiB stolen", || release(SUPER)),
        ("release, 4 KiB stolen", || release(1)),
    ];
    for (name, run) in cases {
        let (mut best, mut cost) = (f64::MAX, 0.0);
        for _ in 0..3 {
            let (time, table) = run();
            (best, cost) = (best.min(time), table);
        }
        row(name, "simulator", best, "ns/op");
        row(
            name,
            "table work by the cost model",
            cost,
            "entry writes/op",
        );
    }
}

/// Time and table work since some moment.
struct Meter {
    start: Instant,
    cost: u64,
}

impl Meter {
    fn new(sim: &Sim) -> Self {
        Self {
            start: Instant::now(),
            cost: sim.table_work().cost(sim.work.flushes),
        }
    }

    /// Nanoseconds, and writes of one entry, for each of so many operations.
    fn per(&self, sim: &Sim, operations: f64) -> (f64, f64) {
        let time = self.start.elapsed().as_nanos() as f64;
        let cost = sim.table_work().cost(sim.work.flushes) - self.cost;
        (time / operations, cost as f64 / operations)
    }
}

const SUPERS: u64 = 256;

fn demand(largest: Order, step: u64) -> (f64, f64) {
    let mut world = guest(SUPERS * SUPER, SUPERS * SUPER, Rules::FULL, 1);
    world.with(|pod, sim| {
        let meter = Meter::new(sim);
        let mut n = 0;
        for gfn in (0..SUPERS * SUPER).step_by(step as usize).map(Gfn::new) {
            let by = Toucher::Vcpu(Vcpu::new(0));
            let answer = pod.demand(sim, gfn, by, largest, &mut Budget::default());
            assert!(matches!(answer, Ok(Demand::Populated(_))), "{answer:?}");
            n += 1;
        }
        meter.per(sim, f64::from(n))
    })
}

fn split() -> (f64, f64) {
    let mut world = guest(SUPERS * SUPER, SUPERS * SUPER, Rules::FULL, 1);
    world.with(|pod, sim| {
        let meter = Meter::new(sim);
        for gfn in (0..SUPERS).map(|i| Gfn::new(i * SUPER)) {
            let by = Toucher::Vcpu(Vcpu::new(0));
            let answer = pod.demand(sim, gfn, by, Order::FRAME, &mut Budget::default());
            assert_eq!(answer, Ok(Demand::Populated(Order::FRAME)));
        }
        meter.per(sim, SUPERS as f64)
    })
}

fn reclaim(largest: Order) -> (f64, f64) {
    let mut world = guest(SUPERS * SUPER, SUPERS * SUPER / 2, Rules::FULL, 1);
    world.sim.traits.max_order = Order::FRAME;
    if largest > Order::FRAME {
        world.sim.traits.max_order = largest;
    }
    for gfn in 0..SUPERS / 2 * SUPER {
        assert!(world.write(0, Gfn::new(gfn), Content::ZERO));
    }
    world.with(|pod, sim| {
        let (meter, before) = (Meter::new(sim), pod.stats().totals.reclaimed);
        while let Ok(ReclaimStep::Found(_) | ReclaimStep::More) =
            pod.reclaim_step(sim, &mut Budget::default())
        {}
        let reclaimed = pod.stats().totals.reclaimed - before;
        meter.per(sim, reclaimed as f64 / SUPER as f64)
    })
}

fn release(count: u64) -> (f64, f64) {
    let mut world = guest(SUPERS * SUPER, SUPERS * SUPER / 2, Rules::FULL, 1);
    for gfn in 0..SUPERS / 4 {
        assert!(world.write(0, Gfn::new(gfn * SUPER), Content::Data(1)));
    }
    world.with(|pod, sim| {
        let meter = Meter::new(sim);
        let end = SUPERS / 4 * SUPER / (if count == 1 { 8 } else { 1 });
        for gfn in (0..end).step_by(count as usize) {
            let (gfn, frames) = (Gfn::new(gfn), FrameCount::new(count));
            let done = pod.release(sim, gfn, frames, Leave::Hole, &mut Budget::default());
            assert!(done.is_ok_and(|d| d.stolen.get() == count));
        }
        meter.per(sim, (end / count) as f64)
    })
}

/// Share of memory in large leaves after boot, full rules against Xen's.
fn yields() {
    let boots = [
        (
            "zero scrubber, 4 vCPUs, balloon in 4 KiB pieces",
            Order::FRAME,
            4,
        ),
        (
            "zero scrubber, 16 vCPUs, balloon in 4 KiB pieces",
            Order::FRAME,
            16,
        ),
        (
            "zero scrubber, 4 vCPUs, balloon in 2 MiB pieces",
            Order::SUPERPAGE,
            4,
        ),
    ];
    for (name, piece, vcpus) in boots {
        for (rules_name, rules) in [("full", Rules::FULL), ("Xen's rules", Rules::XEN)] {
            let (mut large, mut ram, mut levels) = (0, 0, 0);
            for seed in 0..3 {
                let mut world = guest(GUEST, GUEST / 2, rules, vcpus);
                let boot = Boot {
                    scrub: Scrub::Word(0),
                    balloon: Balloon::Late,
                    extent: Order::SUPERPAGE,
                    piece,
                    data: GUEST / 4,
                    early_data: 100,
                    seed,
                };
                let outcome = boot.run(&mut world);
                assert!(outcome.survived, "{name}, {rules_name}: {}", outcome.stats);
                large += outcome.census.superpages.get() + outcome.census.gigas.get();
                ram += outcome.census.ram().get();
                levels += outcome.census.levels_milli();
            }
            let config = format!("{name}, {rules_name}");
            row(
                "superpage yield",
                &config,
                100.0 * large as f64 / ram as f64,
                "% of RAM",
            );
            row("mean H", &config, levels as f64 / 3000.0, "levels");
        }
    }
    let mut world = guest(2 * GIB, 2 * GIB, Rules::FULL, 1);
    for gfn in (0..2 * GIB).step_by(SUPER as usize) {
        assert!(world.write(0, Gfn::new(gfn), Content::Data(1)));
    }
    let census = world.with(|pod, sim| pod.audit(sim)).unwrap_or_default();
    row(
        "1 GiB leaves",
        "2 GiB touched in 2 MiB steps",
        census.gigas.get() as f64 / GIB as f64,
        "leaves",
    );
}

/// Worst case of the sweep: nothing is zero.
fn sweeps() {
    for (name, gib, tracks) in [
        ("64 GiB, no dirty tracking", 64, false),
        ("64 GiB, dirty tracking, second pass", 64, true),
        ("1 TiB, no dirty tracking", 1024, false),
    ] {
        let max = gib * GIB;
        let config = Config::new(FrameCount::new(max));
        let sizes = Sizes::for_guest(&config, FrameCount::new(1), 1);
        let mut memory = Memory::new(&sizes);
        let Ok(mut pod) = Pod::new(config, memory.storage()) else {
            return;
        };
        let mut host = Full::adopted(&mut pod, tracks);
        let passes = if tracks { 2 } else { 1 };
        for pass in 1..=passes {
            let (peeks, lookups) = (host.peeks(), host.lookups());
            let (mut steps, mut worst, mut longest, mut total, mut first) =
                (0, 0, 0_u128, 0_u64, 0);
            let start = Instant::now();
            loop {
                let mut budget = Budget::default();
                let step = Instant::now();
                let answer = pod.reclaim_step(&mut host, &mut budget);
                longest = longest.max(step.elapsed().as_nanos());
                steps += 1;
                worst = worst.max(budget.used());
                total += u64::from(budget.used());
                if host.peeks() - peeks <= max / SUPER {
                    first = total;
                }
                if answer == Ok(ReclaimStep::Done) {
                    break;
                }
            }
            if pass < passes {
                continue;
            }
            let looks = max - SUPER;
            row(
                "sweep, looks in the longest step",
                name,
                f64::from(worst),
                "page looks",
            );
            row(
                "sweep, longest step without page reads",
                name,
                longest as f64 / 1000.0,
                "us",
            );
            row("sweep, steps", name, f64::from(steps), "steps");
            row(
                "sweep, 2 MiB half",
                name,
                first as f64 / looks as f64,
                "of a full 4 KiB scan's looks",
            );
            // A peek that ends in the first line reads one line of 64, a full scan all.
            let lines = (host.peeks() - peeks) + (host.lookups() - lookups);
            row(
                "sweep, all",
                name,
                lines as f64 / (64 * looks) as f64,
                "of a full 4 KiB scan's lines",
            );
            row(
                "sweep, all",
                name,
                total as f64 / looks as f64,
                "of a full 4 KiB scan's looks",
            );
            row(
                "sweep, all without page reads",
                name,
                start.elapsed().as_secs_f64() * 1000.0,
                "ms",
            );
        }
    }
}

/// The engine's own memory.
fn metadata() {
    for gib in [1, 16, 256] {
        let config = Config::new(FrameCount::new(2 * gib * GIB));
        let owned = gib * GIB;
        let sizes = Sizes::for_guest(&config, FrameCount::new(owned), 16);
        let share = |bytes: usize, frames: u64| 100.0 * bytes as f64 / (frames * 4096) as f64;
        let name = format!("{gib} GiB owned of {} GiB", 2 * gib);
        row(
            "metadata of the cache",
            &name,
            share(sizes.cache_bytes(), owned),
            "% of owned",
        );
        row(
            "metadata of the map",
            &name,
            share(sizes.map_bytes(), 2 * owned),
            "% of map",
        );
    }
}
