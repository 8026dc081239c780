#![doc = include_str!("../README.md")]

mod guest;
mod host;
mod map;
mod memory;
mod rng;
#[cfg(test)]
mod tour;
mod trace;
mod world;

use std::panic;
use std::process::ExitCode;

use anyhow::Result;
use balloon_core::Shared;
use clap::Parser;

use host::Model;
use trace::Trace;
use world::{Tally, World};

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

fn main() -> ExitCode {
    let args = Args::parse();
    let first = args.seed.unwrap_or(0);
    let alone = if args.seed.is_some() { 1 } else { 1000 };
    let count = args.seeds.unwrap_or(alone);
    let hosts = args.host.map_or(Model::ALL.to_vec(), |host| vec![host]);
    let mut total = Tally::default();
    let mut metadata = vec![0; world::metadata_words()];
    for seed in first..first.saturating_add(count) {
        for &model in &hosts {
            match run(seed, model, &mut metadata, args.trace) {
                Ok(tally) => total.add(tally),
                Err(finding) => {
                    report(seed, model, &format!("{finding:#}"));
                    return ExitCode::FAILURE;
                }
            }
        }
        let done = seed + 1 - first;
        if done.is_multiple_of(1000) {
            eprintln!("{done} seeds");
        }
    }
    eprintln!(
        "{count} seeds from {first} on {} hosts, nothing found: {total:?}",
        hosts.len()
    );
    ExitCode::SUCCESS
}

fn report(seed: u64, model: Model, finding: &str) {
    let host = model.name();
    eprintln!("FOUND with seed {seed} on {host}: {finding}");
    eprintln!("replay: cargo xtask sim --seed {seed} --host {host} --trace");
}

fn run(seed: u64, model: Model, metadata: &mut [u64], trace: bool) -> Result<Tally> {
    // A panic is a finding too.
    panic::set_hook(Box::new(move |panic| {
        report(seed, model, &panic.to_string().replace('\n', " "));
    }));
    // The engine wants it for as long as the program runs; a run leaves nothing
    // in flight, or is the last one.
    let shared = Box::leak(Box::new(Shared::new()));
    let mut world = World::new(seed, model, metadata, shared, Trace::new(trace))?;
    world.run()?;
    Ok(world.tally())
}
