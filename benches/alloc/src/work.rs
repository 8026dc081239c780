//! The timed tests.

use std::sync::Barrier;

use rustix::time::{ClockId, clock_gettime};

use crate::{Candidate, Frames, Random, cpu};

/// Frames of an ordinary allocator: 8 GiB.
pub(crate) const FRAMES: u64 = 1 << 21;
/// Frames of one that writes into them: 1 GiB.
pub(crate) const IN_PAGE_FRAMES: u64 = 1 << 18;
/// Nanoseconds after which a test stops.
const LIMIT: u64 = 6_000_000_000;
/// Operations between looks at the clock.
const STRIDE: u64 = 1024;

/// What one run of a test found.
pub(crate) struct Run {
    pub(crate) test: &'static str,
    pub(crate) threads: usize,
    pub(crate) ns: f64,
    pub(crate) stopped: bool,
}

/// CPU time of this thread.
pub(crate) fn now() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Counts operations and stops them at the limit.
struct Watch {
    start: u64,
    ops: u64,
    stopped: bool,
}

impl Watch {
    fn start() -> Self {
        Self {
            start: now(),
            ops: 0,
            stopped: false,
        }
    }

    /// Counts; false once the limit is passed.
    #[inline]
    fn tick(&mut self) -> bool {
        self.ops += 1;
        if self.ops.is_multiple_of(STRIDE) && now() - self.start > LIMIT {
            self.stopped = true;
        }
        !self.stopped
    }

    fn finish(self, test: &'static str, threads: usize) -> Run {
        let ns = (now() - self.start) as f64 / self.ops.max(1) as f64;
        Run {
            test,
            threads,
            ns,
            stopped: self.stopped,
        }
    }
}

/// One run of every test, but for those in `skip`.
pub(crate) fn run_all(
    candidate: &Candidate,
    quick: bool,
    skip: &dyn Fn(&str, usize) -> bool,
    sink: &mut dyn FnMut(Run),
) {
    let frames = if candidate.in_page {
        IN_PAGE_FRAMES
    } else {
        FRAMES
    };
    let frames = if quick { frames / 16 } else { frames };
    let scale = if quick { 16 } else { 1 };
    let fresh = || (candidate.make)(frames);
    let mut run = |test: &'static str, threads, body: &mut dyn FnMut() -> Vec<Run>| {
        if !skip(test, threads) {
            body().into_iter().for_each(&mut *sink);
        }
    };
    run("fill_same", 1, &mut || vec![fill(&*fresh(), false)]);
    run("fill_random", 1, &mut || vec![fill(&*fresh(), true)]);
    run("order9", 1, &mut || vec![order9(&*fresh(), 100 / scale)]);
    run("inflate", 1, &mut || balloon(&*fresh(), frames));
    run("inflate_batch", 1, &mut || batch(&*fresh(), frames));
    run("allocate_batch", 1, &mut || {
        batch_for_use(&*fresh(), frames)
    });
    for threads in [1, 2] {
        if threads == 1 || candidate.shared {
            let rounds = 100_000 / scale;
            run("pair", threads, &mut || {
                let work = |frames: &dyn Frames, _| pair(frames, rounds);
                vec![together(&*fresh(), threads, "pair", &work)]
            });
            run("steady", threads, &mut || {
                vec![steady(&*fresh(), threads, frames, 4_000_000 / scale)]
            });
        }
    }
}

/// Runs a test on several threads at once: CPU time per operation and thread.
fn together(
    allocator: &dyn Frames,
    threads: usize,
    test: &'static str,
    work: &(dyn Fn(&dyn Frames, usize) -> Watch + Sync),
) -> Run {
    let barrier = Barrier::new(threads);
    let runs: Vec<Run> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads)
            .map(|number| {
                let barrier = &barrier;
                scope.spawn(move || {
                    cpu::set(number as u32);
                    barrier.wait();
                    work(allocator, number).finish(test, threads)
                })
            })
            .collect();
        handles
            .into_iter()
            .map(|handle| handle.join().unwrap())
            .collect()
    });
    let ns = runs.iter().map(|run| run.ns).sum::<f64>() / threads as f64;
    Run {
        test,
        threads,
        ns,
        stopped: runs.iter().any(|run| run.stopped),
    }
}

/// All frames one by one, then back in the same or in random order.
fn fill(allocator: &dyn Frames, random: bool) -> Run {
    let mut taken = Vec::with_capacity(FRAMES as usize);
    let mut watch = Watch::start();
    while let Some(frame) = allocator.alloc(0) {
        taken.push(frame);
        if !watch.tick() {
            break;
        }
    }
    if random {
        let paused = now();
        let mut generator = Random::new(5);
        for place in (1..taken.len()).rev() {
            taken.swap(place, generator.below(place + 1));
        }
        watch.start += now() - paused;
    }
    for frame in taken {
        allocator.free(frame, 0);
        if !watch.tick() {
            break;
        }
    }
    watch.finish(if random { "fill_random" } else { "fill_same" }, 1)
}

/// 64 allocations, then 64 frees, last one first.
fn pair(allocator: &dyn Frames, rounds: u64) -> Watch {
    let mut taken = [0; 64];
    let round = |taken: &mut [u64; 64]| {
        for place in taken.iter_mut() {
            *place = allocator.alloc(0).unwrap();
        }
        for &frame in taken.iter().rev() {
            allocator.free(frame, 0);
        }
    };
    for _ in 0..100 {
        round(&mut taken);
    }
    let mut watch = Watch::start();
    for _ in 0..rounds {
        round(&mut taken);
        watch.ops += 127;
        if !watch.tick() {
            break;
        }
    }
    watch
}

