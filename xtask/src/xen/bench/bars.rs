//! What the figures come to, and what they have to.

use std::fmt;

use super::{CLEARING, LINUX_UNCLEARED, OPS, Row, UNCLEARED, WALK_BLOCKS};

/// What a figure is held to.
#[derive(Debug, Clone, Copy)]
enum Bar {
    AtLeast(f64),
    AtMost(f64),
    /// It is shown.
    None,
}

/// A figure and its bar.
#[derive(Debug)]
pub(super) struct Verdict {
    what: String,
    value: f64,
    bar: Bar,
}

impl Verdict {
    fn new(what: impl Into<String>, value: f64, bar: Bar) -> Self {
        Self {
            what: what.into(),
            value,
            bar,
        }
    }

    /// A figure that is not there misses its bar.
    pub(super) fn is_met(&self) -> bool {
        match self.bar {
            Bar::AtLeast(least) => self.value >= least,
            Bar::AtMost(most) => self.value <= most,
            Bar::None => true,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:.2}", self.what, self.value)?;
        match self.bar {
            Bar::AtLeast(least) => write!(f, ", at least {least}"),
            Bar::AtMost(most) => write!(f, ", at most {most}"),
            Bar::None => Ok(()),
        }
    }
}

/// The figures of a guest's operation; medians hide a boot's odd ones out.
struct Figures<'a> {
    rows: &'a [Row],
}

impl Figures<'_> {
    fn of(&self, guest: &str, op: &str, figure: fn(&Row) -> Option<f64>) -> Vec<f64> {
        let rows = self.rows.iter();
        let rows = rows.filter(|row| row.guest == guest && row.op == op);
        let mut values: Vec<f64> = rows.filter_map(figure).collect();
        values.sort_by(f64::total_cmp);
        values
    }

    fn median(&self, guest: &str, op: &str, figure: fn(&Row) -> Option<f64>) -> f64 {
        let values = self.of(guest, op, figure);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// From outside.
    fn wall(&self, guest: &str, op: &str) -> f64 {
        self.median(guest, op, |row| Some(row.wall_s))
    }

    /// By the guest's own clock.
    fn own(&self, guest: &str, op: &str) -> f64 {
        self.median(guest, op, |row| row.guest_s)
    }

    fn leaves(&self, op: &str) -> Vec<f64> {
        self.of("ours", op, |row| row.leaves_2m.map(|leaves| leaves as f64))
    }

    fn fewest_leaves(&self, op: &str) -> f64 {
        self.leaves(op).first().copied().unwrap_or(f64::NAN)
    }
}

