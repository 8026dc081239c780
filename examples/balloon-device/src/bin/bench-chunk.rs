//! `cargo xtask bench chunk`: four ways to tell a host about 7 of 8 GiB.
//!
//! Prints a row of JSON for each. The four stages are those of the dialect's
//! authors: allocating frames (in the guest), sending (queueing, kicks, waking,
//! waiting), translating guest addresses and discarding (in the device). With
//! several requests in flight the stages of the two threads overlap: sending is
//! what is left of the whole.
#![expect(
    clippy::std_instead_of_core,
    clippy::std_instead_of_alloc,
    reason = "a host program"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use balloon_device::device::{Device, Options};
use balloon_device::front::Front;
use balloon_device::guest::Guest;
use balloon_device::ram::{Backing, Ram};
use balloon_device::worker::Worker;
use clap::Parser;
use serde_json::json;
use transport_virtio::DriverOptions;

#[derive(Debug, Parser)]
struct Args {
    /// What is behind guest memory.
    #[arg(long, value_enum, default_value = "anon")]
    backing: Backing,
    /// Memory of the guest; an eighth stays.
    #[arg(long, default_value_t = 8192)]
    mib: usize,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let plain = DriverOptions::new().without_bulk();
    // A queue of one: one request at a time, and a discard for each page: as drivers and devices had it.
    measure::<2, 1>(&args, "old", plain, false)?;
    measure::<64, 64>(&args, "pipelined", plain, true)?;
    measure::<64, 64>(&args, "v8-chunks", plain.with_chunk_transfer(), true)?;
    measure::<64, 64>(&args, "ranges", DriverOptions::new(), true)
}

fn measure<const N: usize, const S: usize>(
    args: &Args,
    mode: &str,
    policy: DriverOptions,
    merge: bool,
) -> Result<()> {
    let options = Options {
        chunks: policy.chunk_transfer(),
        requests: policy.chunk_transfer(),
        merge,
        ..Options::default()
    };
    let ram = Arc::new(Ram::new(args.backing, args.mib << 20)?);
    ram.touch()?;
    let shared = Guest::<N, S>::shared();
    let front = Front::new(options.features(), shared.signal())?;
    let device = Device::new(Arc::clone(&front), Arc::clone(&ram), options);
    let worker = Worker::start(Arc::clone(&front), device)?;
    let mut guest = Guest::<N, S>::new(Arc::clone(&front), shared, ram, &policy)?;
    let frames = u32::try_from(args.mib / 8 * 7 * 256)?;
    guest.run(Duration::from_secs(1), Guest::settled)?;
    let begin = Instant::now();
    front.set_config(transport_virtio::protocol::NUM_PAGES, frames);
    guest.run(Duration::from_secs(120), Guest::settled)?;
    let total = begin.elapsed();
    let stages = worker.ask(|device| device.stages())?;
    ensure!(
        stages.frames.get() == u64::from(frames),
        "not every frame was discarded: {stages:?}"
    );
    let known = guest.taking() + stages.translate + stages.discard;
    let seconds = |time: Duration| (time.as_secs_f64() * 1e6).round() / 1e6;
    let row = json!({
        "mode": mode,
        "backing": format!("{:?}", args.backing).to_lowercase(),
        "allocate_s": seconds(guest.taking()),
        "send_s": seconds(total.saturating_sub(known)),
        "translate_s": seconds(stages.translate),
        "discard_s": seconds(stages.discard),
        "total_s": seconds(total),
        "discards": stages.discards,
        "kicks": front.kicks(),
        "interrupts": front.interrupts(),
    });
    use std::io::Write as _;
    writeln!(std::io::stdout(), "{row}")?;
    Ok(())
}
