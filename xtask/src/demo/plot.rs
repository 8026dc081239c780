//! The demo as a picture: host memory and target over time, one row a path.

use std::time::{Duration, Instant};

use super::cycle::Cycle;
use crate::svg::{self, PANEL_HEIGHT, PANEL_WIDTH, Panel, element, text};

const LEFT: f64 = 70.0;
const TOP: f64 = 60.0;
const GAP_X: f64 = 60.0;
const GAP_Y: f64 = 80.0;
const MEMORY: &str = "#1f6feb";
const TARGET: &str = "#d1242f";

/// The whole picture.
pub(super) fn draw(mem_mib: u64, target_mib: u64, cycles: &[Cycle]) -> String {
    let rows = cycles.len() as f64;
    let width = LEFT + 2.0 * PANEL_WIDTH + GAP_X + 30.0;
    let height = TOP + rows * (PANEL_HEIGHT + GAP_Y);
    let mut svg = svg::open(width, height);
    text(
        &mut svg,
        LEFT,
        22.0,
        &format!(
            "A guest of {mem_mib} MiB shrinks to {target_mib} MiB, rests, and gets its memory back"
        ),
        "start",
    );
    for (x, color, label) in [
        (LEFT, MEMORY, "host memory of QEMU"),
        (LEFT + 170.0, TARGET, "target"),
    ] {
        element(
            &mut svg,
            &format!("<rect x=\"{x}\" y=\"32\" width=\"14\" height=\"4\" fill=\"{color}\"/>"),
        );
        text(&mut svg, x + 20.0, 38.0, label, "start");
    }
    for (row, cycle) in cycles.iter().enumerate() {
        let top = TOP + row as f64 * (PANEL_HEIGHT + GAP_Y) + 20.0;
        let highest = cycle
            .samples
            .iter()
            .map(|sample| sample.bytes >> 20)
            .max()
            .unwrap_or(0)
            .max(mem_mib);
        let zoom = (cycle.inflate * 2).max(Duration::from_millis(500));
        let lead = zoom / 5;
        let end = cycle
            .samples
            .last()
            .map_or(cycle.inflate_at, |sample| sample.at);
        let windows = [
            (
                LEFT,
                cycle
                    .inflate_at
                    .checked_sub(lead)
                    .unwrap_or(cycle.inflate_at),
                cycle.inflate_at + zoom,
                "the inflation",
            ),
            (
                LEFT + PANEL_WIDTH + GAP_X,
                cycle
                    .inflate_at
                    .checked_sub(Duration::from_secs(2))
                    .unwrap_or(cycle.inflate_at),
                end,
                "inflation, rest, deflation",
            ),
        ];
        for (left, from, to, title) in windows {
            let panel = Panel {
                left,
                top,
                from,
                to,
                origin: cycle.inflate_at,
                highest,
            };
            let title = format!("{} path: {title}", cycle.path.name());
            text(&mut svg, left, top - 8.0, &title, "start");
            panel.axes(&mut svg);
            panel.line(
                &mut svg,
                TARGET,
                &target_line(cycle, mem_mib, target_mib, end),
            );
            let memory: Vec<_> = cycle
                .samples
                .iter()
                .map(|sample| (sample.at, sample.bytes >> 20))
                .collect();
            panel.line(&mut svg, MEMORY, &memory);
        }
    }
    svg.push_str("</svg>\n");
    svg
}

/// The target as a staircase.
fn target_line(cycle: &Cycle, mem_mib: u64, target_mib: u64, end: Instant) -> Vec<(Instant, u64)> {
    let start = cycle
        .samples
        .first()
        .map_or(cycle.inflate_at, |sample| sample.at);
    vec![
        (start, mem_mib),
        (cycle.inflate_at, mem_mib),
        (cycle.inflate_at, target_mib),
        (cycle.deflate_at, target_mib),
        (cycle.deflate_at, mem_mib),
        (end.max(cycle.deflate_at), mem_mib),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::cycle::Path;
    use super::super::sampler::Sample;
    use super::*;

    #[test]
    fn both_lines_are_drawn_for_each_path() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let cycle = |path| Cycle {
            path,
            inflate: Duration::from_millis(50),
            inflate_cpu: Duration::ZERO,
            deflate: Duration::ZERO,
            deflate_cpu: Duration::ZERO,
            kicks: 8,
            ranges: 8,
            rss_before: 0,
            rss_after: 0,
            rss_after_30s: 0,
            rss_deflated: 0,
            idle_wakeups: 0,
            idle_percent: 0.0,
            data_ok: true,
            samples: [(0, 8200), (3000, 8200), (3050, 1030), (9000, 1040)]
                .map(|(millis, mib)| Sample {
                    at: at(millis),
                    bytes: mib << 20,
                })
                .to_vec(),
            inflate_at: at(3000),
            deflate_at: at(8000),
        };
        let svg = draw(8192, 1024, &[cycle(Path::Reporting), cycle(Path::Pfn)]);
        assert_eq!(svg.matches("<polyline").count(), 8);
        assert_eq!(svg.matches("points=\"\"").count(), 0);
        assert!(svg.contains("pfn path") && svg.ends_with("</svg>\n"));
        assert!(!svg.contains("NaN") && !svg.contains(",inf"));
    }
}
