//! `cargo xtask bench alloc`: `buddy-alloc` beside its peers.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use serde_json::Value;

use crate::arguments::parse_svg;
use crate::ui::Table;
use crate::workspace::Workspace;

/// The allocator that the ratios refer to.
const OURS: &str = "ours (cached)";

/// Columns of the table of times: head, test, threads.
const TESTS: [(&str, &str, u64); 9] = [
    ("fill same", "fill_same", 1),
    ("fill random", "fill_random", 1),
    ("pair", "pair", 1),
    ("pair 2t", "pair", 2),
    ("steady", "steady", 1),
    ("steady 2t", "steady", 2),
    ("order 9", "order9", 1),
    ("inflate", "inflate", 1),
    ("deflate", "deflate", 1),
];

/// Time, metadata and balloon quality of `buddy-alloc` and its peers, all in one run.
///
/// Takes about ten minutes; a quiet machine matters. Rows go to target/xtask/bench-alloc.json.
#[derive(Debug, clap::Parser)]
#[command(name = "cargo xtask bench alloc")]
struct Args {
    /// Draw time per operation against memory size, 1 GiB to 1 TiB of simulated frames.
    #[arg(long, value_name = "FILE.svg", value_parser = parse_svg)]
    plot: Option<PathBuf>,
    /// A sixteenth of the memory and one pass: to see that it works, not to quote.
    #[arg(long)]
    quick: bool,
    /// How often each test is run, in passes over all allocators.
    #[arg(long)]
    passes: Option<usize>,
    /// Only these tests: pair, steady, inflate and so on.
    #[arg(long, value_delimiter = ',')]
    tests: Vec<String>,
    /// Only allocators whose name contains one of these words (`flat`: the sizes).
    only: Vec<String>,
}

/// Builds and runs the bench, keeps its rows, prints them as tables.
pub(crate) fn run(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    let name = std::iter::once("alloc".to_owned());
    let args = Args::parse_from(name.chain(arguments.iter().cloned()));
    let mut words = ["--package", "bench-alloc", "--"]
        .map(str::to_owned)
        .to_vec();
    words.extend(args.quick.then(|| "--quick".to_owned()));
    words.extend(args.passes.map(|count| format!("--passes={count}")));
    words.extend((!args.tests.is_empty()).then(|| format!("--tests={}", args.tests.join(","))));
    words.extend(args.only);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let rows: Vec<Value> = super::rows(workspace, &words)?;
    let file = super::keep(workspace, "bench-alloc.json", &rows)?;
    print!("{}", tables(&rows));
    println!("\nrows: {}", file.display());
    if let Some(plot) = args.plot {
        std::fs::write(&plot, draw(&rows))
            .with_context(|| format!("writing {}", plot.display()))?;
        println!("plot: {}", plot.display());
    }
    Ok(())
}

fn text<'a>(row: &'a Value, key: &str) -> &'a str {
    row.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn number(row: &Value, key: &str) -> Option<f64> {
    row.get(key).and_then(Value::as_f64)
}

/// The names of allocators, in the order of the rows.
fn names(rows: &[Value]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for row in rows {
        let name = text(row, "allocator");
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn timing<'a>(rows: &'a [Value], name: &str, test: &str, threads: u64) -> Option<&'a Value> {
    rows.iter().find(|row| {
        text(row, "allocator") == name
            && text(row, "test") == test
            && row.get("threads").and_then(Value::as_u64) == Some(threads)
    })
}

fn tables(rows: &[Value]) -> String {
    let mut times = Table::new(
        [
            ["ns per operation"].as_slice(),
            &TESTS.map(|(head, ..)| head),
        ]
        .concat()
        .try_into()
        .unwrap_or(["ns per operation"; TESTS.len() + 1]),
    );
    let mut quality = Table::new([
        "",
        "metadata %",
        "cycle share",
        "footprint",
        "touches frames",
        "bad frees refused",
    ]);
    for name in names(rows) {
        let cells = TESTS.map(|(_, test, threads)| {
            let Some(row) = timing(rows, name, test, threads) else {
                return "-".to_owned();
            };
            let ns = number(row, "ns_per_op").unwrap_or_default();
            let stopped = if row.get("stopped").is_some() {
                ">"
            } else {
                ""
            };
            match timing(rows, OURS, test, threads).and_then(|own| number(own, "ns_per_op")) {
                Some(own) if own > 0.0 => format!("{stopped}{ns:.1} x{:.2}", ns / own),
                _ => format!("{stopped}{ns:.1}"),
            }
        });
        times.row(std::iter::once(name.to_owned()).chain(cells).collect());
        let found = rows
            .iter()
            .find(|row| text(row, "allocator") == name && row.get("metadata_percent").is_some());
        if let Some(row) = found {
            let cell = |key, digits| {
                number(row, key).map_or("-".to_owned(), |value| format!("{value:.digits$}"))
            };
            let touches = row.get("touches_free_frames").and_then(Value::as_bool);
            quality.row(vec![
                name.to_owned(),
                cell("metadata_percent", 4),
                cell("cycle_share", 3),
                cell("footprint_ratio", 3),
                if touches == Some(true) { "yes" } else { "no" }.to_owned(),
                text(row, "refuses").to_owned(),
            ]);
        }
    }
    let mut all = format!(
        "{}\nxN: time over that of {OURS}; >: stopped at its limit of 6 s, mean so far\n\n{}",
        times.render(),
        quality.render()
    );
    for row in rows {
        let test = text(row, "test");
        if let Some(ns) = number(row, "ns_per_op").filter(|_| test.ends_with("_batch")) {
            let _ = writeln!(
                all,
                "{}, {test}: {ns:.2} ns per frame",
                text(row, "allocator")
            );
        }
        if let Some(gib) = number(row, "gib") {
            let ns = number(row, "ns_per_op").unwrap_or_default();
            let _ = writeln!(all, "{test} at {gib} GiB: {ns:.1} ns");
        }
        if let (Some(kept), Some(whole)) = (number(row, "kept"), number(row, "whole_blocks")) {
            let of = number(row, "of").unwrap_or_default();
            let _ = writeln!(
                all,
                "{kept} blocks kept for breaking: {whole} of {of} whole"
            );
        }
    }
    all
}

