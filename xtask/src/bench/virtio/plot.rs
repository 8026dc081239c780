//! Host memory of all guests over time: one panel for inflations, one for reports.

use std::time::{Duration, Instant};

use super::Row;
use crate::svg::{self, PANEL_HEIGHT, PANEL_WIDTH, Panel, element, text};

const LEFT: f64 = 70.0;
const TOP: f64 = 110.0;
const GAP: f64 = 60.0;
const COLORS: [&str; 5] = ["#1f6feb", "#8250df", "#d1242f", "#bf8700", "#1a7f37"];

/// The whole picture.
pub(super) fn draw(mem_mib: u64, rows: &[Row]) -> String {
    let mut svg = svg::open(
        LEFT + 2.0 * PANEL_WIDTH + GAP + 30.0,
        TOP + PANEL_HEIGHT + 60.0,
    );
    text(
        &mut svg,
        LEFT,
        22.0,
        &format!("Host memory of a guest of {mem_mib} MiB"),
        "start",
    );
    for (index, (op, title)) in [
        ("inflate", "inflation"),
        ("report", "freed memory is reported"),
    ]
    .into_iter()
    .enumerate()
    {
        let shown: Vec<&Row> = rows.iter().filter(|row| row.op == op).collect();
        let left = LEFT + index as f64 * (PANEL_WIDTH + GAP);
        let longest = shown
            .iter()
            .map(|row| row.took.wall)
            .max()
            .unwrap_or_default();
        // All begin at the same moment, whenever they ran.
        let origin = Instant::now();
        let lead = longest / 20;
        let panel = Panel {
            left,
            top: TOP,
            from: origin.checked_sub(lead).unwrap_or(origin),
            to: origin + longest + lead.max(Duration::from_millis(100)),
            origin,
            highest: mem_mib,
        };
        text(&mut svg, left, TOP - 8.0, title, "start");
        panel.axes(&mut svg);
        for ((row, color), line) in shown.iter().zip(COLORS).zip(0_u32..) {
            let points: Vec<(Instant, u64)> = row
                .took
                .samples
                .iter()
                .filter_map(|sample| {
                    let at = if sample.at >= row.took.start {
                        origin + (sample.at - row.took.start)
                    } else {
                        origin.checked_sub(row.took.start - sample.at)?
                    };
                    Some((at, sample.bytes >> 20))
                })
                .collect();
            panel.line(&mut svg, color, &points);
            let y = 40.0 + 14.0 * f64::from(line);
            element(
                &mut svg,
                &format!(
                    "<rect x=\"{left}\" y=\"{:.0}\" width=\"14\" height=\"4\" fill=\"{color}\"/>",
                    y - 5.0
                ),
            );
            text(
                &mut svg,
                left + 20.0,
                y,
                &format!("{}, {} path", row.guest, row.path),
                "start",
            );
        }
    }
    svg.push_str("</svg>\n");
    svg
}
