#![doc = include_str!("../README.md")]

mod beside;
mod guest;
mod host;
mod map;
mod memory;
mod oracle;
mod rng;
mod tally;
#[cfg(test)]
mod tour;
mod trace;
mod world;

use core::cell::RefCell;
use core::panic::AssertUnwindSafe;
use std::panic;
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use balloon_core::Shared;
use clap::Parser;

use host::Model;
use tally::Tally;
use trace::Trace;
use world::World;

/// Simulate ballooned guests and their hosts.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask sim")]
struct Args {
    /// How many seeds to run, from `--seed` on; 1000 from the first one.
    #[arg(long)]
    seeds: Option<u64>,
    /// The first seed; alone, the only one.
    #[arg(long)]
    seed: Option<u64>,
    /// Only this kind of host.
    #[arg(long)]
    host: Option<Model>,
    /// Print everything that happens.
    #[arg(long)]
    trace: bool,
}

/// Runs from which on everything must have happened at least once.
const MANY: u64 = 400;

thread_local! {
    /// What the last panic said.
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

fn main() -> ExitCode {
    let args = Args::parse();
    let first = args.seed.unwrap_or(0);
    let alone = if args.seed.is_some() { 1 } else { 1000 };
    let count = args.seeds.unwrap_or(alone);
    let hosts = args.host.map_or(Model::ALL.to_vec(), |host| vec![host]);
    panic::set_hook(Box::new(|panic| {
        PANIC.set(panic.to_string().replace('\n', " "));
    }));
    let mut total = Tally::default();
    let mut metadata = vec![0; world::metadata_words()];
    for seed in first..first.saturating_add(count) {
        for &model in &hosts {
            let mut trace = if args.trace {
                Trace::Printed(0)
            } else {
                Trace::Off
            };
            match run(seed, model, &mut metadata, &mut trace) {
                Ok(tally) => total.add(tally),
                Err(finding) => {
                    if !args.trace {
                        // The same again, to tell how it came to this.
                        let mut trace = Trace::kept();
                        let _ = run(seed, model, &mut metadata, &mut trace);
                        trace.print();
                    }
                    let host = model.name();
                    eprintln!("FOUND with seed {seed} on {host}: {finding:#}");
                    eprintln!("replay: cargo xtask sim --seed {seed} --host {host} --trace");
                    return ExitCode::FAILURE;
                }
            }
        }
        let done = seed + 1 - first;
        if done.is_multiple_of(1000) {
            eprintln!("{done} seeds");
        }
    }
    if let Some(what) = total
        .never()
        .filter(|_| count >= MANY && args.host.is_none())
    {
        eprintln!("in {count} seeds there never was {what}: {total:?}");
        return ExitCode::FAILURE;
    }
    eprintln!(
        "{count} seeds from {first} on {} hosts, nothing found: {total:?}",
        hosts.len()
    );
    ExitCode::SUCCESS
}

/// One run; a panic is a finding, too.
fn run(seed: u64, model: Model, metadata: &mut [u64], trace: &mut Trace) -> Result<Tally> {
    let run = AssertUnwindSafe(|| {
        // The engine wants it for as long as the program runs; a run leaves nothing
        // in flight, or is the last one.
        let shared = Box::leak(Box::new(Shared::new()));
        let mut world = World::new(seed, model, metadata, shared, trace)?;
        world.run()?;
        Ok(world.tally())
    });
    panic::catch_unwind(run).unwrap_or_else(|_| Err(anyhow!("{}", PANIC.take())))
}
