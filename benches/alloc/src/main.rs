//! `buddy-alloc` beside its peers, all in one run. Prints one JSON row per line; started by
//! `cargo xtask bench alloc`.
//!
//! Time is CPU time of the threads that work, so that a busy machine disturbs less. A test that
//! passes its limit stops there; its row says so (`"stopped": true`) and carries the mean so far.

#![expect(
    clippy::print_stdout,
    clippy::std_instead_of_core,
    clippy::std_instead_of_alloc,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::undocumented_unsafe_blocks,
    reason = "a measuring program: it may stop at once where something is wrong"
)]

mod cycle;
mod flat;
mod heap;
mod ours;
mod peers;
mod pool;
mod work;

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// A physical frame allocator as the tests see it. Frame numbers start at 0.
pub(crate) trait Frames: Sync {
    fn alloc(&self, order: u32) -> Option<u64>;
    fn free(&self, frame: u64, order: u32);

    /// Takes `count` frames for a balloon, best first as far as the allocator can tell.
    fn inflate(&self, count: u64, taken: &mut Vec<(u64, u64)>) {
        taken.extend((0..count).map_while(|_| Some((self.alloc(0)?, 1))));
    }

    /// Gets frames back from a balloon: the host backs them no more.
    fn deflate(&self, taken: &[(u64, u64)]) {
        for &(frame, count) in taken {
            (frame..frame + count).for_each(|frame| self.free(frame, 0));
        }
    }

    /// Takes `count` frames as ranges, if the allocator has such a call, for timing alone.
    fn inflate_batch(&self, _count: u64, _taken: &mut Vec<(u64, u64)>) -> bool {
        false
    }

    /// Takes `count` frames for use as ranges and gives them back by `free_batch`, if the allocator
    /// has such calls.
    fn allocate_batch(&self, _count: u64, _taken: &mut Vec<(u64, u64)>) -> bool {
        false
    }

    /// Gives back what `allocate_batch` took.
    fn free_batch(&self, _taken: &[(u64, u64)]) {}

    /// Bytes of metadata, for `frames` managed frames.
    fn metadata(&self) -> u64;
}

/// How an allocator is made, and what it can do.
pub(crate) struct Candidate {
    pub(crate) name: &'static str,
    /// May be shared by threads.
    pub(crate) shared: bool,
    /// Keeps its lists in the free frames: they have to be real memory, so it gets less of it.
    pub(crate) in_page: bool,
    /// Which bad frees it refuses in a release build, and so pays for.
    pub(crate) refuses: &'static str,
    pub(crate) make: fn(u64) -> Box<dyn Frames>,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let quick = arguments.iter().any(|argument| argument == "--quick");
    let value = |key: &str| arguments.iter().find_map(|word| word.strip_prefix(key));
    let tests: Vec<String> = value("--tests=").map_or(Vec::new(), |names| {
        names.split(',').map(str::to_owned).collect()
    });
    let passes = value("--passes=").and_then(|count| count.parse().ok());
    let passes = passes.unwrap_or(if quick { 1 } else { 3 });
    let only: Vec<&String> = arguments
        .iter()
        .filter(|word| !word.starts_with("--"))
        .collect();
    let chosen = |name: &str| only.is_empty() || only.iter().any(|word| name.contains(*word));
    // BitAlloc16M passes through the stack once.
    let worker = std::thread::Builder::new().stack_size(64 << 20).spawn({
        let candidates: Vec<Candidate> = ours::candidates()
            .into_iter()
            .chain(peers::candidates())
            .collect();
        let candidates: Vec<Candidate> = candidates
            .into_iter()
            .filter(|candidate| chosen(candidate.name))
            .collect();
        let flat = chosen("flat");
        move || {
            measure(&candidates, passes, quick, &tests);
            for candidate in candidates.iter().filter(|_| tests.is_empty()) {
                eprintln!("cycle: {}", candidate.name);
                row(&cycle::run(candidate, quick));
            }
            if flat {
                flat::run(quick);
            }
        }
    });
    worker.unwrap().join().unwrap();
}

/// Passes over all candidates, so that a change of the machine's mood meets all of them; the median
/// of all runs is printed. What hits its time limit once is not tried again.
fn measure(candidates: &[Candidate], passes: usize, quick: bool, tests: &[String]) {
    let mut found: BTreeMap<(usize, &str, usize), (Vec<f64>, bool)> = BTreeMap::new();
    for pass in 0..passes {
        for (number, candidate) in candidates.iter().enumerate() {
            eprintln!("pass {} of {passes}: {}", pass + 1, candidate.name);
            for _ in 0..if quick { 1 } else { 3 } {
                let before = found.clone();
                let skip = |test: &str, threads| {
                    let stopped = before.get(&(number, test, threads));
                    stopped.is_some_and(|&(_, stopped)| stopped)
                        || (!tests.is_empty() && !tests.iter().any(|wanted| wanted == test))
                };
                work::run_all(candidate, quick, &skip, &mut |run| {
                    let entry = found.entry((number, run.test, run.threads)).or_default();
                    entry.0.push(run.ns);
                    entry.1 |= run.stopped;
                });
            }
        }
    }
    for ((number, test, threads), (mut runs, stopped)) in found {
        runs.sort_by(f64::total_cmp);
        timing(
            candidates[number].name,
            test,
            threads,
            runs[runs.len() / 2],
            stopped,
        );
    }
}

/// One row of the result.
pub(crate) fn row(value: &Value) {
    println!("{value}");
}

pub(crate) fn timing(name: &str, test: &str, threads: usize, ns: f64, stopped: bool) {
    let mut value = json!({
        "allocator": name, "test": test, "threads": threads,
        "ns_per_op": (ns * 100.0).round() / 100.0,
    });
    if stopped {
        value["stopped"] = Value::Bool(true);
    }
    row(&value);
}

/// A small fast generator.
#[derive(Clone, Copy)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    #[inline]
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    #[inline]
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        ((u128::from(self.next()) * limit as u128) >> 64) as usize
    }

    /// 0..=9, each half as likely as the one before.
    #[inline]
    pub(crate) fn order(&mut self) -> u32 {
        (self.next() | 1 << 9).trailing_zeros().min(9)
    }
}

/// The number of the current thread, as a kernel would know its CPU.
pub(crate) mod cpu {
    use std::cell::Cell;

    thread_local! {
        static CPU: Cell<u32> = const { Cell::new(0) };
    }

    #[inline]
    pub(crate) fn current() -> u32 {
        CPU.with(Cell::get)
    }

    pub(crate) fn set(number: u32) {
        CPU.with(|cpu| cpu.set(number));
    }
}

#[global_allocator]
static HEAP: heap::Counting = heap::Counting;