/// Half of memory in use, orders 0 to 9, each half as likely as the one before; a random block
/// goes, a new one comes.
fn steady(allocator: &dyn Frames, threads: usize, frames: u64, ops: u64) -> Run {
    together(allocator, threads, "steady", &|allocator, number| {
        let mut random = Random::new(number as u64 + 77);
        let (mut blocks, mut used) = (Vec::new(), 0);
        // The filling counts against the limit too: some never get through it.
        let mut filling = Watch::start();
        while used < frames / 2 / threads as u64 {
            let order = random.order();
            let Some(frame) = allocator.alloc(order) else {
                break;
            };
            blocks.push((frame, order));
            used += 1 << order;
            if !filling.tick() {
                return filling;
            }
        }
        let mut watch = Watch::start();
        for _ in 0..ops / 2 {
            let (frame, order) = blocks.swap_remove(random.below(blocks.len()));
            allocator.free(frame, order);
            used -= 1 << order;
            if !watch.tick() || blocks.len() < 16 {
                break;
            }
            // One block comes for one that went, or as many as keep the level.
            while used < frames / 2 / threads as u64 {
                let order = random.order();
                let Some(frame) = allocator.alloc(order) else {
                    break;
                };
                blocks.push((frame, order));
                used += 1 << order;
                watch.ops += 1;
            }
        }
        watch
    })
}

/// All of memory in blocks of 2 MiB, and back.
fn order9(allocator: &dyn Frames, rounds: u64) -> Run {
    let mut taken = Vec::with_capacity((FRAMES >> 9) as usize);
    let mut watch = Watch::start();
    'rounds: for _ in 0..rounds.max(1) {
        while let Some(frame) = allocator.alloc(9) {
            taken.push(frame);
            if !watch.tick() {
                break 'rounds;
            }
        }
        for frame in taken.drain(..) {
            allocator.free(frame, 9);
            if !watch.tick() {
                break 'rounds;
            }
        }
    }
    watch.finish("order9", 1)
}

/// The lower quarter in pieces, one frame in 16 in use.
fn fragment(allocator: &dyn Frames, frames: u64) -> bool {
    let watch = Watch::start();
    let mut taken: Vec<u64> = (0..frames / 4).map_while(|_| allocator.alloc(0)).collect();
    let mut random = Random::new(9);
    for place in (1..taken.len()).rev() {
        taken.swap(place, random.below(place + 1));
    }
    for (number, &frame) in taken.iter().skip(taken.len() / 16).enumerate() {
        allocator.free(frame, 0);
        if number % 4096 == 0 && now() - watch.start > LIMIT {
            return false;
        }
    }
    true
}

/// A balloon takes 7/8 of memory call by call, 2 MiB first, and gives it back.
fn balloon(allocator: &dyn Frames, frames: u64) -> Vec<Run> {
    if !fragment(allocator, frames) {
        return vec![];
    }
    let mut taken = Vec::new();
    let mut watch = Watch::start();
    let (mut left, mut order) = (frames / 8 * 7, 9);
    while left > 0 {
        while 1 << order > left {
            order -= 1;
        }
        match allocator.alloc(order) {
            Some(frame) => {
                taken.push((frame, order));
                left -= 1 << order;
            }
            None if order == 0 => break,
            None => order -= 1,
        }
        if !watch.tick() {
            break;
        }
    }
    let inflate = watch.finish("inflate", 1);
    let mut watch = Watch::start();
    for (frame, order) in taken {
        allocator.free(frame, order);
        if !watch.tick() {
            break;
        }
    }
    vec![inflate, watch.finish("deflate", 1)]
}

/// The same by ranges: time per frame.
fn batch(allocator: &dyn Frames, frames: u64) -> Vec<Run> {
    let names = ["inflate_batch", "deflate_batch"];
    by_ranges(
        allocator,
        frames,
        names,
        |count, taken| allocator.inflate_batch(count, taken),
        |taken| allocator.deflate(taken),
    )
}

/// As many frames for use, by ranges, and back.
fn batch_for_use(allocator: &dyn Frames, frames: u64) -> Vec<Run> {
    let names = ["allocate_batch", "free_batch"];
    by_ranges(
        allocator,
        frames,
        names,
        |count, taken| allocator.allocate_batch(count, taken),
        |taken| allocator.free_batch(taken),
    )
}

fn by_ranges(
    allocator: &dyn Frames,
    frames: u64,
    [there, back]: [&'static str; 2],
    take: impl Fn(u64, &mut Vec<(u64, u64)>) -> bool,
    give: impl Fn(&[(u64, u64)]),
) -> Vec<Run> {
    if !fragment(allocator, frames) {
        return vec![];
    }
    let mut taken = Vec::new();
    let mut watch = Watch::start();
    if !take(frames / 8 * 7, &mut taken) {
        return vec![];
    }
    watch.ops = taken.iter().map(|&(_, count)| count).sum();
    let ops = watch.ops;
    let run = watch.finish(there, 1);
    let mut watch = Watch::start();
    give(&taken);
    watch.ops = ops;
    vec![run, watch.finish(back, 1)]
}
