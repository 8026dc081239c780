//! A device and a guest in one process, with a control socket to play with.
#![expect(
    clippy::std_instead_of_core,
    clippy::std_instead_of_alloc,
    reason = "a host program"
)]

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use balloon_device::control;
use balloon_device::device::{Device, Options};
use balloon_device::front::Front;
use balloon_device::guest::Guest;
use balloon_device::ram::{Backing, Ram};
use balloon_device::worker::Worker;
use clap::Parser;
use transport_virtio::DriverOptions;

/// A balloon device, a guest beside it, and a socket to control the device by.
#[derive(Debug, Parser)]
struct Args {
    /// Where to listen; one command a line, see the README.
    socket: PathBuf,
    /// Memory of the guest.
    #[arg(long, default_value_t = 1024)]
    mib: usize,
    /// What is behind it.
    #[arg(long, value_enum, default_value = "anon")]
    backing: Backing,
    /// The device insists on being told before a frame is used again.
    #[arg(long)]
    must_tell_host: bool,
    /// Free memory holds this value, the guest relies on it and reports free memory.
    #[arg(long, conflicts_with = "chunks")]
    poison: Option<u32>,
    /// Device and driver speak `CHUNK_TRANSFER`.
    #[arg(long)]
    chunks: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let options = Options {
        chunks: args.chunks,
        requests: args.chunks,
        merge: true,
        must_tell_host: args.must_tell_host,
        poison: args.poison.is_some(),
    };
    let policy = DriverOptions::new().with_statistics();
    let policy = match args.poison {
        Some(value) => policy.with_poison(value).with_reporting(),
        None => policy,
    };
    let policy = if args.chunks {
        policy.with_chunk_transfer()
    } else {
        policy.with_hints()
    };
    let ram = Arc::new(Ram::new(args.backing, args.mib << 20)?);
    ram.touch()?;
    let shared = Guest::<64, 64>::shared();
    let front = Front::new(options.features(), shared.signal())?;
    let device = Device::new(Arc::clone(&front), Arc::clone(&ram), options);
    let worker = Worker::start(Arc::clone(&front), device)?;
    let mut guest = Guest::<64, 64>::new(Arc::clone(&front), shared, ram, &policy)?;
    std::thread::spawn(move || guest.run(Duration::MAX, |_| false));
    let listener = UnixListener::bind(&args.socket)
        .with_context(|| format!("listening at {}", args.socket.display()))?;
    control::serve(&listener, &front, &worker)
}
