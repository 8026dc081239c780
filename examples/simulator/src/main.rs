#![doc = include_str!("../README.md")]

mod guest;
mod host;
mod map;
mod memory;
mod oracle;
mod rings;
mod rng;
mod services;
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
use clap::{Parser, ValueEnum};

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
    host: Option<Kind>,
    /// Print everything that happens.
    #[arg(long)]
    trace: bool,
}

/// A kind of host.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// Asynchronous, frame by frame.
    Virtio,
    /// Asynchronous, with the bulk path.
    Bulk,
    /// Synchronous; moves frames.
    Xen,
    /// Synchronous; exchanges frames.
    Pv,
    /// A virtio device behind the real transport and its rings.
    Rings,
}

impl Kind {
    /// Those of `host`, which have no rings.
    const fn model(self) -> Option<Model> {
        match self {
            Self::Virtio => Some(Model::Virtio),
            Self::Bulk => Some(Model::Bulk),
            Self::Xen => Some(Model::Xen),
            Self::Pv => Some(Model::Pv),
            Self::Rings => None,
        }
    }

    const fn name(self) -> &'static str {
        match self.model() {
            Some(model) => model.name(),
            None => "rings",
        }
    }
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
    let hosts = args
        .host
        .map_or(Kind::value_variants().to_vec(), |host| vec![host]);
    panic::set_hook(Box::new(|panic| {
        PANIC.set(panic.to_string().replace('\n', " "));
    }));
    let mut total = Tally::default();
    let words = world::metadata_words().max(rings::metadata_words());
    let mut metadata = vec![0; words];
    for seed in first..first.saturating_add(count) {
        for &host in &hosts {
            let mut trace = if args.trace {
                Trace::Printed(0)
            } else {
                Trace::Off
            };
            match run(seed, host, &mut metadata, &mut trace) {
                Ok(tally) => total.add(tally),
                Err(finding) => {
                    if !args.trace {
                        // The same again, to tell how it came to this.
                        let mut trace = Trace::kept();
                        let _ = run(seed, host, &mut metadata, &mut trace);
                        trace.print();
                    }
                    let host = host.name();
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
fn run(seed: u64, host: Kind, metadata: &mut [u64], trace: &mut Trace) -> Result<Tally> {
    // The engine wants it for as long as the program runs; a run leaves nothing in
    // flight, or is the last one.
    let run = AssertUnwindSafe(|| {
        if let Some(model) = host.model() {
            let shared = Box::leak(Box::new(Shared::new()));
            let words = metadata.get_mut(..world::metadata_words());
            let mut world = World::new(seed, model, words.unwrap_or_default(), shared, trace)?;
            world.run()?;
            return Ok(world.tally());
        }
        let shared = Box::leak(Box::new(Shared::new()));
        let mut world = rings::World::new(seed, metadata, shared, trace)?;
        world.run()?;
        Ok(world.tally())
    });
    panic::catch_unwind(run).unwrap_or_else(|_| Err(anyhow!("{}", PANIC.take())))
}
