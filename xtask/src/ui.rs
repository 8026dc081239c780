//! What a person sees while xtask works: spinners, bars, and one kind of table.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A spinner with a title and the latest news behind it. Silent where no terminal listens.
pub(crate) fn spinner(title: &str) -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    styled(&bar, "{spinner} {prefix} {elapsed:.dim} {wide_msg:.dim}");
    bar.set_prefix(title.to_owned());
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// A bar from 0 to `length`, for work whose end is known.
pub(crate) fn bar(title: &str, length: u64) -> ProgressBar {
    let bar = ProgressBar::new(length);
    styled(
        &bar,
        "  {prefix:<26} [{bar:40}] {percent:>3} % {elapsed:.dim} {msg:.dim}",
    );
    bar.set_prefix(title.to_owned());
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

fn styled(bar: &ProgressBar, template: &str) {
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
}

/// Ends a bar and leaves one line in its place, on a terminal and in a log alike.
pub(crate) fn finish(bar: &ProgressBar, line: &str) {
    bar.finish_and_clear();
    println!("{line}");
}

/// Whether somebody watches.
pub(crate) fn is_terminal() -> bool {
    std::io::stderr().is_terminal()
}

/// A table with a header. Columns are right-aligned but for the first, and the last if it is prose.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    prose: bool,
}

impl Table {
    /// A table with these column heads.
    pub(crate) fn new<const N: usize>(head: [&str; N]) -> Self {
        Self {
            rows: vec![head.map(str::to_owned).to_vec()],
            prose: false,
        }
    }

    /// The last column is prose.
    pub(crate) fn ending_in_prose(mut self) -> Self {
        self.prose = true;
        self
    }

    /// Adds a row, in the order of the head.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The table as text, one line a row.
    pub(crate) fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let lengths = self
                .rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count());
            lengths.max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for (index, row) in self.rows.iter().enumerate() {
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                // Writing to a String cannot fail.
                let _ = match column {
                    0 => write!(text, "{cell:<width$}"),
                    last if self.prose && last + 1 == columns => write!(text, "  {cell}"),
                    _ => write!(text, "  {cell:>width$}"),
                };
            }
            text.push('\n');
            if index == 0 {
                let rule = widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1);
                text.push_str(&"-".repeat(rule));
                text.push('\n');
            }
        }
        text
    }
}

/// A duration as people read it: `0.42 s`, `3 min 05 s`.
pub(crate) fn seconds(duration: Duration) -> String {
    let whole = duration.as_secs();
    if whole < 60 {
        format!("{:.1} s", duration.as_secs_f64())
    } else {
        format!("{} min {:02} s", whole / 60, whole % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(["stage", "time", "what"]).ending_in_prose();
        table.row(["fmt", "0.5 s", "form"].map(str::to_owned).to_vec());
        table.row(["downstream", "12.0 s", "use"].map(str::to_owned).to_vec());
        let expected = "stage         time  what\n------------------------\n\
                        fmt          0.5 s  form\ndownstream  12.0 s  use\n";
        assert_eq!(table.render(), expected);
    }

    #[test]
    fn durations_read_well() {
        assert_eq!(seconds(Duration::from_millis(420)), "0.4 s");
        assert_eq!(seconds(Duration::from_secs(185)), "3 min 05 s");
    }
}
