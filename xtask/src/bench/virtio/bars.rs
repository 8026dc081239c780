//! How far ahead of Linux our guest has to be in the same run.

use super::{Row, Who};

/// The bars are for guests of this size, in MiB.
pub(super) const MEMORY: u64 = 8192;

/// A figure of ours in a row, as a share of Linux' figure in the same operation.
struct Bar {
    op: &'static str,
    path: &'static str,
    what: &'static str,
    of: fn(&Row) -> f64,
    times: f64,
}

const fn bar(op: &'static str, path: &'static str, times: f64) -> Bar {
    Bar {
        op,
        path,
        what: "wall time",
        of: |row| row.wall_s,
        times,
    }
}

const fn cpu(op: &'static str, path: &'static str, times: f64) -> Bar {
    Bar {
        what: "CPU time",
        of: |row| row.cpu_s,
        ..bar(op, path, times)
    }
}

const BARS: [Bar; 6] = [
    bar("inflate", "reporting", 50.0),
    cpu("inflate", "reporting", 30.0),
    bar("inflate", "pfn", 2.5),
    cpu("inflate", "pfn", 2.0),
    bar("deflate", "reporting", 10.0),
    bar("deflate", "pfn", 1.5),
];

/// Seconds in which 99 % of what was freed must have been reported.
const REPORTED: f64 = 1.0;

/// The bars that were missed, and by how much. A row that is not there misses its bar.
pub(super) fn missed(rows: &[Row]) -> Vec<String> {
    let linux = Who::Linux { zeroes: true }.name();
    let ours = |op: &str, path: &str| {
        let mut rows = rows.iter();
        rows.find(|row| row.guest == Who::Ours.name() && row.op == op && row.path == path)
    };
    let mut missed: Vec<String> = BARS
        .iter()
        .filter_map(|bar| {
            let mut peers = rows.iter();
            let peer = peers.find(|row| row.guest == linux && row.op == bar.op);
            let times = match (ours(bar.op, bar.path), peer) {
                // A hundredth of a second is what the kernel counts CPU time in.
                (Some(row), Some(peer)) => (bar.of)(peer) / (bar.of)(row).max(0.01),
                _ => 0.0,
            };
            let Bar {
                op,
                path,
                what,
                times: least,
                ..
            } = bar;
            (times < *least)
                .then(|| format!("{op}, {path} path: {times:.1} x less {what}, not {least} x"))
        })
        .collect();
    let reported = ours("report", "reporting").and_then(|row| row.t99_s);
    if reported.is_none_or(|time| time > REPORTED) {
        missed.push(format!(
            "report: 99 % after {reported:?} s, not {REPORTED} s"
        ));
    }
    let woken = ours("rest", "reporting").and_then(|row| row.wakeups);
    if woken != Some(0) {
        missed.push(format!("at rest: {woken:?} wake-ups, not 0"));
    }
    missed
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::super::Took;
    use super::*;

    fn row(who: Who, path: &'static str, op: &'static str, milliseconds: u64) -> Row {
        let wall = Duration::from_millis(milliseconds);
        let took = Took {
            wall,
            cpu: wall,
            kicks: 0,
            interrupts: 0,
            config_writes: 0,
            rss_after: 0,
            reached: [Some(wall); 3],
            wakeups: Some(u64::from(milliseconds > 60_000)),
            start: Instant::now(),
            samples: Vec::new(),
        };
        Row::new(who, path, op, took)
    }

    /// Our rows in milliseconds, beside a Linux that takes ten seconds for all.
    fn run(ours: [u64; 6]) -> Vec<Row> {
        let linux = Who::Linux { zeroes: true };
        let [a, b, c, d, e, f] = ours;
        vec![
            row(linux, "pfn", "inflate", 10_000),
            row(linux, "pfn", "deflate", 10_000),
            row(Who::Ours, "reporting", "inflate", a),
            row(Who::Ours, "pfn", "inflate", b),
            row(Who::Ours, "reporting", "deflate", c),
            row(Who::Ours, "pfn", "deflate", d),
            row(Who::Ours, "reporting", "report", e),
            row(Who::Ours, "reporting", "rest", f),
        ]
    }

    #[test]
    fn every_bar_can_be_missed() {
        let good = [150, 3_000, 500, 5_000, 900, 60_000];
        assert_eq!(missed(&run(good)), Vec::<String>::new());
        for (at, slow) in [400, 6_000, 1_500, 8_000, 1_100, 60_001]
            .into_iter()
            .enumerate()
        {
            let mut rows = good;
            rows[at] = slow;
            assert!(!missed(&run(rows)).is_empty(), "bar {at}");
        }
        assert_eq!(missed(&[]).len(), BARS.len() + 2);
    }
}
