//! The device as a vhost-user back end: serves one front end, then ends.
#![expect(clippy::std_instead_of_alloc, reason = "a host program")]

use std::path::PathBuf;
use std::sync::{Arc, RwLock};

use anyhow::{Context as _, Result};
use balloon_core::Shared;
use balloon_device::device::Options;
use balloon_device::front::Front;
use balloon_device::vhost_user::Backend;
use clap::Parser;
use transport_virtio::protocol::NUM_PAGES;

/// A vhost-user back end of a balloon of one size.
#[derive(Debug, Parser)]
struct Args {
    /// Where to listen.
    socket: PathBuf,
    /// Size of the balloon in MiB; the driver has to look for it.
    #[arg(long, default_value_t = 0)]
    target: u32,
    /// The device speaks `CHUNK_TRANSFER`.
    #[arg(long)]
    chunks: bool,
}

/// Of a driver that is elsewhere: nobody waits for it here.
static SHARED: Shared<1> = Shared::new();

fn main() -> Result<()> {
    let args = Args::parse();
    let options = Options {
        chunks: args.chunks,
        requests: args.chunks,
        merge: true,
        ..Options::default()
    };
    let front = Front::new(options.features(), SHARED.signal())?;
    let frames = args
        .target
        .checked_mul(256)
        .context("too large a balloon")?;
    front.set_config(NUM_PAGES, frames);
    let backend = Arc::new(RwLock::new(Backend::new(front, options)?));
    Backend::serve(&backend, &args.socket)
}
