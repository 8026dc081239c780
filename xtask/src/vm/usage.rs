//! What a process costs its host, from `/proc`.

use std::time::Duration;

use anyhow::{Context as _, Result};

/// Resident memory of a process, in bytes.
///
/// From `statm`: it is cheap enough to be read every few milliseconds, which `smaps_rollup` is not.
pub(crate) fn resident(pid: u32) -> Result<u64> {
    let text =
        std::fs::read_to_string(format!("/proc/{pid}/statm")).context("the process is gone")?;
    let pages: u64 = text
        .split_whitespace()
        .nth(1)
        .and_then(|word| word.parse().ok())
        .context("statm is odd")?;
    Ok(pages * u64::try_from(rustix::param::page_size())?)
}

/// Processor time a process has used, user and system, all its threads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage(Duration);

impl Usage {
    /// Reads it now. Its resolution is a clock tick, 10 ms.
    pub(crate) fn read(pid: u32) -> Result<Self> {
        let text =
            std::fs::read_to_string(format!("/proc/{pid}/stat")).context("the process is gone")?;
        let ticks = ticks(&text).context("stat is odd")?;
        Ok(Self(Duration::from_millis(
            ticks * 1000 / rustix::param::clock_ticks_per_second(),
        )))
    }

    /// What was used since `earlier`.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

fn ticks(stat: &str) -> Option<u64> {
    // The name in parentheses may hold anything: count fields behind its end.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_survive_odd_names() {
        let stat = "12 (a) b (c) S 1 12 12 0 -1 4194560 100 0 0 0 250 31 0 0 20 0 3 0 99 1 2 3";
        assert_eq!(ticks(stat), Some(281));
        assert_eq!(ticks("12 (a"), None);
    }

    #[test]
    fn we_are_resident() {
        assert!(resident(std::process::id()).unwrap() > 64 * 1024);
        assert!(Usage::read(std::process::id()).is_ok());
    }
}
