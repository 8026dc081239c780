//! The demo as a picture: host memory and target over time, one row a path.
//!
//! An SVG of two lines and some text is written faster than a chart crate is compiled.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use super::cycle::Cycle;

const PANEL_WIDTH: f64 = 420.0;
const PANEL_HEIGHT: f64 = 200.0;
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
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
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

/// A window of time, drawn somewhere.
#[derive(Debug)]
struct Panel {
    left: f64,
    top: f64,
    from: Instant,
    to: Instant,
    origin: Instant,
    highest: u64,
}

impl Panel {
    fn x(&self, at: Instant) -> f64 {
        let span = (self.to - self.from).as_secs_f64().max(1e-3);
        let within = at.saturating_duration_since(self.from).as_secs_f64();
        self.left + PANEL_WIDTH * (within / span).min(1.0)
    }

    fn y(&self, mib: u64) -> f64 {
        self.top + PANEL_HEIGHT * (1.0 - mib as f64 / (self.highest as f64 * 1.05))
    }

    fn axes(&self, svg: &mut String) {
        let (left, top, bottom, right) = (
            self.left,
            self.top,
            self.top + PANEL_HEIGHT,
            self.left + PANEL_WIDTH,
        );
        element(
            svg,
            &format!(
                "<path d=\"M{left:.1} {top:.1}V{bottom:.1}H{right:.1}\" fill=\"none\" stroke=\"#57606a\"/>"
            ),
        );
        // Memory comes in powers of two, and so do its ticks.
        let step = (self.highest.next_power_of_two() / 8).max(1);
        for tick in (0..=self.highest).step_by(usize::try_from(step).unwrap_or(usize::MAX)) {
            let y = self.y(tick);
            element(
                svg,
                &format!("<path d=\"M{left:.1} {y:.1}H{right:.1}\" stroke=\"#eaeef2\"/>"),
            );
            text(svg, left - 6.0, y + 4.0, &tick.to_string(), "end");
        }
        let before = (self.origin - self.from).as_secs_f64();
        let after = self.to.saturating_duration_since(self.origin).as_secs_f64();
        let step = nice_step((before + after) / 6.0);
        let first = -(before / step).floor();
        for tick in (0..)
            .map(|index| (first + f64::from(index)) * step)
            .take_while(|&second| second <= after)
        {
            let x = left + PANEL_WIDTH * (tick + before) / (before + after).max(1e-3);
            element(
                svg,
                &format!("<path d=\"M{x:.1} {bottom:.1}v4\" stroke=\"#57606a\"/>"),
            );
            let digits = if step < 0.1 {
                2
            } else {
                usize::from(step < 1.0)
            };
            text(
                svg,
                x,
                bottom + 17.0,
                &format!("{:.digits$}", tick + 0.0),
                "middle",
            );
        }
        text(
            svg,
            right,
            bottom + 34.0,
            "seconds after the request; memory in MiB",
            "end",
        );
    }

    /// A line through those points that lie in the window, held at the ends.
    fn line(&self, svg: &mut String, color: &str, points: &[(Instant, u64)]) {
        let before = points
            .iter()
            .rfind(|(at, _)| *at < self.from)
            .map(|&(_, mib)| (self.from, mib));
        let inside = points
            .iter()
            .copied()
            .filter(|(at, _)| (self.from..=self.to).contains(at));
        let after = points.iter().find(|(at, _)| *at > self.to).map(|_| ());
        let mut shown: Vec<(Instant, u64)> = before.into_iter().chain(inside).collect();
        if let (Some(()), Some(&(_, mib))) = (after, shown.last()) {
            shown.push((self.to, mib));
        }
        let coordinates: Vec<String> = shown
            .iter()
            .map(|&(at, mib)| format!("{:.1},{:.1}", self.x(at), self.y(mib)))
            .collect();
        element(
            svg,
            &format!(
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"1.6\"/>",
                coordinates.join(" ")
            ),
        );
    }
}

/// 1, 2 or 5 times a power of ten, at least `rough`.
fn nice_step(rough: f64) -> f64 {
    let power = 10f64.powf(rough.max(1e-6).log10().floor());
    [1.0, 2.0, 5.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|&step| step >= rough)
        .unwrap_or(10.0 * power)
}

fn text(svg: &mut String, x: f64, y: f64, words: &str, anchor: &str) {
    element(
        svg,
        &format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>"),
    );
}

fn element(svg: &mut String, markup: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(svg, "{markup}");
}

#[cfg(test)]
mod tests {
    use super::super::cycle::Path;
    use super::super::sampler::Sample;
    use super::*;

    #[test]
    fn steps_are_round() {
        for (rough, step) in [
            (0.03, 0.05),
            (0.7, 1.0),
            (1.0, 1.0),
            (1.1, 2.0),
            (9.0, 10.0),
            (2048.0, 5000.0),
        ] {
            assert!((nice_step(rough) - step).abs() < 1e-9, "{rough}");
        }
    }

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
