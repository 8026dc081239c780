//! Watches the resident memory of a process from a thread of its own.
//!
//! QEMU's monitor waits while its main loop discards memory, so whoever asks it cannot watch at the same
//! time. Reading `/proc` disturbs nobody.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::vm::resident;

/// Time between two looks: well below the 5 ms that the figures allow.
const PERIOD: Duration = Duration::from_millis(2);
/// At least this often a sample is kept, changed or not.
const KEEP: Duration = Duration::from_millis(100);
/// A change below this is not worth a sample.
const NOTABLE: u64 = 1 << 20;

/// Resident memory at a time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    /// When.
    pub(crate) at: Instant,
    /// How much, in bytes.
    pub(crate) bytes: u64,
}

#[derive(Debug, Default)]
struct State {
    samples: Vec<Sample>,
    limit: Option<u64>,
    crossed: Option<Instant>,
    stop: bool,
}

/// The watch, until it is dropped.
#[derive(Debug)]
pub(crate) struct Sampler {
    state: Arc<Mutex<State>>,
    thread: Option<JoinHandle<()>>,
}

impl Sampler {
    /// Starts to watch `pid`.
    pub(crate) fn start(pid: u32) -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        let thread = std::thread::spawn(move || {
            let mut kept: Option<Sample> = None;
            // An error means that the process is gone.
            while let Ok(bytes) = resident(pid) {
                let sample = Sample {
                    at: Instant::now(),
                    bytes,
                };
                let mut state = lock(&shared);
                if state.stop {
                    break;
                }
                if state.limit.is_some_and(|limit| bytes <= limit) && state.crossed.is_none() {
                    state.crossed = Some(sample.at);
                }
                let notable = |last: Sample| {
                    bytes.abs_diff(last.bytes) >= NOTABLE || sample.at - last.at >= KEEP
                };
                if kept.is_none_or(notable) {
                    state.samples.push(sample);
                    kept = Some(sample);
                }
                drop(state);
                std::thread::sleep(PERIOD);
            }
        });
        Self {
            state,
            thread: Some(thread),
        }
    }

    /// Notes from now on when memory is at or below `limit` for the first time.
    pub(crate) fn watch_for(&self, limit: u64) {
        let mut state = lock(&self.state);
        state.limit = Some(limit);
        state.crossed = None;
    }

    /// Waits for that moment and returns it.
    pub(crate) fn crossed(&self, deadline: Instant) -> Result<Instant> {
        loop {
            let state = lock(&self.state);
            if let Some(at) = state.crossed {
                return Ok(at);
            }
            if Instant::now() > deadline {
                let mib = |bytes: u64| bytes >> 20;
                let last = state.samples.last().map_or(0, |sample| sample.bytes);
                bail!(
                    "host memory stays at {} MiB, {} were expected",
                    mib(last),
                    mib(state.limit.unwrap_or(0))
                );
            }
            drop(state);
            std::thread::sleep(PERIOD);
        }
    }

    /// Ends the watch and returns what it saw.
    pub(crate) fn finish(mut self) -> Vec<Sample> {
        self.stop();
        core::mem::take(&mut lock(&self.state).samples)
    }

    fn stop(&mut self) {
        lock(&self.state).stop = true;
        if let Some(thread) = self.thread.take() {
            // It panics nowhere; if it did, the samples so far are still good.
            let _ = thread.join();
        }
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.stop();
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
