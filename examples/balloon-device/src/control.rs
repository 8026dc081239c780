//! The control socket: one command a line, one line of JSON for each.
//!
//! | command | does |
//! |---|---|
//! | `balloon MIB` | sets the target |
//! | `query` | target and size, what was discarded and what was kept for its value, what is to be told back, kicks and interrupts |
//! | `statistics` | the newest statistics; asks for newer ones |
//! | `hints start`, `hints end`, `hints` | opens a round, says that it is over, shows it |
//! | `unused ID`, `unused` | asks for unused pages, shows what came (`CHUNK_TRANSFER`) |

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use balloon_core::Bytes;
use serde_json::{Value, json};

use crate::device::Named;
use crate::front::Front;
use crate::worker::Worker;

/// Serves one connection after the other, for ever.
///
/// # Errors
/// If the socket breaks.
pub fn serve(listener: &UnixListener, front: &Arc<Front>, worker: &Worker) -> Result<()> {
    for stream in listener.incoming() {
        // One peer that breaks off is not the end.
        let _ = talk(&stream?, front, worker);
    }
    Ok(())
}

fn talk(mut stream: &UnixStream, front: &Front, worker: &Worker) -> Result<()> {
    for line in BufReader::new(stream).lines() {
        let reply = command(&line?, front, worker);
        let reply = reply.unwrap_or_else(|error| json!({ "error": format!("{error:#}") }));
        writeln!(stream, "{reply}")?;
    }
    Ok(())
}

/// Carries out one command.
///
/// # Errors
/// If there is no such command, or the device is gone.
pub fn command(line: &str, front: &Front, worker: &Worker) -> Result<Value> {
    let words: Vec<&str> = line.split_whitespace().collect();
    Ok(match *words {
        ["balloon", mib] => {
            let mib: u64 = mib.parse().context("a number of MiB")?;
            let frames = u32::try_from(mib << 8).context("too many MiB")?;
            worker.ask(move |device| device.set_target(frames))?;
            json!({})
        }
        ["query"] => {
            let target = mib(front.target());
            let (stages, actual, away) =
                worker.ask(|device| (device.stages(), device.actual(), device.away()))?;
            json!({
                "target_mib": target,
                "actual_mib": mib(actual),
                "discarded_mib": stages.frames.bytes().get() >> 20,
                "discards": stages.discards,
                "refused": stages.refused,
                "kept_mib": stages.kept.bytes().get() >> 20,
                "away_mib": away.map(|away| away.bytes().get() >> 20),
                "kicks": front.kicks(),
                "interrupts": front.interrupts(),
            })
        }
        ["statistics"] => {
            let statistics = worker.ask(|device| {
                let newest = device.statistics().to_vec();
                device.request_statistics();
                newest
            })?;
            let entries = statistics
                .iter()
                .map(|(tag, value)| (tag.to_string(), json!(value)));
            Value::Object(entries.collect())
        }
        ["hints", "start"] => {
            worker.ask(|device| device.start_hints())?;
            json!({})
        }
        ["hints", "end"] => {
            worker.ask(|device| device.end_hints())?;
            json!({})
        }
        ["hints"] => named(&worker.ask(|device| device.hints().clone())?),
        ["unused", id] => {
            let id = id.parse().context("a number of 16 bits")?;
            worker.ask(move |device| device.request_unused(id))?;
            json!({})
        }
        ["unused"] => named(&worker.ask(|device| device.unused().clone())?),
        _ => bail!("no such command: {line:?}"),
    })
}

fn mib(frames: u32) -> u64 {
    balloon_core::FrameCount::new(frames.into()).bytes().get() / Bytes::new(1 << 20).get()
}

fn named(named: &Named) -> Value {
    json!({
        "id": named.id,
        "mib": named.frames().bytes().get() >> 20,
        "ranges": named.ranges.len(),
        "dropped": named.dropped,
        "messages": named.messages,
        "complete": named.complete,
    })
}