const COLORS: [&str; 4] = ["#d1242f", "#1f6feb", "#1a7f37", "#9a6700"];

/// Time per operation over the size of memory, one line a test.
fn draw(rows: &[Value]) -> String {
    const WIDTH: f64 = 560.0;
    const HEIGHT: f64 = 260.0;
    let points: Vec<(&str, f64, f64)> = rows
        .iter()
        .filter_map(|row| {
            Some((
                text(row, "test"),
                number(row, "gib")?,
                number(row, "ns_per_op")?,
            ))
        })
        .collect();
    let highest = points.iter().map(|&(.., ns)| ns).fold(1.0, f64::max) * 1.1;
    let x = |gib: f64| 60.0 + gib.max(1.0).log2() / 10.0 * WIDTH;
    let y = |ns: f64| 40.0 + HEIGHT - ns / highest * HEIGHT;
    let mut svg = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 680 420\" width=\"680\" \
         height=\"420\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"60\" y=\"24\">buddy-alloc: ns per operation over the size of memory</text>\n",
    );
    let mut line = |text: String| svg.push_str(&(text + "\n"));
    for step in 0..=4 {
        let ns = highest * f64::from(step) / 4.0;
        line(format!(
            "<path d=\"M60 {0:.1}H620\" stroke=\"#ddd\"/><text x=\"52\" y=\"{0:.1}\" text-anchor=\"end\">{ns:.0}</text>",
            y(ns)
        ));
    }
    for gib in [1.0, 4.0, 16.0, 64.0, 256.0, 1024.0] {
        line(format!(
            "<text x=\"{:.1}\" y=\"320\" text-anchor=\"middle\">{gib} GiB</text>",
            x(gib)
        ));
    }
    let labels = [
        (
            "flat_worst",
            "worst case: one frame split from and merged into 1 GiB",
        ),
        ("flat_steady", "random blocks of orders 0 to 9"),
        ("flat_pair", "one frame, back and forth"),
        ("flat_take", "balloon by ranges, per frame"),
    ];
    for (place, ((test, label), color)) in labels.into_iter().zip(COLORS).enumerate() {
        let path: Vec<String> = points
            .iter()
            .filter(|&&(found, ..)| found == test)
            .map(|&(_, gib, ns)| format!("{:.1} {:.1}", x(gib), y(ns)))
            .collect();
        if !path.is_empty() {
            line(format!(
                "<path d=\"M{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"/>",
                path.join("L")
            ));
        }
        let top = 345 + place * 18;
        line(format!(
            "<rect x=\"60\" y=\"{top}\" width=\"14\" height=\"4\" fill=\"{color}\"/><text x=\"80\" y=\"{}\">{label}</text>",
            top + 7
        ));
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rows_become_a_table_with_ratios() {
        let rows = [
            json!({"allocator": OURS, "test": "pair", "threads": 1, "ns_per_op": 4.0}),
            json!({"allocator": "peer", "test": "pair", "threads": 1, "ns_per_op": 6.0, "stopped": true}),
            json!({"allocator": "peer", "metadata_percent": 0.25, "cycle_share": null,
                   "footprint_ratio": 1.5, "touches_free_frames": true, "refuses": "double frees"}),
        ];
        let text = tables(&rows);
        assert!(text.contains(">6.0 x1.50"), "{text}");
        assert!(text.contains("0.2500"), "{text}");
        assert!(text.contains("double frees"), "{text}");
    }

    #[test]
    fn the_plot_has_a_line_per_test() {
        let rows = [1, 1024].map(|gib| json!({"test": "flat_worst", "gib": gib, "ns_per_op": 50}));
        assert!(draw(&rows).contains("L620"));
    }
}