/// What the rows say of our PVH guest, and of the PV one where there is no bar.
pub(super) fn verdicts(rows: &[Row]) -> Vec<Verdict> {
    let figures = Figures { rows };
    let mut verdicts = Vec::new();
    let mut add = |what: &str, value, bar| verdicts.push(Verdict::new(what, value, bar));

    let bare = |op, guest| figures.own("ours", op) / figures.own(guest, op);
    add(
        "give, of the time of the bare loop that clears",
        bare("give", CLEARING),
        Bar::AtMost(1.3),
    );
    for (op, what, [linux, ours], least) in [
        ("give", "times as fast as Linux", ["linux", "ours"], 4.0),
        (
            "give",
            "nothing cleared, times as fast as Linux",
            [LINUX_UNCLEARED, UNCLEARED],
            3.0,
        ),
        ("take", "times as fast as Linux", ["linux", "ours"], 12.0),
    ] {
        let times = figures.wall(linux, op) / figures.wall(ours, op);
        add(&format!("{op}, {what}"), times, Bar::AtLeast(least));
    }
    let what = "take, of the bare loop's time";
    add(what, bare("take", "bare-order9"), Bar::None);
    for (op, _) in OPS {
        let calls = figures.of("ours", op, |row| row.hypercalls.map(|calls| calls as f64));
        let most = calls.last().copied().unwrap_or(f64::NAN);
        let what = format!("{op}, hypercalls of one GiB");
        add(&what, most, Bar::AtMost(16.0));
    }
    // Whole superpages went: whole superpages come.
    let whole = figures.fewest_leaves("take") / WALK_BLOCKS as f64;
    add("2 MiB leaves after a cycle", whole, Bar::AtLeast(0.99));
    let scattered = figures.fewest_leaves("scatter");
    add(
        "2 MiB leaves with a balloon of single frames",
        scattered,
        Bar::None,
    );
    for (op, when) in [
        ("compact", "after compaction"),
        ("refill", "when it is empty"),
    ] {
        let leaves = figures.fewest_leaves(op);
        let what = format!("2 MiB leaves {when}");
        add(&what, leaves, Bar::AtLeast(scattered));
    }
    for (op, what) in [
        ("move", "move of a range, of a copy in lists"),
        (
            "move-pairs",
            "move of pairs of no neighbours, of a copy frame by frame",
        ),
    ] {
        let share = figures.own("ours", op) / figures.own("copy", op);
        add(what, share, Bar::AtMost(0.5));
    }
    let share = figures.own("ours", "move-pairs") / figures.own("copy", "move");
    add(
        "move of pairs of no neighbours, of a copy in lists",
        share,
        Bar::None,
    );
    verdicts
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Figures that lie on the good side of every bar, but for those given.
    fn rows(worse: &[(&str, &str, Row)]) -> Vec<Row> {
        let row = |guest, op, seconds: f64| Row {
            guest,
            op,
            wall_s: seconds,
            guest_s: Some(seconds),
            hypercalls: Some(16),
            leaves_2m: Some(512),
            ..Row::default()
        };
        let mut rows = vec![
            row("linux", "give", 9.0),
            row("linux", "take", 2.5),
            row(LINUX_UNCLEARED, "give", 4.81),
            row("ours", "give", 2.0),
            row("ours", "take", 0.2),
            row(UNCLEARED, "give", 1.6),
            row(CLEARING, "give", 1.6),
            row("bare-order9", "take", 0.2),
            row("ours", "move", 0.5),
            row("ours", "move-pairs", 1.0),
            row("copy", "move", 1.0),
            row("copy", "move-pairs", 2.0),
            row("ours", "scatter", 1.0),
            row("ours", "compact", 1.0),
            row("ours", "refill", 1.0),
        ];
        for (guest, op, other) in worse {
            rows.retain(|row| row.guest != *guest || row.op != *op);
            rows.push(Row {
                guest: other.guest,
                op: other.op,
                ..*other
            });
        }
        rows
    }

    fn missed(rows: &[Row]) -> usize {
        let verdicts = verdicts(rows);
        verdicts.iter().filter(|verdict| !verdict.is_met()).count()
    }

    #[test]
    fn every_bar_can_be_missed() {
        assert_eq!(missed(&rows(&[])), 0);
        let ours = |op, seconds: f64, hypercalls, leaves| {
            let row = Row {
                guest: "ours",
                op,
                wall_s: seconds,
                guest_s: Some(seconds),
                hypercalls: Some(hypercalls),
                leaves_2m: Some(leaves),
                ..Row::default()
            };
            ("ours", op, row)
        };
        let give = |guest, wall_s| {
            let row = Row {
                guest,
                wall_s,
                ..Row::of_ours("give")
            };
            (guest, "give", row)
        };
        for worse in [
            ours("give", 2.09, 16, 0),
            give(UNCLEARED, 1.61),
            give(LINUX_UNCLEARED, 4.79),
            give("linux", 7.9),
            ours("take", 0.22, 16, 512),
            ours("give", 1.0, 17, 0),
            ours("take", 0.1, 17, 512),
            ours("take", 0.1, 16, 506),
            ours("compact", 1.0, 0, 511),
            ours("refill", 1.0, 0, 511),
            ours("move", 0.51, 1, 0),
            ours("move-pairs", 1.01, 1, 0),
        ] {
            assert_eq!(missed(&rows(&[worse])), 1);
        }
        assert!(missed(&[]) > 5, "nothing was measured");
    }
}
