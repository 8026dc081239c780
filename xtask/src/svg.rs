//! Memory over time as a picture.
//!
//! An SVG of some lines and words is written faster than a chart crate is compiled.

use std::fmt::Write as _;
use std::time::Instant;

/// Size of a panel, axes without labels.
pub(crate) const PANEL_WIDTH: f64 = 420.0;
pub(crate) const PANEL_HEIGHT: f64 = 200.0;

/// The beginning of a picture of this size.
pub(crate) fn open(width: f64, height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    )
}

/// A window of time, drawn somewhere.
#[derive(Debug)]
pub(crate) struct Panel {
    pub(crate) left: f64,
    pub(crate) top: f64,
    pub(crate) from: Instant,
    pub(crate) to: Instant,
    pub(crate) origin: Instant,
    pub(crate) highest: u64,
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

    /// Its frame, ticks and their labels.
    pub(crate) fn axes(&self, svg: &mut String) {
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
    pub(crate) fn line(&self, svg: &mut String, color: &str, points: &[(Instant, u64)]) {
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

/// Words at a place, `anchor` as SVG calls it.
pub(crate) fn text(svg: &mut String, x: f64, y: f64, words: &str, anchor: &str) {
    element(
        svg,
        &format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>"),
    );
}

/// Any element.
pub(crate) fn element(svg: &mut String, markup: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(svg, "{markup}");
}

#[cfg(test)]
mod tests {
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
}
